package staged

import (
	"fmt"
	"os"
	"path"
	"slices"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/journal"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

// Selection says what of a layer is to come over.
type Selection struct {
	// Paths, with what lies in them; none: all that need not be named. A protected
	// path, or what lies in one, is named by itself.
	Paths []string
	// Force overwrites what was changed in the real folder since; a version is kept.
	Force bool
}

func (s *Selection) covers(p string) bool {
	return len(s.Paths) == 0 || slices.ContainsFunc(s.Paths, func(at string) bool { return below(p, at) })
}

// Select divides changes into those to make and those that are held. A path that
// selects nothing is an error, and so are conflicts without Force.
func Select(changes []Change, p *Protected, s Selection) (chosen, held []Change, err error) {
	in := make([]bool, len(changes))
	index := make(map[string]int, len(changes))
	used := make([]bool, len(s.Paths))
	for i := range changes {
		c := &changes[i]
		index[c.Path] = i
		named := c.Protected == ""
		selected := len(s.Paths) == 0
		for k, at := range s.Paths {
			if below(c.Path, at) {
				selected, used[k] = true, true
				named = named || p.Reason(at) != ""
			}
		}
		switch {
		case !selected:
		case !named || c.Never != "":
			held = append(held, *c)
		default:
			in[i] = true
		}
	}
	for k, ok := range used {
		if !ok {
			return nil, nil, vocabulary.Exitf(vocabulary.ExitRefused, "the session changed nothing at %s\nnothing was applied\nsee what it changed: bulkhead workspace diff", tree.Show(s.Paths[k]))
		}
	}
	for i := range changes { // a folder does not go while something in it has to stay
		if c := &changes[i]; c.What == Deleted && !in[i] {
			for dir := path.Dir(c.Path); dir != "."; dir = path.Dir(dir) {
				if k, ok := index[dir]; ok && in[k] && changes[k].goes() {
					in[k] = false
					held = append(held, changes[k])
				}
			}
		}
	}
	for i := range changes { // nor what is in it, while what took its place can't come
		for dir := path.Dir(changes[i].Path); in[i] && dir != "."; dir = path.Dir(dir) {
			k, ok := index[dir]
			if ok && !in[k] && changes[k].goes() && changes[k].Is.Kind != journal.Absent && s.covers(dir) {
				in[i] = false
				held = append(held, changes[i])
			}
		}
	}
	for i := range changes { // the folders on the way come along
		for dir := path.Dir(changes[i].Path); in[i] && dir != "."; dir = path.Dir(dir) {
			k, ok := index[dir]
			if !ok || in[k] || changes[k].Is.Kind != journal.Dir || changes[k].What == Mode {
				continue
			}
			if changes[k].Never != "" {
				return nil, nil, vocabulary.Exitf(vocabulary.ExitRefused, "%s can't be applied: %s %s\nnothing was applied", tree.Show(changes[i].Path), tree.Show(dir), changes[k].Never)
			}
			in[k] = true
		}
	}
	for i, c := range changes {
		if in[i] {
			chosen = append(chosen, c)
		}
	}
	return chosen, held, nil
}

// Conflicts are the changes that somebody made in the real folder too.
func Conflicts(list []Change) []Change {
	return slices.DeleteFunc(slices.Clone(list), func(c Change) bool { return c.Conflict == "" })
}

// Apply makes the chosen changes in the real folder, all or none.
func (l *Layer) Apply(root *os.File, chosen []Change) error {
	var list []journal.Change
	gone := map[string]int{} // folders that go with all that is in them
	for i := range chosen {
		c := &chosen[i]
		if at, ok := inFolder(gone, c.Path); ok && c.What == Deleted {
			list[at].Foreign = list[at].Foreign || c.Conflict != ""
			continue
		}
		if c.goes() {
			gone[c.Path] = len(list)
		}
		was := c.Was
		change := journal.Change{Path: c.Path, Kind: c.Is.Kind, Mode: c.Is.Mode & 0o777, Target: c.Target, Was: &was, Foreign: c.Conflict != ""}
		if c.Is.Kind == journal.File {
			change.Mtime = time.Unix(0, c.Is.Mtime)
			change.Content = func() (*os.File, error) { return l.Open(c.Path) }
		}
		list = append(list, change)
	}
	report, err := l.Journal.Commit(root, "apply", list)
	if err == nil && len(report.Conflicts) > 0 {
		err = fmt.Errorf("%d paths were changed meanwhile", len(report.Conflicts))
	}
	return err
}

func inFolder(folders map[string]int, p string) (int, bool) {
	for dir := path.Dir(p); len(folders) > 0 && dir != "."; dir = path.Dir(dir) {
		if at, ok := folders[dir]; ok {
			return at, true
		}
	}
	return 0, false
}
