package policy

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func mustBounds(t testing.TB, by Author, text string) *Bounds {
	t.Helper()
	read := ParseProject
	if by == ByAdministrator {
		read = ParseAdministrator
	}
	b, err := read("b.yaml", []byte("version: 1\n"+text))
	if err != nil {
		t.Fatalf("%s\n%v", text, err)
	}
	return b
}

func userPolicy(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := Parse("p.yaml", []byte("version: 1\n"+strings.TrimPrefix(text, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// links are the links of a host that a test needs.
func links(at map[string]string) func(string) (string, bool) {
	return func(p string) (string, bool) {
		for from, to := range at {
			if rest, ok := strings.CutPrefix(p, from); ok && (rest == "" || rest[0] == '/') {
				return to + rest, true
			}
		}
		return p, !strings.HasPrefix(p, "/missing")
	}
}

var somewhere = Places{Home: "/home/erin", Account: "/home/erin", Cwd: "/home/erin/src/app", Real: links(nil)}

func TestNarrowTakesTheStricter(t *testing.T) {
	const user = `
isolation: process
workspace: {path: ., mode: rw, writable: [environments]}
mounts:
  - {path: ~/go, mode: rw}
  - {path: /data/in, mode: ro}
env: {pass: [TERM, LANG]}
publish: [3000, 4000]
limits: {memory: 2GiB, pids: 100, download: 2GiB}
`
	for _, c := range []struct {
		name, bounds string
		by           Author
		want         []string // lines of the result
		not          []string
	}{
		{"nothing is mentioned", "", ByProject, []string{"mode: rw", "- path: ~/go", "- LANG", `- "3000:3000"`, "memory: 2GiB", "pids: 100"}, nil},
		{"isolation", "isolation: container\n", ByProject, []string{"isolation: container  # from b.yaml:2"}, nil},
		{"a weaker isolation", "isolation: process\n", ByAdministrator, []string{"isolation: process  # from p.yaml:2"}, []string{"b.yaml:2"}},
		{"mode", "workspace: {mode: ro}\n", ByProject, []string{"workspace:  # from b.yaml:2", "  mode: ro"}, nil},
		{"a mode that is not stricter", "workspace: {mode: rw}\n", ByProject, []string{"workspace:  # from p.yaml:3", "  mode: rw"}, nil},
		{"staged is stricter than rw", "workspace: {mode: staged}\n", ByProject, []string{"  mode: staged"}, nil},
		{"no mounts", "mounts: []\n", ByProject, []string{"~/go is not mounted"}, []string{"- path:"}},
		{"no environments", "workspace: {writable: []}\n", ByProject, []string{"environments are not writable"}, []string{"writable:"}},
		{"environments", "workspace: {writable: [environments]}\n", ByAdministrator, []string{"    - environments  # from p.yaml:3"}, []string{"not writable"}},
		{"one mount, ro", "mounts: [{path: ~/go}]\n", ByProject, []string{"- path: ~/go  # from b.yaml:2", "    mode: ro", "/data/in is not mounted"}, []string{"- path: /data"}},
		{"a mount below a listed one", "mounts: [{path: /data, mode: rw}, {path: /home/*/go, mode: rw}]\n", ByAdministrator, []string{"- path: /data/in  # from p.yaml", "- path: ~/go  # from p.yaml"}, nil},
		{"the narrowest entry counts", "mounts: [{path: /, mode: rw}, {path: ~/go, mode: ro}, {path: /data, mode: ro}]\n", ByAdministrator, []string{"    mode: ro"}, []string{"    mode: rw"}},
		{"what lies below counts too", "mounts: [{path: /, mode: rw}, {path: ~/go/private, mode: ro}]\n", ByAdministrator, []string{"~/go is mounted ro, not rw"}, []string{"    mode: rw"}},
		{"variables", "env: {pass: [LANG, SECRET]}\n", ByProject, []string{"    - LANG"}, []string{"    - TERM", "    - SECRET"}},
		{"ports", "publish: [4000, 5000]\n", ByProject, []string{`- "4000:4000"`}, []string{`- "3000`, `- "5000`}},
		{"limits", "limits: {memory: 1GiB, pids: 200, wall: 1h}\n", ByProject, []string{"memory: 1GiB  # from b.yaml:2", "pids: 100  # from p.yaml", "wall: 1h  # from b.yaml:2"}, nil},
		{"limits of bytes", "limits: {upload: 1MiB, download: 3GiB, upload-each: 1KiB}\n", ByAdministrator, []string{"upload: 1MiB  # from b.yaml:2", "download: 2GiB  # from p.yaml", "upload-each: 1KiB  # from b.yaml:2", "limits.upload is 1MiB, not without a limit"}, []string{"download-each"}},
	} {
		p := userPolicy(t, user)
		out, err := mustBounds(t, c.by, c.bounds).Narrow(p, somewhere)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := string(out.YAML())
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", c.name, want, got)
			}
		}
		policy, _, _ := strings.Cut(got, "# within")
		for _, not := range c.not {
			if strings.Contains(policy, not) {
				t.Errorf("%s: %q in\n%s", c.name, not, got)
			}
		}
	}
}

func TestAdministratorRefuses(t *testing.T) {
	for _, c := range []struct {
		name, user, bounds, want string
		at                       Places
	}{
		{"a workspace elsewhere", "workspace: {path: /srv/x}\n", "workspaces: [{path: ~/src}]\n", `workspace "/srv/x" (p.yaml:2:1) is not allowed by the administrator's policy`, somewhere},
		{"the line of the list", "workspace: {path: /srv/x}\n", "workspaces: [{path: ~/src}]\n", "rule: b.yaml:2:1", somewhere},
		{"the line of the entry", "workspace: {path: /srv/x}\n", "workspaces: [{path: /srv}, {path: /srv/x, mode: none}]\n", "rule: b.yaml:2:28", somewhere},
		{"what holds a place that is closed", "workspace: {path: /srv}\n", "workspaces: [{path: /srv}, {path: /srv/x/*/y, mode: none}]\n", "rule: b.yaml:2:28", somewhere},
		{"a workspace behind a link", "workspace: {path: ~/src}\n", "workspaces: [{path: ~/src}]\n", `workspace "/secret"`,
			Places{Home: "/home/erin", Account: "/home/erin", Real: links(map[string]string{"/home/erin/src": "/secret"})}},
		{"a mount", "mounts: [{path: /etc/ssl}]\n", "mounts: [{path: /usr}]\n", `mount "/etc/ssl" (p.yaml:2:10)`, somewhere},
		{"a link of the user's", "mounts: [{path: ~/ok}]\n", "mounts: [{path: /home/erin}]\n", `mount "/secret"`,
			Places{Home: "/home/erin", Account: "/home/erin", Real: links(map[string]string{"/home/erin/ok": "/secret"})}},
		{"a link of the user's that is allowed by name", "mounts: [{path: ~/ok}]\n", "mounts: [{path: ~/ok}]\n", `mount "/secret"`,
			Places{Home: "/home/erin", Account: "/home/erin", Real: links(map[string]string{"/home/erin/ok": "/secret"})}},
		{"a closed place behind a link", "mounts: [{path: /real/x}]\n", "mounts: [{path: /}, {path: /alias/x, mode: none}]\n", `mount "/real/x"`,
			Places{Home: "/home/erin", Account: "/home/erin", Real: links(map[string]string{"/alias": "/real"})}},
		{"another HOME", "mounts: [{path: ~/x}]\n", "mounts: [{path: ~/x}]\n", `mount "/secret/x"`,
			Places{Home: "/secret", Account: "/home/erin", Real: links(nil)}},
		{"a home that nobody knows", "mounts: [{path: /x}]\n", "mounts: [{path: ~/x}]\n", "do not say where that is", Places{Home: "/home/erin", Real: links(nil)}},
		{"an upstream", "upstreams: {a.example.com: {connect: 10.0.0.1:443}}\n", "upstreams: {a.example.com: {connect: 10.0.0.2:443}}\n", "rule: b.yaml:2:1", somewhere},
	} {
		_, err := mustBounds(t, ByAdministrator, c.bounds).Narrow(userPolicy(t, c.user), c.at)
		var exit *vocabulary.ExitError
		if !errors.As(err, &exit) || exit.Code != vocabulary.ExitRefused || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v\nwant %s", c.name, err, c.want)
		}
	}
	p := userPolicy(t, "mounts: [{path: /etc/ssl, optional: true}]\nupstreams: {a.example.com: {connect: 10.0.0.1:443}}\n")
	out, err := mustBounds(t, ByAdministrator, "mounts: []\nupstreams: {a.example.com: {connect: 10.0.0.1:443}}\n").Narrow(p, somewhere)
	if err != nil || len(out.Mounts) != 0 || len(out.Narrowed) != 1 {
		t.Errorf("an optional mount is left out: %v %+v", err, out)
	}
}

// TestMayShow is the last word, about what was opened.
func TestMayShow(t *testing.T) {
	b := mustBounds(t, ByAdministrator, "workspaces: [{path: /srv, mode: rw-no-delete}]\nmounts: [{path: /data, mode: ro}]\n")
	for _, c := range []struct {
		real      string
		mode      vocabulary.MountMode
		workspace bool
		ok        bool
	}{
		{"/srv/x", vocabulary.RWNoDelete, true, true},
		{"/srv/x", vocabulary.StagedWrites, true, true},
		{"/srv/x", vocabulary.ReadWrite, true, false},
		{"/srv/x", "", true, false},
		{"/data/x", vocabulary.ReadOnly, true, false},
		{"/data/x", vocabulary.ReadOnly, false, true},
		{"/data/x", vocabulary.ReadWrite, false, false},
		{"/database", vocabulary.ReadOnly, false, false},
		{"/", vocabulary.ReadOnly, false, false},
	} {
		if err := b.MayShow(c.real, c.mode, vocabulary.Position{}, c.workspace, somewhere); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestAtLeast(t *testing.T) {
	p, err := mustBounds(t, ByAdministrator, "isolation: container\n").Narrow(userPolicy(t, "isolation: auto\n"), somewhere)
	if err != nil || p.Isolation != vocabulary.Auto {
		t.Fatal(p, err)
	}
	for i, ok := range map[vocabulary.Isolation]bool{vocabulary.Process: false, vocabulary.Container: true, vocabulary.VM: true} {
		if err := p.AtLeast(i); (err == nil) != ok {
			t.Errorf("%s: %v", i, err)
		}
	}
}

// TestBoundsRejected: what does not narrow has no place here.
func TestBoundsRejected(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "the file is empty",
		"isolation: vm\n":                 "1:1: version is missing",
		"version: 2\n":                    `version "2" is not supported`,
		"version: 1\nversion: 1\n":        "2:1: key \"version\" stands here a second time",
		"version: 1\npresets: [claude]\n": "2:1: the project's policy can only narrow: presets adds something",
		"version: 1\ncredentials: {a: {from: {env: A}}}\n":                        "2:1: the project's policy can only narrow: credentials adds something",
		"version: 1\nupstreams: {}\n":                                             "2:1: the project's policy can only narrow: upstreams adds something",
		"version: 1\nprofile: server\n":                                           "2:1: the project's policy can only narrow: profile adds something",
		"version: 1\nworkspaces: []\n":                                            "2:1: unknown key \"workspaces\"",
		"version: 1\ntrust: never\n":                                              "2:1: unknown key \"trust\"",
		"version: 1\nworkspace: {path: /}\n":                                      "2:13: workspace.path does not belong to the project's policy",
		"version: 1\nenv: {set: {A: b}}\n":                                        "2:7: env.set does not belong to the project's policy",
		"version: 1\nisolation: auto\n":                                           "2:12: auto is no isolation to ask for at least",
		"version: 1\nmounts: [{path: x}]\n":                                       "2:17: \"x\" is relative",
		"version: 1\nmounts: [{path: /a/**}]\n":                                   "2:17: \"/a/**\" is not a pattern",
		"version: 1\nmounts: [{path: '/[a'}]\n":                                   "is not a pattern",
		"version: 1\nmounts: [{path: /a, mode: staged}]\n":                        "only for the workspace",
		"version: 1\nmounts: [{path: /a}, {path: /a/}]\n":                         "2:29: \"/a\" stands here a second time",
		"version: 1\ngrants: [{service: github, resources: [a/b]}]\n":             "2:28: resources without the operations",
		"version: 1\ngrants: [{http: 'https://a.example.com/', credential: x}]\n": "has no credential",
		"version: 1\nworkspace: &a {mode: ro}\n":                                  "anchor",
		"version: 1\n---\nversion: 1\n":                                           "a second document",
		"version: 1\x00\n":                                                        "control or invisible character",
	} {
		_, err := ParseProject("b.yaml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v\nwant %s", text, err, want)
		}
	}
	for text, want := range map[string]string{
		"version: 1\ntrust: yes\n":                      "unknown way of trust",
		"version: 1\nworkspaces: [{path: /a, mode: x}]": "unknown mode",
		"version: 1\npresets: []\n":                     "the administrator's policy can only narrow",
	} {
		_, err := ParseAdministrator("b.yaml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v\nwant %s", text, err, want)
		}
	}
}

// FuzzNarrow: whatever bounds say, what comes out of a policy is no wider than
// what went in.
func FuzzNarrow(f *testing.F) {
	for _, text := range []string{
		"version: 1\n", "version: 1\nisolation: vm\nworkspace: {mode: ro}\n",
		"version: 1\nmounts: [{path: ~/go, mode: none}, {path: '/*/x', mode: rw}]\nenv: {pass: []}\n",
		"version: 1\nlimits: {memory: 16MiB, pids: 1, cpus: 0.01, wall: 1s}\npublish: []\n",
		"version: 1\nlimits: {upload: 1B, download: 1TiB, upload-each: 1KiB}\n",
		"version: 1\ngrants: [{service: github}, {ssh: git@a.example.com, operations: [fetch], resources: [a/b]}, {tcp: a.example.com:1}]\n",
		"version: 1\nworkspaces: [{path: /home, mode: staged}]\nupstreams: {}\ntrust: ask\n",
	} {
		f.Add(text)
	}
	const user = `version: 1
workspace: {path: ., mode: rw}
mounts: [{path: ~/go, mode: rw}, {path: /data/in, mode: ro, optional: true}]
env: {pass: [TERM, LANG], set: {A: b}}
publish: [3000]
grants: [{http: "https://docs.example.com/**"}]
limits: {memory: 2GiB, pids: 100, cpus: 2, wall: 2h, upload: 1GiB, download: 1GiB, upload-each: 1MiB, download-each: 1MiB,
  root: 1GiB, disk: 1GiB, inodes: 100000, descriptors: 1024, idle: 30m}
`
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Parse("p.yaml", []byte(user))
		if err != nil {
			t.Fatal(err)
		}
		for _, read := range []func(string, []byte) (*Bounds, error){ParseProject, ParseAdministrator} {
			b, err := read("b.yaml", []byte(text))
			if err != nil {
				if len(err.(ErrorList)) == 0 || b != nil {
					t.Fatalf("%v, %v", b, err)
				}
				continue
			}
			b.Describe()
			out, err := b.Narrow(p, somewhere)
			if err != nil {
				continue
			}
			if weaker(out.Isolation, p.Isolation) || stricter(out.Workspace.Mode, p.Workspace.Mode) != out.Workspace.Mode || out.Workspace.Path != p.Workspace.Path {
				t.Fatalf("isolation or workspace widened: %+v", out)
			}
			for _, m := range out.Mounts {
				if !slices.ContainsFunc(p.Mounts, func(have Mount) bool {
					return have.Path == m.Path && stricter(m.Mode, have.Mode) == m.Mode && m.Mode != NoMount && m.Mode != vocabulary.StagedWrites
				}) {
					t.Fatalf("a mount came from nowhere: %+v", m)
				}
			}
			for _, v := range out.EnvPass {
				if !contains(p.EnvPass, v.Value) {
					t.Fatalf("%s came from nowhere", v.Value)
				}
			}
			l, was := out.Limits, p.Limits
			if l.Memory > was.Memory || l.PIDs > was.PIDs || l.CPUs > was.CPUs || l.Wall > was.Wall || l.Memory == 0 || l.PIDs == 0 || l.CPUs == 0 || l.Wall == 0 {
				t.Fatalf("limits widened: %+v", l)
			}
			before := was.amounts()
			for i, b := range l.amounts() {
				if b.of.Value == 0 || b.of.Value > before[i].of.Value {
					t.Fatalf("limits.%s widened: %+v", b.key, l)
				}
			}
			if !slices.EqualFunc(out.Grants, p.Grants, sameGrant) || len(out.Publish) > len(p.Publish) || len(out.EnvSet) != len(p.EnvSet) || len(out.Upstreams) != 0 || len(out.Credentials) != 0 {
				t.Fatalf("something came from nowhere: %+v", out)
			}
			if _, err := Parse("again.yaml", out.YAML()); err != nil {
				t.Fatalf("what is shown is no policy: %v\n%s", err, out.YAML())
			}
		}
	})
}

// TestDocumentedBounds keeps the examples of docs/policy.md honest.
func TestDocumentedBounds(t *testing.T) {
	doc, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	for heading, read := range map[string]func(string, []byte) (*Bounds, error){
		"\n### A project's policy\n": ParseProject, "\n## The administrator's policy\n": ParseAdministrator,
	} {
		_, rest, _ := strings.Cut(string(doc), heading)
		_, rest, _ = strings.Cut(rest, "```\n")
		text, _, ok := strings.Cut(rest, "```")
		if !ok {
			t.Fatalf("no example below %q", heading)
		}
		if _, err := read("docs/policy.md", []byte(text)); err != nil {
			t.Errorf("%q: %v", heading, err)
		}
	}
}
