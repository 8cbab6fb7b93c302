package kernel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
)

func init() {
	childproc.Register("probe-hang", func() int { time.Sleep(time.Minute); return 0 })
	childproc.Register("probe-silent", func() int { return 0 })
	childproc.Register("probe-crash", func() int { panic("on purpose") })
}

func TestMain(m *testing.M) {
	childproc.Dispatch()
	os.Exit(m.Run())
}

// examine also checks what must hold on every host.
func examine(t *testing.T) Report {
	t.Helper()
	start := time.Now()
	r := Examine(context.Background())
	if d := time.Since(start); d > probeTime+2*time.Second {
		t.Errorf("Examine took %v", d)
	}
	for _, p := range r.Probes {
		if p.Found == "" {
			t.Errorf("%s says nothing", p.Name)
		}
		if p.Status != OK && p.Cost == "" {
			t.Errorf("%s is %v and names no cost", p.Name, p.Status)
		}
		if p.Status == OK && (p.Cost != "" || p.Remedy != "") {
			t.Errorf("%s is ok and costs %q, remedy %q", p.Name, p.Cost, p.Remedy)
		}
	}
	if len(r.Summary.Isolations) != 3 {
		t.Errorf("%d isolations", len(r.Summary.Isolations))
	}
	return r
}

func TestExamineThisHost(t *testing.T) {
	r := examine(t)
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", text.String())

	// Against what can be seen by other means.
	if _, err := exec.Command("unshare", "--user", "--map-root-user", "true").Output(); err == nil {
		if p := r.Probe(ProbeUserns); p.Status == Missing {
			t.Errorf("unshare makes user namespaces, the probe says %+v", p)
		}
	}
	if fd, err := os.OpenFile(tunPath, os.O_RDWR, 0); err != nil {
		if p := r.Probe(ProbeTUN); p.Status != Missing || r.Summary.Network != NetworkRelay {
			t.Errorf("%v, the probe says %+v, network %s", err, p, r.Summary.Network)
		}
	} else {
		fd.Close()
		if p := r.Probe(ProbeTUN); p.Status != OK && r.Probe(ProbeUserns).Status == OK {
			t.Errorf("TUN opens and user namespaces work, the probe says %+v", p)
		}
	}
	if c := FindCgroups(); c.Version != 0 {
		for controller, dir := range c.Dirs {
			made, err := os.MkdirTemp(dir, "bulkhead-test-")
			if err != nil {
				t.Errorf("%s: %v", controller, err)
				continue
			}
			if _, err := os.Stat(filepath.Join(made, controllerFile(controller, c.Version))); err != nil {
				t.Errorf("a cgroup below %s does not limit: %v", dir, err)
			}
			if err := os.Remove(made); err != nil {
				t.Error(err)
			}
		}
	}
}

func controllerFile(controller string, version int) string {
	one := map[string]string{"memory": "memory.limit_in_bytes", "pids": "pids.max", "cpu": "cpu.cfs_quota_us"}
	two := map[string]string{"memory": "memory.max", "pids": "pids.max", "cpu": "cpu.max"}
	if version == 1 {
		return one[controller]
	}
	return two[controller]
}

// TestAsOrdinaryUser runs the tests of this package once more as nobody.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		return // they all ran as one already
	}
	dir, err := os.MkdirTemp("", "bulkhead-kernel-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "kernel.test")
	copyFile(t, "/proc/self/exe", binary)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-test.v", "-test.run=TestExamineThisHost|TestChildren")
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "TMPDIR=/tmp"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
	if !bytes.Contains(out, []byte("for an ordinary user")) {
		t.Error("did not run as an ordinary user")
	}
	if st, err := os.Stat(tunPath); err == nil && st.Mode().Perm()&0o006 != 0o006 &&
		!bytes.Contains(out, []byte("is closed to this user")) {
		t.Error("a closed TUN device was not found closed")
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestChildrenAreBounded(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	var v struct{}
	if err := child(ctx, "probe-hang", 0, &v); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a hanging child: %v", err)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("took %v", d)
	}
	if err := child(context.Background(), "probe-silent", 0, &v); err == nil {
		t.Error("a silent child passed for an answer")
	}
	if err := child(context.Background(), "probe-crash", 0, &v); err == nil {
		t.Error("a crashing child passed for an answer")
	}
}

func TestChildrenLeaveNothing(t *testing.T) {
	links := func() string {
		b, err := os.ReadFile("/proc/self/net/dev")
		if err != nil {
			t.Fatal(err)
		}
		n := strings.Count(string(b), "\n")
		h, _ := os.Hostname()
		return h + strings.Repeat("|", n)
	}
	before := links()
	examine(t)
	if after := links(); after != before {
		t.Errorf("host name or interfaces changed: %q to %q", before, after)
	}
	if b, _ := os.ReadFile("/proc/self/status"); !bytes.Contains(b, []byte("Seccomp:\t0")) && bytes.Contains(b, []byte("NoNewPrivs:\t1")) {
		t.Error("a probe confined this process")
	}
}

func TestKVMSurvivesAHangingGuest(t *testing.T) {
	start := time.Now()
	p := probeKVM(context.Background())
	if d := time.Since(start); d > kvmTime+2*time.Second {
		t.Errorf("took %v", d)
	}
	t.Logf("%v in %v: %s", p.Status, time.Since(start), p.Found)
	if p.Status != OK && p.Cost == "" {
		t.Error("no cost")
	}
}

func TestJudgements(t *testing.T) {
	for name, c := range map[string]struct {
		got    Probe
		status Status
		found  string // must be part of Found
		remedy string // must be part of Remedy
	}{
		"userns":                 {judgeUserns(namespaceFacts{}), OK, "with capabilities", ""},
		"userns apparmor":        {judgeUserns(namespaceFacts{Caps: "operation not permitted", AppArmor: "1"}), Limited, "apparmor_restrict", "apparmor_parser"},
		"userns apparmor old":    {judgeUserns(namespaceFacts{Create: "EPERM", AppArmor: "1"}), Missing, "apparmor_restrict", "apparmor_parser"},
		"userns debian sysctl":   {judgeUserns(namespaceFacts{Create: "EPERM", UnprivilegedClone: "0"}), Missing, "unprivileged_userns_clone=0", "unprivileged_userns_clone=1"},
		"userns none left":       {judgeUserns(namespaceFacts{Create: "ENOSPC", MaxNamespaces: "0"}), Missing, "max_user_namespaces=0", "max_user_namespaces=15000"},
		"userns outer container": {judgeUserns(namespaceFacts{Create: "EPERM", MaxNamespaces: "9"}), Missing, "EPERM", "seccomp=unconfined"},
		"tun":                    {judgeTUN(nil, namespaceFacts{}), OK, "made a TAP", ""},
		"tun closed":             {judgeTUN(&os.PathError{Err: unix.EACCES}, namespaceFacts{}), Missing, "closed", "0666"},
		"tun absent":             {judgeTUN(&os.PathError{Err: unix.ENOENT}, namespaceFacts{}), Missing, "not there", "tun"},
		"tun no caps":            {judgeTUN(nil, namespaceFacts{Caps: "EPERM"}), Missing, "capabilities", "user-namespaces"},
		"tun setiff":             {judgeTUN(nil, namespaceFacts{SetIff: "EPERM"}), Missing, "TUNSETIFF", ""},
		"landlock none":          {judgeLandlock(0), Missing, "not in this kernel", "lsm="},
		"landlock 1":             {judgeLandlock(1), Limited, "ABI 1", "6.12"},
		"landlock 5":             {judgeLandlock(5), Limited, "ABI 5", "6.12"},
		"landlock 6":             {judgeLandlock(6), OK, "ABI 6", ""},
		"writes":                 {judgeWrites(true, "1"), OK, "ptrace_scope=1", ""},
		"writes without yama":    {judgeWrites(true, ""), OK, "no yama", ""},
		"writes admin only":      {judgeWrites(true, "2"), Limited, "ptrace_scope=2", "ptrace_scope=1"},
		"writes nobody":          {judgeWrites(true, "3"), Missing, "ptrace_scope=3", "boot without"},
		"writes old kernel":      {judgeWrites(false, "1"), Limited, "can't hold", "5.19"},
		"cgroups none":           {judgeCgroups(Cgroups{Why: "x is not writable"}), Limited, "x is not writable", ""},
		"cgroups 2":              {judgeCgroups(Cgroups{Version: 2, Dirs: map[string]string{"memory": "/m", "pids": "/m", "cpu": "/m"}}), OK, "version 2", ""},
		"cgroups 2 no cpu":       {judgeCgroups(Cgroups{Version: 2, Dirs: map[string]string{"memory": "/m", "pids": "/m"}}), Limited, "version 2", "systemd-run"},
		"bare metal":             {judgeNesting(nesting{}), OK, "not in", ""},
		"docker":                 {judgeNesting(nesting{Container: "docker"}), Limited, "docker", ""},
		"wsl1":                   {judgeNesting(nesting{WSL: "1"}), Missing, "WSL 1", "--set-version"},
		"wsl2":                   {judgeNesting(nesting{WSL: "2"}), OK, "WSL 2", ""},
		"wsl2 interop":           {judgeNesting(nesting{WSL: "2", Interop: true}), Limited, "interop", "enabled=false"},
	} {
		if c.got.Status != c.status || !strings.Contains(c.got.Found, c.found) || !strings.Contains(c.got.Remedy, c.remedy) {
			t.Errorf("%s: %+v", name, c.got)
		}
	}
}

func TestCgroupPaths(t *testing.T) {
	mounts := parseCgroupMounts(`25 20 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
30 20 0:26 /docker/abc /sys/fs/cgroup/memory ro,nosuid master:11 - cgroup cgroup rw,memory
31 20 0:27 / /sys/fs/with\040space rw - cgroup cgroup rw,cpu,cpuacct
garbage
32 20 0:28 / /x rw`)
	if len(mounts) != 3 {
		t.Fatalf("%+v", mounts)
	}
	for _, c := range []struct {
		m    int
		path string
		dir  string
		ok   bool
	}{
		{0, "/user.slice/a.scope", "/sys/fs/cgroup/user.slice/a.scope", true},
		{0, "/", "/sys/fs/cgroup", true},
		{0, "/../outside", "", false},
		{1, "/docker/abc", "/sys/fs/cgroup/memory", true},
		{1, "/docker/abc/d", "/sys/fs/cgroup/memory/d", true},
		{1, "/docker/abcd", "", false},
		{1, "/elsewhere", "", false},
		{2, "/", "/sys/fs/with space", true},
	} {
		if dir, ok := mounts[c.m].dir(c.path); dir != c.dir || ok != c.ok {
			t.Errorf("%d %s: %q %v", c.m, c.path, dir, ok)
		}
	}
	own := parseOwnCgroups("9:name=systemd:/s\n4:memory:/m\n2:cpu,cpuacct:/c\n0::/two\nbroken\n")
	for k, v := range map[string]string{"memory": "/m", "cpu": "/c", "cpuacct": "/c", "": "/two"} {
		if own[k] != v {
			t.Errorf("%q: %q", k, own[k])
		}
	}
}

// TestCgroup2Delegation builds the files of a delegated and an undelegated
// tree; the real ones are asked in TestExamineThisHost where the host has them.
func TestCgroup2Delegation(t *testing.T) {
	top := t.TempDir()
	own := filepath.Join(top, "app.slice", "term.scope")
	for dir, control := range map[string]string{top: "memory pids", filepath.Dir(own): "cpu memory pids", own: ""} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string]string{"cgroup.subtree_control": control, "cgroup.procs": ""} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if c, why := cgroup2(own, top); c.Version != 2 || c.Dirs["cpu"] != filepath.Dir(own) {
		t.Errorf("%+v %s", c, why)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(own), "cgroup.subtree_control"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if c, why := cgroup2(own, top); c.Version != 0 || why == "" {
		t.Errorf("without controllers: %+v %q", c, why)
	}
}

func TestFindToolRefusesWhatOthersCanChange(t *testing.T) {
	if os.Geteuid() != 0 {
		return // the files would not be root's; TestAsOrdinaryUser is the other way round
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "tool")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := findTool([]string{dir}, "tool"); got != path || err != nil {
		t.Errorf("%q %v", got, err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if got, err := findTool([]string{dir}, "tool"); err == nil {
		t.Errorf("world-writable %q accepted", got)
	}
	if err := errors.Join(os.Chmod(path, 0o755), os.Chown(path, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	if got, err := findTool([]string{dir}, "tool"); err == nil {
		t.Errorf("another user's %q accepted", got)
	}
	for _, name := range []string{"", "../tool", "/bin/sh", "no-such-tool"} {
		if got, err := findTool([]string{dir}, name); err == nil {
			t.Errorf("%q gave %q", name, got)
		}
	}
}

func TestReportFormats(t *testing.T) {
	r := Report{OS: "linux", Arch: "amd64", Probes: []Probe{
		{Name: ProbeBwrap, Status: OK, Found: "yes"}, {Name: ProbeSeccomp, Status: OK, Found: "yes"},
		{Name: ProbeLandlock, Status: Limited, Found: "ABI 1", Cost: "c", Remedy: "r\x1b[2J"},
	}}
	r.Summary = r.summarise(LimitsWatched)
	if i := r.Summary.Isolations[0]; i.Status != Limited || r.Summary.Network != NetworkRelay {
		t.Errorf("%+v", r.Summary)
	}
	if i := r.Summary.Isolations[1]; i.Status != Missing {
		t.Errorf("a container from probes that were not made: %+v", i)
	}
	for lacking, want := range map[string][2]Status{"": {OK, OK}, ProbeLandlock: {Missing, Missing}, ProbeWrites: {OK, Missing}, ProbeUserns: {OK, Missing}} {
		var bare Report
		for _, name := range []string{ProbeBwrap, ProbeSeccomp, ProbeUserns, ProbeGVisor, ProbeLandlock, ProbeWrites} {
			if name != lacking {
				bare.Probes = append(bare.Probes, Probe{Name: name, Status: OK})
			}
		}
		if is := bare.summarise(LimitsWatched).Isolations; is[0].Status != want[0] || is[1].Status != want[1] {
			t.Errorf("without %s: %+v", lacking, is)
		}
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b, &back); err != nil || back.Probe(ProbeLandlock).Status != Limited {
		t.Errorf("%v %s", err, b)
	}
	if err := json.Unmarshal([]byte(`{"probes":[{"status":"fine"}]}`), &back); err == nil {
		t.Error("an unknown status was accepted")
	}
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsRune(text.String(), 0x1b) {
		t.Error("an escape character reaches the terminal")
	}
	for _, want := range []string{"✓ bubblewrap", "! landlock", "costs   c", "remedy  r", "✗ container"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
}

func TestVersions(t *testing.T) {
	for s, want := range map[string][2]int{"6.18.44-fc": {6, 18}, "bubblewrap 0.8.0": {0, 8}, "5": {5, 0}, "": {0, 0}, "x": {0, 0}} {
		if a, b := version(s); a != want[0] || b != want[1] {
			t.Errorf("%q: %d %d", s, a, b)
		}
	}
}

func BenchmarkFastPath(b *testing.B) {
	for b.Loop() {
		LandlockABI()
		TUNUsable()
	}
}

// TestCommandLeavesItsPipe: on a busy machine another process may hold what a tool
// wrote to for longer than the tool runs.
func TestCommandLeavesItsPipe(t *testing.T) {
	if out, err := command(t.Context(), "/bin/sh", "-c", "sleep 2 & echo tool 1.0"); err != nil || out != "tool 1.0" {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := command(t.Context(), "/bin/sh", "-c", "sleep 2 & echo no >&2; exit 3"); err == nil || err.Error() != "no" {
		t.Errorf("%q, %v", out, err)
	}
}

// TestCgroup1WithoutMemory: what is there is said, and not that nothing is.
func TestCgroup1WithoutMemory(t *testing.T) {
	dir := t.TempDir()
	c := findCgroups([]cgroupMount{{version: 1, root: "/", point: dir, options: []string{"rw", "pids"}}}, map[string]string{"pids": "/"})
	if c.Version != 0 || c.Why != "version 1 without a memory controller" {
		t.Errorf("%+v", c)
	}
}
