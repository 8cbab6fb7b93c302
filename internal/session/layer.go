package session

import (
	"path/filepath"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// WorkspaceDir is where sessions keep layers and versions of workspaces: one folder
// for each, below the XDG state directory.
func WorkspaceDir() (string, error) {
	events, err := EventDir()
	return filepath.Join(filepath.Dir(events), "workspaces"), err
}

// layerPlace is where the layer of a staged workspace lies; "" without one.
func (v *view) layerPlace() (string, error) {
	if w := v.opts.Policy.Workspace; w.Mode != vocabulary.StagedWrites {
		if v.opts.Resume != "" {
			return "", vocabulary.Exitf(vocabulary.ExitRefused, "the layer of %s can't be gone on with: the workspace is %s (%s)\nnothing was started\nsee what the layer holds: bulkhead workspace diff %s", v.opts.Resume, w.Mode, w.Pos, v.opts.Resume)
		}
		return "", nil
	}
	dir, err := WorkspaceDir()
	if err != nil {
		return "", err
	}
	// The kernel is to see the same place as the plan, which knows no links.
	if real, err := filepath.EvalSymlinks(filepath.Dir(filepath.Dir(dir))); err == nil {
		dir = filepath.Join(real, "bulkhead", "workspaces")
	}
	id := v.id
	if v.opts.Resume != "" {
		id = v.opts.Resume
	}
	return filepath.Join(dir, string(id)), nil
}
