package hosts

import (
	"errors"
	"fmt"
	"strings"
)

// hosts are all that are booted, the most usual first.
var hosts = []host{
	{name: "v2", kernel: linux612, checks: func(g *guest) {
		rootScope, login, delegated, err := unified()
		g.check("cgroups", func() error { return err })
		g.limits("delegated", ann.in(delegated), "process", "limits|limits_kept")
		g.limits("not delegated", ann.in(login), "process", "")
		g.limits("root", root.in(rootScope), "process", "limits|limits_kept")
		g.limits("delegated in gVisor", ann.in(delegated), "container", "")
		g.limits("root in gVisor", root.in(rootScope), "container", "limits_kept")
	}},
	{name: "v1", kernel: linux61, checks: func(g *guest) {
		g.legacy(false)
		// What this kernel's Landlock does not know, seccomp refuses.
		g.both("the gateway's walls", func(p person) error {
			r := finish(p.command("/tmp", "/stories/confine.test", "-test.run", "TestNothingElseWorks|TestNetworkStillWorks|TestBoundedChild", "-test.v"))
			if r.code != 0 || strings.Count(r.stdout, "--- PASS: TestNothingElseWorks/") < 20 {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
	}},
	{name: "hybrid", kernel: linux61, checks: func(g *guest) {
		g.legacy(true)
	}},
	{name: "v1-without-memory", kernel: linux612, checks: func(g *guest) {
		g.legacy(false, "memory")
	}},
	{name: "no-cgroups", kernel: linux61, checks: func(g *guest) {
		g.limits("root", root, "process", "")
		g.limits("root in gVisor", root, "container", "")
		g.limits("user", ann, "process", "limits")
		g.limits("user in gVisor", ann, "container", "")
	}},
	{name: "no-landlock", kernel: linux61, boot: "lsm=lockdown,yama,apparmor", checks: withoutLandlock},
	{name: "yama", kernel: linux612, checks: yama},
	{name: "filesystems", kernel: linux612, checks: filesystems},
	{name: "no-namespaces", kernel: linux61, checks: withoutNamespaces},
}

func (g *guest) legacy(hybrid bool, without ...string) {
	var scope []string
	g.check("cgroups", func() error {
		lacking, err := legacy(hybrid)
		if err == nil && fmt.Sprint(lacking) != fmt.Sprint(without) {
			err = fmt.Errorf("this kernel lacks %q, and %q were expected", lacking, without)
		}
		if err == nil {
			scope, err = scopes("session.scope")
		}
		return errors.Join(err)
	})
	g.limits("root", root.in(scope...), "process", "limits")
	g.limits("root in gVisor", root.in(scope...), "container", "")
	g.limits("user", ann.in(scope...), "process", "")
}
