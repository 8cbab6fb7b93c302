package unpack

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
)

func init() { childproc.Register("unpackerprobe", probe) }

// probe tries, in the unpacker's place, what an unpacker that was taken over would.
func probe() int {
	outside := os.Args[1]
	if err := confine(folderFD); err != nil {
		fmt.Println("confine", err)
		return 1
	}
	try := func(name string, err error) { fmt.Printf("%s=%v\n", name, err == nil) }
	_, err := os.ReadFile("/etc/passwd")
	try("read", err)
	try("write", os.WriteFile(outside, []byte("x"), 0o600))
	_, err = unix.Openat(folderFD, "../outside", unix.O_WRONLY|unix.O_CREAT, 0o600)
	try("upwards", err)
	_, err = net.Dial("tcp", os.Args[2])
	try("connect", err)
	_, err = net.Listen("tcp", "127.0.0.1:0")
	try("listen", err)
	_, err = net.Listen("unix", "@bulkhead-unpacker-probe")
	try("unix", err)
	try("exec", exec.Command("/bin/true").Run())
	try("device", unix.Mknodat(folderFD, "null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	try("pipe", unix.Mkfifoat(folderFD, "pipe", 0o600))
	try("owner", unix.Fchownat(folderFD, ".", 65534, 65534, 0))
	try("attribute", unix.Fsetxattr(folderFD, "user.x", []byte("x"), 0))
	try("signal", unix.Kill(os.Getppid(), 0))
	try("namespace", unix.Unshare(unix.CLONE_NEWUSER))
	fd, err := unix.Openat(folderFD, "inside", unix.O_WRONLY|unix.O_CREAT, 0o600)
	try("inside", err)
	unix.Close(fd)
	return 0
}

// TestUnpackerTakenOver: nothing but the folder is left to it.
func TestUnpackerTakenOver(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var out bytes.Buffer
	cmd := &exec.Cmd{Path: childproc.Self(), Args: []string{childproc.Argv0("unpackerprobe"), filepath.Join(dir, "outside"), l.Addr().String()},
		Env: []string{"GODEBUG=containermaxprocs=0,updatemaxprocs=0"}, Stdout: &out, Stderr: &out, ExtraFiles: []*os.File{nil, nil, f}}
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	for line := range strings.Lines(out.String()) {
		name, ok, _ := strings.Cut(strings.TrimSpace(line), "=")
		if (ok == "true") != (name == "inside") {
			t.Errorf("%s: %s", name, ok)
		}
	}
	if strings.Count(out.String(), "\n") != 14 {
		t.Errorf("it said %q", &out)
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("outside: %v", list)
	}
}
