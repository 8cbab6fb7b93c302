package hosts

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/kernel"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// sysctl sets a value of /proc/sys.
func sysctl(key, value string) error {
	return os.WriteFile("/proc/sys/"+strings.ReplaceAll(key, ".", "/"), []byte(value), 0o644)
}

// refused holds a session to the rule that nothing runs where a boundary is
// missing: exit 12, and the message says what to do.
func (p person) refused(tier, mode string, says ...string) error {
	dir, err := p.folder()
	if err != nil {
		return err
	}
	r := p.bulkhead(dir, "run", "--isolation", tier, "--workspace", ".:"+mode, "--", "touch", "ran")
	if _, err := os.Stat(dir + "/ran"); r.code != 12 || err == nil {
		return fmt.Errorf("%s %s: want exit 12 and no command, %v", tier, mode, r)
	}
	return r.says(says...)
}

// works says whether a session with a workspace of a mode does its work.
func (p person) works(tier, mode string) error {
	dir, err := p.folder()
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(dir+"/there", []byte("there\n"), 0o644), os.Chown(dir+"/there", p.uid, p.uid)); err != nil {
		return err
	}
	script := "cat there; echo new > new"
	if mode == "ro" {
		script = "cat there; ! touch new 2>/dev/null"
	}
	r := p.bulkhead(dir, "run", "--isolation", tier, "--workspace", ".:"+mode, "--", "sh", "-ec", script)
	_, err = os.Stat(dir + "/new")
	if wrote := err == nil; r.code != 0 || r.stdout != "there\n" || wrote != strings.HasPrefix(mode, "rw") {
		return fmt.Errorf("%s %s: %v, written: %v", tier, mode, r, wrote)
	}
	return nil
}

// declares holds doctor to a line about a probe, and to what an isolation is then.
func (p person) declares(probe string, status kernel.Status, says ...string) error {
	r, err := p.doctor()
	if err != nil {
		return err
	}
	got := r.Probe(probe)
	if got.Status != status || status != kernel.OK && got.Remedy == "" {
		err = fmt.Errorf("%s is %+v, want %v and a remedy", probe, got, status)
	}
	for _, s := range says {
		if !strings.Contains(got.Found+got.Cost+got.Remedy, s) {
			err = errors.Join(err, fmt.Errorf("%s says nothing of %q: %+v", probe, s, got))
		}
	}
	return err
}

// gives holds doctor to what it says that this host can give: a session of each
// isolation runs, or does not, accordingly.
func (p person) gives(want map[vocabulary.Isolation]bool) error {
	r, err := p.doctor()
	if err != nil {
		return err
	}
	for _, i := range r.Summary.Isolations {
		wanted, ok := want[i.Name]
		if !ok {
			continue
		}
		if declared := i.Status != kernel.Missing; declared != wanted {
			err = errors.Join(err, fmt.Errorf("doctor declares %s %v: %s", i.Name, i.Status, i.Why))
		}
		if worked := p.works(string(i.Name), "ro"); (worked == nil) != wanted {
			err = errors.Join(err, fmt.Errorf("%s works: %v, want %v", i.Name, worked, wanted))
		}
	}
	return err
}

// both runs a check as root and as the ordinary user.
func (g *guest) both(name string, f func(p person) error) {
	g.check(name+", root", func() error { return f(root) })
	g.check(name+", user", func() error { return f(ann) })
}

const (
	process   = vocabulary.Process
	container = vocabulary.Container
)

func withoutLandlock(g *guest) {
	g.both("doctor", func(p person) error {
		return errors.Join(p.declares(kernel.ProbeLandlock, kernel.Missing, "lsm=", "no isolation"), p.gives(map[vocabulary.Isolation]bool{process: false, container: false}))
	})
	g.both("nothing runs", func(p person) error {
		return errors.Join(p.refused("process", "ro", "Landlock", "lsm="), p.refused("container", "ro", "Landlock", "lsm="))
	})
}

func yama(g *guest) {
	rootScope, _, _, err := unified()
	g.check("cgroups", func() error { return err })
	root := root.in(rootScope)
	for _, scope := range []struct {
		value     string
		writable  map[string]bool // by tier
		status    kernel.Status
		mustTouch string
	}{
		{"0", map[string]bool{"process": true, "container": true}, kernel.OK, ""},
		{"1", map[string]bool{"process": true, "container": true}, kernel.OK, ""},
		{"2", map[string]bool{"process": false, "container": true}, kernel.Limited, "kernel.yama.ptrace_scope=1"},
		{"3", map[string]bool{"process": false, "container": false}, kernel.Missing, "boot without"},
	} {
		g.check("ptrace_scope "+scope.value, func() error { return sysctl("kernel.yama.ptrace_scope", scope.value) })
		g.both("doctor with "+scope.value, func(p person) error { return p.declares(kernel.ProbeWrites, scope.status, scope.mustTouch) })
		modes := []string{"rw"}
		if scope.status != kernel.OK {
			modes = []string{"rw", "ro", "rw-no-delete", "staged"}
			g.check("what it gives with "+scope.value, func() error {
				return ann.gives(map[vocabulary.Isolation]bool{process: true, container: scope.value != "3"})
			})
		}
		for _, tier := range []string{"process", "container"} {
			for _, mode := range modes {
				who := ann
				if mode == "rw-no-delete" {
					who = root
				}
				g.check(fmt.Sprintf("%s %s with %s", tier, mode, scope.value), func() error {
					if scope.writable[tier] || (mode == "ro" || mode == "staged") && (tier == "process" || scope.value != "3") {
						return who.works(tier, mode)
					}
					return who.refused(tier, mode, "ptrace_scope", scope.mustTouch, "staged")
				})
			}
		}
	}
}

func withoutNamespaces(g *guest) {
	for _, s := range []struct{ key, off, on string }{{"kernel.unprivileged_userns_clone", "0", "1"}, {"user.max_user_namespaces", "0", "10000"}} {
		g.check(s.key, func() error { return sysctl(s.key, s.off) })
		all := []person{ann}
		if s.key == "user.max_user_namespaces" {
			all = append(all, root)
		}
		for _, p := range all {
			g.check(fmt.Sprintf("doctor with %s, uid %d", s.key, p.uid), func() error {
				return errors.Join(p.declares(kernel.ProbeUserns, kernel.Missing, s.key), p.gives(map[vocabulary.Isolation]bool{process: false, container: false}))
			})
			for _, tier := range []string{"process", "container"} {
				g.check(fmt.Sprintf("%s with %s, uid %d", tier, s.key, p.uid), func() error { return p.refused(tier, "rw", s.key, "sudo sysctl") })
			}
		}
		g.check(s.key+" again", func() error {
			return errors.Join(sysctl(s.key, s.on), ann.works("process", "rw"), ann.works("container", "rw"))
		})
	}
	g.check("no /dev/net/tun", func() error {
		return errors.Join(os.Rename("/dev/net/tun", "/dev/net/elsewhere"), ann.declares(kernel.ProbeTUN, kernel.Missing, "modprobe tun"), ann.works("process", "rw"), os.Rename("/dev/net/elsewhere", "/dev/net/tun"))
	})
	g.check("/dev/net/tun for root", func() error {
		return errors.Join(os.Chmod("/dev/net/tun", 0o600), ann.declares(kernel.ProbeTUN, kernel.Missing, "chmod 0666"), ann.works("process", "rw"), os.Chmod("/dev/net/tun", 0o666))
	})
}
