package guard

import (
	"encoding/binary"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// open opens a file for writing, or makes it.
func (t *task) open(dirfd, arg, flags int, mode uint64) verdict {
	const tmpfile = unix.O_TMPFILE &^ unix.O_DIRECTORY
	flags &^= unix.O_ASYNC
	if h, errno := t.again(dirfd, arg); errno != 0 {
		return failed(errno)
	} else if h >= 0 {
		return t.openHandle(h, flags)
	}
	p, errno := t.lookup(dirfd, arg)
	if errno != 0 {
		return failed(errno)
	}
	if flags&tmpfile != 0 {
		return t.openNameless(p, flags, mode)
	}
	if p.slash && flags&unix.O_CREAT != 0 {
		return failed(unix.EISDIR)
	}
	follow := flags&unix.O_NOFOLLOW == 0 && flags&(unix.O_CREAT|unix.O_EXCL) != unix.O_CREAT|unix.O_EXCL
	for range maxLinks {
		if p.isFolderItself() || p.slash {
			return t.openFolder(p, flags)
		}
		v := t.openAt(p, flags, mode)
		if v.errno != unix.ELOOP || !follow {
			return v
		}
		if isMagic(p.dir, p.name, p.path) {
			return t.openMagic(p, flags)
		}
		target, errno := readLink(p.dir, p.name)
		if errno == unix.EINVAL {
			continue // no link any more
		}
		if errno != 0 {
			return failed(errno)
		}
		start := p.dir
		if strings.HasPrefix(target, "/") {
			start = unix.AT_FDCWD
		}
		if p, errno = t.find(start, target); errno != 0 {
			return failed(errno)
		}
		if p.slash && flags&unix.O_CREAT != 0 {
			return failed(unix.EISDIR)
		}
	}
	return failed(unix.ELOOP)
}

// openAt opens a name that is no link.
func (t *task) openAt(p place, flags int, mode uint64) verdict {
	g := t.g
	if p.path == "/dev" && p.name == "tty" {
		name, errno := t.terminal()
		if errno != 0 {
			return failed(errno)
		}
		return t.hand(unix.AT_FDCWD, name, flags&^unix.O_CREAT|unix.O_NOCTTY, 0, flags)
	}
	create := flags&unix.O_CREAT != 0
	if create && makesGit(p.name) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if reason := t.becomesGit(p); reason != "" {
			return t.refuse(p.full(), reason)
		}
	} else {
		g.mu.RLock()
		defer g.mu.RUnlock()
	}
	if reason := g.forbidden(p, aFile); reason != "" {
		return t.refuse(p.full(), reason)
	}
	f, _ := g.folder(p.path)
	if f == nil {
		return t.hand(p.dir, p.name, flags|unix.O_NOFOLLOW|unix.O_NOCTTY, uint32(mode&0o7777), flags)
	}
	mode &^= otherUsers
	var v verdict
	if f.Versions {
		v = t.openKept(p, flags, uint32(mode&0o7777))
	} else if v = t.part(p); v.errno == 0 {
		v = t.hand(p.dir, p.name, flags|unix.O_NOFOLLOW|unix.O_NOCTTY, uint32(mode&0o7777), flags)
	}
	if v.errno == 0 {
		g.host.Opened(p.full())
	}
	return v
}

// openKept opens where versions are kept: either a file that it makes itself, or
// one of which a version is safe.
func (t *task) openKept(p place, flags int, mode uint32) verdict {
	const tries = 16 // somebody outside makes and removes the name all the time
	for range tries {
		if flags&unix.O_CREAT != 0 {
			v := t.hand(p.dir, p.name, flags|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_NOCTTY, mode, flags)
			if v.errno == 0 && v.fd >= 0 {
				t.g.past.created(v.fd)
				t.g.past.begins(t, p)
			}
			if v.errno != unix.EEXIST || flags&unix.O_EXCL != 0 {
				return v
			}
		}
		var st unix.Stat_t
		if err := unix.Fstatat(p.dir, p.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if err == unix.ENOENT && flags&unix.O_CREAT != 0 {
				continue
			}
			return result(err)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			return failed(unix.ELOOP)
		case unix.S_IFREG:
			if v := t.g.past.before(t, p, flags&unix.O_TRUNC != 0); v.errno != 0 {
				return v
			}
			if v := t.part(p); v.errno != 0 {
				return v
			}
		}
		v := t.hand(p.dir, p.name, flags&^(unix.O_CREAT|unix.O_EXCL)|unix.O_NOFOLLOW|unix.O_NOCTTY, 0, flags)
		if v.errno != unix.ENOENT || flags&unix.O_CREAT == 0 {
			return v
		}
	}
	return failed(unix.EAGAIN)
}

// hand opens a file and makes it the caller's. The guard never waits in an open:
// a FIFO without a reader is tried again by and by, beside other calls.
func (t *task) hand(dir int, name string, flags int, mode uint32, asked int) verdict {
	how := flags | unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := unix.Openat(dir, name, how, mode)
	if asked&unix.O_NONBLOCK == 0 {
		switch err {
		case nil:
			status := flags & (unix.O_APPEND | unix.O_DIRECT | unix.O_NOATIME)
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, status); err != nil {
				unix.Close(fd)
				return result(err)
			}
		case unix.ENXIO, unix.EWOULDBLOCK:
			if fifo := err == unix.EWOULDBLOCK || isFIFO(dir, name); fifo {
				return t.wait(dir, name, flags&^(unix.O_CREAT|unix.O_EXCL), asked)
			}
		}
	}
	if err != nil {
		return result(err)
	}
	return verdict{fd: fd, flags: asked}
}

func isFIFO(dir int, name string) bool {
	var st unix.Stat_t
	flags := unix.AT_SYMLINK_NOFOLLOW
	if dir == unix.AT_FDCWD {
		flags = 0
	}
	return unix.Fstatat(dir, name, &st, flags) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO
}

// wait opens a FIFO for writing when it has a reader.
func (t *task) wait(dir int, name string, flags, asked int) verdict {
	h, err := unix.Openat(dir, name, unix.O_PATH|unix.O_CLOEXEC|flags&unix.O_NOFOLLOW, 0)
	if err != nil {
		return result(err)
	}
	g, id := t.g, t.id
	go func() {
		defer unix.Close(h)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		before := undisturbed()
		defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) }()
		at := "/proc/self/fd/" + strconv.Itoa(h)
		for pause := time.Millisecond; g.alive(id); pause = min(2*pause, 50*time.Millisecond) {
			fd, err := unix.Open(at, flags&^unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err == unix.ENXIO || err == unix.EWOULDBLOCK {
				time.Sleep(pause)
				continue
			}
			if err != nil {
				g.reply(id, result(err))
				return
			}
			_ = unix.SetNonblock(fd, false)
			g.reply(id, verdict{fd: fd, flags: asked})
			return
		}
	}()
	return verdict{later: true, fd: -1}
}

// openFolder answers for a folder that is opened for writing: the kernel's word.
func (t *task) openFolder(p place, flags int) verdict {
	fd, errno := t.walkByStep(p.dir, p.at(), false)
	if errno != 0 {
		return failed(errno)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return result(err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return failed(unix.EISDIR)
	}
	return failed(unix.ENOTDIR)
}

// openNameless makes a file without a name in a folder; it can get one by link.
func (t *task) openNameless(p place, flags int, mode uint64) verdict {
	dir, errno := t.walkByStep(p.dir, p.at(), true)
	if errno != 0 {
		return failed(errno)
	}
	real, errno := t.g.realPath(dir)
	if errno != 0 {
		return failed(errno)
	}
	if errno := t.reachable(real); errno != 0 {
		return failed(errno)
	}
	f, _ := t.g.folder(real)
	if f != nil {
		mode &^= otherUsers
	}
	v := t.hand(dir, ".", flags&^unix.O_CREAT, uint32(mode&0o7777), flags)
	if v.fd >= 0 && f != nil && f.Versions {
		t.g.past.created(v.fd)
	}
	return v
}

// openMagic opens what a link of /proc, such as /dev/stdout, stands for.
func (t *task) openMagic(p place, flags int) verdict {
	h, err := unix.Openat(p.dir, p.name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return result(err)
	}
	return t.openHandle(t.own(h), flags)
}

// openHandle opens what a handle is open on for writing.
func (t *task) openHandle(h, flags int) verdict {
	t.g.mu.RLock()
	defer t.g.mu.RUnlock()
	p, v := t.judgeHandle(h, flags&unix.O_TRUNC != 0)
	if v.errno == 0 {
		h, v = t.partHandle(h, p)
	}
	if v.errno != 0 {
		return v
	}
	return t.hand(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(h), flags&^(unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW)|unix.O_NOCTTY, 0, flags)
}

// judgeHandle judges writing to what a handle is open on, by its real path. The place
// has a folder if that is in a guarded one.
func (t *task) judgeHandle(h int, again bool) (place, verdict) {
	none := place{dir: -1}
	real, errno := t.g.realPath(h)
	if errno != 0 {
		return none, failed(errno)
	}
	if errno := t.reachable(real); errno != 0 {
		return none, failed(errno)
	}
	if !strings.HasPrefix(real, "/") { // a pipe, a socket
		return none, done()
	}
	cut := strings.LastIndexByte(real, '/')
	p := place{dir: -1, path: real[:max(cut, 1)], name: real[cut+1:]}
	f, _ := t.g.folder(p.path)
	if f == nil {
		return none, done()
	}
	if reason := t.g.forbidden(p, aFile); reason != "" {
		return none, t.refuse(real, reason)
	}
	dir, err := unix.Open(t.g.base+p.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return p, done() // removed: it has no name that could lose something
	}
	p.dir = t.own(dir)
	if !f.Versions || !isAt(p, h) {
		return p, done()
	}
	return p, t.g.past.before(t, p, again)
}

// isAt reports whether a name leads to what a handle is open on.
func isAt(p place, h int) bool {
	var here, there unix.Stat_t
	return p.dir >= 0 && unix.Fstat(h, &there) == nil && unix.Fstatat(p.dir, p.name, &here, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		here.Ino == there.Ino && here.Dev == there.Dev
}

// partHandle is part for what judgeHandle has judged; the handle that it returns is
// the one to write to.
func (t *task) partHandle(h int, p place) (int, verdict) {
	if p.path == "" {
		return h, done()
	}
	st, err := look(h, "")
	if err != nil {
		return h, result(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink == 0 || t.g.past.ours(st) {
		return h, done()
	}
	if !isAt(p, h) {
		return h, t.refuse(strings.TrimSuffix(p.full(), " (deleted)"), "it has no name here any more, and others (hard links) elsewhere")
	}
	if st.Nlink == 1 {
		return h, done()
	}
	if v := t.part(p); v.errno != 0 {
		return h, v
	}
	fd, err := unix.Openat(p.dir, p.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return h, result(err)
	}
	return t.own(fd), done()
}

// make judges a new name and makes it.
func (t *task) make(p place, k kind, do func() error) verdict {
	g := t.g
	if makesGit(p.name) {
		g.mu.Lock()
		defer g.mu.Unlock()
	} else {
		g.mu.RLock()
		defer g.mu.RUnlock()
	}
	if existsAt(p.dir, p.at()) {
		return failed(unix.EEXIST)
	}
	if reason := g.forbidden(p, k); reason != "" {
		return t.refuse(p.full(), reason)
	}
	if makesGit(p.name) {
		if reason := t.becomesGit(p); reason != "" {
			return t.refuse(p.full(), reason)
		}
	}
	if err := do(); err != nil {
		return result(err)
	}
	if f, _ := g.folder(p.path); f != nil && f.Versions {
		g.past.createdAt(p)
		g.past.begins(t, p)
	}
	return done()
}

func (t *task) mkdir(dirfd, arg int, mode uint64) verdict {
	p, errno := t.lookup(dirfd, arg)
	if errno != 0 {
		return failed(errno)
	}
	return t.make(p, aFolder, func() error { return unix.Mkdirat(p.dir, p.at(), uint32(mode&0o7777)) })
}

func (t *task) mknod(dirfd, arg int, mode uint64) verdict {
	p, errno := t.lookup(dirfd, arg)
	if errno != 0 {
		return failed(errno)
	}
	k := aNode
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, 0:
		k = aFile
	case unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return failed(unix.EPERM)
	}
	if f, _ := t.g.folder(p.path); f != nil {
		mode &^= otherUsers
	}
	return t.make(p, k, func() error { return unix.Mknodat(p.dir, p.at(), uint32(mode), 0) })
}

func (t *task) symlink(target, dirfd, arg int) verdict {
	text, errno := t.text(target)
	if errno != 0 {
		return failed(errno)
	}
	p, errno := t.lookup(dirfd, arg)
	if errno != 0 {
		return failed(errno)
	}
	return t.make(p, aLink, func() error { return unix.Symlinkat(text, p.dir, p.at()) })
}

func (t *task) link(oldfd, oldarg, newfd, newarg, flags int) verdict {
	if flags&^(unix.AT_SYMLINK_FOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return failed(unix.EINVAL)
	}
	to, errno := t.lookup(newfd, newarg)
	if errno != 0 {
		return failed(errno)
	}
	source, errno := t.linkSource(oldfd, oldarg, flags)
	if errno != 0 {
		return failed(errno)
	}
	var st unix.Stat_t
	if err := unix.Fstat(source, &st); err != nil {
		return result(err)
	}
	g := t.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if existsAt(to.dir, to.at()) {
		return failed(unix.EEXIST)
	}
	// A second name of a protected file, or of one that has no version yet, would
	// be a way past its first.
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		p, v := t.judgeHandle(source, true)
		if v.errno != 0 {
			return v
		}
		if isAt(p, source) {
			g.past.links(source)
		}
	}
	if reason := g.forbidden(to, kindOf(&st)); reason != "" {
		return t.refuse(to.full(), reason)
	}
	if reason := t.becomesGit(to); reason != "" {
		return t.refuse(to.full(), reason)
	}
	if err := unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(source), to.dir, to.at(), unix.AT_SYMLINK_FOLLOW); err != nil {
		return result(err)
	}
	g.past.begins(t, to)
	g.past.keeps(to.full()) // nothing was there: what the new name leads to is no earlier content of it
	return done()
}

// linkSource opens what a link is made to.
func (t *task) linkSource(dirfd, arg, flags int) (int, unix.Errno) {
	text, errno := t.path(arg)
	if errno != 0 {
		return -1, errno
	}
	if text == "" {
		if flags&unix.AT_EMPTY_PATH == 0 {
			return -1, unix.ENOENT
		}
		return t.handle(dirfd, 0)
	}
	start, errno := t.start(dirfd, text)
	if errno != 0 {
		return -1, errno
	}
	var fd int
	if flags&unix.AT_SYMLINK_FOLLOW != 0 {
		fd, errno = t.walkByStep(start, text, false)
	} else {
		var p place
		if p, errno = t.find(start, text); errno == 0 {
			var err error
			if fd, err = unix.Openat(p.dir, p.at(), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
				errno, _ = err.(unix.Errno)
			} else {
				t.own(fd)
			}
		}
	}
	if errno == 0 && !t.g.alive(t.id) {
		errno = unix.EINTR
	}
	return fd, errno
}

func (t *task) rename(oldfd, oldarg, newfd, newarg int, flags uint) verdict {
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return failed(unix.EINVAL)
	}
	from, errno := t.lookup(oldfd, oldarg)
	if errno != 0 {
		return failed(errno)
	}
	to, errno := t.lookup(newfd, newarg)
	if errno != 0 {
		return failed(errno)
	}
	g := t.g
	if keepsOpen(to.dir) {
		g.settled()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	do := func() verdict { return result(unix.Renameat2(from.dir, from.at(), to.dir, to.at(), flags)) }
	if f, _ := g.folder(from.path); f == nil {
		if f, _ := g.folder(to.path); f == nil {
			return do()
		}
	}
	var moved, covered unix.Stat_t
	if err := unix.Fstatat(from.dir, from.name, &moved, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return do()
	}
	occupied := unix.Fstatat(to.dir, to.name, &covered, unix.AT_SYMLINK_NOFOLLOW) == nil
	if flags == 0 && from.name == to.name+".lock" && from.path == to.path && g.isConfig(to) {
		return t.settleConfig(from, to)
	}
	if reason := t.moveForbidden(from, to, &moved); reason != "" {
		return t.refuse(to.full(), reason)
	}
	if occupied && flags&unix.RENAME_EXCHANGE != 0 {
		if reason := t.moveForbidden(to, from, &covered); reason != "" {
			return t.refuse(from.full(), reason)
		}
	}
	v := t.movePast(from, to, &moved, occupied)
	if v.errno == 0 && occupied && flags&unix.RENAME_EXCHANGE != 0 {
		v = t.movePast(to, from, &covered, true)
	}
	if v.errno != 0 {
		return v
	}
	if v = do(); v.errno == 0 && !occupied {
		g.past.begins(t, to)
	}
	return v
}

// movePast keeps what a rename would lose.
func (t *task) movePast(from, to place, moved *unix.Stat_t, occupied bool) verdict {
	p := &t.g.past
	if f, _ := t.g.folder(from.path); f != nil && f.Versions {
		st, err := look(from.dir, from.name)
		if err != nil {
			return done()
		}
		if mine := p.isMade(st); !mine {
			if f.NoDelete && kindOf(moved) == aFolder {
				return t.refuse(from.full(), "in this workspace (rw-no-delete) no folder that was there is moved")
			}
			if v := p.beforeMove(t, from); v.errno != 0 {
				return v
			}
			p.move(st)
		}
	}
	if occupied {
		return p.before(t, to, true)
	}
	return done()
}

// keepsOpen says of a folder's filesystem that it keeps a file that is removed while it
// is open under another name, and so the folder: the copies here must go first. It
// costs other filesystems half of a checkout's speed.
func keepsOpen(dir int) bool {
	var fs unix.Statfs_t
	if unix.Fstatfs(dir, &fs) != nil {
		return true
	}
	switch fs.Type {
	case unix.NFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, unix.V9FS_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC:
		return true
	}
	return false
}

func (t *task) unlink(dirfd, arg, flags int) verdict {
	if flags&^unix.AT_REMOVEDIR != 0 {
		return failed(unix.EINVAL)
	}
	p, errno := t.lookup(dirfd, arg)
	if errno != 0 {
		return failed(errno)
	}
	g := t.g
	if keepsOpen(p.dir) {
		g.settled()
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	f, _ := g.folder(p.path)
	if f != nil {
		if g.fixed[p.full()] {
			return t.refuse(p.full(), "obeyed by git on the host")
		}
		if reason := g.stays(p); reason != "" {
			return t.refuse(p.full(), reason)
		}
		if reason := g.past.mayGo(t, p); reason != "" {
			return t.refuse(p.full(), reason)
		}
		if v := g.past.before(t, p, false); v.errno != 0 {
			return v
		}
	}
	var st *unix.Statx_t
	if f != nil && f.Versions {
		st, _ = look(p.dir, p.name)
	}
	err := unix.Unlinkat(p.dir, p.at(), flags)
	if err == nil && st != nil && st.Nlink <= 1 {
		g.past.forget(st)
	}
	return result(err)
}

// otherUsers are the bits by which others run a file with its owner's rights. The
// mounts of the sandbox ignore them, the host does not.
const otherUsers = unix.S_ISUID | unix.S_ISGID

// chmod keeps these bits off the files of guarded folders. Every other mode is the
// kernel's business.
func (t *task) chmod(dirfd, arg int, mode uint64, flags int) verdict {
	if mode&otherUsers == 0 {
		return t.letGo()
	}
	if flags&^(unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return failed(unix.EINVAL)
	}
	if flags&unix.AT_SYMLINK_NOFOLLOW == 0 {
		flags |= unix.AT_SYMLINK_FOLLOW
	}
	h, errno := t.linkSource(dirfd, arg, flags&(unix.AT_SYMLINK_FOLLOW|unix.AT_EMPTY_PATH))
	if errno != 0 {
		return failed(errno)
	}
	return t.chmodHandle(h, mode)
}

func (t *task) fchmod(fd int, mode uint64) verdict {
	if mode&otherUsers == 0 {
		return t.letGo()
	}
	h, errno := t.handle(fd, 0)
	if errno == 0 && !t.g.alive(t.id) {
		errno = unix.EINTR
	}
	if errno != 0 {
		return failed(errno)
	}
	return t.chmodHandle(h, mode)
}

func (t *task) chmodHandle(h int, mode uint64) verdict {
	var st unix.Stat_t
	if err := unix.Fstat(h, &st); err != nil {
		return result(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		real, errno := t.g.realPath(h)
		if errno == 0 {
			errno = t.reachable(real)
		}
		if errno != 0 {
			return failed(errno)
		}
		if f, _ := t.g.folder(real); f != nil {
			return t.refuse(real, "with set-user-ID or set-group-ID anybody on the host could run it with its owner's rights")
		}
	}
	t.g.settled()
	return result(unix.Chmod("/proc/self/fd/"+strconv.Itoa(h), uint32(mode&0o7777)))
}

func (t *task) truncate(arg int, size int64) verdict {
	if t.g.base != "" {
		return failed(unix.EACCES) // there is no folder to resolve it from
	}
	text, errno := t.text(arg)
	if errno != 0 {
		return failed(errno)
	}
	if text == "" {
		return failed(unix.ENOENT)
	}
	start, errno := t.start(unix.AT_FDCWD, text)
	if errno != 0 {
		return failed(errno)
	}
	h, errno := t.walkByStep(start, text, false)
	if errno != 0 {
		return failed(errno)
	}
	if !t.g.alive(t.id) {
		return failed(unix.EINTR)
	}
	t.g.mu.RLock()
	defer t.g.mu.RUnlock()
	p, v := t.judgeHandle(h, true)
	if v.errno == 0 {
		h, v = t.partHandle(h, p)
	}
	if v.errno != 0 {
		return v
	}
	return result(unix.Truncate("/proc/self/fd/"+strconv.Itoa(h), size))
}

// bind gives a socket of the caller its address. Only a Unix socket's may be a
// name in a folder.
func (t *task) bind() verdict {
	if t.g.base != "" {
		return failed(unix.EACCES) // a foreign kernel has sockets of its own
	}
	const longest = 128 // struct sockaddr_storage
	size := int(int32(t.args[2]))
	if size < 2 || size > longest {
		return failed(unix.EINVAL)
	}
	addr, errno := t.memory(t.args[1], size)
	if errno != 0 {
		return failed(errno)
	}
	if len(addr) < size {
		return failed(unix.EFAULT)
	}
	sock, errno := t.socket(t.fd(0))
	if errno != 0 {
		return failed(errno)
	}
	if binary.NativeEndian.Uint16(addr) != unix.AF_UNIX || size == 2 || addr[2] == 0 {
		return result(bindTo(sock, addr))
	}
	name, _, _ := strings.Cut(string(addr[2:]), "\x00")
	// Alone: nothing inside can then exchange a folder on the way, and the socket
	// gets its real path for an address.
	t.g.mu.Lock()
	defer t.g.mu.Unlock()
	start, errno := t.start(unix.AT_FDCWD, name)
	if errno != 0 {
		return failed(errno)
	}
	p, errno := t.find(start, name)
	if errno != 0 {
		return failed(errno)
	}
	if !t.g.alive(t.id) {
		return failed(unix.EINTR)
	}
	if existsAt(p.dir, p.name) {
		return failed(unix.EADDRINUSE)
	}
	if reason := t.g.forbidden(p, aNode); reason != "" {
		return t.refuse(p.full(), reason)
	}
	if reason := t.becomesGit(p); reason != "" {
		return t.refuse(p.full(), reason)
	}
	const room = 107 // of sun_path, and a zero
	at := p.full()
	if len(at) > room {
		if at = "/proc/self/fd/" + strconv.Itoa(p.dir) + "/" + p.name; len(at) > room {
			return failed(unix.ENAMETOOLONG)
		}
	}
	v := result(bindTo(sock, append(append(binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX), at...), 0)))
	if f, _ := t.g.folder(p.path); v.errno == 0 && f != nil && f.Versions {
		t.g.past.createdAt(p)
		t.g.past.begins(t, p)
	}
	return v
}
