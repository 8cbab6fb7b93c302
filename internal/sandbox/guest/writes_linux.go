package guest

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/frame"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/guard"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/guard/rules"
	"github.com/bulkhead-dev/bulkhead/internal/seccomp"
)

// guardSetup is what the supervisor gets of the rule for writes.
func guardSetup(w *sandbox.Writes) *guard.Setup {
	if w == nil {
		return nil
	}
	s := &guard.Setup{Installed: w.Installed}
	for _, f := range w.Folders {
		s.Folders = append(s.Folders, guard.Folder{Path: guard.Bytes(f.Path), NoDelete: f.NoDelete, Versions: f.Versions})
	}
	for _, p := range w.Protected {
		s.Protected = append(s.Protected, rules.Protected{Path: p.Path, Reason: p.Reason})
	}
	for _, f := range w.Fixed {
		s.Fixed = append(s.Fixed, guard.Bytes(f))
	}
	return s
}

// maxKeeps bounds the copies that the supervisor may ask for at once: its
// threads wait for them.
const maxKeeps = 64

// asked is the controller's end of what a guard says.
type asked struct {
	conn    *frame.Conn
	writes  *sandbox.Writes
	running atomic.Int32 // copies under way
}

// take acts on a report of a guard, which its caller has judged.
func (a *asked) take(r report) error {
	switch r.Kind {
	case kindDenied:
		a.writes.Refused(clean(r.Op), string(r.Path), clean(r.Error))
	case kindKeep:
		return a.keep(r)
	case kindMade:
		if a.writes.Made != nil {
			a.writes.Made(string(r.Path))
		}
	}
	return nil
}

// keep makes a version beside the conversation, and answers.
func (a *asked) keep(r report) error {
	if a.writes.Keep == nil || a.running.Add(1) > maxKeeps {
		return errors.New("the sandbox broke the protocol: copies that nobody makes")
	}
	go func() {
		k := keptRequest{ID: r.ID}
		var files []*os.File
		spool, err := a.writes.Keep(sandbox.Change{Path: string(r.Path), Again: r.Again, Tree: r.Tree})
		if err != nil {
			k.Error = clean(err.Error())
		}
		if spool != nil {
			defer spool.File.Close()
			k.Spool, files = spool.Limit, []*os.File{spool.File}
		}
		a.running.Add(-1)
		if err := a.conn.Send(time.Now().Add(sendTimeout), request{Kept: &k}, files...); err != nil {
			a.conn.Close()
		}
	}()
	return nil
}

// kept is the answer to a Keep.
type kept struct {
	spool *guard.Spool
	err   string
}

// host is the guard's way to the controller.
type host struct {
	tell     func(report, ...*os.File)
	openedAt func(path string)

	mu      sync.Mutex
	next    uint32
	waiting map[uint32]chan kept
}

func newHost(tell func(report, ...*os.File), opened func(string)) *host {
	return &host{tell: tell, openedAt: opened, waiting: map[uint32]chan kept{}}
}

// Refused implements guard.Host. It is told before the caller hears of it, and so
// before the session can end.
func (h *host) Refused(r guard.Refusal) {
	h.tell(report{Kind: kindDenied, Path: guard.Bytes(r.Path), Op: r.Op, Error: r.Reason})
}

// Keep implements guard.Host.
func (h *host) Keep(path string, again, tree bool) (*guard.Spool, error) {
	answer := make(chan kept, 1)
	h.mu.Lock()
	h.next++
	id := h.next
	h.waiting[id] = answer
	h.mu.Unlock()
	h.tell(report{Kind: kindKeep, ID: id, Path: guard.Bytes(path), Again: again, Tree: tree})
	k := <-answer
	if k.err != "" {
		return k.spool, errors.New(k.err)
	}
	return k.spool, nil
}

// Opened implements guard.Host.
func (h *host) Opened(path string) { h.openedAt(path) }

// Made implements guard.Host.
func (h *host) Made(path string) { h.tell(report{Kind: kindMade, Path: guard.Bytes(path)}) }

func (h *host) kept(k keptRequest, files []*os.File) {
	h.mu.Lock()
	answer := h.waiting[k.ID]
	delete(h.waiting, k.ID)
	h.mu.Unlock()
	a := kept{err: k.Error}
	if len(files) > 0 {
		a.spool = &guard.Spool{File: files[0], Limit: k.Spool}
	}
	if answer != nil {
		answer <- a
	}
}

// guardWrites makes every command that this thread starts ask before it writes.
func guardWrites(s *guard.Setup) (listener int, err error) {
	if s == nil {
		return -1, nil
	}
	return seccomp.Listen()
}
