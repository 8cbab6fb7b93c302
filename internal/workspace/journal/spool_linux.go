package journal

import (
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/spool"
)

// maxSpool bounds a spool, in bytes, beside a quarter of the budget.
const maxSpool = 256 << 20

// Spool makes the file to which the guard of the session's sandbox appends what
// small files were (package spool), and returns it for writing, with how many
// bytes it may get: they are taken from the budget. A journal has one spool;
// for a second one the error is fs.ErrExist. What is in it comes before all that
// the journal is told afterwards.
func (j *Journal) Spool() (f *os.File, limit int64, err error) {
	j.draining.Lock()
	defer j.draining.Unlock()
	const how = unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(int(j.dir.Fd()), spoolFile, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|how, 0o600)
	if err != nil {
		return nil, 0, err
	}
	f = os.NewFile(uintptr(fd), spoolFile)
	if err := j.openSpool(); err != nil {
		f.Close()
		return nil, 0, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	limit = max(0, min(maxSpool, (j.meta.Budget-j.stored)/4))
	j.reserved = limit
	return f, limit, nil
}

func (j *Journal) openSpool() error {
	fd, err := unix.Openat(int(j.dir.Fd()), spoolFile, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		j.spool = os.NewFile(uintptr(fd), spoolFile)
	}
	return err
}

// drain takes in what was spooled since the last time. It ends at what is not
// whole: that is being written, or will never be, and its file did not change.
func (j *Journal) drain() error {
	j.draining.Lock()
	defer j.draining.Unlock()
	if j.spool == nil {
		return nil
	}
	buf := make([]byte, 4*spool.MaxRecord)
	for at := j.drained; ; j.drained = at {
		n, err := j.spool.ReadAt(buf, at)
		if err != nil && err != io.EOF {
			return err
		}
		used := 0
		for {
			r, length, err := spool.Parse(buf[used:n])
			if err != nil {
				break
			}
			used += length
			if err := j.takeRecord(&r, at+int64(used)); err != nil {
				return err
			}
		}
		if used == 0 {
			return nil
		}
		at += int64(used)
	}
}

// takeRecord makes a version of a record that ends at that byte of the spool. One
// for a path that can't be, or that has a version, says nothing.
func (j *Journal) takeRecord(r *spool.Record, end int64) error {
	size := int64(len(r.Content))
	_, err := j.keep(r.Path, false, false, func() (Version, error) {
		v := Version{Path: r.Path, Kept: true, Time: time.Unix(0, r.Time), spool: end - size + 1, stored: size, sum: crc32.Checksum(r.Content, castagnoli),
			State: State{Kind: File, Size: size, Mode: r.Mode, Mtime: r.Mtime, Inode: r.Inode, UID: r.UID, GID: r.GID}}
		j.mu.Lock()
		defer j.mu.Unlock()
		j.stored += size
		j.reserved -= size
		return v, nil
	})
	if errors.Is(err, errBadPath) {
		return nil
	}
	return err
}
