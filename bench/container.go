package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// container compares another command in a running session of each tier with runsc
// exec.
func (b *bench) container() error {
	dir, home, env, err := b.waiting("container")
	if err != nil {
		return err
	}
	return b.execs(dir, home, env)
}

// execs compares a round trip into a session of each tier with runsc exec.
func (b *bench) execs(dir, home string, env []string) error {
	ways := []*contender{}
	for _, isolation := range []string{"process", "container"} {
		h, err := b.startWaiter(dir, env, isolation)
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
			if line := commandLine(pid); filepath.Base(line[0]) == "runsc" {
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
