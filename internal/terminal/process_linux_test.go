package terminal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
)

func init() {
	childproc.Register("test-run", controllerMain)
	childproc.Register("test-supervisor", supervisorMain)
	childproc.Register("test-panic", panicMain)
}

func TestMain(m *testing.M) {
	childproc.Dispatch()
	// Under nohup what these tests start would ignore a hangup: what is caught here has
	// its default action there.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	os.Exit(m.Run())
}

// controllerMain is "bulkhead run -- ARGS…" without the sandbox: the command
// gets a terminal of its own and a supervisor, on this host.
func controllerMain() int {
	relay, err := Plan(os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 125
	}
	proc, err := startProcess(relay, os.Args[1:])
	if err != nil {
		relay.Close()
		fmt.Fprintln(os.Stderr, err)
		return 127
	}
	code, err := relay.Run(context.Background(), proc, Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, "controller:", err)
		return 125
	}
	return code
}

// panicMain panics in the middle of a run.
func panicMain() int {
	relay, err := Plan(os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		return 125
	}
	proc, err := startProcess(relay, []string{"sh", "-c", fmt.Sprintf("echo PID %d; sleep 20", os.Getpid())})
	if err != nil {
		return 125
	}
	relay.Run(context.Background(), panickingProcess{proc}, Options{})
	return 0
}

type panickingProcess struct{ *localProcess }

func (panickingProcess) Signal(os.Signal) error { panic("on purpose") }

// localProcess is a command on a local pseudo-terminal, with what sandboxes
// have too: a session leader that watches it and reports stops.
type localProcess struct {
	master  *os.File
	pid     int
	stopped chan struct{}
	code    chan int
}

func startProcess(r *Relay, argv []string) (*localProcess, error) {
	p := &localProcess{stopped: make(chan struct{}, 1), code: make(chan int, 1)}
	stdio := r.Stdio()
	var slave *os.File
	cmd := exec.Command(childproc.Self())
	cmd.Args = append([]string{childproc.Argv0("test-supervisor")}, argv...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	reports, reporter, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.ExtraFiles = []*os.File{reporter}
	if r.Terminal() {
		if p.master, slave, err = pty.Open(); err != nil {
			return nil, err
		}
		rows, cols := r.Size()
		pty.Setsize(p.master, &pty.Winsize{Rows: rows, Cols: cols})
		cmd.ExtraFiles = append(cmd.ExtraFiles, slave)
		cmd.SysProcAttr.Setctty, cmd.SysProcAttr.Ctty = true, 4
	}
	for i := range stdio {
		if stdio[i] == nil {
			stdio[i] = slave
		}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio[0], stdio[1], stdio[2]
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	reporter.Close()
	if slave != nil {
		slave.Close()
	}
	lines := bufio.NewScanner(reports)
	if !lines.Scan() {
		return nil, errors.New("the supervisor said nothing")
	}
	if p.pid, err = strconv.Atoi(lines.Text()); err != nil {
		return nil, errors.New(lines.Text())
	}
	go func() {
		for lines.Scan() {
			if lines.Text() == "stopped" {
				p.stopped <- struct{}{}
			} else if code, err := strconv.Atoi(lines.Text()); err == nil {
				p.code <- code
			}
		}
		close(p.code)
		cmd.Wait()
	}()
	return p, nil
}

func (p *localProcess) Terminal() *os.File       { return p.master }
func (p *localProcess) Line() sandbox.Line       { return nil }
func (p *localProcess) Stopped() <-chan struct{} { return p.stopped }
func (p *localProcess) Signal(s os.Signal) error { return syscall.Kill(-p.pid, s.(syscall.Signal)) }
func (p *localProcess) Wait() (int, error) {
	code, ok := <-p.code
	if !ok {
		return 0, errors.New("the sandbox died")
	}
	return code, nil
}

// supervisorMain leads the inner session: descriptor 3 is for reports, 4 is the
// terminal, if there is one.
func supervisorMain() int {
	reports := os.NewFile(3, "reports")
	unix.CloseOnExec(3)
	// The kernel tells the session leader only, who passes it on, as the guest's does.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	path, err := exec.LookPath(os.Args[1])
	if err != nil {
		fmt.Fprintln(reports, err)
		return 1
	}
	attr := &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{Setpgid: true}}
	if term.IsTerminal(4) {
		attr.Sys.Foreground, attr.Sys.Ctty = true, 4
	}
	unix.CloseOnExec(4)
	child, err := os.StartProcess(path, os.Args[1:], attr)
	if err != nil {
		fmt.Fprintln(reports, err)
		return 1
	}
	os.Stdin.Close()
	os.Stdout.Close()
	os.Stderr.Close()
	fmt.Fprintln(reports, child.Pid)
	go func() {
		for range hangups {
			syscall.Kill(-child.Pid, syscall.SIGHUP)
		}
	}()
	for {
		var ws syscall.WaitStatus
		if _, err := syscall.Wait4(child.Pid, &ws, syscall.WUNTRACED, nil); err == syscall.EINTR {
			continue
		} else if err != nil {
			return 1
		}
		switch {
		case ws.Stopped():
			fmt.Fprintln(reports, "stopped")
		case ws.Signaled():
			fmt.Fprintln(reports, 128+int(ws.Signal()))
			return 0
		default:
			fmt.Fprintln(reports, ws.ExitStatus())
			return 0
		}
	}
}

// programs returns a directory with commands that shells can call: "run" is
// controllerMain.
func programs(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"test-run", "test-panic"} {
		if err := os.Symlink(self, filepath.Join(dir, childproc.Argv0(name))); err != nil {
			t.Fatal(err)
		}
		short := "#!/bin/sh\nexec " + filepath.Join(dir, childproc.Argv0(name)) + ` "$@"` + "\n"
		if err := os.WriteFile(filepath.Join(dir, strings.TrimPrefix(name, "test-")), []byte(short), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// lookFor skips a test whose tool is missing and says what is not proven.
func lookFor(t *testing.T, tool, proves string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		t.Skipf("%s is not installed: not proven: %s", tool, proves)
	}
	return path
}
