package egress

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/egress/confine"
)

// posture is everything that the kernel says about a process and that decides
// what it can do.
type posture struct {
	Status map[string]string
	FDs    []string
	Limits map[string]string
	Env    []string
	Exe    bool
	Cwd    string
}

var statusKeys = []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "TracerPid"}

func readPosture(t *testing.T, pid int) posture {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d", pid)
	p := posture{Limits: map[string]string{}}
	p.Status = threadStatus(t, dir+"/status")
	tasks, err := os.ReadDir(dir + "/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if diff := cmp.Diff(p.Status, threadStatus(t, filepath.Join(dir, "task", task.Name(), "status"))); diff != "" {
			t.Errorf("thread %s differs from its process:\n%s", task.Name(), diff)
		}
	}
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
		if err != nil {
			continue
		}
		kind := target
		if strings.HasPrefix(target, "socket:") || strings.HasPrefix(target, "pipe:") {
			kind, _, _ = strings.Cut(target, ":") // then its inode
		}
		p.FDs = append(p.FDs, kind)
	}
	sort.Strings(p.FDs)
	b, err := os.ReadFile(dir + "/limits")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		for _, name := range []string{"Max core file size", "Max file size", "Max data size", "Max open files", "Max locked memory", "Max msgqueue size"} {
			if rest, ok := strings.CutPrefix(l, name); ok {
				f := strings.Fields(rest)
				p.Limits[name] = f[0] + " " + f[1]
			}
		}
	}
	env, err := os.ReadFile(dir + "/environ")
	if err != nil {
		t.Fatal(err)
	}
	p.Env = strings.Split(strings.TrimRight(string(env), "\x00"), "\x00")
	p.Cwd, _ = os.Readlink(dir + "/cwd")
	mine, _ := os.Readlink("/proc/self/exe")
	theirs, _ := os.Readlink(dir + "/exe")
	p.Exe = mine == theirs
	return p
}

func threadStatus(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]string{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		k, v, _ := strings.Cut(sc.Text(), ":")
		for _, want := range statusKeys {
			if k == want {
				out[k] = strings.TrimSpace(v)
			}
		}
	}
	return out
}

func TestPosture(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("NOT PROVEN: the gateway's posture (a process that is not dumpable can be read by root only)")
	}
	// A descriptor that the controller inherited and does not know of.
	leak, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	if _, err := unix.FcntlInt(leak.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	r := startRelay(t, nil)
	none := strings.Repeat("0", 16)
	want := posture{
		Status: map[string]string{
			"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
			"NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "6", "TracerPid": "0",
		},
		FDs: []string{
			"/dev/null", "/dev/null", "anon_inode:[eventfd]", "anon_inode:[eventpoll]", // standard input, output; the poller
			"pipe", "pipe", "pipe", // standard error, records, receipts
			"socket", "socket", // control connection, the relay's listener
		},
		Limits: map[string]string{
			"Max core file size": "0 0", "Max file size": "0 0", "Max locked memory": "0 0", "Max msgqueue size": "0 0",
			"Max data size":  fmt.Sprintf("%d %d", confine.MaxData, confine.MaxData),
			"Max open files": fmt.Sprintf("%d %d", confine.MaxFiles, confine.MaxFiles),
		},
		Env: []string{"GODEBUG=containermaxprocs=0,updatemaxprocs=0,adaptivestackstart=1", "GOTRACEBACK=single", "GOMAXPROCS=1", "GOGC=200"},
		Exe: true, Cwd: "/",
	}
	if diff := cmp.Diff(want, readPosture(t, r.gw.PID())); diff != "" {
		t.Errorf("posture (-want +got):\n%s", diff)
	}
}

func TestGatewayEndsWithItsController(t *testing.T) {
	r := startRelay(t, nil)
	pid := r.gw.PID()
	r.gw.conn.Close() // what the kernel does when the controller dies
	select {
	case <-r.gw.Done():
	case <-time.After(15 * time.Second):
		t.Fatal("the gateway lives on")
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
		t.Error("the process is still there")
	}
}

func TestBadConfigurationIsReported(t *testing.T) {
	cfg := Config{CACert: []byte("x"), CAKey: []byte("y")}
	g, err := Start(context.Background(), cfg, &recorder{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := g.Attach(nil); err == nil || !strings.Contains(err.Error(), "CA") {
		t.Errorf("Attach: %v", err)
	}
}

func TestCrashIsReported(t *testing.T) {
	r := startRelay(t, nil)
	p, _ := os.FindProcess(r.gw.PID())
	p.Kill()
	select {
	case <-r.gw.Done():
	case <-time.After(15 * time.Second):
		t.Fatal("not noticed")
	}
	if r.gw.Err() == nil {
		t.Error("no cause")
	}
}
