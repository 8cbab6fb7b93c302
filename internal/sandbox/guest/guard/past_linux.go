package guard

import (
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// past knows what was in the guarded folders before the session: everything but
// what the session made.
type past struct {
	mu   sync.Mutex
	made map[inode]struct{} // of the session
	kept map[string]bool    // paths that have a version
	// Files that were there: with a second name that the session made, and with others
	// that it did not make, under a new name.
	alone, outside map[inode]struct{}

	uid, gid uint32 // of the guard
	outer    owner  // what these are outside
}

type owner struct{ uid, gid uint32 }

// inode is a file for as long as the machine runs: its number can be given to
// another one, which is then born later.
type inode struct {
	dev, ino uint64
	born     int64
}

func identify(st *unix.Statx_t) inode {
	return inode{dev: uint64(st.Dev_major)<<32 | uint64(st.Dev_minor), ino: st.Ino, born: st.Btime.Sec*1e9 + int64(st.Btime.Nsec)}
}

const wanted = unix.STATX_TYPE | unix.STATX_INO | unix.STATX_BTIME | unix.STATX_NLINK | unix.STATX_MODE

func look(dir int, name string) (*unix.Statx_t, error) {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_STATX_DONT_SYNC
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	err := unix.Statx(dir, name, flags, wanted, &st)
	return &st, err
}

// created notes what the session made, by its open handle.
func (p *past) created(fd int) {
	st, err := look(fd, "")
	if err == nil {
		p.mu.Lock()
		p.made[identify(st)] = struct{}{}
		p.mu.Unlock()
	}
}

// createdAt notes it by its name.
func (p *past) createdAt(at place) {
	st, err := look(at.dir, at.name)
	if err == nil {
		p.mu.Lock()
		p.made[identify(st)] = struct{}{}
		p.mu.Unlock()
	}
}

// begins tells the host of a name where there was none. What lies in a folder of
// the session's own is part of that.
func (p *past) begins(t *task, at place) {
	f, _ := t.g.folder(at.path)
	if f == nil || !f.Versions || at.isFolderItself() {
		return
	}
	if st, err := look(at.dir, ""); err == nil && !p.isMade(st) && !p.hasVersion(at.full()) {
		t.g.host.Made(at.full())
	}
}

func (p *past) isMade(st *unix.Statx_t) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.made[identify(st)]
	return ok
}

func (p *past) hasVersion(path string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kept[path]
}

func (p *past) keeps(path string) {
	p.mu.Lock()
	p.kept[path] = true
	p.mu.Unlock()
}

func (p *past) forget(st *unix.Statx_t) {
	p.mu.Lock()
	delete(p.made, identify(st))
	delete(p.alone, identify(st))
	p.mu.Unlock()
}

// before has a version kept of what is at a place, if it is not the session's
// own. again says that the place is about to get other content altogether.
func (p *past) before(t *task, at place, again bool) verdict { return p.keep(t, at, again, false) }

// beforeMove is before for what goes with all that is in it.
func (p *past) beforeMove(t *task, at place) verdict { return p.keep(t, at, false, true) }

func (p *past) keep(t *task, at place, again, moves bool) verdict {
	f, _ := t.g.folder(at.path)
	if f == nil || !f.Versions || at.isFolderItself() {
		return done()
	}
	st, err := look(at.dir, at.name)
	if err != nil {
		return done() // nothing is there; if it is something else, the call itself will say so
	}
	full := at.full()
	folder := st.Mode&unix.S_IFMT == unix.S_IFDIR
	known := p.hasVersion(full) && !(folder && moves)
	if known && !(again && f.NoDelete && st.Mode&unix.S_IFMT == unix.S_IFREG) {
		return done()
	}
	if !known && p.isMade(st) {
		return done()
	}
	if !known && !folder && p.add(f.spool, at, full, full[len(strings.TrimSuffix(f.root, "/"))+1:]) {
		return done()
	}
	given, err := t.g.host.Keep(full, known, folder && moves)
	if given != nil {
		f.spool.use(given)
	}
	if err != nil {
		if f.NoDelete && !known {
			return t.refuse(full, "no version of it can be kept: "+err.Error())
		}
		return done() // said by the host
	}
	p.keeps(full)
	return done()
}

// mayGo says why the name at a place must stay. A file may go, since a version of
// it is safe by then and the host brings it back; a folder has none.
func (p *past) mayGo(t *task, at place) (reason string) {
	f, _ := t.g.folder(at.path)
	if f == nil || !f.NoDelete {
		return ""
	}
	st, err := look(at.dir, at.name)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || p.isMade(st) {
		return ""
	}
	return "in this workspace (rw-no-delete) no folder that was there is removed"
}

// move notes that a file has a version under the name that it leaves: under the
// new one it may go.
func (p *past) move(st *unix.Statx_t) {
	shared := p.shared(st)
	p.mu.Lock()
	p.made[identify(st)] = struct{}{}
	if shared {
		p.outside[identify(st)] = struct{}{}
	}
	p.mu.Unlock()
}
