package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// sessionPatience is how long a session may take to start, and to end.
const sessionPatience = time.Minute

// held measures how many sessions of each tier this machine holds at once, what each
// takes of it, and which limit is met first.
func (b *bench) held() error {
	dir, _, env, err := b.waiting("held")
	if err != nil {
		return err
	}
	for _, isolation := range []string{"process", "container"} {
		if err := b.hold(dir, env, isolation); err != nil {
			return err
		}
	}
	return nil
}

// waiting makes what sessions that wait need: a workspace, and a home in which there
// is no policy.
func (b *bench) waiting(name string) (dir, home string, env []string, err error) {
	if dir, _, err = b.workspace(name, "version: 1\n"); err != nil {
		return "", "", nil, err
	}
	home = filepath.Join(b.dir, name, "home")
	env = append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME="+home+"/config", "XDG_STATE_HOME="+home+"/state")
	return dir, home, env, os.MkdirAll(home, 0o700)
}

// waiter is a session that waits.
type waiter struct {
	cmd *exec.Cmd
	id  string
}

func (b *bench) startWaiter(dir string, env []string, isolation string) (*waiter, error) {
	cmd := exec.Command(b.bulkhead, "run", "--isolation", isolation, "--workspace", dir+":ro", "--", "sh", "-c", "echo $BULKHEAD_SESSION; exec sleep 36000")
	cmd.Dir, cmd.Env = dir, env
	var complaint strings.Builder
	cmd.Stderr = &complaint
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
	w := &waiter{cmd: cmd}
	late := ""
	select {
	case w.id = <-told:
	case <-time.After(sessionPatience):
		late = fmt.Sprintf("it did not start within %v", sessionPatience)
	}
	if w.id == "" {
		w.end()
		return nil, errors.New(cmp.Or(late, firstLine(complaint.String()), "it said nothing"))
	}
	return w, nil
}

func (w *waiter) end() {
	_ = w.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(sessionPatience, func() { _ = w.cmd.Process.Kill() })
	defer timer.Stop()
	_ = w.cmd.Wait()
}

// idleTime is how long sessions are watched that do nothing.
const idleTime = 5 * time.Second

// edge is how many sessions count as the first and the last ones.
const edge = 10

// hold starts sessions until there are as many as asked for, the share of the memory
// that may be used is, or one does not start. All of them must still answer then.
func (b *bench) hold(dir string, env []string, isolation string) error {
	var all []*waiter
	var took []time.Duration
	defer func() {
		// A few at a time: hundreds at once kept a machine busy for a quarter of an hour.
		var ends sync.WaitGroup
		turn := make(chan struct{}, edge)
		for _, w := range all {
			turn <- struct{}{}
			ends.Go(func() { w.end(); <-turn })
		}
		ends.Wait()
	}()
	free := available()
	why := "as many as asked for"
	for b.holding == 0 || len(all) < b.holding {
		if available() < free*int64(100-b.share)/100 {
			why = fmt.Sprintf("until %d%% of %.1f GiB were used", b.share, float64(free)/(1<<20))
			break
		}
		began := time.Now()
		w, err := b.startWaiter(dir, env, isolation)
		if err != nil {
			why = "the next one failed: " + err.Error()
			break
		}
		all, took = append(all, w), append(took, time.Since(began))
		if b.ctx.Err() != nil {
			return context.Cause(b.ctx)
		}
	}
	if len(all) == 0 {
		return errors.New(why)
	}
	taken := free - available()
	n := len(all)
	var roots []int
	for _, w := range all {
		roots = append(roots, w.cmd.Process.Pid)
	}
	pids := tree(roots...)
	tasks := tasksOf(pids)
	// The kernel walks all pages of a process for its proportional size, so a few
	// sessions stand for all: the first, those in the middle, and the last.
	var few []int
	for i, pid := range roots {
		if i < edge || i >= n-edge || i >= (n-edge)/2 && i < (n+edge)/2 {
			few = append(few, pid)
		}
	}
	pss := memoryOf(tree(few...)) * int64(n) / int64(len(few))
	before := cpuOf(pids)
	time.Sleep(idleTime)
	idle := cpuOf(pids) - before
	for _, w := range []*waiter{all[0], all[n/2], all[n-1]} {
		if _, err := b.once(&contender{dir: dir, env: env, argv: []string{b.bulkhead, "exec", w.id, "--", "true"}}); err != nil {
			return fmt.Errorf("one of %d sessions (%s) answers no more: %w", n, isolation, err)
		}
	}
	mib := func(kib int64) float64 { return float64(kib) / 1024 / float64(n) }
	b.add(row{Question: "held", Name: fmt.Sprintf("%s: %d sessions (%s); start of one", isolation, n, why), Median: ms(median(took)),
		Ratio: fmt.Sprintf("each %.1f MiB (proportional), %.1f MiB less available, %d tasks, %.2f%% of a core idle; first %d in %.0f ms, last in %.0f ms",
			mib(pss), mib(taken), tasks/n, 100*float64(idle)/float64(idleTime)/float64(n),
			min(edge, n), ms(median(took[:min(edge, n)])), ms(median(took[max(0, n-edge):])))})
	return nil
}

// tasksOf counts processes and their threads.
func tasksOf(pids []int) (n int) {
	for _, pid := range pids {
		list, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		n += len(list)
	}
	return n
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
