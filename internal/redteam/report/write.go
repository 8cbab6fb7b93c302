package report

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/campaign"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/stage"
)

// Progress keeps one line of a terminal up to date; without one it prints a
// line for every tenth run.
func Progress(w io.Writer, terminal bool, p campaign.Progress) {
	broken := ""
	if p.Broken > 0 {
		broken = fmt.Sprintf("  %d BROKEN", p.Broken)
	}
	switch {
	case terminal:
		fmt.Fprintf(w, "\r\x1b[K%d/%d%s  %s in %s", p.Done, p.Total, broken, p.Name, p.Tier)
	case p.Done%10 == 0 || p.Done == p.Total:
		fmt.Fprintf(w, "%d/%d%s\n", p.Done, p.Total, broken)
	}
}

// JSON writes the report as it can be read again.
func JSON(w io.Writer, r *campaign.Report) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}

type (
	suites struct {
		XMLName xml.Name `xml:"testsuites"`
		Suites  []suite  `xml:"testsuite"`
	}
	suite struct {
		Name     string     `xml:"name,attr"`
		Tests    int        `xml:"tests,attr"`
		Failures int        `xml:"failures,attr"`
		Errors   int        `xml:"errors,attr"`
		Skipped  int        `xml:"skipped,attr"`
		Cases    []testcase `xml:"testcase"`
	}
	testcase struct {
		Class   string  `xml:"classname,attr"`
		Name    string  `xml:"name,attr"`
		Seconds float64 `xml:"time,attr"`
		Failure *note   `xml:"failure,omitempty"`
		Error   *note   `xml:"error,omitempty"`
		Skipped *note   `xml:"skipped,omitempty"`
	}
	note struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// JUnit writes one suite for each tier and one case for each scenario and twin.
// A broken containment is a failure, a run that proves nothing an error.
func JUnit(w io.Writer, r *campaign.Report) error {
	var out suites
	for _, tier := range append([]string{stage.None}, Tiers(r)...) {
		if stage.IsYardstick(tier) {
			continue
		}
		s := suite{Name: "redteam " + tier}
		for _, row := range r.Rows {
			for _, c := range row.Cells {
				if c.Tier != tier {
					continue
				}
				s.add(row, c)
			}
		}
		out.Suites = append(out.Suites, s)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	return enc.Encode(out)
}

func (s *suite) add(row *campaign.Row, c *campaign.Cell) {
	t := testcase{Class: "redteam." + c.Tier + "." + row.Category, Name: row.Name}
	if c.Kind == stage.Twin {
		t.Name += " (honest twin)"
	}
	for _, o := range c.Outcomes {
		t.Seconds += o.Seconds
	}
	message := &note{Text: evidence(c)}
	switch {
	case c.NotRun != "":
		t.Skipped, s.Skipped = message, s.Skipped+1
		message.Message = c.NotRun
	case c.Done() < c.Runs || c.Invalid > 0 && c.Succeeded == 0:
		t.Error, s.Errors = message, s.Errors+1
		message.Message = fmt.Sprintf("%d of %d runs took place, %d prove nothing", c.Done(), c.Runs, c.Invalid)
	case c.NotAttempted > 0 && c.Attempted() == 0:
		t.Skipped, s.Skipped = message, s.Skipped+1
		message.Message = "not attempted: " + Clean(c.Outcomes[0].Declined)
	case c.Kind == stage.Twin && c.Succeeded < c.Attempted():
		t.Failure, s.Failures = message, s.Failures+1
		message.Message = "the honest task failed"
	case c.Kind == stage.Attack && c.Tier != stage.None && c.Succeeded > 0:
		t.Failure, s.Failures = message, s.Failures+1
		message.Message = fmt.Sprintf("the attack succeeded %d of %d times", c.Succeeded, c.Attempted())
	case c.Tier == stage.None && !row.Proven() && row.Unproven == "":
		t.Error, s.Errors = message, s.Errors+1
		message.Message = "the attack does not work with nothing in its way"
	case c.Tier == stage.None && !row.Proven():
		t.Skipped, s.Skipped = message, s.Skipped+1
		message.Message = "not proven real here: " + row.Unproven
	}
	s.Tests++
	s.Cases = append(s.Cases, t)
}

func evidence(c *campaign.Cell) string {
	var b strings.Builder
	for i, o := range c.Outcomes {
		if i == 3 {
			fmt.Fprintf(&b, "… %d more runs\n", len(c.Outcomes)-i)
			break
		}
		fmt.Fprintf(&b, "run %d: ", i+1)
		for _, s := range o.Seen {
			fmt.Fprintf(&b, "seen: %s (%s)\n", s.Effect, Clean(s.Detail))
		}
		if o.Invalid != "" {
			fmt.Fprintf(&b, "proves nothing: %s\n", printable(o.Invalid))
		}
		if len(o.Missing) > 0 {
			fmt.Fprintf(&b, "missing: %s\n", strings.Join(o.Missing, ", "))
		}
		for _, e := range o.Events {
			fmt.Fprintf(&b, "event: %s\n", Clean(e))
		}
		if o.Output != "" {
			fmt.Fprintf(&b, "%s\n", printable(o.Output))
		}
	}
	return b.String()
}

// printable is Clean for several lines.
func printable(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = Clean(lines[i])
	}
	return strings.Join(lines, "\n")
}

// Compare prints what is different in the second report, and whether anything is worse.
func Compare(w io.Writer, a, b *campaign.Report) (worse bool, err error) {
	before := map[string]*campaign.Row{}
	for _, row := range a.Rows {
		before[row.Name] = row
	}
	var out strings.Builder
	n := 0
	for _, row := range b.Rows {
		was := before[row.Name]
		delete(before, row.Name)
		if was == nil {
			fmt.Fprintf(&out, "+ %s is new\n", row.Name)
			was = &campaign.Row{}
		}
		for _, c := range row.Cells {
			if stage.IsYardstick(c.Tier) {
				continue
			}
			old := was.Cell(c.Tier, c.Kind)
			oldWord, _ := Word(old, was)
			word, code := Word(c, row)
			if oldWord == word || old == nil && code != "31" {
				continue
			}
			mark := "~"
			if code == "31" || code == "33" {
				mark, worse = "!", true
			}
			n++
			fmt.Fprintf(&out, "%s %s in %s (%s): %s, was %s\n", mark, row.Name, c.Tier, c.Kind, word, oldWord)
		}
	}
	for _, row := range a.Rows {
		if before[row.Name] != nil {
			worse = true
			fmt.Fprintf(&out, "! %s was not run any more\n", row.Name)
		}
	}
	fmt.Fprintf(&out, "%d differences: broken %d → %d, contained %d → %d, proven %d → %d, twins failed %d → %d\n", n,
		a.Totals.Broken, b.Totals.Broken, a.Totals.Contained, b.Totals.Contained, a.Totals.Proven, b.Totals.Proven, a.Totals.TwinFailed, b.Totals.TwinFailed)
	_, err = io.WriteString(w, out.String())
	return worse, err
}
