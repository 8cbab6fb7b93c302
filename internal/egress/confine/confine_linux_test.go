package confine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
)

func init() { childproc.Register("confine-probe", probeMain) }

func TestMain(m *testing.M) {
	childproc.Dispatch()
	os.Exit(m.Run())
}

// A probe returns nil if it could do what it tried.
var probes = map[string]func() error{
	"open":            func() error { _, err := os.Open("/etc/passwd"); return err },
	"open-proc":       func() error { _, err := os.Open("/proc/self/environ"); return err },
	"create":          func() error { return os.WriteFile("/tmp/bulkhead-confine-probe", nil, 0o600) },
	"readdir":         func() error { _, err := os.ReadDir("/"); return err },
	"unlink":          func() error { return os.Remove("/tmp/bulkhead-confine-none") },
	"exec":            func() error { return syscall.Exec("/bin/true", []string{"true"}, nil) },
	"execveat":        func() error { return raw(unix.SYS_EXECVEAT, 0, 0, 0) },
	"fork":            func() error { return raw(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0) },
	"clone3":          func() error { return raw(unix.SYS_CLONE3, 0, 0, 0) },
	"unshare":         func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
	"setns":           func() error { return unix.Setns(0, 0) },
	"ptrace":          func() error { return raw(unix.SYS_PTRACE, unix.PTRACE_ATTACH, uintptr(os.Getppid()), 0) },
	"vm-readv":        func() error { return raw(unix.SYS_PROCESS_VM_READV, uintptr(os.Getppid()), 0, 0) },
	"kill":            func() error { return unix.Kill(os.Getppid(), 0) },
	"tgkill-other":    func() error { return raw(unix.SYS_TGKILL, uintptr(os.Getppid()), uintptr(os.Getppid()), 0) },
	"tgkill-nine":     func() error { return raw(unix.SYS_TGKILL, unix.SYS_MMAP, unix.SYS_MMAP, 0) },
	"socket-unix":     func() error { return socket(unix.AF_UNIX, unix.SOCK_STREAM, 0) },
	"socket-netlink":  func() error { return socket(unix.AF_NETLINK, unix.SOCK_RAW, 0) },
	"socket-packet":   func() error { return socket(unix.AF_PACKET, unix.SOCK_RAW, 0) },
	"socket-raw":      func() error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) },
	"socket-ping":     func() error { return socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP) },
	"socket-mptcp":    func() error { return socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP) },
	"socket-vsock":    func() error { return socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0) },
	"socket-family-1": func() error { return socket(unix.AF_UNIX|1<<32, unix.SOCK_STREAM, 0) },
	"socketpair":      func() error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
	"listen": func() error {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err == nil {
			l.Close()
		}
		return err
	},
	"mmap-exec": func() error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		return err
	},
	"mprotect-exec": func() error {
		m, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return nil
		}
		return unix.Mprotect(m, unix.PROT_READ|unix.PROT_EXEC)
	},
	"bpf":        func() error { return raw(unix.SYS_BPF, 0, 0, 0) },
	"io_uring":   func() error { return raw(unix.SYS_IO_URING_SETUP, 1, 0, 0) },
	"keyctl":     func() error { return raw(unix.SYS_KEYCTL, 0, 0, 0) },
	"mount":      func() error { return unix.Mount("none", "/mnt", "tmpfs", 0, "") },
	"memfd":      func() error { return raw(unix.SYS_MEMFD_CREATE, 0, 0, 0) },
	"setuid":     func() error { return raw(unix.SYS_SETUID, 0, 0, 0) },
	"more-rules": func() error { return raw(unix.SYS_SECCOMP, 0, 0, 0) },
	"dumpable":   func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) },
	"rlimit":     func() error { return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}) },
	"tiocsti":    func() error { b := byte('x'); return raw(unix.SYS_IOCTL, 0, unix.TIOCSTI, uintptr(unsafe.Pointer(&b))) },
	// every thread, not only the one that called Apply
	"open-other-thread": func() error {
		errs := make(chan error)
		for range 8 {
			go func() {
				runtime.LockOSThread()
				_, err := os.Open("/etc/passwd")
				errs <- err
			}()
		}
		for range 8 {
			if err := <-errs; err == nil {
				return nil
			}
		}
		return unix.EPERM
	},
}

// Works are what the gateway must still be able to do.
var works = map[string]func(args []string) error{
	"dial": func(a []string) error {
		for _, addr := range a {
			c, err := net.DialTimeout("tcp", addr, 5*time.Second)
			if err != nil {
				return err
			}
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
			c.Close()
		}
		return nil
	},
	"threads": func([]string) error {
		var wg sync.WaitGroup
		for range 64 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				runtime.LockOSThread()
				time.Sleep(time.Millisecond)
			}()
		}
		wg.Wait()
		garbage := 0
		for range 200 {
			garbage += len(make([]byte, 1<<20))
		}
		runtime.GC()
		return nil
	},
	"udp": func(a []string) error {
		c, err := net.Dial("udp", a[0])
		if err != nil {
			return err
		}
		_, err = c.Write([]byte("x"))
		return err
	},
}

func raw(nr, a, b, c uintptr) error {
	if _, _, e := unix.Syscall(nr, a, b, c); e != 0 {
		return e
	}
	return nil
}

func socket(family, kind, proto int) error {
	_, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	return err
}

func probeMain() int {
	if err := childproc.CloseInherited(); err != nil {
		fmt.Println(err)
		return 2
	}
	if err := Apply(); err != nil {
		fmt.Println(err)
		return 2
	}
	fmt.Println("confined")
	var err error
	if do, ok := works[os.Args[1]]; ok {
		err = do(os.Args[2:])
	} else {
		err = probes[os.Args[1]]()
	}
	fmt.Println("result:", err)
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// probe runs one probe in a confined child; outcome is "result: …" or the
// signal that ended it.
func probe(t *testing.T, args ...string) string {
	t.Helper()
	cmd := &exec.Cmd{Path: childproc.Self(), Args: append([]string{childproc.Argv0("confine-probe")}, args...)}
	cmd.Stderr = io.Discard
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	if !sc.Scan() || sc.Text() != "confined" {
		t.Fatalf("not confined: %q", sc.Text())
	}
	result := ""
	for sc.Scan() {
		if strings.HasPrefix(sc.Text(), "result: ") {
			result = strings.TrimPrefix(sc.Text(), "result: ")
			break
		}
	}
	in.Close()
	err := cmd.Wait()
	if result != "" {
		return result
	}
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		return ee.Sys().(syscall.WaitStatus).Signal().String()
	}
	return fmt.Sprint(err)
}

func TestNothingElseWorks(t *testing.T) {
	for name := range probes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := probe(t, name)
			if got != "bad system call" && !strings.Contains(got, "operation not permitted") && !strings.Contains(got, "permission denied") {
				t.Errorf("%s was not refused: %s", name, got)
			}
		})
	}
}

func TestNetworkStillWorks(t *testing.T) {
	var addrs []string
	for _, a := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", a)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	if got := probe(t, append([]string{"dial"}, addrs...)...); got != "<nil>" {
		t.Errorf("dial: %s", got)
	}
	if got := probe(t, "udp", addrs[0]); got != "<nil>" {
		t.Errorf("udp: %s", got)
	}
	if got := probe(t, "threads"); got != "<nil>" {
		t.Errorf("threads: %s", got)
	}
}

// Starting a bounded child must not end a thread: children of that thread that
// asked to die with it would.
func TestStartBoundedEndsNobody(t *testing.T) {
	for range 30 {
		cmd := exec.Command("/bin/cat")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if err := StartBounded(func() error { return exec.Command("/bin/true").Run() }); err != nil {
			t.Fatal(err)
		}
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Fatalf("a child was ended: %v", err)
		}
	}
}

func TestBoundedChildHasNoCapabilities(t *testing.T) {
	var out strings.Builder
	cmd := &exec.Cmd{Path: "/bin/grep", Args: []string{"grep", "Cap", "/proc/self/status"}, Stdout: &out}
	if err := StartBounded(cmd.Start); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if os.Getuid() == 0 && strings.Count(out.String(), "\t0000000000000000\n") != 5 {
		t.Errorf("the child's capabilities:\n%s", out.String())
	}
}

func BenchmarkApply(b *testing.B) {
	for b.Loop() {
		cmd := &exec.Cmd{Path: childproc.Self(), Args: []string{childproc.Argv0("confine-probe"), "threads"}}
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
	}
}
