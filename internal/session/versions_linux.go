package session

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/journal"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/staged"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

// versionBudget bounds what is kept of a workspace in mode rw, in bytes. In
// rw-no-delete only the disk bounds it: without a version nothing is changed.
const versionBudget = 1 << 30

// versionAge is how long the versions of an rw session stay.
const versionAge = 14 * 24 * time.Hour

// versions keep what a session changes in the host's folders.
type versions struct {
	folders []*versioned

	mu     sync.Mutex
	unkept int // changes in mode rw of which no version could be kept
	why    error
}

type versioned struct {
	path, dir string
	root      *os.File
	noDelete  bool
	// open makes the journal when it is needed first: most commands change nothing.
	open  func() (*journal.Journal, error)
	made  *journal.Journal
	spool sync.Once
}

// openVersions makes a journal for the workspace, and for each folder in mode
// rw-no-delete.
func (s *session) openVersions() error {
	dir, err := WorkspaceDir()
	if err != nil {
		return err
	}
	if err := s.mendBrokenOff(dir); err != nil {
		return err
	}
	if len(s.view.layout.Writable) > 0 {
		s.tendKept(dir)
	}
	for _, f := range s.view.layout.Writable {
		noDelete := f.Mode == vocabulary.RWNoDelete
		if !f.Workspace && !noDelete {
			continue
		}
		if err := s.openJournal(dir, f, noDelete); err != nil {
			return vocabulary.Exitf(vocabulary.ExitRefused, "%v\nnothing was started: versions of what the session changes are kept below %s: make room there, or set XDG_STATE_HOME to another folder", err, dir)
		}
	}
	return nil
}

func (s *session) openJournal(dir string, f workspace.Writable, noDelete bool) error {
	m := journal.Meta{Session: s.id, Workspace: f.Path, Mode: f.Mode, Started: s.started, Budget: versionBudget, Events: s.log.Path()}
	if !f.Workspace {
		m.Session = vocabulary.NewSessionID() // versions of another folder are found by another name
	}
	if noDelete {
		m.Budget = math.MaxInt64
	}
	root, err := tree.OpenRoot(f.Path)
	if err != nil {
		return err
	}
	v := &versioned{path: f.Path, dir: filepath.Join(dir, string(m.Session)), root: root, noDelete: noDelete}
	v.open = sync.OnceValues(func() (*journal.Journal, error) {
		j, err := journal.Create(v.dir, m)
		if err != nil {
			_ = staged.Drop(v.dir)
			return nil, err
		}
		j.Witness = func(what string, paths []string) error {
			return s.log.Record(workspaceEvent("controller", what, m.Workspace, paths, nil))
		}
		v.made = j
		return j, nil
	})
	s.versions.folders = append(s.versions.folders, v)
	if noDelete { // without it nothing could be changed
		_, err = v.open()
	} else {
		err = os.MkdirAll(dir, 0o700)
	}
	return err
}

func (v *versions) find(path string) (*versioned, string) {
	var best *versioned
	for _, f := range v.folders {
		if strings.HasPrefix(path, strings.TrimSuffix(f.path, "/")+"/") && (best == nil || len(f.path) > len(best.path)) {
			best = f
		}
	}
	if best == nil {
		return nil, ""
	}
	return best, path[len(strings.TrimSuffix(best.path, "/"))+1:]
}

// keep makes a version, see sandbox.Writes.
func (v *versions) keep(c sandbox.Change) (spool *sandbox.Spool, err error) {
	f, rel := v.find(c.Path)
	if f == nil {
		return nil, errors.New("not in a folder of which versions are kept")
	}
	j, err := f.open()
	if err == nil {
		f.spool.Do(func() {
			if file, limit, err := j.Spool(); err == nil { // without it each version waits for an answer
				spool = &sandbox.Spool{File: file, Limit: limit}
			}
		})
	}
	switch {
	case err != nil:
	case c.Tree:
		err = j.KeepTree(f.root, rel, c.Again)
	default:
		_, err = j.Keep(f.root, rel, c.Again)
	}
	if err == nil || f.noDelete {
		return spool, err
	}
	v.mu.Lock()
	v.unkept++
	if v.why == nil {
		v.why = err
	}
	v.mu.Unlock()
	if j != nil {
		_, _ = j.Note(f.root, rel)
	}
	return spool, nil
}

func (v *versions) made(path string) {
	if f, rel := v.find(path); f != nil {
		if j, err := f.open(); err == nil {
			_, _ = j.Absent(rel)
		}
	}
}

// close records what the session leaves, and says how to take it back. Nothing
// of the session runs any more.
func (s *session) closeVersions(ran bool) {
	v := &s.versions
	for _, f := range v.folders {
		j := f.made
		if j == nil {
			f.root.Close()
			continue
		}
		err := j.LeaveAll(f.root)
		changed := len(j.Versions())
		if f.noDelete {
			s.bringBack(j, f.root)
		}
		id := j.Meta().Session
		j.Close()
		f.root.Close()
		switch {
		case changed == 0:
			_ = staged.Drop(f.dir)
		case err != nil:
			s.opts.Notice("what the session left in %s could not be recorded; an undo will take it for somebody else's: %v", tree.Show(f.path), err)
		case ran:
			s.opts.Notice("to take back what the session changed in %s: bulkhead workspace undo %s", tree.Show(f.path), id)
		}
	}
	if v.unkept > 0 {
		s.opts.Notice("%s changed without a version to go back to: %v", plural(v.unkept, "file was", "files were"), v.why)
	}
}
