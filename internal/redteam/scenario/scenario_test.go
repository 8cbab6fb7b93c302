package scenario

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const good = `title: a
category: FS
outcome: escape
tiers: [process]
attacker: b
covers: [FS-01]
effects:
  - {at: host, is: changed}
twin:
  - {at: ./result.txt, has: beacon}
-- payload.sh --
true
-- twin.sh --
true
`

func TestBuiltinAndCatalogue(t *testing.T) {
	all, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if strings.Contains(s.Payload, "```") || strings.Contains(s.Honest, "```") {
			t.Errorf("%s: a fence ends the block that the model obeys", s.Name)
		}
	}
	entries, err := Coverage(all)
	if err != nil {
		t.Fatal(err)
	}
	open := 0
	for _, e := range entries {
		n := 0
		for _, said := range []bool{len(e.Scenarios) > 0, e.Test != "", e.Open != ""} {
			if said {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s (%s): scenarios %q, test %q, open %q: exactly one must be said", e.ID, e.Title, e.Scenarios, e.Test, e.Open)
		}
		if e.Open != "" {
			open++
		}
	}
	if len(entries) != 196+14 {
		t.Errorf("%d entries", len(entries))
	}
	t.Logf("%d scenarios; of %d entries %d are open", len(all), len(entries), open)
}

// What the catalogue says is tested elsewhere is there.
func TestTestsOfTheCatalogueExist(t *testing.T) {
	all, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := Coverage(all)
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join("..", "..", "..")
	tests := map[string]bool{}
	err = filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(p, ".go") {
			return nil
		}
		data, err := os.ReadFile(p)
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)`).FindAllStringSubmatch(string(data), -1) {
			tests[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		for _, name := range regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`).FindAllString(e.Test, -1) {
			if !tests[name] && name != "TestConformance" {
				t.Errorf("%s names %s, which is nowhere", e.ID, name)
			}
		}
		for _, m := range regexp.MustCompile(`e2e/([a-z0-9_]+)`).FindAllStringSubmatch(e.Test, -1) {
			_, story := os.Stat(filepath.Join(root, "e2e", "process", "testdata", m[1]+".txtar"))
			_, lane := os.Stat(filepath.Join(root, "e2e", m[1]))
			if story != nil && lane != nil {
				t.Errorf("%s names e2e/%s, which is nowhere", e.ID, m[1])
			}
		}
	}
}

func TestMistakesHaveAPlace(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown key", "attacker: b", "atacker: b", "5:1: unknown key \"atacker\""},
		{"missing key", "attacker: b\n", "", "attacker is missing"},
		{"twice", "attacker: b", "attacker: b\ntitle: c", "6:1: \"title\" is here twice"},
		{"word", "outcome: escape", "outcome: theft", "3:10: \"theft\" is not known here (one of: escape"},
		{"tier", "[process]", "[procses]", "4:9: \"procses\""},
		{"entry", "[FS-01]", "[FS-1]", "6:10: \"FS-1\" is no entry"},
		{"anchor", "title: a", "title: &a a", "1:8: anchors"},
		{"tag", "title: a", "title: !x a", "1:8: tag !x"},
		{"list", "[process]", "process", "4:8: this must be a list"},
		{"effect of nothing", "{at: host, is: changed}", "{at: host}", "8:5: an effect is"},
		{"effect of both", "{at: host, is: changed}", "{at: ./a, is: changed, has: beacon}", "8:5: an effect is"},
		{"place", "{at: host, is: changed}", "{at: nowhere, has: beacon}", "8:5: \"nowhere\" is no place"},
		{"listener", "{at: host, is: changed}", "{at: \"listener:x\", has: beacon}", "listener:x, which listen does not have"},
		{"host created", "{at: host, is: changed}", "{at: host, is: created}", "8:5: the host as a whole"},
		{"second", "{at: host, is: changed}", "{at: second, has: secret}", "no second session"},
		{"no payload", "-- payload.sh --\ntrue\n", "", "nothing to attack with"},
		{"no twin", "-- twin.sh --\ntrue\n", "", "no honest task"},
		{"empty part", "-- twin.sh --\ntrue\n", "-- twin.sh --\n", "13:1: twin.sh is empty"},
		{"part", "-- twin.sh --", "-- twins.sh --", "13:4: no part is called \"twins.sh\""},
		{"part twice", "-- twin.sh --", "-- payload.sh --", "13:1: a second part"},
		{"path", "-- twin.sh --", "-- ws/../x --", "no part is called \"ws/../x\""},
		{"hole", "-- payload.sh --\ntrue", "-- payload.sh --\ntrue\n echo @SECRETS@", "13:7: nothing fills in @SECRETS@"},
		{"fence", "-- payload.sh --\ntrue", "-- payload.sh --\ntrue\n```", "13:1: a line of three backticks"},
		{"policy", "-- payload.sh --", "-- policy.yaml --\nversion: 1\ngrant: []\n-- payload.sh --", "13:1: unknown key"},
		{"limit", "attacker: b", "attacker: b\nlimit: 3h", "6:8: limit must be"},
		{"listen", "attacker: b", "attacker: b\nlisten: {a: nowhere}", "6:13: where does it listen?"},
		{"not YAML", "title: a", "title: [a", "not valid YAML"},
	} {
		text := strings.Replace(good, c.old, c.new, 1)
		if text == good {
			t.Fatalf("%s: nothing replaced", c.name)
		}
		_, err := Parse("x.txtar", []byte(text))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "x.txtar:") {
			t.Errorf("%s: %v\nwant %s", c.name, err, c.want)
		}
	}
	if _, err := Parse("X y.txtar", []byte(good)); err == nil {
		t.Error("a bad name passed")
	}
	s, err := Parse("x.txtar", []byte(good))
	if err != nil || s.Name != "x" || s.Payload != "true\n" || s.Policy != "version: 1\n" {
		t.Errorf("%+v %v", s, err)
	}
}

// Several mistakes are reported at once, in order.
func TestAllMistakesAtOnce(t *testing.T) {
	text := strings.NewReplacer("outcome: escape", "outcome: theft", "[FS-01]", "[x]", "-- twin.sh --", "-- y --").Replace(good)
	_, err := Parse("x.txtar", []byte(text))
	if err == nil || strings.Count(err.Error(), "\n") < 3 {
		t.Errorf("%v", err)
	}
}

func TestWithPayload(t *testing.T) {
	got := string(WithPayload([]byte(good), "other\n"))
	if want := strings.Replace(good, "-- payload.sh --\ntrue\n", "-- payload.sh --\nother\n", 1); got != want {
		t.Errorf("%s", got)
	}
}

func TestSelect(t *testing.T) {
	all := []*Scenario{{Name: "a-one", Category: "FS", Covers: []string{"FS-01"}}, {Name: "a-two", Category: "DX", Covers: []string{"DX-01", "M2"}}, {Name: "b", Category: "DX"}}
	for pattern, want := range map[string]string{"a-*": "a-one a-two", "DX": "a-two b", "M2": "a-two", "b": "b", "[": "", "nothing": ""} {
		got, err := Select(all, []string{pattern})
		var names []string
		for _, s := range got {
			names = append(names, s.Name)
		}
		if strings.Join(names, " ") != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q %v", pattern, names, err)
		}
	}
	if got, err := Select(all, nil); err != nil || len(got) != 3 {
		t.Errorf("%v %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	names, err := filepath.Glob("data/*.txtar")
	if err != nil || len(names) == 0 {
		f.Fatal(err)
	}
	for _, n := range names[:min(len(names), 20)] {
		data, err := os.ReadFile(n)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(good))
	f.Add([]byte("-- a --\n"))
	f.Add([]byte("&a [*a]\n-- payload.sh --\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse("x.txtar", data)
		if err != nil {
			if s != nil || !strings.HasPrefix(err.Error(), "x.txtar:") {
				t.Errorf("%v %v", s, err)
			}
			return
		}
		// What is accepted can be run and judged.
		if s.Payload == "" || s.Honest == "" || len(s.Effects) == 0 || len(s.Twin) == 0 || len(s.Tiers) == 0 {
			t.Errorf("accepted: %+v", s)
		}
		for _, e := range slices.Concat(s.Effects, s.Twin) {
			if (e.Has == "") == (e.Is == "") {
				t.Errorf("accepted: %+v", e)
			}
		}
		for name := range s.Home {
			if strings.HasPrefix(name, "/") || slices.Contains(strings.Split(name, "/"), "..") {
				t.Errorf("accepted: %q", name)
			}
		}
	})
}
