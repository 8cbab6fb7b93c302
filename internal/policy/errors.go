package policy

import (
	"cmp"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Error is one mistake in one place. Hint is what to write instead, or empty.
type Error struct {
	Pos  vocabulary.Position `json:"position"`
	Msg  string              `json:"message"`
	Hint string              `json:"hint,omitempty"`
}

func (e Error) Error() string {
	s := e.Pos.String() + ": " + e.Msg
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// ErrorList is every mistake of a file, in the order of the file.
type ErrorList []Error

// Error has one line for each mistake.
func (l ErrorList) Error() string {
	lines := make([]string, len(l))
	for i, e := range l {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Err sorts the list, drops repetitions, and returns it as an error: nil when
// it is empty.
func (l ErrorList) Err() error {
	if len(l) == 0 {
		return nil
	}
	slices.SortStableFunc(l, func(a, b Error) int {
		return cmp.Or(cmp.Compare(a.Pos.File, b.Pos.File), cmp.Compare(a.Pos.Line, b.Pos.Line),
			cmp.Compare(a.Pos.Column, b.Pos.Column))
	})
	return slices.Compact(l)
}

// Suggest names the one of known that name probably means, as a hint; without
// a near one it lists all of them.
func Suggest(name string, known []string) string {
	if best := nearest(name, known); best != "" {
		return "did you mean " + best + "?"
	}
	if len(known) == 0 {
		return ""
	}
	return "one of: " + strings.Join(known, ", ")
}

// nearest is the word that name is a misspelling of, or "": at most two letters
// differ, one in short words.
func nearest(name string, known []string) string {
	best, limit := "", 2
	if len(name) < 5 {
		limit = 1
	}
	for _, k := range known {
		if strings.EqualFold(k, name) {
			return k
		}
		if len(name) < 64 {
			if d := distance(name, k); d <= limit {
				best, limit = k, d-1
			}
		}
	}
	return best
}

// distance is the number of insertions, deletions and replacements between two
// short words (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			next := min(row[j]+1, row[j+1]+1)
			if a[i] == b[j] {
				next = min(next, diagonal)
			} else {
				next = min(next, diagonal+1)
			}
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
