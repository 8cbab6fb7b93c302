package process

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestGatewayTakenOver attacks rule 10 (only the dialler opens sockets) from the
// place that the rule is about: a gateway in which the attacker's code runs. In
// a real session, with a debugger's powers, one thread of the gateway is made to
// do what such code would do. It gets no file, no socket of this host, nothing to
// listen on and no other program. An ordinary user's gateway cannot even be
// debugged by him, and so by nothing that runs with his id.
func TestGatewayTakenOver(t *testing.T) {
	dir := t.TempDir()
	home := filepath.Join(dir, "home")
	ws := filepath.Join(home, "ws")
	check(t, os.MkdirAll(ws, 0o755))
	policy := filepath.Join(dir, "policy.yaml")
	check(t, os.WriteFile(policy, []byte("version: 1\ngrants:\n  - http: https://docs.example.com/**\n"), 0o644))
	listening, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	free := listening.Addr().(*net.TCPAddr).Port
	listening.Close()

	// Each in a session of its own: some of them end the gateway.
	for name, attack := range map[string]struct {
		call  func(g *gatewayThread) (int64, error)
		works bool // a control: what the dialler itself does
	}{
		"a socket of the dialler's kind": {works: true, call: func(g *gatewayThread) (int64, error) {
			return g.do(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		}},
		"a Unix socket": {call: func(g *gatewayThread) (int64, error) {
			return g.do(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		}},
		"a netlink socket": {call: func(g *gatewayThread) (int64, error) {
			return g.do(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, 0)
		}},
		"a raw socket": {call: func(g *gatewayThread) (int64, error) {
			return g.do(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
		}},
		"a port to listen on": {call: func(g *gatewayThread) (int64, error) {
			fd, err := g.do(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil || fd < 0 {
				return 0, fmt.Errorf("invalid: no socket: %d, %v", fd, err)
			}
			at, err := g.put(append([]byte{unix.AF_INET, 0, byte(free >> 8), byte(free), 127, 0, 0, 1}, make([]byte, 8)...))
			if err != nil {
				return 0, err
			}
			if r, err := g.do(unix.SYS_BIND, uint64(fd), at, 16); err != nil || r < 0 {
				return r, err
			}
			return g.do(unix.SYS_LISTEN, uint64(fd), 1, 0)
		}},
		"a listener without a name": {call: func(g *gatewayThread) (int64, error) {
			fd, err := g.do(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil || fd < 0 {
				return 0, fmt.Errorf("invalid: no socket: %d, %v", fd, err)
			}
			return g.do(unix.SYS_LISTEN, uint64(fd), 1, 0)
		}},
		"a file": {call: func(g *gatewayThread) (int64, error) {
			at, err := g.put([]byte("/etc/passwd\x00"))
			if err != nil {
				return 0, err
			}
			return g.do(unix.SYS_OPENAT, ^uint64(99), at, 0)
		}},
		"a program": {call: func(g *gatewayThread) (int64, error) {
			at, err := g.put([]byte("/bin/true\x00"))
			if err != nil {
				return 0, err
			}
			return g.do(unix.SYS_EXECVE, at, 0, 0)
		}},
		"a process":            {call: func(g *gatewayThread) (int64, error) { return g.do(unix.SYS_CLONE, uint64(unix.SIGCHLD), 0, 0) }},
		"the controller's end": {call: func(g *gatewayThread) (int64, error) { return g.do(unix.SYS_KILL, uint64(g.controller), 0, 0) }},
		"the memory of a process": {call: func(g *gatewayThread) (int64, error) {
			return g.do(unix.SYS_PTRACE, unix.PTRACE_ATTACH, uint64(g.controller), 0)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(filepath.Join(shared, "bin", "bulkhead"), "run", "--policy", policy, "--", "sh", "-c", "echo up; exec sleep 607.0421")
			cmd.Dir, cmd.Env = ws, []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}
			out, err := cmd.StdoutPipe()
			check(t, err)
			var errs bytes.Buffer
			cmd.Stderr = &errs
			check(t, cmd.Start())
			defer func() {
				cmd.Process.Kill()
				cmd.Wait()
			}()
			if n, err := out.Read(make([]byte, 16)); n == 0 {
				t.Fatalf("invalid: the session did not start: %v\n%s", err, errs.String())
			}
			pid := part("gateway", cmd.Process.Pid, family(cmd.Process.Pid))
			if pid == 0 {
				t.Fatal("invalid: no gateway found")
			}
			runtime.LockOSThread() // the kernel knows the debugger by its thread
			defer runtime.UnlockOSThread()
			g, err := takeOver(pid, cmd.Process.Pid)
			if os.Getuid() != 0 {
				if !errors.Is(err, syscall.EPERM) {
					t.Fatalf("an ordinary user debugs the gateway: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatalf("invalid: %v", err)
			}
			r, err := attack.call(g)
			switch {
			case err != nil && !errors.Is(err, errGatewayEnded):
				t.Fatal(err)
			case attack.works && (err != nil || r < 0):
				t.Errorf("invalid: the control fails: %d, %v", r, err)
			case !attack.works && err == nil && r >= 0:
				t.Errorf("the gateway got it: %d", r)
			}
			t.Logf("%d, %v", r, err)
		})
	}
}

var errGatewayEnded = errors.New("the gateway was ended by the kernel")

// gatewayThread is a stopped thread of a gateway. The caller's thread is its
// debugger.
type gatewayThread struct {
	tid, controller int
	call            uint64 // address of a syscall instruction
	saved           unix.PtraceRegs
}

func takeOver(pid, controller int) (*gatewayThread, error) {
	g := &gatewayThread{tid: pid, controller: controller}
	if err := unix.PtraceSeize(pid); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	if err := unix.PtraceInterrupt(pid); err != nil {
		return nil, fmt.Errorf("stop: %w", err)
	}
	if err := g.wait(); err != nil {
		return nil, err
	}
	if err := unix.PtraceGetRegs(pid, &g.saved); err != nil {
		return nil, err
	}
	f, err := elf.Open(filepath.Join(shared, "bin", "bulkhead"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text := f.Section(".text")
	code, err := text.Data()
	if err != nil {
		return nil, err
	}
	i := bytes.Index(code, []byte{0x0f, 0x05}) // syscall
	if i < 0 || f.Type != elf.ET_EXEC {
		return nil, errors.New("no syscall instruction at a known place")
	}
	g.call = text.Addr + uint64(i)
	return g, nil
}

// wait returns when the thread has stopped.
func (g *gatewayThread) wait() error {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		var status unix.WaitStatus
		n, err := unix.Wait4(g.tid, &status, unix.WALL|unix.WNOHANG, nil)
		switch {
		case err != nil && err != unix.EINTR:
			return fmt.Errorf("wait: %w", err)
		case n == 0 || err != nil:
		case status.Exited() || status.Signaled():
			return errGatewayEnded
		case status.Stopped():
			return nil
		}
		// A thread group that ends waits for its other, untraced threads.
		if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", g.tid)); err != nil || strings.Contains(string(data), ") Z ") {
			return errGatewayEnded
		}
	}
	return errors.New("invalid: the thread does not stop")
}

// put writes below the thread's stack and returns where.
func (g *gatewayThread) put(data []byte) (uint64, error) {
	at := g.saved.Rsp - 1024
	_, err := unix.PtracePokeData(g.tid, uintptr(at), data)
	return at, err
}

// do makes the thread do a system call and returns its result.
func (g *gatewayThread) do(nr, a, b, c uint64) (int64, error) {
	regs := g.saved
	regs.Rip, regs.Rax, regs.Orig_rax = g.call, nr, ^uint64(0)
	regs.Rdi, regs.Rsi, regs.Rdx, regs.R10, regs.R8, regs.R9 = a, b, c, 0, 0, 0
	if err := unix.PtraceSetRegs(g.tid, &regs); err != nil {
		return 0, err
	}
	for range 16 {
		if err := unix.PtraceSingleStep(g.tid); err != nil {
			return 0, err
		}
		if err := g.wait(); err != nil {
			return 0, err
		}
		if err := unix.PtraceGetRegs(g.tid, &regs); err != nil {
			return 0, fmt.Errorf("%w: %w", errGatewayEnded, err)
		}
		if regs.Rip == g.call+2 {
			return int64(regs.Rax), nil
		}
	}
	return 0, errors.New("invalid: the call was not made")
}
