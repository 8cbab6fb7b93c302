package guest

import (
	"context"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/door"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"golang.org/x/sys/unix"
)

// The controller's side of what bridge_linux.go does inside.

// reopened gives a pipe to a kernel that will make it non-blocking: what is
// non-blocking must not be what other programs outside still use. One that
// can't be opened again (another user's, or without a reader) goes as it is.
func reopened(f *os.File, i int) (*os.File, error) {
	mode := os.O_WRONLY
	if i == 0 {
		mode = os.O_RDONLY
	}
	var again *os.File
	err := control(f, func(fd int) (err error) {
		if again, err = os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), mode|unix.O_NONBLOCK, 0); err == nil {
			return nil
		}
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		again = os.NewFile(uintptr(dup), f.Name())
		return err
	})
	return again, err
}

// openDoors makes the doors that stand for listeners inside.
func (c *Client) openDoors(_ []*os.File, s Setup) error {
	open := func(port int) (*os.File, error) {
		ours, theirs, err := door.Pair()
		if err == nil {
			c.doors[port] = ours
		}
		return theirs, err
	}
	var err error
	if s.RelayPort != 0 {
		if c.listener, err = open(s.RelayPort); err != nil {
			return err
		}
	}
	for _, port := range s.Ports {
		f, err := open(port)
		if err != nil {
			return err
		}
		c.ports = append(c.ports, sandbox.Listener{Port: port, File: f})
	}
	return nil
}

// answerArrivals gives each connection that was accepted inside a socket, whose
// other end goes through the door.
func (c *Client) answerArrivals() {
	for {
		var r report
		select {
		case r = <-c.arrived:
		case <-c.done:
			return
		}
		var files []*os.File
		ours, theirs, err := door.Streams()
		if err == nil {
			c.mu.Lock()
			outer := c.doors[r.Port]
			c.mu.Unlock()
			if door.Knock(outer, ours) == nil {
				files = append(files, theirs)
			}
			ours.Close()
		}
		c.mu.Lock()
		delete(c.x.arrived, r.ID)
		c.mu.Unlock()
		if err := c.conn.Send(time.Now().Add(sendTimeout), request{Carry: &carryRequest{r.ID}}, files...); err != nil {
			c.conn.Close() // half a message is no message
		}
		if theirs != nil {
			theirs.Close()
		}
	}
}

// dialForeign is Dial where the connection can't come out: it asks for one that
// is copied to a socket.
func (c *Client) dialForeign(ctx context.Context, id uint32, port int, answer chan dialed) (net.Conn, error) {
	ours, theirs, err := door.Streams()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	err = c.conn.Send(time.Now().Add(sendTimeout), request{Dial: &dialRequest{id, port}}, theirs)
	theirs.Close()
	if err != nil {
		c.conn.Close() // half a message is no message
		return nil, sandbox.ErrGone
	}
	select {
	case d, ok := <-answer:
		if !ok {
			return nil, sandbox.ErrGone
		}
		if d.err != nil {
			return nil, d.err
		}
		return net.FileConn(ours)
	case <-ctx.Done():
		return nil, ctx.Err() // with ours closed, what comes about ends at once
	}
}

// Line implements sandbox.Process.
func (p *Process) Line() sandbox.Line {
	if !p.bridged {
		return nil
	}
	return line{p}
}

type line struct{ p *Process }

func (l line) send(r lineRequest) error {
	r.ID = l.p.id
	if err := l.p.client.conn.Send(time.Now().Add(sendTimeout), request{Line: &r}); err != nil {
		l.p.client.conn.Close()
		return sandbox.ErrGone
	}
	return nil
}

func (l line) Resize(rows, cols uint16) error { return l.send(lineRequest{Rows: rows, Cols: cols}) }

func (l line) Modes() (Modes, error) {
	l.p.client.mu.Lock()
	defer l.p.client.mu.Unlock()
	return l.p.modes, nil
}

func (l line) SetModes(m Modes) error {
	if err := l.send(lineRequest{Modes: &m}); err != nil {
		return err
	}
	l.p.client.mu.Lock()
	l.p.modes = m
	l.p.client.mu.Unlock()
	return nil
}
