package abuse

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Names of the stand-ins, as in the program.
const (
	openHost  = "open.abuse.example"
	plainHost = "plain.abuse.example"
	quietHost = "quiet.abuse.example"
	modelHost = "api.anthropic.com"
)

var shared string

func build() (string, error) {
	dir, err := os.MkdirTemp("", "bulkhead-abuse-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	for _, p := range []string{"./cmd/bulkhead", "./e2e/abuse/program"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "bin")+"/", p)
		cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("building %s: %w\n%s", p, err, out)
		}
	}
	return dir, nil
}

// user says as whom a session runs, and whether without /dev/net/tun. The zero
// value is the test's own, with what this host has.
type user struct {
	account *osuser.User
	relay   bool
}

// otherUser is an ordinary user besides root, and the same user for who is not root.
func otherUser(t *testing.T) user {
	if os.Getuid() != 0 {
		t.Logf("uid %d cannot start another user's session: both are his; not proven in this run: the same between two users", os.Getuid())
		return user{}
	}
	name := os.Getenv("BULKHEAD_TEST_USER")
	if name == "" {
		name = "bulkhead-test"
	}
	u, err := osuser.Lookup(name)
	if err != nil {
		t.Fatalf("no ordinary user: %v\nmake one with scripts/install-deps test, or name one in BULKHEAD_TEST_USER", err)
	}
	return user{account: u}
}

// command wraps argv so that it runs as u; its process is argv's in the end.
func (u user) command(argv ...string) []string {
	if u.account != nil {
		argv = append([]string{"setpriv", "--reuid", u.account.Uid, "--regid", u.account.Gid, "--clear-groups", "--"}, argv...)
	}
	if u.relay {
		// Root hides the device in a private mount namespace.
		argv = append([]string{"unshare", "--mount", "--propagation", "private", "--", "sh", "-ec", `mount -t tmpfs -o mode=755 none /dev/net; exec "$@"`, "sh"}, argv...)
	}
	return argv
}

// session is a running `bulkhead run`.
type session struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	out    *bufio.Scanner
	events string
	errors *safeBuffer
	once   sync.Once
	ended  chan struct{}
	works  chan struct{} // closed at the first request that succeeded
}

// start runs the program in a session with this policy.
func start(t *testing.T, u user, name, policy string, env []string, args ...string) *session {
	t.Helper()
	home := filepath.Join(t.TempDir(), name)
	ws := filepath.Join(home, "ws")
	if err := os.MkdirAll(ws, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(home); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755)
	}
	copyFile(t, filepath.Join(ws, "program"), program())
	file := filepath.Join(home, "policy.yaml")
	if err := os.WriteFile(file, []byte(policy), 0o644); err != nil {
		t.Fatal(err)
	}
	if u.account != nil {
		uid, _ := strconv.Atoi(u.account.Uid)
		gid, _ := strconv.Atoi(u.account.Gid)
		for _, p := range []string{home, ws, file} {
			if err := os.Chown(p, uid, gid); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := &session{events: filepath.Join(home, "events.jsonl"), errors: &safeBuffer{}, ended: make(chan struct{}), works: make(chan struct{})}
	argv := u.command(append([]string{bulkhead(), "run", "--policy", file, "--workspace", ws, "--events", s.events, "--", filepath.Join(ws, "program")}, args...)...)
	s.cmd = exec.Command(argv[0], argv[1:]...)
	s.cmd.Dir, s.cmd.Stderr = ws, s.errors
	s.cmd.Env = append([]string{"PATH=" + filepath.Dir(bulkhead()) + ":" + os.Getenv("PATH"), "HOME=" + home, "LANG=C.UTF-8"}, env...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := s.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.stdin, s.out = in, bufio.NewScanner(out)
	return s
}

// stop lets the session end with its input, and makes it end if it does not.
func (s *session) stop() {
	s.once.Do(func() {
		s.stdin.Close()
		timer := time.AfterFunc(patience, func() { s.cmd.Process.Kill() })
		<-s.ended // its output has been read
		s.cmd.Wait()
		timer.Stop()
	})
}

// end is stop for a session that is to end well.
func (s *session) end(t *testing.T) {
	t.Helper()
	s.stop()
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the session ended with %d; it said:\n%s", code, s.said())
	}
}

// atWork waits until the measured session's requests succeed: what it did not
// do before says nothing about the abused one.
func (s *session) atWork(t *testing.T) {
	t.Helper()
	select {
	case <-s.works:
		return
	case <-s.ended:
	case <-time.After(patience):
	}
	log, _ := os.ReadFile(s.events)
	t.Fatalf("the measured session does not get to work; it said:\n%sits events:\n%s", s.said(), log[:min(len(log), 8<<10)])
}

func (s *session) said() string { return s.errors.String() }

// gateway waits for the session's gateway and returns its process.
func (s *session) gateway(t *testing.T) int {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case <-s.ended:
			return 0
		default:
		}
		all, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, f := range all {
			stat, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			_, rest, _ := strings.Cut(string(stat), ") ")
			argv, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
			argv0, _, _ := bytes.Cut(argv, []byte{0})
			if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == strconv.Itoa(s.cmd.Process.Pid) && bytes.HasSuffix(argv0, []byte("gateway")) {
				pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
				return pid
			}
		}
	}
	t.Fatalf("the session has no gateway; it said:\n%s", s.said())
	return 0
}

// upstream is a program serve.
type upstream struct {
	TLS, Plain, CA string
	file           string // with CA
}

// serve starts an upstream. It stands for another machine, so it gives way to
// everything that is measured.
func serve(t *testing.T, niceness int, hosts ...string) upstream {
	t.Helper()
	cmd := exec.Command("nice", append([]string{"-n", strconv.Itoa(niceness), program(), "serve"}, hosts...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	var u upstream
	if err := json.NewDecoder(out).Decode(&u); err != nil {
		t.Fatal(err)
	}
	u.file = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(u.file, []byte(u.CA), 0o644); err != nil {
		t.Fatal(err)
	}
	os.Chmod(filepath.Dir(u.file), 0o755)
	os.Chmod(filepath.Dir(filepath.Dir(u.file)), 0o755)
	return u
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// visit connects to the published port, now and then, until it is closed.
func visit(port int) chan struct{} {
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
			}
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				continue
			}
			c.SetDeadline(time.Now().Add(50 * time.Millisecond))
			io.CopyN(io.Discard, c, 1<<20)
			c.Close()
		}
	}()
	return done
}

func copyFile(t *testing.T, dst, src string) {
	t.Helper()
	data, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dst, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.b.Len() < 64<<10 {
		s.b.Write(p)
	}
	return len(p), nil
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
