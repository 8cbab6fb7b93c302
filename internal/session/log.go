package session

import (
	"fmt"
	"os"
	"path/filepath"

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

func openLog(path string, id vocabulary.SessionID) (*event.Log, error) {
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
	log, err := event.Create(path, id, false)
	if err != nil {
		return nil, noLog(err)
	}
	return log, nil
}

func noLog(err error) error {
	return vocabulary.Exitf(vocabulary.ExitRefused, "%v\nnothing was started: a session that cannot be recorded does not run\nname a writable file with --events FILE", err)
}

// describe is the one line that says which log a message refers to.
func describe(log *event.Log) string { return fmt.Sprintf("events: %s", log.Path()) }
