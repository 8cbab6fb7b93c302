package session

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/event"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// EventDir is where sessions keep their event logs unless --events names a
// file: below the XDG state directory.
func EventDir() (string, error) {
	dir := os.Getenv("XDG_STATE_HOME")
	if dir == "" || !filepath.IsAbs(dir) {
		who, err := whoami()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(who.home, ".local", "state")
	}
	return filepath.Join(dir, "bulkhead", "events"), nil
}

// openLog makes the event log, but not where the sandbox could write: whoever
// can truncate or replace the record has none.
func openLog(path string, id vocabulary.SessionID, mounts []vocabulary.Mount) (*event.Log, error) {
	if path == "" {
		dir, err := EventDir()
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, noLog(err)
		}
		path = filepath.Join(dir, string(id)+".jsonl")
	} else if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	if real, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil && writableInside(filepath.Join(real, filepath.Base(path)), mounts) {
		return nil, vocabulary.Exitf(vocabulary.ExitRefused, "the event log %s lies in a folder that the sandbox can write, which could change or remove it\nnothing was started\nname a file elsewhere with --events FILE", path)
	}
	log, err := event.Create(path, id, false)
	if err != nil {
		return nil, noLog(err)
	}
	return log, nil
}

// writableInside reports whether a file of the host, by its real path, can be
// written inside: it lies in a writable mount that no later one covers there.
func writableInside(real string, mounts []vocabulary.Mount) bool {
	within := func(p, dir string) bool { return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/") }
	for i, m := range mounts {
		if m.Kind != vocabulary.BindRW || !within(real, m.Source) {
			continue
		}
		at := filepath.Join(m.Target, strings.TrimPrefix(real, m.Source))
		if !slices.ContainsFunc(mounts[i+1:], func(n vocabulary.Mount) bool {
			return n.Kind != vocabulary.BindRW && n.Kind != vocabulary.Symlink && within(at, n.Target)
		}) {
			return true
		}
	}
	return false
}

func noLog(err error) error {
	return vocabulary.Exitf(vocabulary.ExitRefused, "%v\nnothing was started: a session that cannot be recorded does not run\nname a writable file with --events FILE", err)
}
