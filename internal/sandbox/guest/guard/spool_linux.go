package guard

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/spool"
)

// spooled is the spool of one folder.
type spooled struct {
	mu    sync.Mutex
	given bool
	file  *os.File // nil: not given yet, or broken
	at    int64
	limit int64
	buf   []byte
}

func (s *spooled) use(given *Spool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.given {
		given.File.Close()
		return
	}
	s.given, s.file, s.limit = true, given.File, given.Limit
}

// add spools what a small file of the user's own is, and reports whether that is
// done. What it does not take, the host does.
func (p *past) add(s *spooled, at place, full, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return false
	}
	if p.hasVersion(full) {
		return true
	}
	fd, err := unix.Openat(at.dir, at.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	// The numbers of other users are not the same outside.
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > spool.MaxContent ||
		st.Uid != p.uid || st.Gid != p.gid || len(name) > spool.MaxPath {
		return false
	}
	b := spool.Begin(s.buf, &spool.Record{
		Path: name, Mode: st.Mode & 0o7777, UID: p.outer.uid, GID: p.outer.gid, Mtime: st.Mtim.Nano(), Inode: st.Ino, Time: time.Now().UnixNano(),
	})
	s.buf = b
	content := 0
	for {
		room := b[len(b) : len(b)+min(spool.MaxContent-content+1, cap(b)-len(b))]
		if len(room) == 0 {
			return false // it grows
		}
		n, err := unix.Read(fd, room)
		if err != nil {
			return false
		}
		if n == 0 {
			break
		}
		b, content = b[:len(b)+n], content+n
	}
	if content > spool.MaxContent || s.at+int64(len(b)) > s.limit {
		return false
	}
	spool.End(b, content)
	if n, err := unix.Pwrite(int(s.file.Fd()), b, s.at); err != nil || n < len(b) {
		// Never again: what is torn must stay the end.
		s.file.Close()
		s.file = nil
		return false
	}
	s.at += int64(len(b))
	p.keeps(full)
	return true
}
