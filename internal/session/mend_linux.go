package session

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/journal"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/staged"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

// mendBrokenOff takes back an apply or undo in the workspace that a crash broke
// off, so that no session begins in the middle of one.
func (s *session) mendBrokenOff(dir string) error {
	root, err := tree.OpenRoot(s.view.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	list, err := tree.List(root)
	if err != nil {
		return err
	}
	for _, e := range list {
		id, ok := journal.SessionOf(e.Name)
		if !ok {
			continue
		}
		at := filepath.Join(dir, string(id))
		if m, err := journal.ReadMeta(at); err != nil || m.Workspace != s.view.dir {
			continue // a folder of that name which nobody made for a commit
		}
		j, err := journal.Open(at)
		if errors.Is(err, journal.ErrRunning) {
			continue // it is being made
		}
		if err == nil {
			what, ended := j.Last()
			var report journal.Report
			done := witness(j)
			report, err = j.Recover(root)
			done()
			j.Close()
			if err == nil && !ended {
				s.opts.Notice("%s of %s broke off earlier and was taken back (%s)", what, id, plural(len(report.Changed), "path", "paths"))
			}
		}
		if err != nil {
			return vocabulary.Exitf(vocabulary.ExitRefused, "what broke off in %s could not be taken back: %w\nnothing was started\nnext: bulkhead workspace undo %s", tree.Show(s.view.dir), err, id)
		}
	}
	return nil
}

// bringBack has what a session removed in rw-no-delete stand there again.
func (s *session) bringBack(j *journal.Journal, root *os.File) {
	report, err := j.BringBack(root, newGone(root).stays)
	folder, id := tree.Show(j.Meta().Workspace), j.Meta().Session
	if n := len(report.Changed); n > 0 && err == nil {
		s.opts.Notice("%s removed in %s (rw-no-delete) and brought back: %s", plural(n, "file was", "files were"), folder, firstOf(report.Changed))
	}
	for _, c := range report.Conflicts {
		s.opts.Notice("%s was removed in %s and is not there again: it %s", tree.Show(c.Path), folder, c.Why)
	}
	if err != nil {
		s.opts.Notice("what was removed in %s (rw-no-delete) is kept but not there again: %v\nnext: bulkhead workspace undo %s", folder, err, id)
	}
}

func firstOf(paths []string) string {
	const most = 5
	var shown []string
	for _, p := range paths[:min(len(paths), most)] {
		shown = append(shown, tree.Show(p))
	}
	if len(paths) > most {
		shown = append(shown, "…")
	}
	return strings.Join(shown, ", ")
}

// tendKept removes what rw sessions of long ago kept, and does what sessions in
// rw-no-delete that were killed in these folders could not do. Of the others it
// reads nothing but whose they are.
func (s *session) tendKept(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		at := filepath.Join(dir, e.Name())
		m, err := journal.ReadMeta(at)
		switch {
		case err != nil: // workspace list says it
		case m.Mode == vocabulary.ReadWrite && time.Since(m.Started) > versionAge:
			forget(at)
		case m.Mode == vocabulary.RWNoDelete && slices.ContainsFunc(s.view.layout.Writable, func(f workspace.Writable) bool { return f.Path == m.Workspace }):
			s.mendCutOff(at)
		}
	}
}

func forget(at string) {
	if j, err := journal.Read(at); err == nil {
		running, err := j.Running()
		j.Close()
		if err == nil && !running {
			_ = staged.Drop(at)
		}
	}
}

func (s *session) mendCutOff(at string) {
	j, err := journal.Open(at)
	if err != nil {
		return // it runs; or it is damaged, which workspace list says
	}
	defer j.Close()
	if !j.CutOff() {
		return
	}
	defer witness(j)()
	if root, err := tree.OpenRoot(j.Meta().Workspace); err == nil {
		s.bringBack(j, root)
		root.Close()
	}
}
