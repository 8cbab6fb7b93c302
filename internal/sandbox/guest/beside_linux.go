package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/frame"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/guard"
	"golang.org/x/sys/unix"
)

// Beside is the controller's end of the conversation with a guard beside a foreign
// kernel (guard.Setup.Base). That guard is a process on the host that reads what the
// sandbox says to its kernel, so its words are taken as hostile. Safe for concurrent use.
type Beside struct {
	asked
	seen  func(sandbox.Seen)
	ready chan struct{} // each stage is answered once
	done  chan struct{}
	err   error
}

// NewBeside starts the conversation on a connection, which it takes over. The guard
// finds the folders below base. seen is told of files that are opened for writing; nil:
// nobody wants to know.
func NewBeside(conn *frame.Conn, w *sandbox.Writes, base string, seen func(sandbox.Seen)) *Beside {
	b := &Beside{asked: asked{conn: conn, writes: w}, seen: seen, ready: make(chan struct{}, 2), done: make(chan struct{})}
	s := guardSetup(w)
	s.Base, s.UID, s.GID = guard.Bytes(base), uint32(os.Geteuid()), uint32(os.Getegid())
	go b.receive(s)
	return b
}

// Seal waits until the guard judges every call that commands can have a part in. Its
// caller starts none before.
func (b *Beside) Seal(ctx context.Context) error {
	if err := b.answered(ctx); err != nil {
		return err
	}
	if err := b.conn.Send(time.Now().Add(sendTimeout), request{Seal: true}); err != nil {
		b.conn.Close()
	}
	return b.answered(ctx)
}

func (b *Beside) answered(ctx context.Context) error {
	select {
	case <-b.ready:
		return nil
	case <-b.done:
		return fmt.Errorf("the guard of the workspace ended: %w", b.err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Done is closed when the conversation has ended; Err then says why.
func (b *Beside) Done() <-chan struct{} { return b.done }

// Err says why the conversation ended, after Done.
func (b *Beside) Err() error { return b.err }

// Close ends the conversation, and with it the guard.
func (b *Beside) Close() { b.conn.Close() }

func (b *Beside) receive(s *guard.Setup) {
	defer close(b.done)
	defer b.conn.Close()
	sent := make(chan error, 1)
	go func() {
		sent <- b.conn.Send(time.Now().Add(sendTimeout), request{Setup: &Setup{Guard: s, Sights: b.seen != nil}})
	}()
	defer func() { <-sent }()
	stages := 2
	for {
		var r report
		if _, b.err = b.conn.Receive(&r, maxReport, 0); b.err != nil {
			return
		}
		switch {
		case r.Kind == kindFailed:
			b.err = errors.New(clean(r.Error))
		case r.Kind == kindReady && stages > 0:
			stages--
			b.ready <- struct{}{}
		case (r.Kind == kindDenied || r.Kind == kindKeep || r.Kind == kindMade) && strings.HasPrefix(string(r.Path), "/"):
			b.err = b.take(r)
		case r.Kind == kindSeen && b.seen != nil && r.Lost >= 0 && !slices.ContainsFunc(r.Sights, func(s sight) bool { return s.What != sandbox.SeenWrite }):
			tellSeen(b.seen, r)
		default:
			b.err = errors.New("the guard of the workspace broke the protocol")
		}
		if b.err != nil {
			return
		}
	}
}

// ServeBeside is the guard's process: it answers the calls that come through a
// listener until its controller is gone. confine is called when it needs nothing more
// of the host than the folders.
func ServeBeside(conn *frame.Conn, confine func() error, listener func() (int, error)) error {
	var first request
	if _, err := conn.Receive(&first, frame.MaxPayload, 0); err != nil {
		return err
	}
	if first.Setup == nil || first.Setup.Guard == nil {
		return errors.New("no word of what to guard")
	}
	tell := func(r report, files ...*os.File) {
		if err := conn.Send(time.Time{}, r, files...); err != nil {
			os.Exit(0) // nobody is left to guard for
		}
	}
	fail := func(err error) error {
		tell(report{Kind: kindFailed, Error: err.Error()})
		return err
	}
	if err := confine(); err != nil {
		return fail(err)
	}
	fd, err := listener()
	if err != nil {
		return fail(err)
	}
	unix.CloseOnExec(fd)
	opened := func(string) {}
	if first.Setup.Sights {
		opened = tellOpened(tell)
	}
	h := newHost(tell, opened)
	g, err := guard.Start(*first.Setup.Guard, fd, h, func(err error) { os.Exit(failBegin(err)) })
	if err != nil {
		return fail(err)
	}
	tell(report{Kind: kindReady})
	for {
		var r request
		files, err := conn.Receive(&r, frame.MaxPayload, 1)
		switch {
		case err != nil:
			return nil
		case r.Kept != nil:
			h.kept(*r.Kept, files)
		case r.Seal:
			g.Seal()
			tell(report{Kind: kindReady})
		}
	}
}

// tellOpened reports files as they are opened: at the end of the sandbox there is no
// time for it.
func tellOpened(tell func(report, ...*os.File)) func(path string) {
	s, wake := newSights(), make(chan struct{}, 1)
	go func() {
		for range wake {
			s.flush(tell)
		}
	}()
	return func(path string) {
		s.opened(path)
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}
