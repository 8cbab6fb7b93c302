package sandboxtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"golang.org/x/sys/unix"
)

// Probe is the path of the test binary inside, under the name that makes it
// the probe.
const Probe = "/opt/bulkhead-probe"

// binary is where every backend puts our binary.
const binary = "/run/bulkhead/bulkhead"

const asUserEnv = "BULKHEAD_TEST_AS_USER"

// Main is the TestMain of a backend's tests.
func Main(m *testing.M) {
	childproc.Dispatch()
	os.Exit(m.Run())
}

// EachUser runs the test as this user and, for root, once more as an ordinary
// user in a process of its own.
func EachUser(t *testing.T, test func(*testing.T)) {
	if os.Geteuid() != 0 {
		test(t)
		return
	}
	t.Run("as root", test)
	t.Run("as user", func(t *testing.T) {
		id := 65534
		if u, err := user.Lookup("bh"); err == nil {
			id, _ = strconv.Atoi(u.Uid)
		}
		dir, err := os.MkdirTemp("", "bulkhead-test-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		bin := filepath.Join(dir, "test")
		copyFile(t, bin, 0o755)
		tmp := filepath.Join(dir, "tmp")
		for _, err := range []error{os.Chmod(dir, 0o755), os.Mkdir(tmp, 0o700), os.Chown(tmp, id, id)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		top, _, _ := strings.Cut(t.Name(), "/")
		args := []string{"-test.run", "^" + regexp.QuoteMeta(top) + "$", "-test.timeout", "5m"}
		if testing.Verbose() {
			args = append(args, "-test.v")
		}
		cmd := exec.Command(bin, args...)
		cmd.Dir = tmp
		cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "HOME="+tmp, asUserEnv+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(id), Gid: uint32(id)}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("as uid %d: %v\n%s", id, err, out)
		} else if testing.Verbose() {
			t.Logf("as uid %d:\n%s", id, out)
		}
	})
}

func copyFile(t *testing.T, to string, mode os.FileMode) {
	t.Helper()
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, mode)
	if err == nil {
		_, err = io.Copy(out, in)
	}
	if err == nil {
		err = out.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Spec is a sandbox with the host's programs and the given mounts on top.
func Spec(network sandbox.NetworkKind, more ...vocabulary.Mount) sandbox.Spec {
	mounts := []vocabulary.Mount{{Kind: vocabulary.BindRO, Source: "/usr", Target: "/usr", Why: "system"}}
	for _, d := range []string{"/bin", "/sbin", "/lib", "/lib64", "/lib32", "/libx32"} {
		st, err := os.Lstat(d)
		if err != nil {
			continue
		}
		if st.Mode()&os.ModeSymlink != 0 {
			to, _ := os.Readlink(d)
			mounts = append(mounts, vocabulary.Mount{Kind: vocabulary.Symlink, Source: to, Target: d, Why: "system"})
		} else {
			mounts = append(mounts, vocabulary.Mount{Kind: vocabulary.BindRO, Source: d, Target: d, Why: "system"})
		}
	}
	for _, f := range []string{"/etc/ld.so.cache", "/etc/alternatives"} {
		if _, err := os.Stat(f); err == nil {
			mounts = append(mounts, vocabulary.Mount{Kind: vocabulary.BindRO, Source: f, Target: f, Why: "system"})
		}
	}
	mounts = append(mounts,
		vocabulary.Mount{Kind: vocabulary.Data, Target: "/etc/passwd", Data: []byte("u:x:" + strconv.Itoa(os.Getuid()) + ":0::/:/bin/sh\n"), Why: "test"},
		vocabulary.Mount{Kind: vocabulary.Tmpfs, Target: "/tmp", Perm: 0o1777, Size: 256 << 20, Why: "test"},
		vocabulary.Mount{Kind: vocabulary.Symlink, Source: binary, Target: Probe, Why: "test"},
	)
	return sandbox.Spec{Session: vocabulary.NewSessionID(), Mounts: append(mounts, more...), UID: os.Getuid(), GID: os.Getgid(),
		Hostname: "inside", Network: network}
}

// Env is the environment that tests give their commands.
var Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C"}

// Prepare makes an instance that ends with the test.
func Prepare(t testing.TB, b sandbox.Backend, s sandbox.Spec) sandbox.Instance {
	t.Helper()
	if err := b.Check(s); err != nil {
		t.Fatalf("check: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	i, err := b.Prepare(ctx, s)
	if err != nil {
		t.Fatalf("prepare: %v", err)
	}
	t.Cleanup(func() {
		if err := i.Kill(); err != nil {
			t.Errorf("kill: %v", err)
		}
		if c := i.Cause(); c != nil && t.Failed() {
			t.Logf("the sandbox ended by itself: %v", c)
		}
		if l := i.Link(); l != nil {
			l.Close()
		}
	})
	return i
}

// Output runs a command and returns what it wrote to both outputs and its exit
// code.
func Output(t testing.TB, i sandbox.Instance, input string, argv ...string) (string, int) {
	t.Helper()
	out, code, err := Try(i, input, Env, "/", argv...)
	if err != nil {
		t.Fatalf("%q: %v (so far: %q)", argv, err, out)
	}
	return out, code
}

// Try is Output that returns errors.
func Try(i sandbox.Instance, input string, env []string, dir string, argv ...string) (string, int, error) {
	inR, inW, err := os.Pipe()
	if err != nil {
		return "", 0, err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return "", 0, err
	}
	defer outR.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	p, err := i.Start(ctx, sandbox.Command{Argv: argv, Env: env, Dir: dir, Stdio: [3]*os.File{inR, outW, outW}})
	inR.Close()
	outW.Close()
	if err != nil {
		inW.Close()
		return "", 0, err
	}
	go func() { io.WriteString(inW, input); inW.Close() }()
	var buf bytes.Buffer
	outR.SetReadDeadline(time.Now().Add(60 * time.Second))
	_, rerr := io.Copy(&buf, outR)
	code, err := p.Wait()
	return buf.String(), code, errors.Join(err, rerr)
}

// Ask runs the probe and decodes its answer.
func Ask(t testing.TB, i sandbox.Instance, answer any, args ...string) {
	t.Helper()
	out, code := Output(t, i, "", append([]string{Probe}, args...)...)
	if code != 0 {
		t.Fatalf("probe %q: exit %d: %s", args, code, out)
	}
	if err := json.Unmarshal([]byte(out), answer); err != nil {
		t.Fatalf("probe %q: %v in %q", args, err, out)
	}
}

// Traits are what a tier does otherwise, declared. The zero value is a tier
// with the host's kernel.
type Traits struct {
	// ForeignKernel: the kernel inside is not the host's. Its refusals have errors
	// of their own, and what it lets a command do by itself (a namespace, a device
	// node in its own memory) says nothing about the host.
	ForeignKernel bool
	// OwnRoot: what is written outside of all mounts goes to a layer of the
	// sandbox's own, as with an image.
	OwnRoot bool
}

// pause is time for a shell to start a program.
func (t Traits) pause() time.Duration {
	if t.ForeignKernel {
		return time.Second
	}
	return 200 * time.Millisecond
}

// traits of the backend under test; Run sets them.
var traits Traits

// Run is the conformance suite.
func Run(t *testing.T, b sandbox.Backend, is Traits) {
	traits = is
	for _, test := range []struct {
		name string
		run  func(*testing.T, sandbox.Backend)
	}{
		{"Commands", testCommands}, {"Files", testFiles}, {"Writes", testWrites}, {"Overlay", testOverlay}, {"Dir", testDir}, {"Terminal", testTerminal}, {"JobControl", testJobControl},
		{"Isolation", testIsolation}, {"Attacks", testAttacks}, {"Relay", testRelay}, {"Ports", testPorts}, {"Kill", testKill},
		{"BadRequests", testBadRequests}, {"LimitPIDs", testLimitPIDs}, {"LimitMemory", testLimitMemory}, {"LimitCPUs", testLimitCPUs},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, b) })
	}
}

func testCommands(t *testing.T, b sandbox.Backend) {
	i := Prepare(t, b, Spec(sandbox.NetNone))
	for _, c := range []struct {
		argv  []string
		input string
		out   string
		code  int
	}{
		{argv: []string{"echo", "hello"}, out: "hello\n"},
		{argv: []string{"cat"}, input: strings.Repeat("0123456789", 50_000), out: strings.Repeat("0123456789", 50_000)},
		{argv: []string{"sh", "-c", "exit 7"}, code: 7},
		{argv: []string{"sh", "-c", "kill -TERM $$"}, code: 128 + 15},
		{argv: []string{"sh", "-c", "kill -KILL $$"}, code: 128 + 9},
		{argv: []string{"printf", "%s", "a\xffb"}, out: "a\xffb"},
		{argv: []string{"env"}, out: strings.Join(Env, "\n") + "\n"},
		{argv: []string{"hostname"}, out: "inside\n"},
		{argv: []string{"sh", "-c", "readlink /proc/self/fd/3; tty || true"}, out: "not a tty\n"},
	} {
		out, code := Output(t, i, c.input, c.argv...)
		if out != c.out || code != c.code {
			t.Errorf("%.80q: %.200q, %d; want %.200q, %d", c.argv, out, code, c.out, c.code)
		}
	}
	for _, c := range []struct {
		argv     []string
		dir      string
		notFound bool
	}{
		{argv: []string{"no-such-command"}, notFound: true},
		{argv: []string{"/no/such/file"}, notFound: true},
		{argv: []string{"/etc/passwd"}},
		{argv: []string{"/usr"}},
		{argv: []string{"true"}, dir: "/no/such/dir"},
		{argv: []string{"true"}, dir: "/etc/passwd"},
		{argv: []string{"pwd"}, dir: "/proc/self/fd/3"},
		{argv: []string{"pwd"}, dir: "/proc/self/fd/7"},
	} {
		if c.dir == "" {
			c.dir = "/"
		}
		_, _, err := Try(i, "", Env, c.dir, c.argv...)
		var ee *sandbox.ExecError
		if !errors.As(err, &ee) || ee.NotFound != c.notFound {
			t.Errorf("%q in %s: %v, want an ExecError with NotFound %v", c.argv, c.dir, err, c.notFound)
		}
	}
	// Many at once.
	type result struct {
		out string
		err error
	}
	results := make(chan result)
	for n := range 20 {
		go func() {
			out, _, err := Try(i, "", Env, "/tmp", "sh", "-c", fmt.Sprintf("echo %d; pwd", n))
			if out != fmt.Sprintf("%d\n/tmp\n", n) && err == nil {
				err = fmt.Errorf("got %q", out)
			}
			results <- result{out, err}
		}()
	}
	for range 20 {
		if r := <-results; r.err != nil {
			t.Error(r.err)
		}
	}
	// Orphans are reaped.
	Output(t, i, "", "sh", "-c", "for n in 1 2 3 4 5; do (sleep 0.05 &) ; done")
	time.Sleep(300 * time.Millisecond)
	if out, _ := Output(t, i, "", "sh", "-c", "cat /proc/[0-9]*/stat | grep -c ' Z ' || true"); strings.TrimSpace(out) != "0" {
		t.Errorf("zombies: %s", out)
	}
}

func testFiles(t *testing.T, b sandbox.Backend) {
	host := t.TempDir()
	for name, content := range map[string]string{"ro/a": "a", "rw/b": "b", "rw/secret": "canary", "rw/private/key": "canary", "outside": "canary"} {
		p := filepath.Join(host, name)
		os.MkdirAll(filepath.Dir(p), 0o755)
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink(filepath.Join(host, "outside"), filepath.Join(host, "rw/link"))
	os.Mkdir(filepath.Join(host, "rw/dir"), 0o755)
	i := Prepare(t, b, Spec(sandbox.NetNone,
		vocabulary.Mount{Kind: vocabulary.BindRO, Source: host + "/ro", Target: "/ro", Why: "test"},
		vocabulary.Mount{Kind: vocabulary.BindRW, Source: host + "/rw", Target: "/rw", Why: "test"},
		vocabulary.Mount{Kind: vocabulary.MaskFile, Target: "/rw/secret", Why: "test"},
		vocabulary.Mount{Kind: vocabulary.MaskDir, Target: "/rw/private", Why: "test"},
		vocabulary.Mount{Kind: vocabulary.Data, Target: "/data/file", Data: []byte("from the plan"), Why: "test"},
	))
	for _, c := range []struct {
		script string
		ok     bool
	}{
		{"cat /ro/a /rw/b /data/file", true},
		{"echo x > /rw/new && mkdir /rw/d && mv /rw/new /rw/d/ && ln /rw/d/new /rw/hard && rm -r /rw/d", true},
		{"echo x > /tmp/f && chmod +x /tmp/f && rm /tmp/f", true},
		{"echo x > /dev/shm/f && rm /dev/shm/f", true},
		{"echo x > /dev/null", true},
		{"echo 'echo ran' > /rw/script && chmod +x /rw/script && /rw/script", true},
		{"ls / /usr /proc > /dev/null", true},
		{"echo x > /ro/a", false}, {"echo x > /ro/new", false}, {"rm /ro/a", false}, {"chmod 777 /ro/a", false}, {"mv /ro/a /rw/a", false},
		{"echo x > /data/file", false}, {"rm /data/file", traits.OwnRoot},
		{"echo x > /new", traits.OwnRoot}, {"mkdir /newdir", traits.OwnRoot}, {"echo x > /usr/new", false}, {"echo x > /etc/new", traits.OwnRoot}, {"echo x > /dev/new", traits.ForeignKernel},
		{"cat /rw/secret", false}, {"echo x > /rw/secret", false}, {"rm -f /rw/secret", false}, {"mv /rw/secret /rw/s", false},
		{"ls /rw/private", false}, {"cat /rw/private/key", false}, {"echo x > /rw/private/n", false}, {"chmod 755 /rw/private", false},
		{"rmdir /rw/private", false}, {"mv /rw/private /rw/p", false},
		{"cat /rw/link", false}, {"cat " + host + "/outside", false}, {"cat /rw/../outside", false},
		{"mknod /rw/null c 1 3", false}, {"mknod /tmp/vda b 254 0 && ! cat /tmp/vda && rm /tmp/vda", traits.ForeignKernel},
		{"cat /proc/1/root" + host + "/outside", false}, {"cat /proc/self/root" + host + "/outside", false},
	} {
		out, code := Output(t, i, "", "sh", "-c", c.script)
		if (code == 0) != c.ok || strings.Contains(out, "canary") {
			t.Errorf("%s: exit %d, %q; want success %v", c.script, code, out, c.ok)
		}
	}
	if got, _ := os.ReadFile(host + "/rw/secret"); string(got) != "canary" {
		t.Errorf("the masked file changed: %q", got)
	}
	if entries, _ := os.ReadDir(host + "/ro"); len(entries) != 1 {
		t.Errorf("the read-only folder changed: %v", entries)
	}
}

// screen collects what a terminal shows.
type screen struct {
	t    *testing.T
	f    *os.File
	text string
}

func (s *screen) expect(want string) {
	s.t.Helper()
	buf := make([]byte, 4096)
	s.f.SetReadDeadline(time.Now().Add(10 * time.Second))
	for !strings.Contains(s.text, want) {
		n, err := s.f.Read(buf)
		s.text += string(buf[:n])
		if err != nil {
			s.t.Fatalf("waiting for %q: %v; the terminal shows %q", want, err, s.text)
		}
	}
	_, s.text, _ = strings.Cut(s.text, want)
}

func (s *screen) send(keys string) { io.WriteString(s.f, keys) }

func terminal(t *testing.T, i sandbox.Instance, argv ...string) (sandbox.Process, *screen) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	p, err := i.Start(ctx, sandbox.Command{Argv: argv, Env: append([]string{"TERM=xterm", "PS1=prompt> "}, Env...), Dir: "/", Terminal: true, Rows: 24, Cols: 80})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Terminal().Close() })
	return p, &screen{t: t, f: p.Terminal()}
}

func wait(t *testing.T, p sandbox.Process) int {
	t.Helper()
	type result struct {
		code int
		err  error
	}
	c := make(chan result, 1)
	go func() { code, err := p.Wait(); c <- result{code, err} }()
	select {
	case r := <-c:
		if r.err != nil {
			t.Fatal(r.err)
		}
		return r.code
	case <-time.After(20 * time.Second):
		t.Fatal("the command does not end")
		return 0
	}
}

func resize(p sandbox.Process, rows, cols uint16) {
	if l := p.Line(); l != nil {
		l.Resize(rows, cols)
		return
	}
	rc, _ := p.Terminal().SyscallConn()
	rc.Control(func(fd uintptr) {
		unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
}

func testTerminal(t *testing.T, b sandbox.Backend) {
	i := Prepare(t, b, Spec(sandbox.NetNone))
	p, s := terminal(t, i, "sh")
	s.send("tty; stty size; ps -o stat= -p $$ | grep -c +; echo d''one\r")
	s.expect("/dev/pts/")
	s.expect("24 80")
	s.expect("done")
	resize(p, 50, 132)
	s.send("trap 'echo winch; stty size' WINCH; stty size; echo rea''dy\r")
	s.expect("50 132")
	s.expect("ready") // said by the shell itself: it is in the foreground again
	resize(p, 20, 40)
	if traits.ForeignKernel {
		time.Sleep(traits.pause()) // sizes and keys go by different ways
	}
	s.send(":\r")
	s.expect("winch")
	s.expect("20 40")
	s.send("cat\r")
	s.send("typed\r")
	s.expect("typed\r\n")
	s.expect("typed\r\n") // once echoed by the terminal, once by cat
	s.send("\x03")        // Ctrl-C ends cat, not the shell
	s.expect("prompt> ")
	s.send("echo ali''ve\r")
	s.expect("alive")
	s.send("exit 3\r")
	if code := wait(t, p); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	p, s = terminal(t, i, "sleep", "100")
	time.Sleep(100 * time.Millisecond)
	s.send("\x03")
	if code := wait(t, p); code != 130 {
		t.Errorf("Ctrl-C: exit code %d, want 130", code)
	}
	// The last words of a command that ends at once arrive.
	p, s = terminal(t, i, "sh", "-c", "seq 1 2000; echo last words")
	s.expect("last words")
	if code := wait(t, p); code != 0 {
		t.Errorf("exit code %d", code)
	}
	ctx := context.Background()
	_, err := i.Start(ctx, sandbox.Command{Argv: []string{"no-such-command"}, Env: Env, Dir: "/", Terminal: true})
	var ee *sandbox.ExecError
	if !errors.As(err, &ee) || !ee.NotFound {
		t.Errorf("not found on a terminal: %v", err)
	}
	if _, err = i.Start(ctx, sandbox.Command{Argv: []string{"/etc/passwd"}, Env: Env, Dir: "/", Terminal: true}); !errors.As(err, &ee) || ee.NotFound {
		t.Errorf("not executable on a terminal: %v", err)
	}
	// Closing the terminal hangs up on the command.
	p, s = terminal(t, i, "cat")
	s.send("x\r")
	s.expect("x")
	p.Terminal().Close()
	if code := wait(t, p); code != 128+1 && code != 0 && code != 1 {
		t.Errorf("after hangup: exit code %d", code)
	}
}

func testJobControl(t *testing.T, b sandbox.Backend) {
	i := Prepare(t, b, Spec(sandbox.NetNone))
	stopped := func(p sandbox.Process) {
		t.Helper()
		select {
		case <-p.Stopped():
		case <-time.After(5 * time.Second):
			t.Fatal("no notice of the stop")
		}
	}
	p, s := terminal(t, i, "cat")
	s.send("one\r")
	s.expect("one")
	for range 2 {
		s.send("\x1a") // Ctrl-Z
		stopped(p)
		if err := p.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		s.expect("^Z")
		s.send("two\r")
		s.expect("two\r\n")
		s.expect("two\r\n")
	}
	s.send("\x04")
	if code := wait(t, p); code != 0 {
		t.Errorf("exit code %d", code)
	}
	// A shell handles its own jobs: it does not stop itself.
	p, s = terminal(t, i, "bash", "--norc", "-i")
	s.send("cat\r")
	time.Sleep(traits.pause())
	s.send("\x1a")
	s.expect("Stopped")
	s.send("echo in''side; fg\r")
	s.expect("inside")
	s.expect("cat") // fg names the job it goes on with
	s.send("back\r")
	s.expect("back\r\nback")
	s.send("\x04exit\r")
	wait(t, p)
	select {
	case <-p.Stopped():
		t.Error("a stop was reported for a job of the shell's own")
	default:
	}
	// Without a terminal.
	q, err := i.Start(context.Background(), sandbox.Command{Argv: []string{"sleep", "100"}, Env: Env, Dir: "/"})
	if err != nil {
		t.Fatal(err)
	}
	q.Signal(syscall.SIGSTOP)
	stopped(q)
	q.Signal(syscall.SIGCONT)
	q.Signal(syscall.SIGTERM)
	if code := wait(t, q); code != 128+15 {
		t.Errorf("exit code %d, want 143", code)
	}
	if err := q.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
}

func testBadRequests(t *testing.T, b sandbox.Backend) {
	i := Prepare(t, b, Spec(sandbox.NetNone))
	dir, _ := os.Open("/")
	defer dir.Close()
	file, _ := os.Create(filepath.Join(t.TempDir(), "f"))
	defer file.Close()
	fds, _ := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	sock, peer := os.NewFile(uintptr(fds[0]), "s"), os.NewFile(uintptr(fds[1]), "s")
	defer sock.Close()
	defer peer.Close()
	pty, _ := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	defer pty.Close()
	for name, c := range map[string]sandbox.Command{
		"no name":      {Dir: "/"},
		"empty name":   {Argv: []string{""}, Dir: "/"},
		"relative dir": {Argv: []string{"true"}, Dir: "tmp"},
		"zero byte":    {Argv: []string{"true", "a\x00b"}, Dir: "/"},
		"directory":    {Argv: []string{"true"}, Dir: "/", Stdio: [3]*os.File{dir}},
		"host file":    {Argv: []string{"true"}, Dir: "/", Stdio: [3]*os.File{nil, file}},
		"socket":       {Argv: []string{"true"}, Dir: "/", Stdio: [3]*os.File{nil, nil, sock}},
		"terminal":     {Argv: []string{"true"}, Dir: "/", Stdio: [3]*os.File{pty}},
	} {
		c.Env = Env
		if _, err := i.Start(context.Background(), c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if out, _ := Output(t, i, "", "echo", "still here"); out != "still here\n" {
		t.Errorf("afterwards: %q", out)
	}
	big := strings.Repeat("x", 100_000)
	if out, code := Output(t, i, "", "sh", "-c", "echo ${#1}", "sh", big); out != "100000\n" || code != 0 {
		t.Errorf("a long argument: %.100q, %d", out, code)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := i.Start(ctx, sandbox.Command{Argv: []string{"sleep", "1"}, Env: Env, Dir: "/"}); err == nil {
		t.Log("start with a cancelled context won the race")
	}
}

func testKill(t *testing.T, b sandbox.Backend) {
	i := Prepare(t, b, Spec(sandbox.NetNone))
	p, err := i.Start(context.Background(), sandbox.Command{Argv: []string{"sh", "-c", "trap '' TERM HUP INT; setsid sleep 1000 & sleep 1000"}, Env: Env, Dir: "/"})
	if err != nil {
		t.Fatal(err)
	}
	pid := i.PID()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); len(Descendants(pid)) < 3; {
		if time.Now().After(deadline) {
			t.Fatalf("before the kill, the sandbox has processes %v", Descendants(pid))
		}
		time.Sleep(10 * time.Millisecond)
	}
	all := Descendants(pid)
	start := time.Now()
	if err := i.Kill(); err != nil {
		t.Fatal(err)
	}
	t.Logf("kill took %v", time.Since(start))
	if left := InNamespace(ns); len(left) > 0 {
		t.Errorf("left after Kill: %v", left)
	}
	for _, p := range all {
		if _, err := os.Stat("/proc/" + p); err == nil {
			t.Errorf("left after Kill: %s", p)
		}
	}
	select {
	case <-i.Done():
	default:
		t.Error("Done is open after Kill")
	}
	if _, err := p.Wait(); err == nil {
		t.Error("Wait knows an exit code of a killed sandbox")
	}
	if err := i.Cause(); err != nil {
		t.Errorf("cause after Kill: %v", err)
	}
	if err := i.Kill(); err != nil {
		t.Errorf("second Kill: %v", err)
	}
	if _, err := i.Start(context.Background(), sandbox.Command{Argv: []string{"true"}, Dir: "/"}); err == nil {
		t.Error("started a command in a dead sandbox")
	}
}

// InNamespace lists the host's processes in a pid namespace.
func InNamespace(ns string) []string {
	var pids []string
	for _, p := range list("/proc") {
		if to, err := os.Readlink("/proc/" + p + "/ns/pid"); err == nil && to == ns && number(p) > 0 {
			pids = append(pids, p)
		}
	}
	return pids
}

// Descendants lists a process and all below it, as the host numbers them.
func Descendants(pid int) []string {
	children := map[string][]string{}
	for _, p := range list("/proc") {
		if number(p) > 0 {
			stat := read("/proc/" + p + "/stat")
			if f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]); len(f) > 1 {
				children[f[1]] = append(children[f[1]], p)
			}
		}
	}
	all := []string{strconv.Itoa(pid)}
	for n := 0; n < len(all); n++ {
		all = append(all, children[all[n]]...)
	}
	return all
}

func jsonDecode(s string, v any) error { return json.Unmarshal([]byte(s), v) }
