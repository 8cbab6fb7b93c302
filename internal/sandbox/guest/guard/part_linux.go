package guard

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// shared reports whether a file has names that the session did not make, beside the
// one that it was found by. They may lie outside: in a package manager's store, in a
// backup.
func (p *past) shared(st *unix.Statx_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink > 1 && !p.ours(st)
}

// ours reports whether all names of a file are the session's doing.
func (p *past) ours(st *unix.Statx_t) bool {
	id := identify(st)
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, outer := p.outside[id]; outer {
		return false
	}
	_, made := p.made[id]
	_, alone := p.alone[id]
	return made || alone
}

// links notes that a file which had one name gets another one of the session's.
func (p *past) links(fd int) {
	if st, err := look(fd, ""); err == nil && st.Nlink == 1 {
		p.mu.Lock()
		p.alone[identify(st)] = struct{}{}
		p.mu.Unlock()
	}
}

const hasOthers = "it has other names (hard links), maybe outside"

// part gives a name a file of its own before that is written to, if other names lead
// to the same one: what was opened by a path changes what is at that path and
// nothing else, as in a staged workspace. Beside a foreign kernel the write is refused.
func (t *task) part(at place) verdict {
	if f, _ := t.g.folder(at.path); f == nil || at.isFolderItself() {
		return done()
	}
	st, err := look(at.dir, at.name)
	if err != nil || !t.g.past.shared(st) || unix.Faccessat(at.dir, at.name, unix.W_OK, 0) != nil {
		return done()
	}
	if t.g.base != "" { // a foreign kernel would go on taking both names for one file
		return t.refuse(at.full(), hasOthers+"; put a copy in its place first: cp -p F F.new && mv F.new F")
	}
	t.g.parting.Lock()
	defer t.g.parting.Unlock()
	if st, err = look(at.dir, at.name); err != nil || !t.g.past.shared(st) {
		return done()
	}
	if err := t.g.past.copyOver(at.dir, at.name); err != nil {
		return t.refuse(at.full(), hasOthers+", and no copy of its own can be made: "+err.Error())
	}
	return done()
}

// copyOver puts a copy of a file in its place.
func (p *past) copyOver(dir int, name string) error {
	from, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(from), name)
	defer src.Close()
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if st.Uid != p.uid || st.Gid != p.gid {
		return fmt.Errorf("it belongs to somebody else")
	}
	to, err := unix.Openat(dir, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(to), name)
	defer dst.Close()
	if unix.IoctlFileClone(to, from) != nil {
		if err := copyData(to, from, st.Size); err != nil {
			return err
		}
	}
	if err := copyAttributes(to, from); err != nil {
		return err
	}
	if err := unix.Fchmod(to, st.Mode&0o1777); err != nil {
		return err
	}
	handle := "/proc/self/fd/" + strconv.Itoa(to)
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, handle, []unix.Timespec{st.Atim, st.Mtim}, 0); err != nil {
		return err
	}
	// There is no call that gives a file without a name that of another one.
	tmp := fmt.Sprintf(".bulkhead-%d-%d", st.Dev, st.Ino)
	if err := unix.Linkat(unix.AT_FDCWD, handle, dir, tmp, unix.AT_SYMLINK_FOLLOW); err != nil {
		return err
	}
	if err := unix.Renameat(dir, tmp, dir, name); err != nil {
		_ = unix.Unlinkat(dir, tmp, 0)
		return err
	}
	return nil
}

// copyData copies what is no hole.
func copyData(to, from int, size int64) error {
	if err := unix.Ftruncate(to, size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		begin, err := unix.Seek(from, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		end := size
		if err != nil {
			begin = at
		} else if end, err = unix.Seek(from, begin, unix.SEEK_HOLE); err != nil {
			return err
		}
		for r, w := begin, begin; r < end; {
			n, err := unix.CopyFileRange(from, &r, to, &w, int(min(end-r, 1<<30)), 0)
			if err != nil {
				return err
			}
			if n == 0 { // it got shorter
				return nil
			}
		}
		at = end
	}
	return nil
}

const aclAttribute = "system.posix_acl_access"

// copyAttributes copies what can be. Without its access control list a file would be
// open to its group as far as to anybody in that list.
func copyAttributes(to, from int) error {
	buf := make([]byte, 64<<10)
	n, err := unix.Flistxattr(from, buf)
	if err != nil {
		return nil // this filesystem has none
	}
	value := make([]byte, 64<<10)
	for _, name := range bytes.Split(bytes.TrimRight(buf[:n], "\x00"), []byte{0}) {
		m, err := unix.Fgetxattr(from, string(name), value)
		if err == nil {
			err = unix.Fsetxattr(to, string(name), value[:m], 0)
		}
		if err != nil && string(name) == aclAttribute {
			return fmt.Errorf("its access control list names others: %w", err)
		}
	}
	return nil
}
