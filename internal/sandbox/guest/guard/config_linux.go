package guard

import (
	"io"
	"os"
	"path"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/guard/rules"
	"golang.org/x/sys/unix"
)

// settleConfig makes the content of one file, if it is found harmless, that of a
// git configuration. What git then reads is a copy: whoever wrote the original
// may still have it open. The caller holds mu alone.
func (t *task) settleConfig(from, to place) verdict {
	text, mode, err := readAt(from.dir, from.name)
	if err != nil {
		return result(err)
	}
	var before []byte
	if was, ok := t.g.first.Load(to.full()); ok {
		before = was.([]byte)
	} else if from.full() != to.full() {
		switch now, _, err := readAt(to.dir, to.name); err {
		case nil:
			before = now
		case unix.ENOENT:
		default:
			return result(err)
		}
	}
	if err := rules.CheckConfig(text, before, t.insideOf(to)); err != nil {
		return t.refuse(to.full(), err.Error())
	}
	t.g.first.LoadOrStore(to.full(), before)
	if v := t.g.past.before(t, to, true); v.errno != 0 {
		return v
	}
	// A copy that a killed sandbox leaves behind has the name that a killed git
	// leaves behind.
	if err := unix.Unlinkat(from.dir, from.name, 0); err != nil {
		return result(err)
	}
	fd, err := unix.Openat(from.dir, from.name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return result(err)
	}
	f := os.NewFile(uintptr(fd), from.name)
	_, err = f.Write(text)
	if err == nil {
		err = f.Chmod(os.FileMode(mode & 0o777))
	}
	t.g.past.created(fd)
	f.Close()
	if err != nil {
		_ = unix.Unlinkat(from.dir, from.name, 0)
		return failed(unix.ENOSPC)
	}
	if from.full() == to.full() {
		return done()
	}
	fresh := !existsAt(to.dir, to.name)
	if err := unix.Renameat(from.dir, from.name, to.dir, to.name); err != nil {
		return result(err)
	}
	if fresh {
		t.g.past.begins(t, to)
	}
	return done()
}

// readAt reads a regular file, and nothing else, whole.
func readAt(dir int, name string) ([]byte, uint32, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, 0, unix.EPERM
	}
	text, err := io.ReadAll(io.LimitReader(f, rules.ConfigLimit+1))
	if text == nil {
		text = []byte{}
	}
	return text, st.Mode, err
}

// insideOf judges core.worktree: the folder that a checkout writes to must lie
// in the writable folder of its repository, and no link may lead it out.
func (t *task) insideOf(config place) func(string) bool {
	return func(to string) bool {
		f, _ := t.g.folder(config.path)
		if f == nil || to == "" {
			return false
		}
		at := to
		if !path.IsAbs(at) {
			at = path.Join(config.path, to)
		}
		at = path.Clean(at)
		rest, ok := strings.CutPrefix(at, strings.TrimSuffix(f.root, "/")+"/")
		if !ok {
			return false
		}
		dir := f.disk
		for part := range strings.SplitSeq(rest, "/") {
			dir += "/" + part
			var st unix.Stat_t
			if unix.Lstat(dir, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
				return false
			}
		}
		return true
	}
}
