package terminal

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// chunk is how much is carried at once.
const chunk = 32 << 10

// maxBuffered is more than a pipe or a pseudo-terminal holds: what a command
// wrote before it ended is within it, and what others go on writing after that
// does not keep us forever.
const maxBuffered = 1 << 20

var longAgo = time.Unix(1, 0)

// pump carries what the sandbox writes to one of the user's streams. It reads
// only when the last piece is written, so a slow reader outside slows the
// sandbox down and loses nothing.
type pump struct {
	from *os.File // served by the runtime's poller
	to   func([]byte) error
	asks chan ask
	done chan struct{}
	err  error // of writing, valid after done
}

type ask struct {
	last  bool
	ready chan struct{}
}

func newPump(from *os.File, to func([]byte) error) *pump {
	return &pump{from: from, to: to, asks: make(chan ask, 1), done: make(chan struct{})}
}

func (p *pump) run() {
	defer close(p.done)
	buf := make([]byte, chunk)
	for {
		n, err := p.from.Read(buf)
		if n > 0 {
			if p.err = p.to(buf[:n]); p.err != nil {
				return
			}
		}
		switch {
		case err == nil:
			continue
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return // the end of a pipe, EIO for a pseudo-terminal that nobody has open
		}
		// In this order an ask is either seen here or has its deadline still
		// before it.
		p.from.SetReadDeadline(time.Time{})
		asked := p.asked()
		if len(asked) == 0 {
			continue
		}
		more := p.drain(buf)
		last := !more
		for _, a := range asked {
			close(a.ready)
			last = last || a.last
		}
		if last {
			return
		}
	}
}

func (p *pump) asked() (all []ask) {
	for {
		select {
		case a := <-p.asks:
			all = append(all, a)
		default:
			return all
		}
	}
}

// drain carries what is there now. The kernel finishes what is under way in a
// pseudo-terminal before it says EAGAIN, so nothing written before is missed.
func (p *pump) drain(buf []byte) (more bool) {
	raw, err := p.from.SyscallConn()
	if err != nil {
		return false
	}
	for total := 0; total < maxBuffered; {
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
		case rerr != nil || n == 0:
			return false
		}
		total += n
		if p.err = p.to(buf[:n]); p.err != nil {
			return false
		}
	}
	return true
}

// settle has everything carried that is there now; last also ends the pump.
// The channel is closed when that is done, or when the pump has ended.
func (p *pump) settle(last bool) <-chan struct{} {
	a := ask{last, make(chan struct{})}
	ready := make(chan struct{})
	go func() {
		defer close(ready)
		select {
		case p.asks <- a:
		case <-p.done:
			return
		}
		p.from.SetReadDeadline(longAgo)
		select {
		case <-a.ready:
			if last {
				<-p.done
			}
		case <-p.done:
		}
	}()
	return ready
}

// wakeup interrupts a poll(2) on descriptors that are not ours to make
// non-blocking.
type wakeup struct{ f *os.File }

func newWakeup() (*wakeup, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return &wakeup{os.NewFile(uintptr(fd), "eventfd")}, nil
}

func (w *wakeup) wake() { w.f.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// poll waits for fd (-1: none) to have events, or to be woken. A negative
// timeout has no end.
func poll(fd int, events int16, wake int, timeout time.Duration) (got int16, woken bool) {
	deadline := time.Now().Add(timeout)
	for {
		fds := []unix.PollFd{{Fd: int32(wake), Events: unix.POLLIN}, {Fd: int32(fd), Events: events}}
		ms := -1
		if timeout >= 0 {
			ms = int(max(0, time.Until(deadline)).Milliseconds())
		}
		_, err := unix.Poll(fds, ms)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return unix.POLLERR, false
		}
		return fds[1].Revents, fds[0].Revents != 0
	}
}

// writeAll writes to a stream of the user's, which may or may not be
// non-blocking. A negative timeout has no end.
func writeAll(fd int, b []byte, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for len(b) > 0 {
		if timeout >= 0 {
			if got, _ := poll(fd, unix.POLLOUT, -1, time.Until(deadline)); got == 0 {
				return os.ErrDeadlineExceeded
			}
		}
		n, err := unix.Write(fd, b)
		switch {
		case err == unix.EAGAIN:
			poll(fd, unix.POLLOUT, -1, -1)
		case err == unix.EINTR:
		case err != nil:
			return err
		default:
			b = b[n:]
		}
	}
	return nil
}

// feed carries one of the user's streams, which is no terminal, to a pipe of
// the sandbox.
type feed struct {
	from  int
	to    *os.File
	wake  *wakeup
	done  chan struct{}
	ahead int64 // bytes read and not written, valid after done
	err   error // of reading, valid after done
}

func (f *feed) run() {
	defer close(f.done)
	defer f.to.Close() // the end for those who read inside
	wake, err := number(f.wake.f)
	if err != nil {
		return
	}
	buf := make([]byte, chunk)
	for {
		got, woken := poll(f.from, unix.POLLIN, wake, -1)
		if woken {
			return
		}
		if got&unix.POLLNVAL != 0 {
			return
		}
		n, err := unix.Read(f.from, buf)
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
			continue
		case err != nil:
			f.err = err
			return
		case n == 0:
			return
		}
		written, err := f.to.Write(buf[:n])
		if err != nil { // nobody reads any more, or the command has ended
			f.ahead = int64(n - written)
			return
		}
	}
}

func (f *feed) stop() {
	f.to.SetWriteDeadline(longAgo)
	f.wake.wake()
	select {
	case <-f.done:
		f.wake.f.Close()
	case <-time.After(stopTime): // another reader took what poll saw
	}
}
