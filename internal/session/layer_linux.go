package session

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/journal"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/staged"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

// layer is what a staged workspace's changes go to.
type layer struct{ open *staged.Layer }

// name is the session that the layer is called after; "" without one.
func (l layer) name() string {
	if l.open == nil {
		return ""
	}
	return string(l.open.Journal.Meta().Session)
}

// openLayer makes or finds the layer of a staged workspace.
func (s *session) openLayer() (err error) {
	v := s.view
	if v.layerDir == "" {
		return nil
	}
	if s.opts.Resume == "" {
		s.layer.open, err = staged.Create(v.layerDir, journal.Meta{
			Session: v.id, Workspace: v.dir, Mode: vocabulary.StagedWrites, Started: s.started, Budget: math.MaxInt64, Events: s.log.Path(),
		})
		if err != nil {
			_ = staged.Drop(v.layerDir)
			return vocabulary.Exitf(vocabulary.ExitRefused, "%v\nnothing was started: a staged workspace needs room below %s: make some, or set XDG_STATE_HOME to another folder", err, filepath.Dir(v.layerDir))
		}
		return nil
	}
	s.layer.open, err = staged.Open(v.layerDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return vocabulary.Exitf(vocabulary.ExitRefused, "%s has no layer to go on with\nnothing was started\nsee: bulkhead workspace list", s.opts.Resume)
	case errors.Is(err, journal.ErrRunning):
		return vocabulary.Exitf(vocabulary.ExitRefused, "%s: %v\nnothing was started\nrun another command in it: bulkhead exec %s -- CMD", s.opts.Resume, err, s.opts.Resume)
	case err != nil:
		return vocabulary.Exitf(vocabulary.ExitRefused, "%v\nnothing was started", err)
	}
	if of := s.layer.open.Journal.Meta().Workspace; of != v.dir {
		return vocabulary.Exitf(vocabulary.ExitRefused, "the layer of %s is one of %s, not of %s\nnothing was started", s.opts.Resume, tree.Show(of), tree.Show(v.dir))
	}
	root, err := tree.OpenRoot(v.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	done := witness(s.layer.open.Journal)
	_, err = s.layer.open.Journal.Recover(root)
	if done(); err != nil {
		return vocabulary.Exitf(vocabulary.ExitRefused, "an apply that broke off could not be taken back: %w\nnothing was started", err)
	}
	return s.withoutGone()
}

// withoutGone leaves out mounts over what is gone in the layer: nothing is there to
// be covered, and a mount point would be made.
func (s *session) withoutGone() (err error) {
	v := s.view
	v.layout.Mounts = slices.DeleteFunc(v.layout.Mounts, func(m vocabulary.Mount) bool {
		rel, inside := strings.CutPrefix(m.Target, v.dir+"/")
		if !inside || err != nil {
			return false
		}
		var missing bool
		missing, err = s.layer.open.Missing(rel)
		return missing
	})
	return err
}

// closeLayer says what to do with the layer, or removes one without any change.
func (s *session) closeLayer(ran bool) {
	l := s.layer.open
	if l == nil {
		return
	}
	defer l.Close()
	root, err := tree.OpenRoot(s.view.dir)
	n := -1
	if err == nil {
		n, err = l.Count(root)
		root.Close()
	}
	id := s.layer.name()
	switch {
	case err != nil:
		s.opts.Notice("what the session changed is staged as %s, and can't be counted: %v", id, err)
	case n == 0 && s.opts.Resume == "":
		_ = staged.Drop(s.view.layerDir)
		if ran {
			s.opts.Notice("the session changed nothing in the workspace")
		}
	case n == 0:
		s.opts.Notice("no change is staged in %s: bulkhead workspace drop %s", id, id)
	case ran:
		what := "1 change is"
		if n > 1 {
			what = fmt.Sprint(n, " changes are")
		}
		s.opts.Notice("%s staged, and not in the workspace yet: bulkhead workspace diff %s (then apply, or drop)", what, id)
	}
}
