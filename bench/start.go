package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// contender is one way to run true.
type contender struct {
	name   string
	dir    string
	env    []string
	argv   []string
	absent string
	took   []time.Duration
}

// start measures the time from exec of the tool to its exit, around true.
func (b *bench) start() error {
	upstream, err := newUpstream(b.dir)
	if err != nil {
		return err
	}
	defer upstream.close()
	// The default session gets no policy file and so no egress: XDG and HOME
	// lead to an empty place, lest the user's own policy be measured.
	plainDir, _, err := b.workspace("default", "version: 1\n")
	if err != nil {
		return err
	}
	grantDir, grantPolicy, err := b.workspace("granted", upstream.policy())
	if err != nil {
		return err
	}
	home := filepath.Join(b.dir, "home")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	bulkheadEnv := []string{"HOME=" + home, "XDG_CONFIG_HOME=" + home + "/config", "XDG_STATE_HOME=" + home + "/state"}

	bwrap := &contender{name: "bare bwrap", dir: plainDir}
	if path, err := exec.LookPath("bwrap"); err != nil {
		bwrap.absent = err.Error()
	} else {
		bwrap.argv = bwrapCommand(path, plainDir, home)
	}
	plain := &contender{name: "bulkhead run, no grants", dir: plainDir, env: bulkheadEnv,
		argv: []string{b.bulkhead, "run", "--", "true"}}
	granted := &contender{name: "bulkhead run, gateway ready", dir: grantDir, env: bulkheadEnv,
		argv: []string{b.bulkhead, "run", "--policy", grantPolicy, "--", "true"}}
	peerDir, _, err := b.workspace("peers", "version: 1\n")
	if err != nil {
		return err
	}
	srt := b.srt(peerDir)
	fence := b.fence(peerDir)
	runsc := b.runsc(home)
	container := &contender{name: "bulkhead run, container", dir: plainDir, env: bulkheadEnv, absent: runsc.absent,
		argv: []string{b.bulkhead, "run", "--isolation", "container", "--workspace", ".:ro", "--", "true"}}
	all := []*contender{bwrap, plain, granted, srt, fence, runsc, container}
	for _, c := range all {
		if c.absent != "" {
			continue
		}
		// The first run warms caches and shows that the contender works at all;
		// a peer that loses a race with a timeout of its own on a cold start
		// (srt does) gets two more.
		var err error
		for range 3 {
			if _, err = b.once(c); err == nil {
				break
			}
		}
		if err != nil {
			c.absent = err.Error()
		}
	}
	for range b.rounds {
		for _, c := range all {
			if c.absent != "" {
				continue
			}
			d, err := b.once(c)
			if err != nil {
				return err
			}
			c.took = append(c.took, d)
		}
	}
	for _, c := range all {
		r := row{Question: "start", Name: c.name, Median: ms(median(c.took)), Absent: c.absent}
		if c.absent == "" {
			r.Ratio = b.startRatio(c, bwrap)
		}
		switch {
		case c == container && c.absent == "" && runsc.absent == "":
			x := times(median(c.took), median(runsc.took))
			r = goal(r, "≤ 1.3× runsc", x <= 1.3)
			r.Ratio += fmt.Sprintf(", %.2f× runsc", x)
		case c == plain || c == granted:
			r.Goal = "≤ 5× bwrap"
			if c.absent == "" && bwrap.absent == "" {
				r = goal(r, r.Goal, times(median(c.took), median(bwrap.took)) <= 5)
			}
		case c == srt:
			r.Goal = "bulkhead ≥ 8× faster"
			if c.absent == "" && granted.absent == "" {
				x := times(median(c.took), median(granted.took))
				r.Ratio += fmt.Sprintf(", %.1f× bulkhead", x)
				r = goal(r, r.Goal, x >= 8)
			}
		case c == fence && c.absent == "" && granted.absent == "":
			r.Ratio += fmt.Sprintf(", %.1f× bulkhead", times(median(c.took), median(granted.took)))
		}
		b.add(r)
	}
	for _, c := range []*contender{plain, granted} {
		if c.absent != "" {
			return fmt.Errorf("%s: %s", c.name, c.absent)
		}
	}
	return nil
}

// runsc is gVisor alone, at the version that go.mod pins and as it comes (make bench
// builds it beside the benchmark), in a user namespace, with the host's files read-only.
func (b *bench) runsc(dir string) *contender {
	c := &contender{name: "bare runsc run", dir: dir}
	path := filepath.Join(b.cache, "runsc")
	if _, err := os.Stat(path); err != nil {
		c.absent = err.Error()
		return c
	}
	bundle := filepath.Join(dir, "bundle")
	config := `{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"args":["true"],"env":["PATH=/usr/bin:/bin"],"cwd":"/"},` +
		`"root":{"path":"/","readonly":true},"mounts":[{"destination":"/proc","type":"proc"},{"destination":"/tmp","type":"tmpfs"}],` +
		`"linux":{"namespaces":[{"type":"pid"},{"type":"mount"}]}}`
	err := os.MkdirAll(bundle, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), []byte(config), 0o644)
	}
	if err != nil {
		c.absent = err.Error()
		return c
	}
	c.argv = []string{"unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--mount-proc", path,
		"--root=" + filepath.Join(dir, "state"), "--ignore-cgroups", "--network=none", "--overlay2=none", "run", "--bundle=" + bundle, "bench"}
	return c
}

func (b *bench) startRatio(c, bwrap *contender) string {
	if bwrap.absent != "" {
		return "bwrap is absent"
	}
	return fmt.Sprintf("%.1f× bwrap", times(median(c.took), median(bwrap.took)))
}

func (b *bench) once(c *contender) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), c.env...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	begin := time.Now()
	err := cmd.Run()
	took := time.Since(begin)
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", strings.Join(c.argv, " "), err, firstLine(out.String()))
	}
	return took, nil
}

// bwrapCommand is bubblewrap with the namespaces and the kind of mounts that a
// process session has, and nothing else.
func bwrapCommand(bwrap, workspace, home string) []string {
	argv := []string{bwrap,
		"--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--unshare-net",
		"--die-with-parent", "--new-session", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin",
		"--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc"}
	for _, d := range []string{"/bin", "/sbin", "/lib", "/lib64"} {
		switch fi, err := os.Lstat(d); {
		case err != nil:
		case fi.Mode()&os.ModeSymlink != 0:
			if target, err := os.Readlink(d); err == nil {
				argv = append(argv, "--symlink", target, d)
			}
		default:
			argv = append(argv, "--ro-bind", d, d)
		}
	}
	return append(argv, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", home,
		"--bind", workspace, workspace, "--chdir", workspace, "true")
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
