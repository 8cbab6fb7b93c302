package hosts

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/kernel"
)

// doctor is what it says to p.
func (p person) doctor() (kernel.Report, error) {
	var r kernel.Report
	out := p.bulkhead("/", "doctor", "--json")
	if err := json.Unmarshal([]byte(out.stdout), &r); err != nil {
		return r, fmt.Errorf("%w: %v", err, out)
	}
	return r, nil
}

// means of a limit in a tier, as doctor declares it.
func means(r kernel.Report, tier, limit string) kernel.Means {
	for _, l := range r.Limits {
		if l.Name == limit {
			if tier == "container" {
				return l.Container
			}
			return l.Process
		}
	}
	return kernel.Means{By: "doctor does not say"}
}

// folder makes an empty one of p's.
func (p person) folder() (string, error) {
	dir, err := os.MkdirTemp(cmp.Or(p.below, "/tmp"), "ws-")
	return dir, errors.Join(err, os.Chown(dir, p.uid, p.uid))
}

// limits holds doctor to what it declares: the session's own words are the same,
// and, where stories are named, these and a count prove that it holds.
func (g *guest) limits(name string, p person, tier, stories string) {
	report, err := p.doctor()
	dir, derr := p.folder()
	policy := func(name, limits string) string {
		file := filepath.Join(dir, name)
		derr = errors.Join(derr, os.WriteFile(file, []byte("version: 1\nlimits: "+limits+"\n"), 0o644))
		return file
	}
	all := policy("all", "{memory: 256MiB, pids: 512, cpus: 1, disk: 64MiB, inodes: 10000, descriptors: 512, wall: 1h, idle: 1h}")
	half := policy("half", "{cpus: 0.5}")
	run := func(policy string, args ...string) []string {
		return append([]string{"run", "--isolation", tier, "--policy", policy, "--"}, args...)
	}
	g.check(name+": prepared", func() error { return errors.Join(err, derr) })
	if means(report, tier, "pids").Status == kernel.Missing {
		g.check(name+": what can't be limited does not run", func() error {
			for _, args := range [][]string{run(all, "true"), {"run", "--isolation", tier, "--", "true"}} {
				r := p.bulkhead(dir, args...)
				if r.code != 12 {
					return fmt.Errorf("%v", r)
				}
				if err := r.says("limit on processes", "run as an ordinary user"); err != nil {
					return err
				}
			}
			return nil
		})
		return
	}
	g.check(name+": honest work", func() error {
		r := p.bulkhead(dir, "run", "--isolation", tier, "--", "sh", "-ec", "git init -q r; cd r; echo made >f; git add f; git -c user.name=a -c user.email=a@b commit -qm 1; git log --oneline | wc -l; cat f")
		if r.code != 0 || r.stdout != "1\nmade\n" {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	g.check(name+": doctor and session agree", func() error { return agree(report, p, dir, tier, run(all, "sleep", "600")) })
	if stories == "" {
		return
	}
	g.check(name+": processors", func() error {
		if means(report, tier, "cpus").Status != kernel.OK {
			r := p.bulkhead(dir, run(half, "true")...)
			if r.code != 12 {
				return fmt.Errorf("half a processor without a cgroup: %v", r)
			}
			if r = p.bulkhead(dir, run(all, "nproc")...); tier == "process" && r.stdout != "1\n" {
				return fmt.Errorf("one processor: %v", r)
			}
			return nil
		}
		// Two that count for three seconds, with all processors and with half of one.
		const count = `python3 -c 'import os,time
r,w=os.pipe()
for _ in range(2):
    if os.fork()==0:
        n=0; end=time.monotonic()+3
        while time.monotonic()<end: n+=1
        os.write(w,b"%d\n"%n); os._exit(0)
os.wait(); os.wait(); print(sum(map(int,os.read(r,99).split())))'`
		free, held := p.bulkhead(dir, "run", "--isolation", tier, "--", "sh", "-c", count), p.bulkhead(dir, run(half, "sh", "-c", count)...)
		a, aerr := strconv.Atoi(strings.TrimSpace(free.stdout))
		b, berr := strconv.Atoi(strings.TrimSpace(held.stdout))
		if aerr != nil || berr != nil || b*10 > a*7 {
			return fmt.Errorf("half a processor counts to %d, and all to %d: %v %v", b, a, held, free)
		}
		fmt.Printf("         half a processor: %d of %d\n", b, a)
		return nil
	})
	g.check(name+": "+stories, func() error { return p.stories(tier, stories) })
}

var made = regexp.MustCompile(`/bulkhead-\d+-s-[a-z0-9]+`)

// agree compares what doctor declares with what a running session says.
func agree(r kernel.Report, p person, dir, tier string, args []string) error {
	cmd := p.command(dir, append([]string{bin + "/bulkhead"}, args...)...)
	if err := cmd.Start(); err != nil {
		return err
	}
	defer cmd.Wait()
	defer cmd.Process.Signal(syscall.SIGTERM)
	var sessions []struct{ Limits []string }
	for end := time.Now().Add(3 * time.Minute); len(sessions) == 0; time.Sleep(time.Second) {
		if out := p.bulkhead(dir, "session", "list", "--json"); time.Now().After(end) || json.Unmarshal([]byte(out.stdout), &sessions) != nil {
			return fmt.Errorf("no session: %v", out)
		}
	}
	if len(sessions[0].Limits) != 8 {
		return fmt.Errorf("limits: %q", sessions[0].Limits)
	}
	for _, line := range sessions[0].Limits[:3] {
		limit, by, _ := strings.Cut(made.ReplaceAllString(line, ""), ": ")
		limit, _, _ = strings.Cut(limit, " ")
		declared := means(r, tier, limit).By
		if by != declared && !(limit == "cpus" && strings.HasPrefix(by, "processors") && strings.HasPrefix(declared, "that many whole processors")) {
			return fmt.Errorf("doctor declares for %s %q, and the session has %q", limit, declared, by)
		}
	}
	return nil
}
