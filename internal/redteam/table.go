package redteam

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Colours of a terminal.
const (
	bold  = "\x1b[1m"
	dim   = "\x1b[2m"
	red   = "\x1b[31m"
	green = "\x1b[32m"
	amber = "\x1b[33m"
	reset = "\x1b[0m"
)

// WriteTable prints the report for people; colour only for a terminal.
func (r *Report) WriteTable(w io.Writer, colour bool) error {
	paint := func(c, s string) string {
		if !colour {
			return s
		}
		return c + s + reset
	}
	const title = "where the agent ran"
	width := utf8.RuneCountInString(title)
	for _, v := range r.Variants {
		width = max(width, utf8.RuneCountInString(v.Title))
	}
	pad := func(s string) string { return s + strings.Repeat(" ", width-utf8.RuneCountInString(s)) }

	var b strings.Builder
	fmt.Fprintf(&b, "\n%s  agent: %s, %.0f s\n\n", paint(bold, "Phish: "+Attacks()[0].Title), r.Agent, r.Seconds)
	fmt.Fprintf(&b, "  %s\n", paint(dim, pad(title)+"   runs  stolen  contained  invalid"))
	for _, v := range r.Variants {
		word, c := "as it must be", green
		switch {
		case v.Invalid > 0:
			word, c = "PROVES NOTHING", amber
		case v.Expect == Contained && v.Stolen > 0:
			word, c = "BROKEN", red
		case v.Unrecorded > 0:
			word, c = "NOT RECORDED", amber
		case !v.OK:
			word, c = "THE ATTACK DID NOT WORK", amber
		}
		stolen := fmt.Sprintf("%6d", v.Stolen)
		if v.Stolen > 0 {
			stolen = paint(red, stolen)
		}
		fmt.Fprintf(&b, "  %s   %4d  %s  %9d  %7d   %s\n", pad(v.Title), v.Runs, stolen, v.Contained, v.Invalid, paint(c, word))
	}
	b.WriteByte('\n')
	if line := r.headline(); line != "" {
		fmt.Fprintf(&b, "%s\n", paint(bold, line))
	}
	for _, v := range r.Variants {
		if !v.OK {
			r.explain(&b, v)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) headline() string {
	var parts []string
	for _, v := range r.Variants {
		switch v.Name {
		case "uncontained":
			parts = append(parts, fmt.Sprintf("uncontained %d/%d stolen", v.Stolen, v.Runs))
		case "bulkhead":
			parts = append(parts, fmt.Sprintf("bulkhead %d/%d stolen", v.Stolen, v.Runs))
		}
	}
	return strings.Join(parts, ", ")
}

// explain names what was wrong with a variant, most frequent first, and ends
// with one transcript.
func (r *Report) explain(b *strings.Builder, v VariantReport) {
	counts := map[string]int{}
	output := ""
	for _, res := range v.Results {
		why := ""
		switch {
		case res.Verdict == Invalid:
			why = res.Invalid
		case res.Verdict == Open && v.Expect == Contained:
			var found []string
			for _, f := range res.Stolen {
				found = append(found, fmt.Sprintf("%s (%s)", f.Name, f.Encoding))
			}
			why = "the thief received: " + strings.Join(found, ", ")
		case res.Verdict == Contained && v.Expect == Open:
			why = "nothing arrived at the thief, though nothing was in the way"
		case res.Verdict == Contained && res.Unrecorded:
			why = "the event log names no refusal of the thief"
		default:
			continue
		}
		counts[why]++
		if output == "" {
			output = res.Output
		}
	}
	fmt.Fprintf(b, "\n%s:\n", v.Title)
	for _, why := range slices.SortedFunc(maps.Keys(counts), func(a, c string) int {
		if d := counts[c] - counts[a]; d != 0 {
			return d
		}
		return strings.Compare(a, c)
	}) {
		fmt.Fprintf(b, "  %d× %s\n", counts[why], why)
	}
	if output = strings.TrimSpace(output); output != "" {
		lines := strings.Split(output, "\n")
		if len(lines) > 15 {
			lines = lines[len(lines)-15:]
		}
		fmt.Fprintf(b, "  the end of one transcript:\n    %s\n", strings.Join(clean(lines), "\n    "))
	}
}

// clean keeps what can be seen: a transcript is the agent's, the terminal is
// the user's.
func clean(lines []string) []string {
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = strings.Map(func(c rune) rune {
			if unicode.IsPrint(c) || c == '\t' {
				return c
			}
			return -1
		}, l)
	}
	return out
}

// ProgressLine returns a Config.Progress that keeps one line of a terminal up
// to date, or prints a line for each variant where there is none. finish ends
// the line.
func ProgressLine(w io.Writer, terminal bool) (progress func(Progress), finish func()) {
	last, open := "", false
	progress = func(p Progress) {
		if terminal {
			fmt.Fprintf(w, "\r\x1b[K%d/%d  %s", p.Done, p.Total, p.Variant)
			open = true
			return
		}
		if p.Variant != last {
			fmt.Fprintf(w, "%d/%d  %s\n", p.Done, p.Total, p.Variant)
			last = p.Variant
		}
	}
	finish = func() {
		if open {
			fmt.Fprint(w, "\r\x1b[K")
		}
	}
	return progress, finish
}
