package staged

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/journal"
)

// The states of what is kept of a session.
const (
	Running     = "running"
	Ended       = "ended"
	Applied     = "applied"
	Interrupted = "interrupted" // a commit broke off; the next command takes it back
)

// Kept is what is kept of one session's workspace.
type Kept struct {
	journal.Meta
	Dir   string
	Layer bool
	State string
	// Stored is how many bytes of versions are kept.
	Stored int64
	// Problem says why it can't be used.
	Problem error
}

// List returns what is kept in dir, the latest session first. Only Look finds out
// more than whose it is.
func List(dir string) ([]Kept, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []Kept
	for _, e := range entries {
		id, err := vocabulary.ParseSessionID(e.Name())
		if err != nil {
			continue
		}
		k := Kept{Dir: filepath.Join(dir, e.Name())}
		k.Session = id
		if k.Meta, k.Problem = journal.ReadMeta(k.Dir); k.Problem == nil && k.Session != id {
			k.Problem = fmt.Errorf("it is about %s", k.Session)
		}
		k.Session = id
		k.Layer = Holds(k.Dir)
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b Kept) int { return cmp.Or(b.Started.Compare(a.Started), cmp.Compare(a.Session, b.Session)) })
	return out, nil
}

// Look sets State, Stored and, if something is wrong with it, Problem.
func (k *Kept) Look() {
	if k.State = Ended; k.Problem != nil {
		return
	}
	j, err := journal.Read(k.Dir)
	if err != nil {
		k.Problem = err
		return
	}
	defer j.Close()
	k.Stored = j.Stored()
	what, ended := j.Last()
	running, err := j.Running()
	switch {
	case err != nil:
		k.Problem = err
	case running:
		k.State = Running
	case !ended:
		k.State = Interrupted
	case what == "apply":
		k.State = Applied
	}
}
