package frame

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is one end. Send and Receive may be called at the same time; each is
// serialised.
type Conn struct {
	c       *net.UnixConn
	writing sync.Mutex
	reading sync.Mutex
}

// Pair makes a connection: one end to keep, one to give to a child.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("control socket: %w", err)
	}
	c, err := New(os.NewFile(uintptr(fds[0]), "control socket"))
	if err != nil {
		unix.Close(fds[1])
		return nil, nil, err
	}
	return c, os.NewFile(uintptr(fds[1]), "control socket"), nil
}

// New makes a Conn of an inherited socket, which it takes over.
func New(f *os.File) (*Conn, error) {
	defer f.Close()
	nc, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	c, ok := nc.(*net.UnixConn)
	if !ok {
		nc.Close()
		return nil, fmt.Errorf("control socket: not a Unix socket")
	}
	return &Conn{c: c}, nil
}

// Close closes the connection; the other end sees its end.
func (c *Conn) Close() error { return c.c.Close() }

// Send sends one message. If it does not get through by the deadline (zero:
// none), the connection is of no use any more.
func (c *Conn) Send(deadline time.Time, v any, files ...*os.File) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("message: %w", err)
	}
	if len(payload) > MaxPayload {
		return fmt.Errorf("message of %d bytes, at most %d are allowed", len(payload), MaxPayload)
	}
	if len(files) > MaxFiles {
		return fmt.Errorf("message with %d descriptors, at most %d are allowed", len(files), MaxFiles)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			rc, err := f.SyscallConn()
			if err != nil {
				return fmt.Errorf("message: %w", err)
			}
			// Not Fd(), which would make the file blocking.
			if err := rc.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
				return fmt.Errorf("message: %w", err)
			}
		}
		rights = unix.UnixRights(fds...)
	}
	h := header(len(payload), len(files))
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.c.SetWriteDeadline(deadline); err != nil {
		return err
	}
	msg := append(h[:], payload...)
	n, _, err := c.c.WriteMsgUnix(msg, rights, nil)
	if err != nil {
		return err
	}
	if n < len(msg) {
		_, err = c.c.Write(msg[n:])
	}
	runtime.KeepAlive(files)
	return err
}

// Receive reads one message into v and returns its descriptors, close-on-exec,
// which the caller owns. io.EOF means that the other side closed.
func (c *Conn) Receive(v any, maxPayload, maxFiles int) ([]*os.File, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	var h [headerSize]byte
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	if maxFiles == 0 {
		oob = nil
	}
	n, oobn, flags, _, err := c.c.ReadMsgUnix(h[:], oob)
	if errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	if err != nil {
		return nil, err
	}
	files, err := rights(oob[:oobn])
	ok := false
	defer func() {
		if !ok {
			for _, f := range files {
				f.Close()
			}
		}
	}()
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return nil, fmt.Errorf("message with more than %d descriptors", maxFiles)
	}
	// Plain reads drop descriptors that come elsewhere than with a header.
	if _, err := io.ReadFull(c.c, h[n:]); err != nil {
		return nil, fmt.Errorf("message header: %w", err)
	}
	size, count, err := parseHeader(h, maxPayload, maxFiles)
	if err != nil {
		return nil, err
	}
	if count != len(files) {
		return nil, fmt.Errorf("message announces %d descriptors and has %d", count, len(files))
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(c.c, payload); err != nil {
		return nil, fmt.Errorf("message: %w", err)
	}
	if err := Decode(payload, v); err != nil {
		return nil, err
	}
	ok = true
	return files, nil
}

// rights takes the descriptors out of control messages; on an error the ones
// already taken are returned too.
func rights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return files, fmt.Errorf("control message: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// CloseWrite lets the other end see the end of what this one says, and goes on
// receiving.
func (c *Conn) CloseWrite() error { return c.c.CloseWrite() }
