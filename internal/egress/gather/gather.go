// Package gather makes few large reads and writes of many small ones where TLS
// would make them of 16 KiB each: every write to the sandbox's link is a frame,
// and every frame wakes somebody.
//
// Under goes below TLS and Over on top of it, on both sides of the gateway. A Write
// of more than one record goes to the transport in one piece, when the last
// record of it is sealed; a Read that got a record takes the further ones that
// have arrived too, and never waits for more. Nothing is ever held back when
// Read or Write has returned, so streams arrive as they are sent.
//
// Used by the gateway, by one reader and one writer at a time. Errors are the
// transport's. Figures: maxHeld bytes are gathered at most.
package gather

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"

	"github.com/bulkhead-dev/bulkhead/internal/egress/direct"
)

const (
	record = 16 << 10 // RFC 8446 section 5.1
	// Size is what a copy should read and write at a time: what fits into one
	// frame of the sandbox's link (sandbox.LinkMTU) when it is sealed.
	Size    = 65280
	maxHeld = Size + 4<<10 // with what sealing adds
)

// Transport is the connection below TLS.
type Transport struct {
	net.Conn
	rw     io.ReadWriter             // what moves the bytes of Conn
	now    func([]byte) (int, error) // nil: reads are not gathered
	noWait bool

	mu      sync.Mutex
	holding bool
	held    *[]byte
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, maxHeld); return &b }}

// Under prepares a connection for TLS on top of it.
func Under(c net.Conn) *Transport {
	t := &Transport{Conn: c, rw: c}
	switch c := c.(type) {
	case Waitless:
		t.now = c.ReadNow
	case *net.TCPConn:
		if f := direct.New(c); f != nil {
			t.rw, t.now = f, f.ReadNow
		}
	}
	return t
}

// ErrWait: nothing has arrived yet.
var ErrWait = direct.ErrWait

// Waitless is a connection that can be read without waiting.
type Waitless interface {
	// ReadNow returns what has arrived, or ErrWait.
	ReadNow(p []byte) (int, error)
}

// NetConn returns the wrapped connection.
func (t *Transport) NetConn() net.Conn { return t.Conn }

// Abort lets the end be a reset where there is one to be had.
func (t *Transport) Abort() {
	switch c := t.Conn.(type) {
	case interface{ Abort() }:
		c.Abort()
	case interface{ SetLinger(int) error }:
		c.SetLinger(0)
	}
}

// Read does not wait while noWait is set.
func (t *Transport) Read(p []byte) (int, error) {
	if t.noWait {
		return t.now(p)
	}
	return t.rw.Read(p)
}

// ReadNow implements Waitless.
func (t *Transport) ReadNow(p []byte) (int, error) {
	if t.now == nil {
		return 0, ErrWait
	}
	return t.now(p)
}

// Silent reports whether nothing has arrived and the connection is open, as far as
// can be told; what has arrived is lost. To be called by the reader.
func (t *Transport) Silent() bool {
	var b [1]byte
	n, err := t.ReadNow(b[:])
	return n == 0 && err == ErrWait
}

// Write collects while a larger Write above is under way.
func (t *Transport) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.holding {
		return t.rw.Write(p)
	}
	if t.held == nil {
		t.held = buffers.Get().(*[]byte)
	}
	if len(*t.held)+len(p) > maxHeld {
		if err := t.flush(); err != nil {
			return 0, err
		}
	}
	if len(p) > maxHeld {
		return t.rw.Write(p)
	}
	*t.held = append(*t.held, p...)
	return len(p), nil
}

func (t *Transport) flush() error {
	if t.held == nil || len(*t.held) == 0 {
		return nil
	}
	_, err := t.rw.Write(*t.held)
	*t.held = (*t.held)[:0]
	return err
}

func (t *Transport) hold() {
	t.mu.Lock()
	t.holding = true
	t.mu.Unlock()
}

func (t *Transport) release() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.holding = false
	err := t.flush()
	if t.held != nil {
		buffers.Put(t.held)
		t.held = nil
	}
	return err
}

// Conn is TLS over a Transport.
type Conn struct {
	*tls.Conn
	under *Transport
	rest  bool // the last Read filled its buffer
}

// Over joins the two; tc was made from t.
func Over(tc *tls.Conn, t *Transport) *Conn { return &Conn{Conn: tc, under: t} }

// Read returns what has arrived of large messages, as far as p has room.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	rest := c.rest // of a record that had no room before
	c.rest = n == len(p)
	if err != nil || c.under.now == nil || n < record && !rest {
		return n, err
	}
	c.under.noWait = true
	for n < len(p) {
		more, err := c.Conn.Read(p[n:])
		n += more
		if err != nil || more == 0 {
			break // a lasting error comes again
		}
	}
	c.under.noWait = false
	c.rest = n == len(p)
	return n, nil
}

// Silent reports whether no data has arrived and the connection is open; what TLS
// itself has sent since, such as tickets, is taken in. To be called by the reader.
func (c *Conn) Silent() bool {
	if c.under.now == nil {
		return true // nobody can tell
	}
	var b [1]byte
	c.under.noWait = true
	n, err := c.Conn.Read(b[:])
	c.under.noWait = false
	return n == 0 && errors.Is(err, ErrWait)
}

// Write sends p in one piece.
func (c *Conn) Write(p []byte) (int, error) {
	if len(p) <= record {
		return c.Conn.Write(p)
	}
	c.under.hold()
	n, err := c.Conn.Write(p)
	if rerr := c.under.release(); err == nil && rerr != nil {
		return 0, rerr
	}
	return n, err
}

// ReadFrom copies in pieces of Size; each is sent before the next is read.
func (c *Conn) ReadFrom(r io.Reader) (total int64, err error) {
	buf := large.Get().(*[]byte)
	defer large.Put(buf)
	for {
		n, rerr := r.Read(*buf)
		if n > 0 {
			m, werr := c.Write((*buf)[:n])
			total += int64(m)
			if werr != nil {
				return total, werr
			}
		}
		if rerr == io.EOF {
			return total, nil
		}
		if rerr != nil {
			return total, rerr
		}
	}
}

var large = sync.Pool{New: func() any { b := make([]byte, Size); return &b }}
