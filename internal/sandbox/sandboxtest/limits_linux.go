package sandboxtest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
)

// exceeded is what an instance may tell beyond the contract.
type exceeded interface{ Exceeded() []string }

func testLimitPIDs(t *testing.T, b sandbox.Backend) {
	const limit = 40
	for _, kind := range []string{"fork", "thread"} {
		t.Run(kind, func(t *testing.T) {
			s := Spec(sandbox.NetNone)
			s.Limits.PIDs = limit
			s.Seen = func(sandbox.Seen) {}
			i := Prepare(t, b, s)
			r, w, _ := os.Pipe()
			defer r.Close()
			p, err := i.Start(context.Background(), sandbox.Command{Argv: []string{Probe, kind, "2000"}, Env: Env, Dir: "/", Stdio: [3]*os.File{nil, w, nil}})
			w.Close()
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			r.SetReadDeadline(time.Now().Add(20 * time.Second))
			n, err := r.Read(buf)
			made, _ := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
			// What our own processes leave unused of their share is the sandbox's.
			if err != nil || made < limit/2 || made > limit+40 {
				t.Fatalf("the bomb made %d tasks (%v), limit %d", made, err, limit)
			}
			t.Logf("%s bomb stopped at %d with a limit of %d", kind, made, limit)
			told := i.Usage().Crowded
			for deadline := time.Now().Add(5 * time.Second); !told && time.Now().Before(deadline) && !counts(i); told = i.Usage().Crowded {
				time.Sleep(50 * time.Millisecond)
			}
			// The bomb holds what it has. The supervisor lives and says so.
			if _, _, err := Try(i, "", Env, "/", "true"); err == nil {
				t.Log("a command still found room")
			} else {
				t.Logf("at the limit: %v", err)
			}
			if err := p.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			wait(t, p)
			time.Sleep(100 * time.Millisecond)
			if out, code := Output(t, i, "", "echo", "recovered"); out != "recovered\n" {
				t.Errorf("after the bomb: %q, %d", out, code)
			}
			i.Kill()
			if !told && !strings.Contains(fmt.Sprint(i.(exceeded).Exceeded()), "pids (40") {
				t.Errorf("the limit is not told of: %v", i.(exceeded).Exceeded())
			}
		})
	}
}

// counts says whether the kernel, the host's or that inside, counts what it refuses.
func counts(i sandbox.Instance) bool {
	if traits.ForeignKernel {
		return true
	}
	means := i.(interface{ Means() []string }).Means()
	return slices.ContainsFunc(means, func(m string) bool { return strings.HasPrefix(m, "pids") && strings.Contains(m, "cgroup") })
}

func testLimitMemory(t *testing.T, b sandbox.Backend) {
	const limit = 192 << 20
	for _, kind := range []string{"anon", "children", "memfd", "tmpfs", "shm"} {
		t.Run(kind, func(t *testing.T) {
			s := Spec(sandbox.NetNone)
			s.Limits.Memory = limit
			i := Prepare(t, b, s)
			out, code, err := Try(i, "", Env, "/", Probe, "hog", kind, fmt.Sprint(4*limit))
			if err == nil && code == 0 {
				t.Fatalf("took 4 times the limit: %s", out)
			}
			if err != nil {
				// The whole sandbox was ended.
				select {
				case <-i.Done():
				case <-time.After(5 * time.Second):
					t.Fatalf("%v, but the instance goes on", err)
				}
				if c := i.Cause(); c == nil || !strings.Contains(c.Error(), "memory") {
					t.Errorf("cause: %v", c)
				}
				t.Logf("ended: %v", i.Cause())
				return
			}
			if _, code := Output(t, i, "", "true"); code != 0 {
				t.Errorf("the sandbox does not work after its hog was stopped")
			}
			i.Kill()
			t.Logf("hog ended with code %d (%s); %v", code, strings.TrimSpace(out), i.(exceeded).Exceeded())
			if code == 128+9 && len(i.(exceeded).Exceeded()) == 0 {
				t.Error("killed, and no limit was named")
			}
		})
	}
	// Under the limit nothing is disturbed.
	s := Spec(sandbox.NetNone)
	s.Limits.Memory = limit
	i := Prepare(t, b, s)
	if out, code := Output(t, i, "", Probe, "hog", "anon", fmt.Sprint(limit/2)); code != 0 {
		t.Errorf("half the limit: exit %d, %s", code, out)
	}
}

type spent struct{ Used, Wall float64 } // seconds

// burnt is what threads that want all processors got of them.
func burnt(t *testing.T, i sandbox.Instance, threads, d string) (r spent) {
	t.Helper()
	before, start := processorTime(i.PID()), time.Now()
	Ask(t, i, &r, "burn", threads, d)
	if traits.ForeignKernel { // its own count is its own guess: what the host saw
		r = spent{processorTime(i.PID()) - before, time.Since(start).Seconds()}
	}
	return r
}

// processorTime of a process and all below it, in seconds.
func processorTime(pid int) (sum float64) {
	const ticks = 100 // USER_HZ of every port of Linux that Go has
	for _, p := range Descendants(pid) {
		stat := read("/proc/" + p + "/stat")
		f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
		if len(f) > 12 {
			sum += float64(number(f[11])+number(f[12])) / ticks
		}
	}
	return sum
}

func testLimitCPUs(t *testing.T, b sandbox.Backend) {
	s := Spec(sandbox.NetNone)
	s.Limits.CPUs = 1
	i := Prepare(t, b, s)
	r := burnt(t, i, "4", "600ms")
	if r.Used > 1.3*r.Wall {
		t.Errorf("used %.2f s of processor in %.2f s, limit 1", r.Used, r.Wall)
	}
	s = Spec(sandbox.NetNone)
	s.Limits.CPUs = 0.25
	if err := b.Check(s); err != nil {
		t.Fatal(err)
	}
	j, err := b.Prepare(context.Background(), s)
	if err != nil {
		if !strings.Contains(err.Error(), "cgroup") {
			t.Fatal(err)
		}
		t.Logf("a quarter of a processor is refused here, as it must be: %v", err)
		return
	}
	defer j.Kill()
	r = burnt(t, j, "2", "1s")
	if r.Used > 0.5*r.Wall {
		t.Errorf("used %.2f s of processor in %.2f s, limit 0.25", r.Used, r.Wall)
	}
}
