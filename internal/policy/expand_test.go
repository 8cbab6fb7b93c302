package policy

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// presets is a lookup in a map of texts.
func presets(texts map[string]string) func(string) (*Preset, error) {
	return func(name string) (*Preset, error) {
		text, ok := texts[name]
		if !ok {
			return nil, fmt.Errorf("unknown preset %q", name)
		}
		return ParsePreset(name, []byte("description: for tests\n"+text))
	}
}

func mustParse(t *testing.T, text string) *Policy {
	t.Helper()
	p, err := Parse("policy.yaml", []byte("version: 1\n"+text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func embedded(name string) (*Preset, error) {
	data, err := catalogdata.Presets.ReadFile("presets/" + name + ".yaml")
	if err != nil {
		return nil, err
	}
	return ParsePreset(name, data)
}

func TestExpandMerges(t *testing.T) {
	p := mustParse(t, `presets: [agent, tool]
mounts: [{path: ~/own, mode: rw}, {path: ~/shared, mode: rw}]
env: {pass: [TERM, PASSED], set: {OWN: mine}}
grants:
  - {service: npm, operations: [read]}
credentials:
  key: {from: {keyring: mine}}
`)
	out, err := Expand(p, presets(map[string]string{
		"agent": `presets: [base]
mounts: [{path: ~/agent, mode: ro, optional: false}, {path: ~/base}]
env: {pass: [TERM, MODEL], set: {OWN: theirs, PASSED: "1", AGENT: "1"}}
grants:
  - {service: anthropic, operations: [messages], credential: key}
credentials: {key: {from: {env: KEY}, optional: true}}
`,
		"base": `mounts: [{path: ~/base, optional: false}, {path: ~/shared, mode: ro}]
env: {set: {AGENT: "1"}}
grants:
  - {service: npm, operations: [read]}
`,
		"tool": `presets: [base]
grants:
  - {http: https://tool.example/**}
`,
	}))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/expanded.golden", out.YAML())
	roundTrip(t, out)
	if len(p.Grants) != 1 || len(p.Presets) != 2 {
		t.Error("Expand changed the policy that it was given")
	}
	again, err := Expand(out, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(out, again); d != "" {
		t.Errorf("expanding twice changes something: %s", d)
	}
}

func TestExpandErrors(t *testing.T) {
	texts := map[string]string{
		"self":   "presets: [self]\n",
		"a":      "presets: [b]\n",
		"b":      "presets: [c]\n",
		"c":      "presets: [a]\n",
		"broken": "grants: [{service: npm}]\nenv: {set: {LD_PRELOAD: x}}\n",
		"needs":  "grants: [{service: npm, operations: [read], credential: k}]\npresets: [empty]\n",
		"empty":  "",
		"env1":   "env: {set: {A: x}}\n",
		"env2":   "env: {set: {A: y}}\n",
		"env3":   "env: {pass: [A]}\n",
		"ro":     "mounts: [{path: ~/m, mode: ro}]\n",
		"rw":     "mounts: [{path: ~/m, mode: rw}]\n",
		"cred1":  "credentials: {k: {from: {env: K}}}\n",
		"cred2":  "credentials: {k: {from: {file: ~/k}}}\n",
		"leak":   "env: {pass: [K]}\n",
		"user1":  "credentials: {k1: {from: {env: K1}}}\ngrants: [{service: npm, operations: [read], credential: k1}]\n",
		"user2":  "credentials: {k2: {from: {env: K2}}}\ngrants: [{service: npm, operations: [read, audit], credential: k2}]\n",
	}
	for _, c := range []struct{ presets, want string }{
		{"self", "preset:self:2:11: presets include each other: self → self (remove one of them)"},
		{"a", "preset:c:2:11: presets include each other: a → b → c → a (remove one of them)"},
		{"nosuch, nosuch2", "policy.yaml:2:11: unknown preset \"nosuch\" (see: bulkhead preset list)\npolicy.yaml:2:19: unknown preset \"nosuch2\" (see: bulkhead preset list)"},
		{"broken", "preset:broken:2:10: a grant for a service names no operations (name them: operations: [...])\n" +
			"preset:broken:3:13: LD_PRELOAD is refused: it makes the dynamic loader run foreign code in every program, Bulkhead's helpers included (to use it for one program: CMD = env LD_PRELOAD=… PROGRAM)"},
		{"needs", "preset:needs:2:57: credential \"k\" is not defined (add it: credentials: {k: {from: {env: NAME}}})"},
		{"env1, env2", "preset:env2:2:13: A is \"y\" here, but not at preset:env1:2:13 (say in your policy which of the two it is)"},
		{"env1, env3", "preset:env3:2:14: A is passed here, but not at preset:env1:2:13 (say in your policy which of the two it is)"},
		{"env3, env1", "preset:env1:2:13: A is set here, but not at preset:env3:2:14 (say in your policy which of the two it is)"},
		{"ro, rw", "preset:rw:2:10: \"~/m\" has mode rw here, but not at preset:ro:2:10 (say in your policy which of the two it is)"},
		{"cred1, cred2", "preset:cred2:2:15: credential k has this source here, but not at preset:cred1:2:15 (say in your policy which of the two it is)"},
		{"cred1, leak", "preset:leak:2:14: env.pass would give the sandbox K, the secret of credential k at preset:cred1:2:15 (remove it; the sandbox gets a placeholder instead)"},
		{"user1, user2", "preset:user2:3:64: credential k2 for what has credential k1 at preset:user1:3:57 (keep one; to take a preset's credential from elsewhere, define k1 under credentials)"},
	} {
		p := mustParse(t, "presets: ["+c.presets+"]\n")
		out, err := Expand(p, presets(texts))
		if err == nil {
			t.Errorf("%s: accepted:\n%s", c.presets, out.YAML())
			continue
		}
		if d := cmp.Diff(c.want, err.Error()); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.presets, d)
		}
	}
}

// TestFileDecides: what two presets disagree about, the policy file settles.
func TestFileDecides(t *testing.T) {
	p := mustParse(t, "presets: [one, two]\nenv: {set: {A: mine}}\nmounts: [{path: ~/m, mode: ro}]\ncredentials: {k: {from: {keyring: k}}}\n")
	out, err := Expand(p, presets(map[string]string{
		"one": "env: {set: {A: x}}\nmounts: [{path: ~/m, mode: rw}]\ncredentials: {k: {from: {env: K}}}\n",
		"two": "env: {pass: [A]}\nmounts: [{path: ~/m, mode: rw-no-delete}]\ncredentials: {k: {from: {file: ~/k}}}\n",
	}))
	if err != nil {
		t.Fatal(err)
	}
	if len(out.EnvSet) != 1 || out.EnvSet[0].Value != "mine" || len(out.Mounts) != 1 || out.Mounts[0].Mode != vocabulary.ReadOnly || out.Credentials[0].Keyring != "k" {
		t.Errorf("%s", out.YAML())
	}
}

// TestPresets: every preset is readable, expands alone and with all others,
// mounts read-only what may be missing, and names no login of its own.
func TestPresets(t *testing.T) {
	files, err := fs.Glob(catalogdata.Presets, "presets/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d presets, %v", len(files), err)
	}
	secrets, err := ParseSecrets(catalogdata.Secrets)
	if err != nil {
		t.Fatal(err)
	}
	var all []At[string]
	for _, f := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(f, "presets/"), ".yaml")
		all = append(all, At[string]{Value: name})
		preset, err := embedded(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if len(preset.Commands) == 0 || !strings.HasSuffix(preset.Description, ".") {
			t.Errorf("%s: commands %q, description %q", name, preset.Commands, preset.Description)
		}
		for _, m := range preset.Mounts {
			if m.Mode != vocabulary.ReadOnly || !m.Optional || !strings.HasPrefix(m.Path, "~/") {
				t.Errorf("%s: %+v", name, m)
			}
			for _, s := range secrets {
				if s.Path == m.Path || strings.HasPrefix(s.Path, m.Path+"/") {
					t.Errorf("%s mounts %s, which shows %s (%s)", name, m.Path, s.Path, s.Reason)
				}
			}
		}
		for _, g := range preset.Grants {
			if g.TCP != "" {
				t.Errorf("%s has an opaque grant", name)
			}
		}
		p := Default(vocabulary.Developer)
		p.Presets = []At[string]{{Value: name}}
		out, err := Expand(p, embedded)
		if err != nil {
			t.Error(err)
			continue
		}
		roundTrip(t, out)
	}
	p := Default(vocabulary.Developer)
	p.Presets = all
	out, err := Expand(p, embedded)
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, out)
}

func TestDesignPresetsLine(t *testing.T) {
	data, err := os.ReadFile("testdata/ok/design.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(data), "workspace:", "presets: [claude, node, git]\nworkspace:", 1)
	p, err := Parse("policy.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	out, err := Expand(p, embedded)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/design-expanded.golden", out.YAML())
	roundTrip(t, out)
}

func TestChecks(t *testing.T) {
	text := `version: 1
presets: [claud]
profil: x
grants:
  - {service: githup, operations: [clone]}
  - {service: github, operations: [clone, push], resources: [acme/x, acme]}
`
	known := func(kind string, names ...string) func(string) *Error {
		return func(name string) *Error {
			for _, n := range names {
				if n == name {
					return nil
				}
			}
			return &Error{Msg: "unknown " + kind + " " + name, Hint: Suggest(name, names)}
		}
	}
	checks := Checks{
		Preset:    known("preset", "claude"),
		Service:   known("service", "github"),
		Operation: func(_, op string) *Error { return known("operation", "clone", "fetch")(op) },
		Resource:  func(_, res string) *Error { return known("resource", "acme/x")(res) },
		Grant: func(g Grant) *Error {
			if len(g.Resources) == 2 {
				return &Error{Msg: "two"}
			}
			return nil
		},
	}
	_, err := ParseWith("p", []byte(text), checks)
	want := `p:2:11: unknown preset claud (did you mean claude?)
p:3:1: unknown key "profil" in a policy (did you mean profile?)
p:5:5: unknown service githup (did you mean github?)
p:6:5: two
p:6:43: unknown operation push (one of: clone, fetch)
p:6:70: unknown resource acme (one of: acme/x)`
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
	p := mustParse(t, "grants: [{service: githup, operations: [clone]}]\n")
	if err := p.Check(checks); err == nil || !strings.Contains(err.Error(), "policy.yaml:2:10: unknown service githup") {
		t.Errorf("Check: %v", err)
	}
	if err := p.Check(Checks{}); err != nil {
		t.Errorf("no judges: %v", err)
	}
}

// BenchmarkStart is what every start pays: the user's policy, three presets,
// and the two lists.
func BenchmarkStart(b *testing.B) {
	data, err := os.ReadFile("testdata/ok/design.yaml")
	if err != nil {
		b.Fatal(err)
	}
	data = []byte(strings.Replace(string(data), "workspace:", "presets: [claude, node, git]\nworkspace:", 1))
	for b.Loop() {
		p, err := Parse("policy.yaml", data)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Expand(p, embedded); err != nil {
			b.Fatal(err)
		}
		if _, err := ParseSecrets(catalogdata.Secrets); err != nil {
			b.Fatal(err)
		}
		if _, _, err := ParseProtected(catalogdata.Protected); err != nil {
			b.Fatal(err)
		}
	}
}
func BenchmarkLists(b *testing.B) {
	for b.Loop() {
		ParseSecrets(catalogdata.Secrets)
		ParseProtected(catalogdata.Protected)
	}
}
