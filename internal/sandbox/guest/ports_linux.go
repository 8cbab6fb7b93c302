package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"golang.org/x/sys/unix"
)

// dialTimeout bounds a connection over the sandbox's own loopback; only a full
// backlog makes it wait.
const dialTimeout = 5 * time.Second

var loopbacks = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// listenPorts makes the listeners that stand for ports of the host: first all
// on 127.0.0.1, then, where there is an IPv6, all on ::1.
func listenPorts(ports []int) (files []*os.File, v6 bool, err error) {
	fail := func(err error) ([]*os.File, bool, error) {
		for _, f := range files {
			f.Close()
		}
		return nil, false, err
	}
	for _, a := range loopbacks {
		for i, port := range ports {
			f, err := listen(netip.AddrPortFrom(a, uint16(port)))
			if a.Is6() && i == 0 && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
				return files, false, nil
			}
			if err != nil {
				return fail(fmt.Errorf("listening for the host's port %d: %w", port, err))
			}
			files = append(files, f)
		}
	}
	return files, len(ports) > 0, nil
}

func sockaddr(at netip.AddrPort) (domain int, sa unix.Sockaddr) {
	if at.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func listen(at netip.AddrPort) (*os.File, error) {
	domain, sa := sockaddr(at)
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil && domain == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err == nil {
		err = unix.Listen(fd, 4096)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%v: %w", at, err)
	}
	return f, nil
}

// dial connects to a port of the sandbox's own loopback and hands the
// connection out. It runs as pid 1 but touches no process: nothing that listens
// inside can tell it from any other client.
func (s *supervisor) dial(r dialRequest) {
	var err error
	for _, a := range loopbacks {
		var f *os.File
		if f, err = connect(netip.AddrPortFrom(a, uint16(r.Port))); err == nil {
			s.report(report{Kind: kindDialed, ID: r.ID}, f)
			f.Close()
			return
		}
	}
	s.report(report{Kind: kindClosed, ID: r.ID, Error: err.Error()})
}

func connect(to netip.AddrPort) (*os.File, error) {
	domain, sa := sockaddr(to)
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "connection")
	if err = unix.Connect(fd, sa); errors.Is(err, unix.EINPROGRESS) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, perr := unix.Poll(poll, int(dialTimeout.Milliseconds()))
		if err = perr; err == nil && n == 0 {
			err = unix.ETIMEDOUT
		}
		if err == nil {
			var code int
			if code, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && code != 0 {
				err = unix.Errno(code)
			}
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%v: %w", to, err)
	}
	return f, nil
}

type dialed struct {
	conn net.Conn
	err  error
}

// listeners checks and keeps what came with the ready report.
func (c *Client) listeners(files []*os.File, s Setup) error {
	if s.RelayPort != 0 {
		if err := checkListener(files[0], netip.AddrPortFrom(loopbacks[0], uint16(s.RelayPort))); err != nil {
			return err
		}
		c.listener, files = files[0], files[1:]
	}
	for i, f := range files { // judge has counted them: all ports, or all of them twice
		port := s.Ports[i%len(s.Ports)]
		if err := checkListener(f, netip.AddrPortFrom(loopbacks[i/len(s.Ports)], uint16(port))); err != nil {
			return err
		}
	}
	for i, f := range files {
		c.ports = append(c.ports, sandbox.Listener{Port: s.Ports[i%len(s.Ports)], File: f})
	}
	return nil
}

// Dial connects to a port of the sandbox's own loopback. What answers there is
// the sandbox's: hostile.
func (c *Client) Dial(ctx context.Context, port int) (net.Conn, error) {
	answer := make(chan dialed, 1)
	c.mu.Lock()
	if c.dials == nil || !c.x.ready {
		c.mu.Unlock()
		return nil, sandbox.ErrGone
	}
	c.next++
	id := c.next
	c.dials[id], c.x.dials[id] = answer, true
	c.mu.Unlock()
	if c.foreign {
		return c.dialForeign(ctx, id, port, answer)
	}
	if err := c.conn.Send(time.Now().Add(sendTimeout), request{Dial: &dialRequest{id, port}}); err != nil {
		c.conn.Close() // half a message is no message
		return nil, sandbox.ErrGone
	}
	select {
	case d, ok := <-answer:
		if !ok {
			return nil, sandbox.ErrGone
		}
		return d.conn, d.err
	case <-ctx.Done():
		go func() {
			if d, ok := <-answer; ok && d.conn != nil {
				d.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

func (c *Client) takeDial(r report, files []*os.File) error {
	answer := c.dials[r.ID]
	delete(c.dials, r.ID)
	if r.Kind == kindClosed {
		answer <- dialed{err: errors.New(clean(r.Error))}
		return nil
	}
	if c.foreign {
		answer <- dialed{}
		return nil
	}
	defer files[0].Close()
	conn, err := checkConnection(files[0])
	if err != nil && !errors.Is(err, unix.ENOTCONN) {
		close(answer)
		return fmt.Errorf("the sandbox broke the protocol: %w", err)
	}
	answer <- dialed{conn, err}
	return nil
}

// checkConnection accepts a TCP connection between two loopback addresses only.
// The error is ENOTCONN if the other end has reset it since.
func checkConnection(f *os.File) (net.Conn, error) {
	bad := errors.New("the connection is not one")
	err := control(f, func(fd int) error {
		if proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || proto != unix.IPPROTO_TCP {
			return bad
		}
		if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on != 0 {
			return bad
		}
		here, err := unix.Getsockname(fd)
		there, err2 := unix.Getpeername(fd)
		if err == nil && err2 == unix.ENOTCONN {
			return err2
		}
		if err != nil || err2 != nil || !addrPort(here).Addr().IsLoopback() || !addrPort(there).Addr().IsLoopback() {
			return bad
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return net.FileConn(f)
}
