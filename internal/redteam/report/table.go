// Package report writes what a campaign found: for a terminal, as JSON, as JUnit,
// as one page of HTML, and as the difference of two.
//
// It runs in the process of `bulkhead redteam`. What comes from a sandbox is
// shown without control characters; the page runs no script of anybody's.
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/campaign"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/stage"
)

// Read reads what was saved of a campaign.
func Read(data []byte) (*campaign.Report, error) {
	var r campaign.Report
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("not a report of bulkhead redteam run --save: %w", err)
	}
	if r.Schema != 1 || len(r.Rows) == 0 {
		return nil, errors.New("not a report of bulkhead redteam run --save: it has no scenarios, or is of another version")
	}
	return &r, nil
}

// Tiers that a report has besides the uncontained one.
func Tiers(r *campaign.Report) (out []string) {
	for _, row := range r.Rows {
		for _, c := range row.Cells {
			if c.Tier != stage.None && !slices.Contains(out, c.Tier) {
				out = append(out, c.Tier)
			}
		}
	}
	return out
}

// Table prints the matrix for people; colour only for a terminal.
func Table(w io.Writer, r *campaign.Report, colour bool) error {
	paint := func(code, s string) string {
		if !colour {
			return s
		}
		return "\x1b[" + code + "m" + s + "\x1b[0m"
	}
	tiers, width := Tiers(r), len("attack")
	for _, row := range r.Rows {
		width = max(width, len(row.Name))
	}
	var b strings.Builder
	head := fmt.Sprintf("  %-*s  %11s", width, "attack", "uncontained")
	for _, t := range tiers {
		head += fmt.Sprintf("  %11s  %5s", t, "twin")
	}
	fmt.Fprintf(&b, "\n%s\n", paint("2", head))
	category := ""
	for _, row := range r.Rows {
		if row.Category != category {
			category = row.Category
			fmt.Fprintf(&b, "%s\n", paint("1", category))
		}
		word, code := Word(row.Cell(stage.None, stage.Attack), row)
		fmt.Fprintf(&b, "  %-*s  %s", width, row.Name, paint(code, fmt.Sprintf("%11s", word)))
		for _, t := range tiers {
			word, code := Word(row.Cell(t, stage.Attack), row)
			twin, tcode := Word(row.Cell(t, stage.Twin), row)
			fmt.Fprintf(&b, "  %s  %s", paint(code, fmt.Sprintf("%11s", word)), paint(tcode, fmt.Sprintf("%5s", twin)))
		}
		b.WriteByte('\n')
	}
	t := r.Totals
	attempted := ""
	if t.NotAttempted > 0 {
		attempted = fmt.Sprintf(", %d not attempted", t.NotAttempted)
	}
	fmt.Fprintf(&b, "\n%d scenarios, %d proven real, %d contained, %s, %d twins failed, %d without a result, %d not run%s, %.0f s\n",
		t.Scenarios, t.Proven, t.Contained, paint(map[bool]string{true: "31", false: "32"}[t.Broken > 0], fmt.Sprintf("%d BROKEN", t.Broken)), t.TwinFailed, t.Invalid, t.NotRun, attempted, r.Seconds)
	if t.Repeated > 0 {
		fmt.Fprintf(&b, "%d runs proved nothing and were repeated, alone\n", t.Repeated)
	}
	if t.Tries > 0 {
		fmt.Fprintf(&b, "%d variations were tried\n", t.Tries)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "  %s\n", Clean(p))
	}
	notRun(&b, r)
	for _, d := range Declined(r) {
		fmt.Fprintf(&b, "  not attempted: %s in %s (%s): %s\n", d.Row.Name, d.Cell.Tier, d.Cell.Kind, Clean(d.Why))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Word is the short form of a cell, with a terminal's colour.
func Word(c *campaign.Cell, row *campaign.Row) (word, code string) {
	switch {
	case c == nil:
		return "-", "2"
	case c.NotRun == campaign.NoTier:
		return "-", "2"
	case c.NotRun != "":
		return "not run", "2"
	case c.Done() == 0:
		return "cut short", "33"
	case c.Attempted() == 0 && c.Kind == stage.Twin:
		return "-", "2"
	case c.Attempted() == 0:
		return "not tried", "2"
	case c.Kind == stage.Twin && c.Succeeded == c.Attempted():
		return "works", "32"
	case c.Kind == stage.Twin && c.Failed == 0:
		return "invalid", "33"
	case c.Kind == stage.Twin && stage.IsYardstick(c.Tier):
		return "fails", "33"
	case c.Kind == stage.Twin:
		return "FAILS", "31"
	case c.Tier == stage.None && row.Proven():
		return fmt.Sprintf("%d/%d", c.Succeeded, c.Attempted()), "0"
	case c.Tier == stage.None:
		return "not proven", "33"
	case c.Succeeded > 0 && stage.IsYardstick(c.Tier):
		return fmt.Sprintf("%d/%d", c.Succeeded, c.Attempted()), "33"
	case c.Succeeded > 0:
		return fmt.Sprintf("%d/%d BROKEN", c.Succeeded, c.Attempted()), "31"
	case c.Invalid > 0:
		return fmt.Sprintf("%d invalid", c.Invalid), "33"
	case !row.Proven():
		return "counts not", "33"
	}
	return fmt.Sprintf("0/%d", c.Attempted()), "32"
}

// notRun lists why things were not run, most frequent first.
func notRun(b *strings.Builder, r *campaign.Report) {
	names := map[string][]string{}
	var order []string
	for _, row := range r.Rows {
		for _, c := range row.Cells {
			if c.NotRun == "" || c.NotRun == campaign.NoTier || c.Kind == stage.Twin {
				continue
			}
			key := c.Tier + ": " + c.NotRun
			if names[key] == nil {
				order = append(order, key)
			}
			names[key] = append(names[key], row.Name)
		}
	}
	for _, key := range order {
		fmt.Fprintf(b, "  not run in %s (%d): %s\n", key, len(names[key]), strings.Join(names[key], ", "))
	}
}

// Refusal is a cell in which a live model declined, at least once.
type Refusal struct {
	Row  *campaign.Row
	Cell *campaign.Cell
	Why  string // of the first one
}

// Declined lists what a live model did not attempt.
func Declined(r *campaign.Report) (out []Refusal) {
	for _, row := range r.Rows {
		for _, c := range row.Cells {
			if i := slices.IndexFunc(c.Outcomes, func(o stage.Outcome) bool { return o.Declined != "" }); i >= 0 && c.NotAttempted > 0 {
				out = append(out, Refusal{row, c, c.Outcomes[i].Declined})
			}
		}
	}
	return out
}

// Clean keeps what can be seen.
func Clean(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) || c == '\t' {
			return c
		}
		return -1
	}, s)
}
