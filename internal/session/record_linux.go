package session

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/event"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/journal"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

// Record goes on with the log of a session that has ended: what is done later to
// its workspace stands there too.
type Record struct {
	Meta  journal.Meta
	Actor string
	// Attrs are further facts of what is done.
	Attrs map[string]string

	log *event.Log
}

// Write records an act; what is a word or two, as the journal calls it.
func (r *Record) Write(what string, paths []string) error {
	if r.log == nil {
		log, err := continueLog(r.Meta)
		if err != nil {
			return vocabulary.Exitf(vocabulary.ExitRefused, "%w\nwhat can't be recorded is not done; free space, or move that file away", err)
		}
		r.log = log
	}
	return r.log.Record(workspaceEvent(r.Actor, what, r.Meta.Workspace, paths, r.Attrs))
}

// Close closes the log.
func (r *Record) Close() {
	if r.log != nil {
		r.log.Close()
	}
}

// witness has a session of earlier record what is now done in its name.
func witness(j *journal.Journal) (done func()) {
	r := &Record{Meta: j.Meta(), Actor: "controller"}
	j.Witness = r.Write
	return func() {
		j.Witness = nil
		r.Close()
	}
}

// continueLog opens the file that the session's events are in, or, where that is
// gone or is something else now, the usual one.
func continueLog(m journal.Meta) (*event.Log, error) {
	if _, err := os.Lstat(m.Events); err == nil {
		if log, err := event.Continue(m.Events, m.Session); err == nil {
			return log, nil
		}
	}
	dir, err := EventDir()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	return event.Continue(filepath.Join(dir, string(m.Session)+".jsonl"), m.Session)
}

// maxNamed bounds the paths that one event names; the versions name all of them.
const maxNamed = 2000

func workspaceEvent(actor, what, workspace string, paths []string, attrs map[string]string) v1.Event {
	all := map[string]string{}
	maps.Copy(all, attrs)
	if len(paths) > 0 {
		all["changes"] = fmt.Sprint(len(paths))
		var b strings.Builder
		for i, p := range paths {
			if p = tree.Show(p); b.Len()+len(p) > maxNamed {
				fmt.Fprintf(&b, " and %d more", len(paths)-i)
				break
			}
			if i > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(p)
		}
		all["paths"] = b.String()
	}
	return v1.Event{
		Actor: actor, Action: vocabulary.Action("workspace." + strings.ReplaceAll(what, " ", "-")), Resource: vocabulary.Resource(workspace),
		Verdict: vocabulary.Allow, Reason: vocabulary.Reason{Code: "workspace"}, Attrs: all,
	}
}
