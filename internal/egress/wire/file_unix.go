//go:build unix

package wire

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// fileReader reads a stream and keeps the descriptors that come along.
type fileReader struct {
	conn *net.UnixConn
	oob  [32]byte

	mu    sync.Mutex
	files []*os.File
}

func (r *fileReader) Read(p []byte) (int, error) {
	n, oobn, _, _, err := r.conn.ReadMsgUnix(p, r.oob[:])
	if oobn > 0 {
		if perr := r.keep(r.oob[:oobn]); perr != nil {
			return 0, perr
		}
	}
	if err != nil {
		return 0, err
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (r *fileReader) keep(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			r.files = append(r.files, os.NewFile(uintptr(fd), "link"))
		}
	}
	return nil
}

func (r *fileReader) take() *os.File {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.files) == 0 {
		return nil
	}
	f := r.files[0]
	r.files = r.files[1:]
	return f
}

// writeWithFile sends the first bytes together with the descriptor and the
// rest after them.
func writeWithFile(u *net.UnixConn, b []byte, file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	n := 0
	var sent error
	// Control and not Fd: Fd would make the descriptor blocking.
	if err := raw.Control(func(fd uintptr) {
		n, _, sent = u.WriteMsgUnix(b, unix.UnixRights(int(fd)), nil)
	}); err != nil {
		return err
	}
	if sent != nil {
		return sent
	}
	if n < len(b) {
		_, err = u.Write(b[n:])
	}
	return err
}
