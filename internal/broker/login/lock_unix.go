//go:build unix

package login

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"
)

// lockFolder takes the lock that Bulkhead's own sessions take: the folder
// itself (flock(2)), so that nothing is left behind, and that a killed holder's
// lock is gone with it.
func lockFolder(ctx context.Context, dir string) (release func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, errLocked
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// likeOriginal gives a new file the owner of the old one.
func likeOriginal(f *os.File, old os.FileInfo) error {
	st, ok := old.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) == os.Geteuid() && int(st.Gid) == os.Getegid() {
		return nil
	}
	return f.Chown(int(st.Uid), int(st.Gid))
}
