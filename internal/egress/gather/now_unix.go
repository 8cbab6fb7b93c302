//go:build unix

package gather

import (
	"io"
	"syscall"
)

// readNow reads a socket once.
func readNow(raw syscall.RawConn, p []byte) (n int, err error) {
	rerr := raw.Read(func(fd uintptr) bool {
		for {
			if n, err = syscall.Read(int(fd), p); err != syscall.EINTR {
				return true
			}
		}
	})
	switch {
	case rerr != nil:
		return 0, rerr
	case err != nil || n < 0:
		return 0, ErrWait // a broken one too: the next Read will tell
	case n == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return n, nil
}
