package httpauthz

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/egress/framing"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Limits of one session. Zero means the default.
type Limits struct {
	// Requests under way, in all and to one upstream, so that one that stalls
	// leaves room for the others.
	Requests, PerUpstream int
	// Held bounds the bodies (and WebSocket messages) that are held to be judged,
	// in bytes, in all.
	Held int64
	// HeldWait is how long a request waits for its share of Held.
	HeldWait time.Duration
	// Stall bounds how long a client may neither send nor take a byte, before the
	// upstream has begun to answer or while it does.
	Stall time.Duration
	// Quiet bounds how long nothing at all may happen: the time an upstream takes
	// to answer, the silence within a stream.
	Quiet time.Duration
	// Message bounds a WebSocket message that is not held, Judged one that is.
	Message, Judged int64
}

// The defaults.
const (
	MaxRequests    = 1024
	MaxPerUpstream = 256
	MaxHeld        = 128 << 20
	heldWait       = 10 * time.Second
	stall          = 2 * time.Minute
	quiet          = 20 * time.Minute
	maxMessage     = 256 << 20
	maxJudged      = 16 << 20
	retryAfter     = 2 // seconds
)

func (l Limits) filled() Limits {
	set := func(n *int, d int) {
		if *n <= 0 {
			*n = d
		}
	}
	set64 := func(n *int64, d int64) {
		if *n <= 0 {
			*n = d
		}
	}
	span := func(n *time.Duration, d time.Duration) {
		if *n <= 0 {
			*n = d
		}
	}
	set(&l.Requests, MaxRequests)
	set(&l.PerUpstream, MaxPerUpstream)
	set64(&l.Held, MaxHeld)
	set64(&l.Message, maxMessage)
	set64(&l.Judged, maxJudged)
	span(&l.HeldWait, heldWait)
	span(&l.Stall, stall)
	span(&l.Quiet, quiet)
	return l
}

// counter counts the requests under way.
type counter struct {
	mu   sync.Mutex
	all  int
	each map[hostport.HostPort]int
}

// enter reports whether there is room; leave must follow if there is.
func (c *counter) enter(dst hostport.HostPort, l Limits) (message string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.each == nil {
		c.each = map[hostport.HostPort]int{}
	}
	switch {
	case c.all >= l.Requests:
		return fmt.Sprintf("%d requests of this session are under way; wait for some to end", c.all), false
	case c.each[dst] >= l.PerUpstream:
		return fmt.Sprintf("%d requests to %s are under way; wait for some to end", c.each[dst], dst), false
	}
	c.all++
	c.each[dst]++
	return "", true
}

func (c *counter) leave(dst hostport.HostPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.each[dst]--; c.each[dst] == 0 {
		delete(c.each, dst)
	}
}

var (
	// errHeld: the budget did not become free in time.
	errHeld = errors.New("too much is being inspected at a time in this session; try again")
	// errLong: more bytes than may be held.
	errLong = errors.New("too long to be held")
)

// budget is a weighted semaphore that serves in order.
type budget struct {
	mu    sync.Mutex
	used  int64
	queue list.List // of *waiter
}

type waiter struct {
	n     int64
	ready chan struct{}
}

func (b *budget) acquire(ctx context.Context, n, total int64, wait time.Duration) error {
	b.mu.Lock()
	if b.queue.Len() == 0 && b.used+n <= total {
		b.used += n
		b.mu.Unlock()
		return nil
	}
	w := &waiter{n, make(chan struct{})}
	at := b.queue.PushBack(w)
	b.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-w.ready:
		return nil
	case <-timer.C:
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-w.ready: // just now
		return nil
	default:
	}
	b.queue.Remove(at)
	b.grant(total)
	return errHeld
}

func (b *budget) release(n, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	b.grant(total)
}

func (b *budget) grant(total int64) {
	for e := b.queue.Front(); e != nil; e = b.queue.Front() {
		w := e.Value.(*waiter)
		if b.used+w.n > total {
			return
		}
		b.used += w.n
		b.queue.Remove(e)
		close(w.ready)
	}
}

// holding is a buffer whose room is taken from the session's budget as bytes
// arrive, never on the word of a length.
type holding struct {
	h   *Handler
	ctx context.Context
	buf []byte
}

const firstHolding = 16 << 10

// fill reads until max bytes are there, more says that it is enough, or the
// end, which is no error; more may be nil. Beyond max there must be no byte:
// errLong.
func (o *holding) fill(src io.Reader, max int64, more func([]byte) (bool, error)) error {
	for {
		if len(o.buf) == cap(o.buf) {
			if err := o.grow(max); err != nil {
				return err
			}
		}
		n, err := src.Read(o.buf[len(o.buf):cap(o.buf)])
		o.buf = o.buf[:len(o.buf)+n]
		if more != nil && n > 0 {
			if enough, err := more(o.buf); enough || err != nil {
				return err
			}
		}
		switch {
		case int64(len(o.buf)) > max:
			return errLong
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// grow doubles the room; one byte more than max shows what is too long.
func (o *holding) grow(max int64) error {
	room := min(int64(2*cap(o.buf)), max+1)
	if cap(o.buf) == 0 {
		room = min(firstHolding, max+1)
	}
	if room <= int64(cap(o.buf)) {
		return errLong
	}
	if err := o.h.held.acquire(o.ctx, room-int64(cap(o.buf)), o.h.limits.Held, o.h.limits.HeldWait); err != nil {
		return err
	}
	bigger := make([]byte, len(o.buf), room)
	copy(bigger, o.buf)
	o.buf = bigger
	return nil
}

func (o *holding) free() {
	if n := cap(o.buf); n > 0 {
		o.h.held.release(int64(n), o.h.limits.Held)
	}
	o.buf = nil
}

// hold starts a buffer that is freed with the request.
func (q *request) hold() *holding {
	o := &holding{h: q.h, ctx: q.r.Context()}
	q.held = append(q.held, o)
	return o
}

// blame reports whether a body ended by the client's own doing while the client
// is still there to hear of it.
func (q *request) blame(end error) bool {
	fe := (*framing.Error)(nil)
	return errors.As(end, &fe) || errors.Is(end, os.ErrDeadlineExceeded) && !q.answered.Load()
}

// unread words why a body that has to be read could not be.
func (q *request) unread(err error) error {
	fe, known := (*framing.Error)(nil), (*refusal)(nil)
	if errors.Is(err, errHeld) || errors.As(err, &fe) || errors.As(err, &known) {
		return err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return bad("the body did not arrive in time")
	}
	return bad("the body did not arrive whole")
}

// patient is the request's body, each read of it with a time of its own as long
// as the upstream has not begun to answer: from then on a silent client may be
// one that listens.
func (q *request) patient() io.Reader {
	return &patient{q: q, src: q.r.Body}
}

type patient struct {
	q   *request
	src io.Reader
}

func (p *patient) Read(b []byte) (int, error) {
	if !p.q.answered.Load() {
		p.q.readDeadline(time.Now().Add(p.q.h.limits.Stall))
	}
	n, err := p.src.Read(b)
	p.q.touch()
	if err != nil {
		p.q.readDeadline(time.Time{})
		p.q.bodyEnd.Store(&err)
	}
	return n, err
}

// sending is a body on its way to the upstream. Closing it ends a read that
// waits for the client: the upstream wants no more.
type sending struct {
	io.Reader
	q *request
}

func (s *sending) Close() error {
	if s.q.r.ProtoMajor > 1 {
		return s.q.r.Body.Close()
	}
	if s.q.early() {
		// Body.Close would wait for the read. The connection ends with this answer.
		s.q.readDeadline(time.Now())
	}
	return nil
}

// readDeadline is for those who read the request's body: the upstream's connection
// may still do so when the request is over, and then its writer is nobody's.
func (q *request) readDeadline(t time.Time) {
	q.ending.Lock()
	defer q.ending.Unlock()
	if !q.over {
		http.NewResponseController(q.w).SetReadDeadline(t)
	}
}

func (q *request) end() {
	q.ending.Lock()
	q.over = true
	q.ending.Unlock()
}

// busy answers that there is no room now.
func (q *request) busy(message string) {
	q.denyWith(Denial{Status: http.StatusServiceUnavailable, RetryAfter: retryAfter, Reason: vocabulary.Reason{Code: CodeBusy, Message: message}})
}
