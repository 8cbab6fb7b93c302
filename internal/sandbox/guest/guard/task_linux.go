package guard

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	pathMax  = 4096
	maxLinks = 40 // as the kernel's own
)

// task is one call that waits.
type task struct {
	g    *Guard
	id   uint64
	tid  int
	op   string
	args [6]uint64
	fds  []int // closed with the task
}

func (t *task) close() {
	for _, fd := range t.fds {
		unix.Close(fd)
	}
}

func (t *task) own(fd int) int {
	t.fds = append(t.fds, fd)
	return fd
}

func (t *task) cwd() int { return unix.AT_FDCWD }

func (t *task) fd(arg int) int { return int(int32(t.args[arg])) }

// memory reads at most n bytes of the caller's memory.
func (t *task) memory(at uint64, n int) ([]byte, unix.Errno) {
	buf := make([]byte, n)
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(n)}}
	got, err := unix.ProcessVMReadv(t.tid, local, []unix.RemoteIovec{{Base: uintptr(at), Len: n}}, 0)
	if err != nil {
		if err == unix.EPERM || err == unix.ESRCH {
			return nil, unix.EPERM // a process that hides itself
		}
		return nil, unix.EFAULT
	}
	return buf[:got], 0
}

// text reads a path of the caller, once.
func (t *task) text(arg int) (string, unix.Errno) {
	at := t.args[arg]
	var all []byte
	for len(all) < pathMax {
		// Not past the page: the next one may not be there.
		b, errno := t.memory(at, min(256, 4096-int(at%4096)))
		if errno != 0 {
			return "", errno
		}
		if end := bytes.IndexByte(b, 0); end >= 0 {
			if all = append(all, b[:end]...); len(all) >= pathMax {
				break
			}
			return string(all), 0
		}
		if len(b) == 0 {
			return "", unix.EFAULT
		}
		all = append(all, b...)
		at += uint64(len(b))
	}
	return "", unix.ENAMETOOLONG
}

func (t *task) proc(name string) string { return "/proc/" + strconv.Itoa(t.tid) + "/" + name }

// callersUmask reads it where the kernel tells it.
func (t *task) callersUmask() (int, unix.Errno) {
	status, err := os.ReadFile(t.proc("status"))
	if err != nil {
		return 0, unix.ESRCH
	}
	_, rest, ok := bytes.Cut(status, []byte("\nUmask:\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	n, err := strconv.ParseUint(string(line), 8, 16)
	if !ok || err != nil {
		return 0, unix.EIO
	}
	return int(n), 0
}

// start opens the folder from which a relative path of the caller counts.
func (t *task) start(dirfd int, path string) (int, unix.Errno) {
	if strings.HasPrefix(path, "/") {
		return unix.AT_FDCWD, 0
	}
	return t.handle(dirfd, unix.O_DIRECTORY)
}

// handle opens what a descriptor of the caller is open on.
func (t *task) handle(dirfd, flags int) (int, unix.Errno) {
	name := "cwd"
	if dirfd != unix.AT_FDCWD {
		if dirfd < 0 {
			return -1, unix.EBADF
		}
		name = "fd/" + strconv.Itoa(dirfd)
	}
	fd, err := unix.Open(t.proc(name), unix.O_PATH|unix.O_CLOEXEC|flags, 0)
	switch err {
	case nil:
		return t.own(fd), 0
	case unix.ENOENT:
		return -1, unix.EBADF
	case unix.ENOTDIR:
		return -1, unix.ENOTDIR
	}
	return -1, unix.EPERM
}

// again finds what a foreign kernel's file server opens once more, by the folder of
// its own descriptors: it has no other way to open a file that is mounted. -1: it is
// something else.
func (t *task) again(dirfd, arg int) (int, unix.Errno) {
	if t.g.base == "" || dirfd < 0 {
		return -1, 0
	}
	dir, errno := t.handle(dirfd, unix.O_DIRECTORY)
	if errno != 0 {
		return -1, errno
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(dir, &fs); err != nil || fs.Type != unix.PROC_SUPER_MAGIC {
		return -1, 0
	}
	text, errno := t.path(arg)
	if errno != 0 {
		return -1, errno
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return -1, unix.EACCES
	}
	h, errno := t.handle(n, 0)
	if errno == 0 && !t.g.alive(t.id) {
		errno = unix.EINTR
	}
	return h, errno
}

// place is a name in an open folder.
type place struct {
	dir   int    // O_PATH, link-free
	path  string // the folder's real path, as the kernel has it
	name  string // "", "." and ".." are possible
	slash bool   // slashes followed the name
}

// at is how a call names it: with its slash, so that the kernel asks for a folder.
func (p place) at() string {
	if p.slash {
		return p.name + "/"
	}
	return p.name
}

// isFolderItself says that the name is none of an entry: the kernel has an error
// for whoever would make, move or remove it.
func (p place) isFolderItself() bool { return p.name == "" || p.name == "." || p.name == ".." }

func (p place) full() string { return strings.TrimSuffix(p.path, "/") + "/" + p.name }

// path is text for what is to be resolved. A foreign kernel resolves paths itself,
// and comes with names.
func (t *task) path(arg int) (string, unix.Errno) {
	text, errno := t.text(arg)
	if errno == 0 && t.g.base != "" && (text == ".." || strings.Contains(text, "/")) {
		errno = unix.EACCES
	}
	return text, errno
}

// lookup reads the caller's path and finds its place.
func (t *task) lookup(dirfd, arg int) (place, unix.Errno) {
	text, errno := t.path(arg)
	if errno != 0 {
		return place{}, errno
	}
	if text == "" {
		return place{}, unix.ENOENT
	}
	start, errno := t.start(dirfd, text)
	if errno != 0 {
		return place{}, errno
	}
	p, errno := t.find(start, text)
	if errno == 0 && !t.g.alive(t.id) {
		errno = unix.EINTR // nobody is there to get it
	}
	return p, errno
}

// find resolves all of a path but its last name.
func (t *task) find(start int, text string) (place, unix.Errno) {
	trimmed := strings.TrimRight(text, "/")
	if trimmed == "" {
		text, trimmed = "/.", "/."
	}
	cut := strings.LastIndexByte(trimmed, '/')
	p := place{name: trimmed[cut+1:], slash: len(trimmed) < len(text)}
	dir := trimmed[:cut+1]
	if len(p.name) > 255 {
		return p, unix.ENAMETOOLONG
	}
	var errno unix.Errno
	if dir != "" {
		p.dir, p.path, errno = t.walk(start, dir)
	} else {
		p.dir = start
		p.path, errno = t.g.realPath(start)
	}
	if errno != 0 {
		return p, errno
	}
	return p, t.reachable(p.path)
}

// descriptors is the folder of the guard's own, open so that finding one takes a
// single step.
var descriptors = sync.OnceValues(func() (int, error) {
	return unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
})

// realPath is the path that the kernel has for a handle.
func (g *Guard) realPath(fd int) (string, unix.Errno) {
	at, err := descriptors()
	if err != nil {
		return "", unix.EIO
	}
	var buf [pathMax]byte
	n, err := unix.Readlinkat(at, strconv.Itoa(fd), buf[:])
	if err != nil {
		return "", unix.ENAMETOOLONG
	}
	real := string(buf[:n])
	if rest, ok := strings.CutPrefix(real, g.base); ok && strings.HasPrefix(rest, "/") || !strings.HasPrefix(real, "/") {
		return rest, 0
	}
	return "", unix.EACCES // not of the sandbox's tree
}

// reachable refuses what of /proc is not the caller's: the guard itself may open
// its own memory and descriptors, and nobody else may.
func (t *task) reachable(real string) unix.Errno {
	rest, ok := strings.CutPrefix(real, "/proc/")
	if !ok {
		return 0
	}
	first, _, _ := strings.Cut(rest, "/")
	pid, err := strconv.Atoi(first)
	if err != nil || pid == t.tid {
		return 0
	}
	if pid == os.Getpid() {
		return unix.EACCES
	}
	if err := unix.Faccessat(unix.AT_FDCWD, t.proc("task/"+first), unix.F_OK, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return unix.EACCES
	}
	return 0
}

// walk opens a folder and says its real path. The kernel does it in one call,
// except where a path goes through /proc: there "self" means the caller, not the
// guard.
func (t *task) walk(start int, dir string) (int, string, unix.Errno) {
	fd, err := unix.Openat2(start, dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err == nil {
		t.own(fd)
		if real, errno := t.g.realPath(fd); errno != 0 {
			return -1, "", errno
		} else if real != "/proc" && !strings.HasPrefix(real, "/proc/") {
			return fd, real, 0
		}
	}
	fd, errno := t.walkByStep(start, dir, true)
	if errno != 0 {
		return -1, "", errno
	}
	real, errno := t.g.realPath(fd)
	return fd, real, errno
}

// walkByStep resolves every element by itself. folder says that the last one
// must be a folder.
func (t *task) walkByStep(start int, text string, folder bool) (int, unix.Errno) {
	const handle = unix.O_PATH | unix.O_CLOEXEC
	links := 0
	open := func(at int, name string, flags int) (int, unix.Errno) {
		fd, err := unix.Openat(at, name, handle|flags, 0)
		if e, _ := err.(unix.Errno); err != nil {
			return -1, e
		}
		return t.own(fd), 0
	}
	cur := start
	if strings.HasPrefix(text, "/") {
		var errno unix.Errno
		if cur, errno = open(unix.AT_FDCWD, "/", unix.O_DIRECTORY); errno != 0 {
			return -1, errno
		}
	}
	rest := strings.Split(text, "/")
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		real, errno := t.g.realPath(cur)
		if errno != 0 {
			return -1, errno
		}
		if real == "/proc" {
			switch name {
			case "self":
				name = strconv.Itoa(t.tid)
			case "thread-self":
				name = strconv.Itoa(t.tid)
				rest = append([]string{"task", name}, rest...)
			}
		}
		if errno := t.reachable(real); errno != 0 {
			return -1, errno
		}
		next, errno := open(cur, name, unix.O_NOFOLLOW)
		if errno != 0 {
			return -1, errno
		}
		var st unix.Stat_t
		if err := unix.Fstat(next, &st); err != nil {
			return -1, unix.EIO
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			cur = next
			continue
		}
		if links++; links > maxLinks {
			return -1, unix.ELOOP
		}
		if isMagic(cur, name, real) {
			if cur, errno = open(cur, name, 0); errno != 0 {
				return -1, errno
			}
			continue
		}
		target, errno := readLink(cur, name)
		if errno != 0 {
			return -1, errno
		}
		if strings.HasPrefix(target, "/") {
			if cur, errno = open(unix.AT_FDCWD, "/", unix.O_DIRECTORY); errno != 0 {
				return -1, errno
			}
		}
		rest = append(strings.Split(target, "/"), rest...)
		if len(rest) > pathMax {
			return -1, unix.ENAMETOOLONG
		}
	}
	if folder {
		return open(cur, ".", unix.O_DIRECTORY)
	}
	return cur, 0
}

// isMagic reports whether a link of /proc leads to an object instead of a path.
func isMagic(dir int, name, real string) bool {
	if real != "/proc" && !strings.HasPrefix(real, "/proc/") {
		return false
	}
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err == nil {
		unix.Close(fd)
	}
	return err == unix.ELOOP
}

func readLink(dir int, name string) (string, unix.Errno) {
	var buf [pathMax]byte
	n, err := unix.Readlinkat(dir, name, buf[:])
	if err != nil {
		e, _ := err.(unix.Errno)
		return "", e
	}
	if n == 0 {
		return "", unix.ENOENT
	}
	return string(buf[:n]), 0
}

// terminal is the path of the caller's own terminal: /dev/tty means another one
// to the guard.
func (t *task) terminal() (string, unix.Errno) {
	stat, err := os.ReadFile(t.proc("stat"))
	if err != nil {
		return "", unix.EPERM
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 5 {
		return "", unix.EIO
	}
	dev, err := strconv.Atoi(string(fields[4]))
	if err != nil || dev == 0 {
		return "", unix.ENXIO
	}
	major, minor := unix.Major(uint64(dev)), unix.Minor(uint64(dev))
	if major < 136 || major > 143 {
		return "", unix.ENXIO
	}
	return "/dev/pts/" + strconv.Itoa(int((major-136)<<8|minor)), 0
}
