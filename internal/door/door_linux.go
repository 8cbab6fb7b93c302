package door

import (
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listener makes a net.Listener of what a sandbox listens with: a listening
// socket, or the inner side of a door. The file stays the caller's.
func Listener(f *os.File) (net.Listener, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	kind := 0
	var kerr error
	if err := raw.Control(func(fd uintptr) { kind, kerr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE) }); err != nil {
		return nil, err
	}
	if kerr != nil {
		return nil, kerr
	}
	if kind != unix.SOCK_SEQPACKET {
		return net.FileListener(f)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("a door that is no Unix socket")
	}
	return &door{UnixConn: uc}, nil
}

// Pair makes a door: connections knock at one side and come out at the other.
func Pair() (outer, inner *os.File, err error) { return pair(unix.SOCK_SEQPACKET) }

// Streams makes the two ends of a connection, to pass one through a door.
func Streams() (a, b *os.File, err error) { return pair(unix.SOCK_STREAM) }

func pair(kind int) (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket"), nil
}

// Knock passes a connection through a door. It does not wait: where nobody takes
// them, a connection more is an error.
func Knock(outer, conn *os.File) error {
	raw, err := outer.SyscallConn()
	if err != nil {
		return err
	}
	rc, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		err := rc.Control(func(n uintptr) {
			serr = unix.Sendmsg(int(fd), make([]byte, message), unix.UnixRights(int(n)), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		})
		if err != nil {
			serr = err
		}
	})
	if err != nil {
		return err
	}
	return serr
}

// door is a net.Listener whose connections arrive as descriptors.
type door struct {
	*net.UnixConn
	once sync.Once
}

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	buf, oob := make([]byte, message), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := d.ReadMsgUnix(buf, oob)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, net.ErrClosed // the controller or the sandbox is gone
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(msgs) != 1 {
			continue
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil || len(fds) != 1 {
			continue
		}
		syscall.CloseOnExec(fds[0])
		f := os.NewFile(uintptr(fds[0]), "connection")
		conn, err := net.FileConn(f)
		f.Close()
		if err == nil {
			return conn, nil
		}
	}
}

// Close implements net.Listener.
func (d *door) Close() (err error) {
	d.once.Do(func() { err = d.UnixConn.Close() })
	return err
}

// Addr implements net.Listener.
func (d *door) Addr() net.Addr { return d.UnixConn.LocalAddr() }
