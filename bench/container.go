package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// container measures what there is only in a running session: another command in
// it, beside gVisor alone, and how many are held at once with how much memory.
func (b *bench) container() error {
	dir, _, err := b.workspace("container", "version: 1\n")
	if err != nil {
		return err
	}
	home := filepath.Join(b.dir, "container", "home")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	env := append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME="+home+"/config", "XDG_STATE_HOME="+home+"/state")
	if err := b.execs(dir, home, env); err != nil {
		return err
	}
	for _, isolation := range []string{"process", "container"} {
		if err := b.hold(dir, env, isolation); err != nil {
			return err
		}
	}
	return nil
}

// held is a session that waits.
type held struct {
	cmd *exec.Cmd
	id  string
}

func (b *bench) startHeld(dir string, env []string, isolation string) (*held, error) {
	cmd := exec.Command(b.bulkhead, "run", "--isolation", isolation, "--workspace", dir+":ro", "--", "sh", "-c", "echo $BULKHEAD_SESSION; exec sleep 3600")
	cmd.Dir, cmd.Env = dir, env
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	told := make(chan string, 1)
	go func() {
		buf := make([]byte, 100)
		n, _ := out.Read(buf)
		told <- strings.TrimSpace(string(buf[:n]))
	}()
	h := &held{cmd: cmd}
	select {
	case h.id = <-told:
	case <-time.After(time.Minute):
	}
	if h.id == "" {
		h.end()
		return nil, errors.New("a session did not start within a minute")
	}
	return h, nil
}

func (h *held) end() {
	_ = h.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(10*time.Second, func() { _ = h.cmd.Process.Kill() })
	defer timer.Stop()
	_ = h.cmd.Wait()
}

// execs compares a round trip into a session of each tier with runsc exec.
func (b *bench) execs(dir, home string, env []string) error {
	ways := []*contender{}
	for _, isolation := range []string{"process", "container"} {
		h, err := b.startHeld(dir, env, isolation)
		if err != nil {
			return err
		}
		defer h.end()
		ways = append(ways, &contender{name: "bulkhead exec, " + isolation, dir: dir, env: env, argv: []string{b.bulkhead, "exec", h.id, "--", "true"}})
	}
	bare, end, err := b.runscExec(home)
	if err != nil {
		bare = &contender{absent: err.Error()}
	} else {
		defer end()
	}
	bare.name = "bare runsc exec"
	ways = append(ways, bare)
	for i := range b.rounds + 1 {
		for _, w := range ways {
			if w.absent != "" {
				continue
			}
			d, err := b.once(w)
			if err != nil {
				return err
			}
			if i > 0 {
				w.took = append(w.took, d)
			}
		}
	}
	for _, w := range ways {
		r := row{Question: "container", Name: w.name, Median: ms(median(w.took)), Absent: w.absent}
		if w == ways[1] && bare.absent == "" {
			more := median(w.took) - median(bare.took)
			r.Ratio = fmt.Sprintf("%+.1f ms over bare", ms(more))
			r = goal(r, "≤ 15 ms over bare", more <= 15*time.Millisecond)
		}
		b.add(r)
	}
	return nil
}

// runscExec is runsc exec in a container of runsc alone. It goes into the namespaces
// that runsc run made.
func (b *bench) runscExec(home string) (*contender, func(), error) {
	run := b.runsc(home)
	if run.absent != "" {
		return nil, nil, errors.New(run.absent)
	}
	config := filepath.Join(home, "bundle", "config.json")
	text, err := os.ReadFile(config)
	if err != nil {
		return nil, nil, err
	}
	if err := os.WriteFile(config, []byte(strings.Replace(string(text), `["true"]`, `["sleep","3600"]`, 1)), 0o644); err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(run.argv[0], run.argv[1:]...)
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	end := func() {
		for _, pid := range tree(cmd.Process.Pid) {
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
		_ = cmd.Wait()
	}
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		for _, pid := range tree(cmd.Process.Pid) {
			if line := commandLine(pid); strings.HasSuffix(line[0], "bulkhead-runsc") {
				c := &contender{dir: home, argv: []string{"nsenter", "-t", strconv.Itoa(pid), "--user", "--net", "--mount", "--pid",
					run.argv[len(run.argv)-8], "--root=" + filepath.Join(home, "state"), "--ignore-cgroups", "--network=none", "--overlay2=none", "exec", "bench", "true"}}
				if _, err := b.once(c); err == nil {
					return c, end, nil
				}
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
	end()
	return nil, nil, errors.New("no exec into a container of runsc's within half a minute")
}

// hold starts sessions until there are as many as asked for, memory gets short, or
// one does not start.
func (b *bench) hold(dir string, env []string, isolation string) error {
	var all []*held
	defer func() {
		for _, h := range all {
			go h.end()
		}
		for _, h := range all {
			for h.cmd.Process.Signal(syscall.Signal(0)) == nil && b.ctx.Err() == nil {
				time.Sleep(20 * time.Millisecond)
			}
		}
	}()
	free := available()
	why, began := "as many as asked for", time.Now()
	for len(all) < b.holding {
		if available() < free/4 {
			why = "three quarters of the memory are used"
			break
		}
		h, err := b.startHeld(dir, env, isolation)
		if err != nil {
			why = err.Error()
			break
		}
		all = append(all, h)
		if b.ctx.Err() != nil {
			return context.Cause(b.ctx)
		}
	}
	if len(all) == 0 {
		return errors.New(why)
	}
	each := time.Since(began) / time.Duration(len(all))
	var kib int64
	for _, h := range all {
		kib += memoryOf(tree(h.cmd.Process.Pid))
	}
	b.add(row{Question: "container", Name: fmt.Sprintf("%d sessions held, %s (%s): each started in", len(all), isolation, why), Median: ms(each),
		Ratio: fmt.Sprintf("%.1f MiB each", float64(kib)/1024/float64(len(all)))})
	return nil
}

// available is MemAvailable, in KiB.
func available() (kib int64) {
	data, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemAvailable:" {
			kib, _ = strconv.ParseInt(f[1], 10, 64)
		}
	}
	return kib
}
