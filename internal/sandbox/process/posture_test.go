//go:build linux

package process

import (
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/sandboxtest"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/warden"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/google/go-cmp/cmp"
)

// TestPosture compares the whole observed state of a contained process with
// the expected one.
func TestPosture(t *testing.T) {
	sandboxtest.EachUser(t, func(t *testing.T) {
		host := t.TempDir()
		spec := sandboxtest.Spec(sandbox.NetNone,
			vocabulary.Mount{Kind: vocabulary.BindRW, Source: host, Target: "/ws", Why: "test"},
			vocabulary.Mount{Kind: vocabulary.MaskDir, Target: "/usr/share", Why: "test"},
			vocabulary.Mount{Kind: vocabulary.MaskFile, Target: "/usr/bin/env", Why: "test"})
		i := sandboxtest.Prepare(t, &Backend{}, spec)
		var got sandboxtest.Posture
		sandboxtest.Ask(t, i, &got, "posture")

		mine := sandboxtest.Namespaces("self")
		for name, ns := range got.Namespaces {
			if ns == mine[name] {
				t.Errorf("%s namespace is shared with the host", name)
			}
		}
		got.Namespaces = nil
		uid, gid := fmt.Sprint(os.Getuid()), fmt.Sprint(os.Getgid())
		const zero = "0000000000000000"
		// Inside, the outer number is the warden's or bwrap's own 0, or ours.
		got.Mounts = withoutOwnCovers(got.Mounts)
		got.UIDMap, got.GIDMap = firstAndLast(got.UIDMap), firstAndLast(got.GIDMap)
		want := sandboxtest.Posture{
			Status: map[string]string{"CapInh": zero, "CapPrm": zero, "CapEff": zero, "CapBnd": zero, "CapAmb": zero, "NoNewPrivs": "1",
				"Seccomp": "2", "SigIgn": zero, "SigBlk": got.Status["SigBlk"], "TracerPid": "0", "Groups": keptGroups(t),
				"Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "Gid": strings.Join([]string{gid, gid, gid, gid}, " ")},
			UIDMap: uid + " 1", GIDMap: gid + " 1", Setgroups: "deny",
			Mounts:     expectedMounts(t, spec),
			FDs:        []string{"0 pipe", "1 pipe", "2 pipe"},
			Env:        sandboxtest.Env,
			Limits:     map[string]string{"core": "0 0", "data": "-1 -1", "nproc": got.Limits["nproc"]},
			Dev:        []string{"core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"},
			Root:       expectedRoot(),
			Cwd:        "/",
			Hostname:   "inside",
			Interfaces: []string{"lo 127.0.0.1/8", "lo ::1/128"},
			Processes:  []string{"1 bulkhead-guest"},
			Cgroup:     got.Cgroup,
			Session:    true,
		}
		for _, c := range got.Cgroup {
			if c != "/" {
				t.Errorf("cgroup %q of the host is visible", c)
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("posture (-want +got):\n%s", d)
		}
		// The Go runtime of the probe blocks signals for itself; a plain program
		// shows what a command really starts with.
		if out, _ := sandboxtest.Output(t, i, "", "grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"); out != "SigBlk:\t"+zero+"\nSigIgn:\t"+zero+"\n" {
			t.Errorf("a command starts with\n%s", out)
		}
		// Pid 1's own state, seen from outside.
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", i.PID()))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"CapBnd:\t" + zero, "CapEff:\t" + zero, "NoNewPrivs:\t1", "Seccomp:\t2"} {
			if !strings.Contains(string(status), line+"\n") {
				t.Errorf("the supervisor lacks %q:\n%s", line, status)
			}
		}
	})
}

func firstAndLast(s string) string {
	f := strings.Fields(s)
	if len(f) != 3 {
		return s
	}
	return f[0] + " " + f[2]
}

func expectedMounts(t *testing.T, spec sandbox.Spec) []string {
	t.Helper()
	const ro, rw = "ro,nosuid,nodev", "rw,nosuid,nodev"
	fs := fileSystem
	// Root owns the host's nodes, so the mounts that show them are read-only.
	devices := "rw,nosuid"
	if os.Geteuid() == 0 {
		devices = "ro,nosuid"
	}
	mounts := []string{"/ tmpfs " + ro, "/proc proc rw,nosuid,nodev,noexec", "/dev tmpfs " + ro, "/dev/pts devpts rw,nosuid,noexec",
		"/dev/shm tmpfs " + rw, "/run/bulkhead tmpfs " + ro, "/run/bulkhead/bulkhead " + fs(t, "/proc/self/exe") + " " + ro}
	for _, d := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		mounts = append(mounts, "/dev/"+d+" "+fs(t, "/dev/"+d)+" "+devices)
	}
	for _, p := range readOnlyProc {
		if _, err := os.Stat(p); err != nil {
			continue
		}
		mounts = append(mounts, p+" proc ro,nosuid,nodev"+noexec(t))
	}
	for _, p := range hiddenProc {
		st, err := os.Stat(p)
		switch {
		case err != nil:
		case st.IsDir():
			mounts = append(mounts, p+" tmpfs "+ro)
		default:
			mounts = append(mounts, p+" "+fs(t, "/dev/null")+" "+ro)
		}
	}
	for _, m := range spec.Mounts {
		switch m.Kind {
		case vocabulary.BindRO:
			mounts = append(mounts, m.Target+" "+fs(t, m.Source)+" "+ro)
		case vocabulary.BindRW:
			mounts = append(mounts, m.Target+" "+fs(t, m.Source)+" "+rw)
		case vocabulary.Tmpfs:
			mounts = append(mounts, m.Target+" tmpfs "+rw)
		case vocabulary.Data:
			mounts = append(mounts, m.Target+" tmpfs "+ro)
		case vocabulary.MaskDir:
			mounts = append(mounts, m.Target+" tmpfs "+ro)
		case vocabulary.MaskFile:
			mounts = append(mounts, m.Target+" "+fs(t, "/dev/null")+" "+ro)
		}
	}
	sort.Strings(mounts)
	return mounts
}

// fileSystem finds the type of the file system that holds a path.
func fileSystem(t *testing.T, path string) string {
	t.Helper()
	if to, err := os.Readlink(path); err == nil {
		path = to
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	best, typ := "", ""
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		for i := range f {
			if f[i] == "-" && i > 5 && below(path, f[4]) && len(f[4]) >= len(best) {
				best, typ = f[4], f[i+1]
			}
		}
	}
	return typ
}

// noexec is how the host's /proc is mounted; parts of it keep that.
func noexec(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); f[4] == "/proc" && strings.Contains(f[5], "noexec") {
			return ",noexec"
		}
	}
	return ""
}

// withoutOwnCovers drops the read-only covers that bwrap itself lays over parts
// of /proc for root; ours lie on top of them.
func withoutOwnCovers(mounts []string) []string {
	seen := map[string]int{}
	for _, m := range mounts {
		seen[strings.Fields(m)[0]]++
	}
	return slices.DeleteFunc(mounts, func(m string) bool {
		at := strings.Fields(m)[0]
		return slices.Contains(readOnlyProc, at) && seen[at] > 1 && m == at+" proc ro,nosuid,nodev,noexec"
	})
}

func expectedRoot() []string {
	root := []string{"dev", "etc", "opt", "proc", "run", "tmp", "usr", "ws"}
	for _, d := range []string{"bin", "sbin", "lib", "lib64", "lib32", "libx32"} {
		if _, err := os.Lstat("/" + d); err == nil {
			root = append(root, d)
		}
	}
	sort.Strings(root)
	return root
}

func TestTAP(t *testing.T) {
	sandboxtest.EachUser(t, func(t *testing.T) {
		spec := sandboxtest.Spec(sandbox.NetTAP)
		if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
			if cerr := (&Backend{}).Check(spec); cerr == nil || !strings.Contains(cerr.Error(), "chmod 0666 /dev/net/tun") {
				t.Fatalf("check without a TUN device: %v", cerr)
			}
			t.Skipf("not proven: a TAP for this user (%v)", err)
		} else {
			f.Close()
		}
		i := sandboxtest.Prepare(t, &Backend{}, spec)
		if i.Link() == nil {
			t.Fatal("no link")
		}
		var p sandboxtest.Posture
		sandboxtest.Ask(t, i, &p, "posture")
		sort.Strings(p.Interfaces)
		if d := cmp.Diff([]string{"lo 127.0.0.1/8", "lo ::1/128", warden.Interface + " " + sandbox.LinkGuest4, warden.Interface + " " + sandbox.LinkGuest6}, p.Interfaces); d != "" {
			t.Errorf("interfaces (-want +got):\n%s", d)
		}
		sort.Strings(p.Routes)
		if d := cmp.Diff([]string{warden.Interface + " 010012C6", warden.Interface + " fd62756c000000000000000000000001"}, p.Routes); d != "" {
			t.Errorf("default routes (-want +got):\n%s", d)
		}
		if out, code := sandboxtest.Output(t, i, "", "sh", "-c", "cat /sys/class/net/tap0/mtu 2>/dev/null || grep -c tap0 /proc/net/dev"); code != 0 {
			t.Errorf("the link: %s", out)
		}
		// A packet sent inside arrives at the link.
		go sandboxtest.Try(i, "", sandboxtest.Env, "/", "bash", "-c", "timeout 1 bash -c 'echo x > /dev/udp/192.0.2.1/53'")
		i.Link().SetReadDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 70000)
		if n, err := i.Link().Read(buf); err != nil || n < 14 {
			t.Errorf("reading a frame: %d bytes, %v", n, err)
		}
		// And nobody inside can change the network.
		for _, attack := range []string{"ip link set tap0 down", "ip addr add 10.0.0.1/8 dev tap0", "ip route add 10.0.0.0/8 dev tap0", "ip tuntap add dev t0 mode tap"} {
			if out, code := sandboxtest.Output(t, i, "", "sh", "-c", attack); code == 0 {
				t.Errorf("%s: done (%s)", attack, out)
			}
		}
	})
}

// keptGroups are an ordinary user's supplementary groups, which the kernel does
// not let him drop: his own by its number, the others as nobody's. Root's are
// dropped.
func keptGroups(t *testing.T) string {
	if os.Geteuid() == 0 {
		return ""
	}
	groups, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, g := range groups {
		if g != os.Getgid() {
			g = 65534
		}
		seen = append(seen, fmt.Sprint(g))
	}
	return strings.Join(seen, " ")
}
