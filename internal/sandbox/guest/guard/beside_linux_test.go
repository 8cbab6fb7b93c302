package guard

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"unsafe"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/guard/rules"
	"github.com/bulkhead-dev/bulkhead/internal/seccomp"
	"golang.org/x/sys/unix"
)

const takenOver = "BULKHEAD_TEST_TAKEN_OVER"

func TestMain(m *testing.M) {
	if base := os.Getenv(takenOver); base != "" {
		os.Exit(takenOverKernel(base))
	}
	os.Exit(m.Run())
}

// takenOverKernel is a sentry that somebody has taken over: it makes calls that no
// sentry makes.
func takenOverKernel(base string) int {
	runtime.LockOSThread()
	ws, _ := unix.Open(base+"/ws", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	out, _ := unix.Open(base+"/../out", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	victim, _ := unix.Open(base+"/../out/victim", unix.O_RDONLY, 0)
	mine, _ := unix.Open(base+"/ws/mine", unix.O_RDONLY, 0)
	fds, _ := unix.Open("/proc/self/fd", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	proc, err := unix.Open("/proc/self", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	sock, serr := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil || serr != nil || unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != nil {
		return 3
	}
	listener, err := seccomp.Listen()
	if err != nil || unix.Sendmsg(3, []byte{0}, unix.UnixRights(listener), nil, 0) != nil {
		return 4
	}
	unix.Close(listener)
	if _, err := unix.Read(3, make([]byte, 1)); err != nil {
		return 5
	}
	said := map[string]string{}
	say := func(what string, err error) {
		said[what] = "done"
		if err != nil {
			said[what] = err.Error()
		}
	}
	open := func(what string, at int, name string, flags int) {
		fd, err := unix.Openat(at, name, flags, 0o644)
		if err == nil {
			unix.Write(fd, []byte("taken"))
			unix.Close(fd)
		}
		say(what, err)
	}
	const make = unix.O_CREAT | unix.O_WRONLY
	open("a name", ws, "new", make|unix.O_NOFOLLOW)
	open("a protected name", ws, ".envrc", make)
	open("a path", ws, "sub/new", make)
	open("a path out", ws, "../../out/new", make)
	open("an absolute path", unix.AT_FDCWD, base+"/ws/new2", make)
	open("a relative path", unix.AT_FDCWD, "new", make)
	open("another folder", out, "new", make)
	open("another folder's file", out, "victim", unix.O_WRONLY|unix.O_TRUNC)
	open("a descriptor of its own", fds, strconv.Itoa(mine), unix.O_WRONLY)
	open("a descriptor outside", fds, strconv.Itoa(victim), unix.O_WRONLY)
	open("its memory", proc, "mem", unix.O_RDWR)
	say("link", unix.Symlinkat(base+"/../out", ws, "link"))
	say("link to a file", unix.Symlinkat(base+"/../out/victim", ws, "filelink"))
	open("through a link", ws, "filelink", unix.O_WRONLY)
	open("below a link", ws, "link/new", make)
	say("mkdir ..", unix.Mkdirat(ws, "..", 0o755))
	say("mkdir outside", unix.Mkdirat(out, "d", 0o755))
	say("remove outside", unix.Unlinkat(out, "victim", 0))
	say("move out", unix.Renameat(ws, "mine", out, "mine"))
	say("move in", unix.Renameat(out, "victim", ws, "victim"))
	say("link in", unix.Linkat(out, "victim", ws, "hard", 0))
	say("truncate", unix.Truncate(base+"/ws/mine", 0))
	say("bind", unix.Bind(sock, &unix.SockaddrUnix{Name: base + "/ws/sock"}))
	prog := unix.SockFprog{Len: 1, Filter: &unix.SockFilter{Code: unix.BPF_RET, K: unix.SECCOMP_RET_USER_NOTIF}}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog)))
	say("listen", errno)
	json.NewEncoder(os.Stdout).Encode(said)
	return 0
}

// nobody is a Host that wants no word.
type nobody struct{}

func (nobody) Refused(Refusal)                         {}
func (nobody) Keep(string, bool, bool) (*Spool, error) { return nil, nil }
func (nobody) Made(string)                             {}
func (nobody) Opened(string)                           {}

// TestTakenOverKernel: beside a foreign kernel only names in the sandbox's own tree
// count, whatever that kernel says.
func TestTakenOverKernel(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	for _, d := range []string{"base/ws/sub", "out"} {
		os.MkdirAll(filepath.Join(dir, d), 0o755)
	}
	for _, f := range []string{"base/ws/mine", "out/victim"} {
		os.WriteFile(filepath.Join(dir, f), []byte("was"), 0o644)
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(ends[1]), "socket")
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{takenOver + "=" + base}
	cmd.Dir, cmd.Stderr = filepath.Join(base, "ws"), os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	defer cmd.Wait()
	defer unix.Close(ends[0])
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(ends[0], make([]byte, 1), rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		t.Fatalf("no listener: %v", err)
	}
	fds, _ := unix.ParseUnixRights(&messages[0])
	g, err := Start(Setup{Folders: []Folder{{Path: "/ws"}}, Protected: []rules.Protected{{Path: ".envrc", Reason: "run"}}, Base: Bytes(base)},
		fds[0], nobody{}, func(err error) { t.Log(err) })
	if err != nil {
		t.Fatal(err)
	}
	g.Seal()
	unix.Write(ends[0], []byte{0})
	text, _ := io.ReadAll(out)
	var said map[string]string
	if err := json.Unmarshal(text, &said); err != nil {
		t.Fatalf("%v: %q", err, text)
	}
	const no, forbidden = "permission denied", "operation not permitted"
	for what, want := range map[string]string{
		"a name": "done", "a protected name": forbidden, "a path": no, "a path out": no, "an absolute path": no, "a relative path": "done",
		"another folder": no, "another folder's file": no, "a descriptor of its own": "done", "a descriptor outside": no, "its memory": no,
		"link": "done", "link to a file": "done", "through a link": no, "below a link": no, "mkdir ..": no, "mkdir outside": no, "remove outside": no,
		"move out": no, "move in": no, "link in": no, "truncate": no, "bind": no, "listen": "invalid argument",
	} {
		if said[what] != want {
			t.Errorf("%s: %q, want %q", what, said[what], want)
		}
	}
	victim, _ := os.ReadFile(filepath.Join(dir, "out/victim"))
	if names, _ := os.ReadDir(filepath.Join(dir, "out")); string(victim) != "was" || len(names) != 1 {
		t.Errorf("outside: %v, and the victim is %q", names, victim)
	}
	if mine, _ := os.ReadFile(filepath.Join(base, "ws/mine")); string(mine) != "taken" {
		t.Errorf("inside: %q", mine)
	}
}
