package terminal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPlan(t *testing.T) {
	dir := t.TempDir()
	regular := filepath.Join(dir, "regular")
	if err := os.WriteFile(regular, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(path string, flags int) *os.File {
		f, err := os.OpenFile(path, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	pipe, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer other.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	socket := os.NewFile(uintptr(pair[0]), "socket")
	defer socket.Close()
	defer unix.Close(pair[1])

	for name, c := range map[string]struct {
		file   *os.File
		direct bool
	}{
		"anonymous pipe": {pipe, true},
		"/dev/null":      {open("/dev/null", os.O_RDWR), true},
		"regular file":   {open(regular, os.O_RDONLY), false},
		"named pipe":     {open(fifo, os.O_RDWR), false},
		"socket":         {socket, false},
		"/dev/zero":      {open("/dev/zero", os.O_RDONLY), false},
	} {
		for i := range 3 {
			streams := [3]*os.File{}
			streams[i] = c.file
			r, err := Plan(streams[0], streams[1], streams[2])
			if err != nil {
				t.Fatalf("%s as %d: %v", name, i, err)
			}
			if r.Terminal() {
				t.Errorf("%s is a terminal", name)
			}
			got := r.Stdio()[i]
			if (got == c.file) != c.direct {
				t.Errorf("%s as %d: handed through %v", name, i, got == c.file)
			}
			var fs unix.Statfs_t
			if fd, err := number(got); err != nil || !c.direct && (unix.Fstatfs(fd, &fs) != nil || fs.Type != unix.PIPEFS_MAGIC) {
				t.Errorf("%s as %d: the sandbox gets no pipe (%v)", name, i, err)
			}
			for j, other := range r.Stdio() {
				if other == nil {
					t.Errorf("%s: stream %d is left to a terminal that is not there", name, j)
				}
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	_, err = Plan(nil, open(dir, os.O_RDONLY), nil)
	if err == nil || !strings.Contains(err.Error(), "mounts:") || strings.Count(err.Error(), "\n") > 2 {
		t.Errorf("a directory: %v", err)
	}
}

// shell runs a script in bash with "run" on its PATH, without any terminal.
func shell(t *testing.T, script string) (stdout, stderr string, code int) {
	t.Helper()
	lookFor(t, "bash", "pipes between the sandbox and a shell")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.Env = append(os.Environ(), "PATH="+programs(t)+":"+os.Getenv("PATH"))
	cmd.Dir = t.TempDir()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no controlling terminal
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%v\n%s%s", err, o.String(), e.String())
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

func TestWithoutTerminal(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   string
	}{
		"pipe in, pipe out":       {`printf 'a\nb\n' | run cat | tr a-z A-Z`, "A\nB\n"},
		"nothing is a terminal":   {`echo | run sh -c 'for i in 0 1 2; do [ -t $i ] && echo tty $i; done; echo none' | cat`, "none\n"},
		"exit code":               {`run sh -c 'exit 42' </dev/null | cat; echo ${PIPESTATUS[0]}`, "42\n"},
		"stdin at end":            {`run cat </dev/null; echo $?`, "0\n"},
		"stdin closed":            {`run cat <&-; echo $?`, "0\n"},
		"stdout closed":           {`run sh -c 'echo lost; exit 3' >&- 2>/dev/null; echo $?`, "3\n"},
		"file in":                 {`seq 100000 >f; run wc -l <f`, "100000\n"},
		"file position goes on":   {`printf 'abcdefghij' >f; (run head -c 4 >/dev/null; cat) <f`, "efghij"},
		"position, nothing read":  {`seq 50000 >f; (run true; wc -l) <f`, "50000\n"},
		"position, a reader dies": {`seq 50000 >f; (run sh -c 'head -c 6 >/dev/null; kill -9 $$'; head -1) <f`, "4\n"},
		"file out":                {`run seq 100000 >f; wc -l <f; tail -1 f`, "100000\n100000\n"},
		"append":                  {`echo one >f; run echo two >>f; echo three >>f; cat f`, "one\ntwo\nthree\n"},
		"out and err to one file": {`run sh -c 'for i in 1 2 3 4; do echo o$i; echo e$i >&2; done' >f 2>&1; tr '\n' ' ' <f`, "o1 e1 o2 e2 o3 e3 o4 e4 "},
		"out and err apart":       {`run sh -c 'echo o; echo e >&2' >o 2>e; cat e o`, "e\no\n"},
		"early end of the reader": {`run yes | head -1; echo ${PIPESTATUS[0]}`, "y\n141\n"},
		"early end, through ours": {`exec 3> >(head -1); run yes >/dev/fd/3 3>&- ; echo $?`, "y\n141\n"},
		"a big slow reader":       {`run seq 300000 | (sleep 0.3; wc -l)`, "300000\n"},
		"a background job inside": {`run sh -c 'sleep 5 & echo quick' >f 2>/dev/null; cat f`, "quick\n"},
		"signals are forwarded":   {`run sh -c 'trap "echo got; exit 7" TERM; echo up; while :; do sleep 0.05; done' >f & until grep -q up f 2>/dev/null; do sleep 0.02; done; kill -TERM $!; wait $!; echo $?; grep got f`, "7\ngot\n"},
		"a signal that kills":     {`run sleep 20 >f & sleep 0.3; kill -INT $! 2>/dev/null; kill -TERM $!; wait $!; echo $?`, "143\n"},
		"full disk":               {`run sh -c 'trap "" PIPE; seq 100000; exit 0' >/dev/full 2>/dev/null; echo $?`, "125\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stdout, stderr, _ := shell(t, c.script)
			if stdout != c.want {
				t.Errorf("got %q, want %q; %s", stdout, c.want, stderr)
			}
		})
	}
}

// A socket as a standard stream is what node's child_process gives.
func TestSocketsAsStreams(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[0]), "socket")
	oursFile := os.NewFile(uintptr(pair[1]), "socket")
	ours, err := net.FileConn(oursFile)
	if err != nil {
		t.Fatal(err)
	}
	oursFile.Close()
	defer ours.Close()
	relay, err := Plan(theirs, theirs, nil)
	if err != nil {
		t.Fatal(err)
	}
	proc, err := startProcess(relay, []string{"sh", "-c", `while read l; do echo "<$l>"; [ "$l" = end ] && exit 5; done`})
	if err != nil {
		t.Fatal(err)
	}
	go fmt.Fprint(ours, "one\nend\n")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	code, err := relay.Run(ctx, proc, Options{})
	if code != 5 || err != nil {
		t.Errorf("%d %v", code, err)
	}
	theirs.Close()
	var got bytes.Buffer
	ours.SetReadDeadline(time.Now().Add(5 * time.Second))
	got.ReadFrom(ours)
	if got.String() != "<one>\n<end>\n" {
		t.Errorf("%q", got.String())
	}
}

func TestContextEndsTheRelay(t *testing.T) {
	relay, err := Plan(nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	proc, err := startProcess(relay, []string{"sleep", "20"})
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Signal(syscall.SIGKILL)
	why := errors.New("revoked")
	ctx, cancel := context.WithCancelCause(context.Background())
	time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
	start := time.Now()
	if _, err := relay.Run(ctx, proc, Options{}); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestNoDescriptorIsLeft(t *testing.T) {
	count := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(d)
	}
	in, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	once := func() {
		out, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		relay, err := Plan(in, out, nil)
		if err != nil {
			t.Fatal(err)
		}
		proc, err := startProcess(relay, []string{"cat"})
		if err != nil {
			t.Fatal(err)
		}
		if code, err := relay.Run(context.Background(), proc, Options{}); code != 0 || err != nil {
			t.Fatalf("%d %v", code, err)
		}
	}
	once()
	before := count()
	for range 5 {
		once()
	}
	// The reports pipe of the test's own process is closed by the collector.
	if after := count(); after > before+10 {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
