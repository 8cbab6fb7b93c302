//go:build linux

package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

const mountinfo = `30 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
31 24 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 24 0:31 /docker/abc /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 24 0:32 / /mnt/with\040space rw - cgroup cgroup rw,cpu,cpuacct
34 24 0:33 / /tmp rw - tmpfs tmpfs rw
torn line`

func TestHierarchies(t *testing.T) {
	hs := hierarchies([]byte(mountinfo), []byte("0::/user.slice/app.scope\n4:memory:/m\n3:pids:/docker/abc/x\n2:cpu,cpuacct:/\n"))
	want := map[string]string{"/sys/fs/cgroup": "/user.slice/app.scope", "/sys/fs/cgroup/memory": "/m", "/sys/fs/cgroup/pids": "/x", "/mnt/with space": "/"}
	if len(hs) != len(want) {
		t.Fatalf("%+v", hs)
	}
	for _, h := range hs {
		if want[h.mount] != h.own {
			t.Errorf("%s: %s, want %s", h.mount, h.own, want[h.mount])
		}
	}
}

// A delegated v2 tree, as systemd makes it, in plain files: which folder is
// chosen and what is written.
func TestUnified(t *testing.T) {
	root := t.TempDir()
	own := filepath.Join(root, "user.slice/user@1000.service/app.slice/terminal.scope")
	if err := os.MkdirAll(own, 0o755); err != nil {
		t.Fatal(err)
	}
	app := filepath.Dir(own)
	for f, content := range map[string]string{own + "/cgroup.subtree_control": "", app + "/cgroup.subtree_control": "memory pids\n", app + "/cgroup.procs": ""} {
		os.WriteFile(f, []byte(content), 0o644)
	}
	g := &Group{}
	err := g.unified(hierarchy{v2: true, mount: root, own: "/user.slice/user@1000.service/app.slice/terminal.scope"}, "bulkhead-1-s-x",
		Limits{Memory: 1 << 20, PIDs: 5, CPUs: 1})
	// Plain files don't appear in a new folder, so the first write fails: that
	// must be an error, not a limit that is not enforced.
	if err == nil || g.Memory != "" {
		t.Errorf("err %v, %+v", err, g)
	}
	if len(g.Dirs) != 1 || g.Dirs[0] != app+"/bulkhead-1-s-x" {
		t.Errorf("chosen: %v", g.Dirs)
	}
	dir := g.Dirs[0]
	for _, f := range []string{"memory.max", "memory.swap.max", "pids.max", "memory.events", "pids.events"} {
		os.WriteFile(dir+"/"+f, nil, 0o644)
	}
	if err := g.limitUnified(dir, Limits{Memory: 1 << 20, PIDs: 5}, true, true, false); err != nil {
		t.Fatal(err)
	}
	for f, want := range map[string]string{"memory.max": "1048576", "memory.swap.max": "0", "pids.max": "37"} {
		if got, _ := os.ReadFile(dir + "/" + f); string(got) != want {
			t.Errorf("%s: %q, want %q", f, got, want)
		}
	}
	os.WriteFile(dir+"/memory.events", []byte("low 0\noom 3\noom_kill 2\n"), 0o644)
	os.WriteFile(dir+"/pids.events", []byte("max 7\n"), 0o644)
	if g.OOMKills() != 2 || g.RefusedTasks() != 7 || g.CPUs != "" {
		t.Errorf("%d, %d, %q", g.OOMKills(), g.RefusedTasks(), g.CPUs)
	}
}

func FuzzHierarchies(f *testing.F) {
	f.Add([]byte(mountinfo), []byte("0::/a\n4:memory:/m\n"))
	f.Fuzz(func(t *testing.T, m, c []byte) {
		for _, h := range hierarchies(m, c) {
			if h.own == "" || h.own[0] != '/' || filepath.Clean(h.own) != h.own {
				t.Fatalf("own folder %q", h.own)
			}
		}
	})
}

// TestRoom: the closest limit counts, of this process's own cgroup or one above it.
func TestRoom(t *testing.T) {
	root := t.TempDir()
	own := filepath.Join(root, "a", "b")
	if err := os.MkdirAll(own, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(dir, most, now string) {
		for name, value := range map[string]string{"pids.max": most, "pids.current": now} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(value+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	v1 := hierarchy{controllers: []string{"pids"}, mount: root, own: "/a/b"}
	if free, at, ok := room([]hierarchy{v1, {controllers: []string{"cpu"}, mount: root, own: "/a"}}); ok {
		t.Errorf("without a limit: %d by %s", free, at)
	}
	write(own, "max", "3")
	write(filepath.Dir(own), "40", "30")
	for _, h := range []hierarchy{v1, {v2: true, mount: root, own: "/a/b"}} {
		if free, at, ok := room([]hierarchy{h}); free != 10 || at != filepath.Join(root, "a", "pids.max") || !ok {
			t.Errorf("%+v: %d by %s, %v", h, free, at, ok)
		}
	}
	write(own, "5", "3")
	if free, at, ok := room([]hierarchy{v1}); free != 2 || at != filepath.Join(own, "pids.max") || !ok {
		t.Errorf("%d by %s, %v", free, at, ok)
	}
}
