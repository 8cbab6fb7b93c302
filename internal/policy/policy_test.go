package policy

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

var update = flag.Bool("update", false, "write the golden files")

// samePolicy compares what policies say, not where it stands.
var samePolicy = cmp.Options{
	cmpopts.IgnoreTypes(vocabulary.Position{}, LimitPositions{}),
	cmpopts.IgnoreFields(Policy{}, "File", "Expanded"),
	cmpopts.EquateEmpty(),
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s (-want +got; go test -update writes it):\n%s", name, d)
	}
}

// roundTrip parses what YAML renders and compares.
func roundTrip(t *testing.T, p *Policy) {
	t.Helper()
	text := p.YAML()
	again, err := Parse("again.yaml", text)
	if err != nil {
		t.Fatalf("the rendered policy does not parse: %v\n%s", err, text)
	}
	if d := cmp.Diff(p, again, samePolicy); d != "" {
		t.Fatalf("the rendered policy says something else (-want +got):\n%s\n%s", d, text)
	}
}

func TestAccepted(t *testing.T) {
	files, _ := filepath.Glob("testdata/ok/*.yaml")
	if len(files) < 3 {
		t.Fatal("no test data")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p, err := Parse(filepath.Base(file), data)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", p.YAML())
			roundTrip(t, p)
		})
	}
}

// TestRejected: every file of testdata/bad has its errors, all of them, with
// their positions, in the golden file beside it.
func TestRejected(t *testing.T) {
	files, _ := filepath.Glob("testdata/bad/*.yaml")
	if len(files) < 5 {
		t.Fatal("no test data")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p, err := Parse(filepath.Base(file), data)
			if err == nil {
				t.Fatalf("accepted:\n%s", p.YAML())
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", []byte(err.Error()+"\n"))
		})
	}
}

func TestDesignExample(t *testing.T) {
	data, err := os.ReadFile("testdata/ok/design.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("p.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	at := func(line, column int) vocabulary.Position {
		return vocabulary.Position{File: "p.yaml", Line: line, Column: column}
	}
	want := &Policy{
		File: "p.yaml", Profile: "developer", ProfilePos: at(2, 10), Isolation: "process", IsolationPos: at(3, 12),
		Workspace: Workspace{".", "rw", nil, at(4, 1)},
		Mounts:    []Mount{{Path: "~/go/pkg/mod", Mode: "ro", Pos: at(6, 5)}},
		EnvPass:   []At[string]{{"TERM", at(8, 10)}, {"LANG", at(8, 16)}},
		EnvSet:    []EnvVar{{"CI", "1", at(9, 9)}},
		Grants: []Grant{
			{Pos: at(11, 5), Service: "anthropic", Operations: []At[string]{{"messages", at(12, 18)}}, Credential: "claude", CredentialPos: at(13, 17)},
			{Pos: at(14, 5), Service: "github", Operations: []At[string]{{"clone", at(15, 18)}, {"fetch", at(15, 25)}},
				Resources: []At[string]{{"acme/widgets", at(16, 17)}}},
			{Pos: at(17, 5), HTTP: "https://docs.example.com/3/**", Methods: []string{"GET", "HEAD"}},
			{Pos: at(19, 5), TCP: "db.corp.example:5432"},
		},
		Credentials: []Credential{{Name: "claude", Env: "ANTHROPIC_API_KEY", Pos: at(21, 3)}},
		Upstreams:   []Upstream{{Host: "api.anthropic.com", Connect: "127.0.0.1:9443", CA: "testdata/ca.pem", Pos: at(23, 3)}},
		Limits:      Limits{Memory: 2 << 30, PIDs: 512, CPUs: 2, Wall: time.Hour, Pos: LimitPositions{at(24, 18), at(24, 30), at(24, 41), at(24, 50)}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestDefaults(t *testing.T) {
	for _, profile := range []vocabulary.Profile{vocabulary.Developer, vocabulary.KnowledgeWorker, vocabulary.Server} {
		p := Default(profile)
		if len(p.Grants)+len(p.Mounts)+len(p.EnvSet)+len(p.Credentials)+len(p.Upstreams) != 0 {
			t.Errorf("%s grants something: %+v", profile, p)
		}
		roundTrip(t, p)
		same, err := Parse("p", []byte("version: 1\nprofile: "+string(profile)+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(p, same, samePolicy); d != "" {
			t.Errorf("a file with the profile alone is not the default (-default +file):\n%s", d)
		}
		changed := Default(vocabulary.Developer)
		changed.SetProfile(profile)
		if d := cmp.Diff(p, changed); d != "" {
			t.Errorf("SetProfile is not the default (-default +set):\n%s", d)
		}
	}
	if got := Default(vocabulary.Server).Limits; got.Memory != 2<<30 || got.PIDs != 512 || got.CPUs != 2 || got.Wall != time.Hour {
		t.Errorf("server: %+v", got)
	}
	if got := Default("nonsense"); got.Profile != vocabulary.Server || got.Isolation != vocabulary.Container {
		t.Errorf("an unknown profile must get the narrowest defaults, got %+v", got)
	}
}

func TestSetProfileKeepsTheFile(t *testing.T) {
	p, err := Parse("p", []byte("version: 1\nisolation: process\nworkspace: {mode: ro}\nenv: {pass: [EDITOR]}\nlimits: {pids: 7}\n"))
	if err != nil {
		t.Fatal(err)
	}
	p.SetProfile(vocabulary.Server)
	if p.Isolation != vocabulary.Process || p.Workspace.Mode != vocabulary.ReadOnly || len(p.EnvPass) != 1 || p.Limits.PIDs != 7 || p.Limits.Memory != 2<<30 {
		t.Errorf("%s", p.YAML())
	}
}

// TestEmptyMeansNothing: no empty, absent or null form of a list may grant
// (CVE-2025-66479: an empty list of domains meant all domains).
func TestEmptyMeansNothing(t *testing.T) {
	for _, text := range []string{"", "\n", "# only a comment\n", "---\n", "---\n...\n", "null\n", "~\n", "[]\n", "{}\n", "''\n", "grants:\n",
		"version: 1\ngrants:\n", "version: 1\ngrants: ~\n", "version: 1\ngrants: {}\n", "version: 1\ngrants: ''\n", "version: 1\ngrants: [~]\n",
		"version: 1\ngrants: [{}]\n", "version: 1\ngrants: [[]]\n", "version: 1\ngrants: [{service: npm}]\n",
		"version: 1\ngrants: [{service: npm, operations: }]\n", "version: 1\ngrants: [{service: npm, operations: []}]\n",
		"version: 1\ngrants: [{service: npm, operations: ['']}]\n", "version: 1\ngrants: [{service: npm, operations: ['*']}]\n",
		"version: 1\ngrants: [{service: npm, operations: [read], resources: []}]\n",
		"version: 1\ngrants: [{service: npm, operations: [read], resources: ~}]\n",
		"version: 1\ngrants: [{http: }]\n", "version: 1\ngrants: [{http: '*'}]\n", "version: 1\ngrants: [{http: 'https://*/**'}]\n",
		"version: 1\ngrants: [{http: 'https://*.com/**'}]\n", "version: 1\ngrants: [{http: 'https:///**'}]\n",
		"version: 1\ngrants: [{http: https://a.example/**, methods: []}]\n", "version: 1\ngrants: [{http: https://a.example/**, methods: ['*']}]\n",
		"version: 1\ngrants: [{tcp: }]\n", "version: 1\ngrants: [{tcp: '*:443'}]\n", "version: 1\ngrants: [{tcp: 'a.example:*'}]\n",
		"version: 1\ngrants: yes\n", "version: 1\ngrants: no\n",
	} {
		if p, err := Parse("p", []byte(text)); err == nil {
			t.Errorf("%q is accepted as:\n%s", text, p.YAML())
		}
	}
	for _, text := range []string{"version: 1\n", "version: 1\ngrants: []\n"} {
		p, err := Parse("p", []byte(text))
		if err != nil || len(p.Grants) != 0 {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestEveryErrorHasAPlace(t *testing.T) {
	for _, text := range []string{"", "\x00", "\xff", "a: [", "a: b: c", "- 1", "version: 1\n---\nversion: 1\n", strings.Repeat("[", 20000),
		strings.Repeat("{a: ", 30) + strings.Repeat("}", 30), "version: 1 # " + strings.Repeat("x", 1<<20), "%YAML 9.9\n---\nversion: 1\n", "a: &x [*x]\n", "? [a]\n: b\n"} {
		_, err := Parse("p", []byte(text))
		var list ErrorList
		if !errors.As(err, &list) {
			t.Errorf("%.40q: %v", text, err)
			continue
		}
		for _, e := range list {
			if e.Pos.File != "p" || e.Pos.Line < 1 || e.Pos.Column < 1 || e.Msg == "" {
				t.Errorf("%.40q: %#v", text, e)
			}
		}
	}
}

// TestNothingOfTheFileReachesTheTerminal: messages quote what they repeat.
func TestNothingOfTheFileReachesTheTerminal(t *testing.T) {
	_, err := Parse("p", []byte("version: 1\n\"k\\e[2J\": 1\nprofile: \"a\\u202eb\"\nisolation: \"\\x1b]0;x\\a\"\ngrants: [{tcp: \"a\\rb:1\"}]\n"))
	if err == nil || strings.ContainsAny(err.Error(), "\x1b\a\r\u202e") {
		t.Errorf("%q", err)
	}
}
