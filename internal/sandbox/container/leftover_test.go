//go:build linux

package container

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/instance"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/sandboxtest"
	"golang.org/x/sys/unix"
)

func init() { childproc.Register("testcontroller", controllerUnderTest) }

// parts are the processes of one sandbox, as the host numbers them.
type parts struct {
	Controller, Warden, First int
	Dirs                      []string
}

// controllerUnderTest is a controller that a test can kill. It holds a sandbox
// with processes that don't want to end, and says so.
func controllerUnderTest() int {
	b := &Backend{Runsc: os.Getenv(runscEnv)}
	var spec sandbox.Spec
	if err := json.NewDecoder(os.Stdin).Decode(&spec); err != nil {
		return 1
	}
	spec.Writes.Refused = func(string, string, string) {}
	si, err := b.Prepare(context.Background(), spec)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	i := si.(*instance.Instance)
	p := parts{Controller: os.Getpid(), First: i.PID()}
	p.Warden, p.Dirs = i.Host()
	if _, err := i.Start(context.Background(), sandbox.Command{Dir: "/", Env: sandboxtest.Env,
		Argv: []string{"sh", "-c", "trap '' TERM HUP INT QUIT; (setsid sleep 1000 &); sleep 1002"}}); err != nil {
		return 1
	}
	json.NewEncoder(os.Stdout).Encode(p)
	<-i.Done()
	fmt.Println("cause:", i.Cause())
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// startController runs one; its orphans become this process's children.
func startController(t *testing.T) (*exec.Cmd, io.WriteCloser, *bufio.Reader) {
	t.Helper()
	backend(t)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	spec := sandboxtest.WritesSpec(t.TempDir(), &sandbox.Writes{Folders: []sandbox.WritableFolder{{Path: "/rw"}}})
	spec.Limits.Memory = 1 << 30
	text, _ := json.Marshal(spec)
	cmd := exec.Command(childproc.Self())
	cmd.Args = []string{childproc.Argv0("testcontroller")}
	cmd.Stderr = os.Stderr
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, string(text))
	return cmd, in, bufio.NewReader(out)
}

// left lists what still runs below this process.
func left() (all []string) {
	for {
		var st unix.WaitStatus
		if pid, err := unix.Wait4(-1, &st, unix.WNOHANG, nil); pid <= 0 || err != nil {
			break
		}
	}
	for _, p := range sandboxtest.Descendants(os.Getpid())[1:] {
		name, err := os.ReadFile("/proc/" + p + "/cmdline")
		if err == nil {
			all = append(all, p+" "+strings.ReplaceAll(string(name), "\x00", " "))
		}
	}
	return all
}

func nothingLeft(t *testing.T, dirs []string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		rest := left()
		for _, d := range dirs {
			if _, err := os.Stat(d); err == nil {
				rest = append(rest, d)
			}
		}
		if len(rest) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %q", rest)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// child finds a process of the sandbox by its name.
func child(of int, name string) int {
	for _, p := range sandboxtest.Descendants(of) {
		cmdline, _ := os.ReadFile("/proc/" + p + "/cmdline")
		if strings.HasPrefix(string(cmdline), name) {
			pid, _ := strconv.Atoi(p)
			return pid
		}
	}
	return 0
}

// TestKilledParts: whichever part is killed, all others end with it.
func TestKilledParts(t *testing.T) {
	sandboxtest.EachUser(t, func(t *testing.T) {
		for name, which := range map[string]func(parts) int{
			"controller": func(p parts) int { return p.Controller },
			"warden":     func(p parts) int { return p.Warden },
			"runsc":      func(p parts) int { return p.First },
			"sentry":     func(p parts) int { return child(p.First, "runsc-sandbox") },
			"gofer":      func(p parts) int { return child(p.First, "runsc-gofer") },
			"guard":      func(p parts) int { return child(p.First, childproc.Argv0(guardChild)) },
		} {
			t.Run(name, func(t *testing.T) {
				cmd, in, out := startController(t)
				defer in.Close()
				var p parts
				line, err := out.ReadString('\n')
				if err != nil || json.Unmarshal([]byte(line), &p) != nil {
					t.Fatalf("%v: %q", err, line)
				}
				pid := which(p)
				if pid < 2 {
					t.Fatalf("no such process: %q", left())
				}
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				if name != "controller" {
					said, err := out.ReadString('\n')
					if err != nil || !strings.HasPrefix(said, "cause: the sandbox ended") {
						t.Errorf("%v: %q", err, said)
					}
					in.Close()
				}
				_ = cmd.Wait()
				nothingLeft(t, p.Dirs)
			})
		}
	})
}

// TestKilledWhileStarting: a controller that is killed at any moment of a start
// leaves nothing.
func TestKilledWhileStarting(t *testing.T) {
	sandboxtest.EachUser(t, func(t *testing.T) {
		for n := range 12 {
			cmd, in, _ := startController(t)
			time.Sleep(time.Duration(n) * 35 * time.Millisecond)
			cmd.Process.Kill()
			cmd.Wait()
			in.Close()
			nothingLeft(t, nil)
		}
	})
}
