package session

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

// ActionWrite is a write in a folder of the host that was refused.
const ActionWrite vocabulary.Action = "workspace.write"

// maxRefusals bounds the lines about refused writes; the last one says how many
// more there were.
const maxRefusals = 1000

// refusals records refused writes, each place once, without making anybody wait.
type refusals struct {
	record func(v1.Event) error

	mu   sync.Mutex
	seen map[string]bool
	more int
	// environment: one was of a Python environment; example: the first other one
	environment bool
	example     [2]string // path, reason
	queue       chan v1.Event
	closed      chan struct{}
}

func newRefusals(record func(v1.Event) error) *refusals {
	r := &refusals{record: record, seen: map[string]bool{}, queue: make(chan v1.Event, maxRefusals+1), closed: make(chan struct{})}
	go func() {
		defer close(r.closed)
		for e := range r.queue {
			_ = r.record(e) // the act did not happen: nothing is lost but the line
		}
	}()
	return r
}

// Remedies of refused writes.
const (
	remedyWrite       = "make this change outside, or in a session with --workspace DIR:staged, and apply it by name after a look"
	remedyEnvironment = "make it outside, or in ~ inside, or let the policy say workspace: {writable: [environments]}"
)

func refusedWrite(path, reason string, attrs map[string]string) v1.Event {
	code, remedy := "protected", remedyWrite
	switch {
	case strings.Contains(reason, string(vocabulary.RWNoDelete)):
		code = string(vocabulary.RWNoDelete)
	case ofEnvironment(reason):
		remedy = remedyEnvironment
	}
	return v1.Event{
		Actor: "sandbox", Action: ActionWrite, Resource: vocabulary.Resource(path), Verdict: vocabulary.Deny,
		Reason: vocabulary.Reason{Code: code, Message: reason, Rule: vocabulary.Position{File: "protected.yaml"},
			Remedy: remedy},
		Attrs: attrs,
	}
}

// ofEnvironment reports whether a reason is that of a file of a Python environment.
func ofEnvironment(reason string) bool {
	l, err := builtIn()
	return err == nil && slices.ContainsFunc(l.environments, func(p workspace.Protected) bool { return strings.HasSuffix(reason, p.Reason) })
}

// add takes one refusal.
func (r *refusals) add(op, path, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := path + "\x00" + reason
	if r.queue == nil || r.seen[key] {
		return
	}
	if len(r.seen) >= maxRefusals {
		r.more++
		return
	}
	r.seen[key] = true
	if ofEnvironment(reason) {
		r.environment = true
	} else if r.example[0] == "" {
		r.example = [2]string{path, reason}
	}
	r.queue <- refusedWrite(path, reason, map[string]string{"call": op})
}

// close records what was left, and returns when all is written.
func (r *refusals) close() (count int) {
	r.mu.Lock()
	count = len(r.seen) + r.more
	if r.queue != nil {
		close(r.queue)
		r.queue = nil
	}
	r.mu.Unlock()
	<-r.closed
	return count
}

// say ends the record and tells the person what was refused, and the ways out.
func (r *refusals) say(notice func(string, ...any), workspace string, id vocabulary.SessionID) {
	n := r.close()
	if n == 0 {
		return
	}
	such := ""
	if r.example[0] != "" {
		such = fmt.Sprintf(", such as %s (%s)", tree.Show(strings.TrimPrefix(r.example[0], workspace+"/")), r.example[1])
	}
	notice("%s refused in the workspace%s; which: bulkhead event tail --denied %s", plural(n, "write was", "writes were"), such, id)
	if such != "" {
		notice("to make such changes: %s", strings.TrimPrefix(remedyWrite, "make this change "))
	}
	if r.environment {
		notice("no Python environment is made or changed there: %s", remedyEnvironment)
	}
}

// writes is the rule for the host's folders that the sandbox may write to.
func (s *session) writes() *sandbox.Writes {
	l := s.view.layout
	if len(l.Writable) == 0 {
		return nil
	}
	w := &sandbox.Writes{Installed: l.Installed, Fixed: l.Fixed}
	for _, f := range l.Writable {
		noDelete := f.Mode == vocabulary.RWNoDelete
		w.Folders = append(w.Folders, sandbox.WritableFolder{Path: f.Path, NoDelete: noDelete, Versions: noDelete || f.Workspace})
	}
	for _, p := range l.Protected {
		w.Protected = append(w.Protected, sandbox.ProtectedPath{Path: p.Path, Reason: p.Reason})
	}
	s.refusals = newRefusals(s.log.Record)
	w.Refused, w.Keep, w.Made = s.refusals.add, s.versions.keep, s.versions.made
	return w
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprint(n, " ", many)
}
