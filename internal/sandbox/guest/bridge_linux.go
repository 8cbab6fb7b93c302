package guest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Where the sandbox's kernel is not the host's (gVisor), descriptors travel
// inwards only. What the supervisor would hand out it then keeps, and copies
// between it and a socket that the controller hands in: a terminal's controlling
// end, an accepted connection, a connection that it dialled.

// maxArrivals is how many accepted connections may wait for their socket.
const maxArrivals = 64

var longAgo = time.Unix(1, 0)

// bridge copies between a pseudo-terminal's controlling end and the socket that
// stands for it outside.
type bridge struct {
	master, outside *os.File
	report          func(*Modes)
	leader          int // the job child

	mu    sync.Mutex
	modes Modes
	keys  [3]byte // of what interrupts, quits, suspends
	asks  chan chan struct{}
	done  chan struct{} // nothing is read from the master any more
}

func newBridge(leader int, master, outside *os.File, report func(*Modes)) *bridge {
	b := &bridge{leader: leader, master: master, outside: outside, report: report, asks: make(chan chan struct{}, 1), done: make(chan struct{})}
	b.modes, _ = modesOf(master)
	b.keys = [3]byte{b.modes.Cc[unix.VINTR], b.modes.Cc[unix.VQUIT], b.modes.Cc[unix.VSUSP]}
	b.set(lineRequest{Modes: &b.modes})
	return b
}

// hangUp closes the terminal. gVisor does not tell its session.
func (b *bridge) hangUp() {
	b.master.Close()
	_ = unix.Kill(b.leader, unix.SIGHUP)
}

// noKey is a byte that no keyboard sends.
const noKey = 0xff

// readTime is for a program to read what was typed.
const readTime = 50 * time.Millisecond

// signals is what the job child is told for each of the keys, see job.
var signals = [3]unix.Signal{unix.SIGUSR1, unix.SIGUSR2, unix.SIGTSTP}

// typed carries what was typed. gVisor's terminals (as of the pinned version)
// take the keys for signals also where a program reads keys itself (without
// ISIG), and leave them in the line. So they know none, and this does what
// Linux does: signal and show, or let them through.
func (b *bridge) typed(p []byte) error {
	for len(p) > 0 {
		n := len(p)
		m, err := modesOf(b.master)
		key := -1
		if err == nil && m.Lflag&unix.ISIG != 0 {
			b.mu.Lock()
			for k, c := range b.keys {
				if at := bytes.IndexByte(p[:n], c); at >= 0 && c != 0 && c != noKey {
					n, key = at, k
				}
			}
			b.mu.Unlock()
		}
		if eof := bytes.IndexByte(p[:n], m.Cc[unix.VEOF]); m.Lflag&unix.ICANON != 0 && eof >= 0 && eof+1 < len(p) {
			// What comes together with an end of file would be left lying.
			if _, err := b.master.Write(p[:eof+1]); err != nil {
				return err
			}
			time.Sleep(readTime)
			p = p[eof+1:]
			continue
		}
		if n > 0 {
			if _, err := b.master.Write(p[:n]); err != nil {
				return err
			}
		}
		if p = p[n:]; key < 0 {
			continue
		}
		if m.Lflag&unix.ECHO != 0 && p[0] < 0x20 {
			_, _ = b.outside.Write([]byte{'^', p[0] + 0x40})
		}
		p = p[1:]
		_ = unix.Kill(b.leader, signals[key])
	}
	return nil
}

// current are the modes that the controller knows.
func (b *bridge) current() *Modes {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.modes
	return &m
}

// run copies until one end is closed, and closes the other: the end of the
// socket hangs up inside.
func (b *bridge) run() {
	go func() {
		defer b.hangUp()
		buf := make([]byte, 4096)
		for {
			n, err := b.outside.Read(buf)
			if n > 0 && b.typed(buf[:n]) != nil || err != nil {
				return
			}
		}
	}()
	defer b.outside.Close()
	defer close(b.done)
	buf := make([]byte, 32<<10)
	for {
		n, err := b.master.Read(buf)
		if n > 0 && !b.show(buf[:n]) {
			return
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			_ = b.master.SetReadDeadline(time.Time{})
			select {
			case ask := <-b.asks:
				more := b.drain(buf)
				close(ask)
				if !more {
					return
				}
			default:
			}
		default:
			return
		}
	}
}

// show tells of new modes before the output that came after them.
func (b *bridge) show(p []byte) bool {
	if m, err := modesOf(b.master); err == nil {
		b.mu.Lock()
		changed := m != b.modes
		b.modes = m
		b.mu.Unlock()
		if changed {
			b.report(&m)
		}
	}
	_, err := b.outside.Write(p)
	return err == nil
}

// drain copies what is there now.
func (b *bridge) drain(buf []byte) (more bool) {
	raw, err := b.master.SyscallConn()
	if err != nil {
		return false
	}
	for total := 0; total < 1<<20; {
		var n int
		var rerr error
		if err := raw.Control(func(fd uintptr) { n, rerr = unix.Read(int(fd), buf) }); err != nil {
			return false
		}
		switch {
		case rerr == unix.EINTR:
			continue
		case rerr == unix.EAGAIN:
			return true
		case rerr != nil || n <= 0:
			return false
		}
		total += n
		if !b.show(buf[:n]) {
			return false
		}
	}
	return true
}

// settle returns when everything that was written so far is in the socket, so
// that an exit can be told after a command's last words. It is called once.
func (b *bridge) settle() {
	ask := make(chan struct{})
	b.asks <- ask
	_ = b.master.SetReadDeadline(longAgo)
	select {
	case <-ask:
	case <-b.done:
	}
}

// set applies what the controller wants; zero sizes and nil modes stay.
func (b *bridge) set(r lineRequest) {
	raw, err := b.master.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if r.Rows > 0 || r.Cols > 0 {
			b.resize(int(fd), r.Rows, r.Cols)
		}
		if r.Modes == nil {
			return
		}
		if t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS); err == nil {
			t.Iflag, t.Oflag, t.Cflag, t.Lflag, t.Cc = r.Modes.Iflag, r.Modes.Oflag, r.Modes.Cflag, r.Modes.Lflag, r.Modes.Cc
			b.mu.Lock()
			for k, at := range []int{unix.VINTR, unix.VQUIT, unix.VSUSP} {
				if t.Cc[at] != noKey {
					b.keys[k], t.Cc[at] = t.Cc[at], noKey
				}
			}
			b.mu.Unlock()
			_ = unix.IoctlSetTermios(int(fd), unix.TCSETS, t)
		}
	})
}

// resize tells the terminal's session, whose leader tells the foreground job:
// gVisor does not, and only a process of the session can ask which one that is.
func (b *bridge) resize(fd int, rows, cols uint16) {
	before, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err == nil && before.Row == rows && before.Col == cols {
		return
	}
	if unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}) == nil {
		_ = unix.Kill(b.leader, unix.SIGWINCH)
	}
}

func modesOf(f *os.File) (m Modes, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return m, err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) {
		var t *unix.Termios
		if t, inner = unix.IoctlGetTermios(int(fd), unix.TCGETS); inner == nil {
			m = Modes{Iflag: t.Iflag, Oflag: t.Oflag, Cflag: t.Cflag, Lflag: t.Lflag, Cc: t.Cc}
		}
	}); err != nil {
		return m, err
	}
	return m, inner
}

// arrivals are the connections that were accepted and wait for their socket.
type arrivals struct {
	mu      sync.Mutex
	next    uint32
	waiting map[uint32]chan *os.File
	slots   chan struct{}
}

// serveListener accepts what comes to a port that stands for something outside.
func (s *supervisor) serveListener(f *os.File, port int) {
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		os.Exit(1) // the sandbox would have a port that never answers
	}
	for {
		s.arrived.slots <- struct{}{}
		c, err := l.Accept()
		if err != nil {
			<-s.arrived.slots
			time.Sleep(50 * time.Millisecond)
			continue
		}
		go s.arrive(c, port)
	}
}

func (s *supervisor) arrive(c net.Conn, port int) {
	a := &s.arrived
	answer := make(chan *os.File, 1)
	a.mu.Lock()
	a.next++
	id := a.next
	a.waiting[id] = answer
	a.mu.Unlock()
	s.report(report{Kind: kindArrived, ID: id, Port: port})
	f := <-answer
	<-a.slots
	if f == nil {
		c.Close()
		return
	}
	join(c, f)
}

// carry takes the controller's answer to an arrival; no file is a refusal.
func (s *supervisor) carry(id uint32, files []*os.File) {
	a := &s.arrived
	a.mu.Lock()
	answer := a.waiting[id]
	delete(a.waiting, id)
	a.mu.Unlock()
	var f *os.File
	if len(files) > 0 {
		f = files[0]
	}
	if answer != nil {
		answer <- f
	} else if f != nil {
		f.Close()
	}
}

// join copies both ways and closes both.
func join(inside net.Conn, f *os.File) {
	outside, err := net.FileConn(f)
	f.Close()
	if err != nil {
		inside.Close()
		return
	}
	type half interface{ CloseWrite() error }
	var both sync.WaitGroup
	one := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		if h, ok := to.(half); ok && err == nil {
			_ = h.CloseWrite()
			return
		}
		to.Close()
		from.Close()
	}
	both.Go(func() { one(inside, outside) })
	both.Go(func() { one(outside, inside) })
	both.Wait()
	inside.Close()
	outside.Close()
}

// dialBridged connects to a port of the sandbox's own loopback for a socket
// that came with the request.
func (s *supervisor) dialBridged(r dialRequest, f *os.File) {
	var err error
	for _, a := range loopbacks {
		var inside *os.File
		if inside, err = connect(netip.AddrPortFrom(a, uint16(r.Port))); err != nil {
			continue
		}
		c, cerr := net.FileConn(inside)
		inside.Close()
		if err = cerr; err == nil {
			s.report(report{Kind: kindDialed, ID: r.ID})
			join(c, f)
			return
		}
	}
	f.Close()
	s.report(report{Kind: kindClosed, ID: r.ID, Error: err.Error()})
}
