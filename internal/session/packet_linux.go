package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
)

type request struct {
	Op         string   `json:"op"` // info, stop, revoke, publish, exec; then within exec: signal, line, modes
	Argv       []string `json:"argv,omitempty"`
	Terminal   bool     `json:"terminal,omitempty"`
	Term       string   `json:"term,omitempty"`
	Rows, Cols uint16   `json:",omitempty"`
	Stdio      [3]bool  `json:"stdio,omitempty"` // which descriptors follow
	Signal     int      `json:"signal,omitempty"`
	Host       int      `json:"host,omitempty"`   // publish: the port of this host
	Inside     int      `json:"inside,omitempty"` // and the one inside
	// line: sets Rows and Cols, or these settings of the terminal.
	Modes *sandbox.Modes `json:"modes,omitempty"`
}

type reply struct {
	Kind     string `json:"kind"` // info, done, error, started, stopped, modes, exit
	Info     *Info  `json:"info,omitempty"`
	Message  string `json:"message,omitempty"`
	Code     int    `json:"code,omitempty"` // exit: the command's; error: for the caller to exit with
	Terminal bool   `json:"terminal,omitempty"`
	// Line, with started: the terminal is a socket, its settings are asked for
	// by line and modes.
	Line  bool           `json:"line,omitempty"`
	Modes *sandbox.Modes `json:"modes,omitempty"`
}

// packetConn is one end of a control connection.
type packetConn struct{ f *os.File }

func newPacketConn(fd int) *packetConn {
	return &packetConn{os.NewFile(uintptr(fd), "control")}
}

func (c *packetConn) Close() error { return c.f.Close() }

func (c *packetConn) send(v any, files ...*os.File) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxPacket {
		return fmt.Errorf("control message of %d bytes is too long (%d at most)", len(b), maxPacket)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	return c.raw(func(fd int) error {
		return unix.Sendmsg(fd, b, oob, nil, unix.MSG_NOSIGNAL)
	}, true)
}

var errClosed = errors.New("the other side is gone")

func (c *packetConn) receive(v any) ([]*os.File, error) {
	buf, oob := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4*4))
	var n, oobn, flags int
	err := c.raw(func(fd int) (err error) {
		n, oobn, flags, _, err = unix.Recvmsg(fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
		return err
	}, false)
	if err != nil {
		return nil, err
	}
	files := rightsOf(oob[:oobn])
	switch {
	case n == 0:
		err = errClosed
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("control message is too long")
	default:
		err = json.Unmarshal(buf[:n], v)
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

func (c *packetConn) raw(op func(fd int) error, write bool) error {
	rc, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	var operr error
	try := func(fd uintptr) bool {
		operr = op(int(fd))
		return !errors.Is(operr, syscall.EAGAIN)
	}
	if write {
		err = rc.Write(try)
	} else {
		err = rc.Read(try)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("it does not answer (is its controller stopped?)")
	}
	if err != nil {
		return err
	}
	return operr
}

func rightsOf(oob []byte) (files []*os.File) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
