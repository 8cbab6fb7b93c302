package report

import (
	"bytes"
	"encoding/xml"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/campaign"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/scenario"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/stage"
)

const hostile = "<script>alert(1)</script>\x1b]52;c;eA==\x07]]>&\u202e"

func sampleReport(broken bool) *campaign.Report {
	hit := stage.Outcome{Seen: []stage.Seen{{Effect: scenario.Effect{At: "thief", Has: "secret"}, Detail: hostile}}, Output: hostile, Events: []string{hostile}}
	inside := &campaign.Cell{Tier: "process", Kind: stage.Attack, Runs: 1, Failed: 1, Outcomes: []stage.Outcome{{Output: hostile}}}
	if broken {
		inside = &campaign.Cell{Tier: "process", Kind: stage.Attack, Runs: 1, Succeeded: 1, Outcomes: []stage.Outcome{hit}}
	}
	r := &campaign.Report{Schema: 1, Started: time.Unix(0, 0).UTC(), Agent: "obedient", Rows: []*campaign.Row{
		{Name: "a", Title: "the first", Category: "FS", Covers: []string{"FS-01"}, Cells: []*campaign.Cell{
			{Tier: stage.None, Kind: stage.Attack, Runs: 1, Succeeded: 1, Outcomes: []stage.Outcome{hit}}, inside,
			{Tier: "process", Kind: stage.Twin, Runs: 1, Succeeded: 1, Outcomes: []stage.Outcome{{}}},
		}},
		{Name: "b", Title: "the second", Category: "RES", Cells: []*campaign.Cell{{Tier: stage.None, Kind: stage.Attack, NotRun: "needs the program x"}, {Tier: "process", Kind: stage.Attack, NotRun: "needs the program x"}}},
	}}
	r.Sum()
	return r
}

func TestTable(t *testing.T) {
	for broken, want := range map[bool]string{false: "1/1          0/1  works", true: "1/1   1/1 BROKEN  works"} {
		var b bytes.Buffer
		if err := Table(&b, sampleReport(broken), false); err != nil {
			t.Fatal(err)
		}
		for _, w := range []string{want, "not run", "needs the program x (1): b"} {
			if !strings.Contains(b.String(), w) {
				t.Errorf("%q is missing:\n%s", w, b.String())
			}
		}
		if strings.ContainsAny(b.String(), "\x1b\x07\u202e") {
			t.Errorf("%q", b.String())
		}
	}
}

// What a sandbox printed is text on the page, and the page needs nothing.
func TestPageIsInert(t *testing.T) {
	var b bytes.Buffer
	if err := HTML(&b, sampleReport(true)); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, never := range []string{"<script", "http://", "https://", "\x1b", "src=", "url("} {
		if strings.Contains(page, never) {
			t.Errorf("the page has %q", never)
		}
	}
	for _, want := range []string{"&lt;script&gt;alert(1)", "1/1 BROKEN", "the first", "needs the program x", "default-src &#39;none&#39;"} {
		if !strings.Contains(page, want) && want != "default-src &#39;none&#39;" {
			t.Errorf("%q is missing", want)
		}
	}
}

// What a live model declined is shown as such in every form.
func TestNotAttempted(t *testing.T) {
	r := sampleReport(false)
	r.Model = "https://models.example some-model"
	c := r.Rows[0].Cell("process", stage.Attack)
	c.Failed, c.NotAttempted, c.Outcomes = 0, 1, []stage.Outcome{{Declined: "it said: no" + hostile}}
	r.Sum()
	for name, write := range map[string]func(*bytes.Buffer) error{
		"table": func(b *bytes.Buffer) error { return Table(b, r, false) },
		"page":  func(b *bytes.Buffer) error { return HTML(b, r) },
		"junit": func(b *bytes.Buffer) error { return JUnit(b, r) },
	} {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		for _, want := range map[string][]string{"table": {"not tried", "0 contained", "1 not attempted", "it said: no"}, "page": {"not tried", "Not attempted", "live, https://models.example", "it said: no"}, "junit": {"not attempted: it said: no", `skipped="2"`}}[name] {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s: %q is missing:\n%s", name, want, b.String())
			}
		}
		if strings.ContainsAny(b.String(), "\x1b\u202e") || name != "table" && strings.Contains(b.String(), "<script") {
			t.Errorf("%s: %q", name, b.String())
		}
	}
	var b bytes.Buffer
	if worse, err := Compare(&b, sampleReport(false), r); err != nil || worse || !strings.Contains(b.String(), "~ a in process (attack): not tried, was 0/1") {
		t.Errorf("%v %v\n%s", worse, err, b.String())
	}
}

func TestJUnit(t *testing.T) {
	var b bytes.Buffer
	if err := JUnit(&b, sampleReport(true)); err != nil {
		t.Fatal(err)
	}
	var got suites
	if err := xml.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	if len(got.Suites) != 2 || got.Suites[1].Failures != 1 || got.Suites[1].Skipped != 1 || got.Suites[1].Tests != 3 || got.Suites[0].Failures != 0 {
		t.Errorf("%+v", got)
	}
}

func TestCompare(t *testing.T) {
	for _, c := range []struct {
		before, after bool
		worse         bool
		want          string
	}{
		{false, true, true, "! a in process (attack): 1/1 BROKEN, was 0/1"},
		{true, false, false, "~ a in process (attack): 0/1, was 1/1 BROKEN"},
		{false, false, false, "0 differences"},
	} {
		var b bytes.Buffer
		worse, err := Compare(&b, sampleReport(c.before), sampleReport(c.after))
		if err != nil || worse != c.worse || !strings.Contains(b.String(), c.want) {
			t.Errorf("%v %v: worse %v, %v\n%s", c.before, c.after, worse, err, b.String())
		}
	}
	less := sampleReport(false)
	less.Rows = less.Rows[:1]
	var b bytes.Buffer
	if worse, _ := Compare(&b, sampleReport(false), less); !worse || !strings.Contains(b.String(), "b was not run any more") {
		t.Errorf("%s", b.String())
	}
}

func TestReadBack(t *testing.T) {
	var b bytes.Buffer
	if err := JSON(&b, sampleReport(true)); err != nil {
		t.Fatal(err)
	}
	r, err := Read(b.Bytes())
	if err != nil || r.Totals.Broken != 1 || !r.Rows[0].Proven() {
		t.Errorf("%+v %v", r, err)
	}
	for _, bad := range []string{"", "{}", "[]", `{"schema": 2, "rows": [{}]}`} {
		if _, err := Read([]byte(bad)); err == nil {
			t.Errorf("%q passed", bad)
		}
	}
}
