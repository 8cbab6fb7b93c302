package netstack

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/bulkhead-dev/bulkhead/internal/egress/gather"
)

// stream is a connection of the sandbox. It does what gVisor's gonet.TCPConn
// does, with one registration and one timer for its whole life: those take a
// channel and a timer for every wait and every deadline.
type stream struct {
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	in   direction
	out  direction
	acks acks

	// Of the current few writes, and whether their size has been acted upon.
	writes, written int
	fitted          bool
}

// A write that cannot be sent yet is kept as a segment, which costs some
// segmentCost bytes besides its own; the netstack counts only the latter. So the
// room that a stream has is that of BufferMax bytes in memory, judged by its last
// fitWrites writes.
const (
	segmentCost = 1536
	fitWrites   = 64
)

// fit gives the send queue the room that its writes, n bytes the last, may take.
func (s *stream) fit(n int) {
	if n > 0 {
		s.writes++
		s.written += n
	}
	if s.writes < fitWrites {
		return
	}
	each := s.written / s.writes
	s.writes, s.written = 0, 0
	if each < segmentCost || s.fitted {
		s.fitted = true
		s.ep.SocketOptions().SetSendBufferSize(int64(max(4<<10, BufferMax*each/(each+segmentCost))), true)
	}
}

// direction is one half of a stream.
type direction struct {
	using sync.Mutex // by one Read or Write
	entry waiter.Entry
	wake  chan struct{} // something may have changed

	mu     sync.Mutex
	at     time.Time // deadline, or zero
	late   bool
	timer  *time.Timer
	rings  time.Time // when it does; at or before
	closed bool
}

func newStream(wq *waiter.Queue, ep tcpip.Endpoint, link *tap) *stream {
	s := &stream{ep: ep, wq: wq}
	s.acks.link = link
	s.in.entry, s.in.wake = waiter.NewChannelEntry(waiter.ReadableEvents)
	s.out.entry, s.out.wake = waiter.NewChannelEntry(waiter.WritableEvents)
	wq.EventRegister(&s.in.entry)
	wq.EventRegister(&s.out.entry)
	if e, ok := ep.(*tcp.Endpoint); ok {
		e.LockUser()
		e.SetOwner(s) // so that the link knows whose packets it writes
		e.UnlockUser()
	}
	return s
}

// set takes a new deadline.
func (d *direction) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	left := time.Until(t)
	if d.late = !t.IsZero() && left <= 0; d.late {
		d.ring()
	}
	// A timer that rings too early finds out, and goes on; deadlines are moved
	// for every request and hardly ever reached.
	if t.IsZero() || d.late || d.closed || !d.rings.IsZero() && !d.rings.After(t) {
		return
	}
	d.rings = t
	if d.timer == nil {
		d.timer = time.AfterFunc(left, d.rang)
	} else {
		d.timer.Reset(left)
	}
}

func (d *direction) rang() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rings = time.Time{}
	if d.at.IsZero() || d.closed {
		return
	}
	if left := time.Until(d.at); left > 0 {
		d.rings = d.at
		d.timer.Reset(left)
		return
	}
	d.late = true
	d.ring()
}

func (d *direction) ring() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// over reports why nothing more is to be waited for.
func (d *direction) over() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return net.ErrClosed
	case d.late:
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (d *direction) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.timer != nil {
		d.timer.Stop()
	}
	d.ring()
}

// Read implements net.Conn.
func (s *stream) Read(p []byte) (int, error) {
	s.in.using.Lock()
	defer s.in.using.Unlock()
	for {
		if err := s.in.over(); err != nil {
			return 0, s.failed("read", err)
		}
		n, terr := s.read(p)
		switch terr.(type) {
		case nil:
			return n, nil
		case *tcpip.ErrClosedForReceive:
			return 0, io.EOF
		case *tcpip.ErrWouldBlock:
			<-s.in.wake
		default:
			return 0, s.failed("read", errors.New(terr.String()))
		}
	}
}

func (s *stream) read(p []byte) (int, tcpip.Error) {
	w := tcpip.SliceWriter(p)
	got, terr := s.ep.Read(&w, tcpip.ReadOptions{})
	if terr == nil {
		s.ep.ModerateRecvBuf(got.Count)
	}
	return got.Count, terr
}

// ReadNow implements gather.Waitless.
func (s *stream) ReadNow(p []byte) (int, error) {
	s.in.using.Lock()
	defer s.in.using.Unlock()
	n, terr := s.read(p)
	if terr != nil {
		return 0, gather.ErrWait // also at the end: the next Read will tell
	}
	return n, nil
}

// Write implements net.Conn.
func (s *stream) Write(p []byte) (done int, err error) {
	s.out.using.Lock()
	defer s.out.using.Unlock()
	var r bytes.Reader
	for {
		if err := s.out.over(); err != nil {
			return done, s.failed("write", err)
		}
		if done == len(p) {
			return done, nil
		}
		r.Reset(p[done:])
		n, terr := s.ep.Write(&r, tcpip.WriteOptions{})
		done += int(n)
		s.fit(int(n))
		switch terr.(type) {
		case nil:
			if done == len(p) {
				return done, nil
			}
		case *tcpip.ErrWouldBlock:
			<-s.out.wake
		default:
			return done, s.failed("write", errors.New(terr.String()))
		}
	}
}

func (s *stream) failed(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: err}
}

// Close implements net.Conn.
func (s *stream) Close() error {
	s.in.close()
	s.out.close()
	s.acks.close()
	s.ep.Close()
	return nil
}

// CloseWrite ends the stream towards the sandbox.
func (s *stream) CloseWrite() error {
	if terr := s.ep.Shutdown(tcpip.ShutdownWrite); terr != nil {
		return s.failed("close", errors.New(terr.String()))
	}
	return nil
}

// LocalAddr implements net.Conn.
func (s *stream) LocalAddr() net.Addr { return address(s.ep.GetLocalAddress()) }

// RemoteAddr implements net.Conn.
func (s *stream) RemoteAddr() net.Addr { return address(s.ep.GetRemoteAddress()) }

func address(a tcpip.FullAddress, terr tcpip.Error) net.Addr {
	if terr != nil {
		return &net.TCPAddr{}
	}
	return net.TCPAddrFromAddrPort(addrPort(a.Addr, a.Port))
}

// SetReadDeadline implements net.Conn.
func (s *stream) SetReadDeadline(t time.Time) error { s.in.set(t); return nil }

// SetWriteDeadline implements net.Conn.
func (s *stream) SetWriteDeadline(t time.Time) error { s.out.set(t); return nil }

// SetDeadline implements net.Conn.
func (s *stream) SetDeadline(t time.Time) error {
	s.in.set(t)
	s.out.set(t)
	return nil
}

// KUID implements tcpip.PacketOwner, whose users have other uses for it.
func (*stream) KUID() uint32 { return 0 }

// KGID implements tcpip.PacketOwner.
func (*stream) KGID() uint32 { return 0 }

var (
	_ net.Conn          = (*stream)(nil)
	_ gather.Waitless   = (*stream)(nil)
	_ tcpip.PacketOwner = (*stream)(nil)
)
