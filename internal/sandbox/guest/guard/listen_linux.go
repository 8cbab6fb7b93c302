package guard

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/guard/rules"
	"github.com/bulkhead-dev/bulkhead/internal/seccomp"
	"golang.org/x/sys/unix"
)

// workers answer calls side by side; more would only wait for the same two or
// three processors and for the host's copies.
const workers = 6

// Guard is a running guard.
type Guard struct {
	list     *rules.List
	folders  []folder // the deepest first
	fixed    map[string]bool
	host     Host
	ended    func(error)
	listener int
	ops      map[int32]*op
	umask    int
	base     string // see Setup.Base
	sealed   atomic.Bool
	others   sync.Map // threads that are none of the first process
	// strange is set when some process has set a umask of its own: from then on
	// each creation looks for its caller's.
	strange atomic.Bool

	// mu keeps what was judged true until it is done: renames and what makes a
	// git directory hold it alone, all other writes share it.
	mu sync.RWMutex
	// handing is shared while a descriptor is handed over whose copy here closes after its
	// caller goes on; what could notice that copy holds it alone for a moment.
	handing sync.RWMutex

	parting sync.Mutex // one file at a time gets a copy of its own

	first sync.Map // path of a git configuration → its bytes before the session's first change
	past  past
}

type folder struct {
	Folder
	root  string
	disk  string // where the guard finds it
	spool *spooled
}

// notification, response and addFD are the structures of seccomp_unotify(2).
type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

type response struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

type addFD struct {
	id       uint64
	flags    uint32
	src      uint32
	newFD    uint32
	newFlags uint32
}

// Start makes a guard for a listener of seccomp.Listen and lets it work.
// ended is called if it can't go on, and then ends the process: a guard does not
// fail for others to go on.
func Start(s Setup, listener int, host Host, ended func(error)) (*Guard, error) {
	list, err := rules.New(s.Protected, s.Installed)
	if err != nil {
		return nil, err
	}
	g := &Guard{list: list, fixed: map[string]bool{}, host: host, ended: ended, listener: listener, base: string(s.Base)}
	g.past.made, g.past.kept = map[inode]struct{}{}, map[string]bool{}
	g.past.alone, g.past.outside = map[inode]struct{}{}, map[inode]struct{}{}
	g.past.uid, g.past.gid = uint32(os.Geteuid()), uint32(os.Getegid())
	g.past.outer = owner{g.past.uid, g.past.gid}
	if g.base != "" {
		g.past.outer = owner{s.UID, s.GID}
	}
	for _, f := range s.Folders {
		root := string(f.Path)
		if path.Clean(root) != root || !path.IsAbs(root) {
			return nil, fmt.Errorf("guarded folder %q is not an absolute, clean path", root)
		}
		at := 0
		for at < len(g.folders) && len(g.folders[at].root) >= len(root) {
			at++
		}
		g.folders = append(g.folders[:at], append([]folder{{f, root, path.Join(g.base, root), &spooled{}}}, g.folders[at:]...)...)
	}
	for _, p := range s.Fixed {
		g.fixed[string(p)] = true
	}
	if g.ops, err = operations(); err != nil {
		return nil, err
	}
	// A foreign kernel has applied the umask of its caller.
	g.umask = unix.Umask(0)
	if g.base != "" {
		g.umask = 0
	}
	unix.Umask(g.umask)
	// The answer then wakes the caller on this processor: half the time of a call.
	// Linux 6.6 or newer; without it the guard is slower.
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SET_FLAGS, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
	ready := make(chan error, workers)
	for range workers {
		go g.work(ready)
	}
	for range workers {
		err = errors.Join(err, <-ready)
	}
	return g, err
}

// Seal ends the time in which calls go on as they are, see Setup.Base. Whoever
// starts commands calls it before the first one.
func (g *Guard) Seal() { g.sealed.Store(true) }

// trusted says of a guard beside a foreign kernel that nothing of the sandbox's has
// a part in this call.
func (t *task) trusted() bool {
	if t.g.base == "" {
		return false
	}
	if !t.g.sealed.Load() {
		return true
	}
	if _, ok := t.g.others.Load(t.tid); ok {
		return false
	}
	if unix.Faccessat(unix.AT_FDCWD, "/proc/1/task/"+strconv.Itoa(t.tid), unix.F_OK, 0) == nil && t.g.alive(t.id) {
		return true
	}
	t.g.others.Store(t.tid, true)
	return false
}

// work answers calls on a thread with a umask of its own.
func (g *Guard) work(ready chan<- error) {
	runtime.LockOSThread()
	undisturbed()
	err := unix.Unshare(unix.CLONE_FS)
	if err != nil {
		err = fmt.Errorf("a thread of the guard: %w", err)
	}
	ready <- err
	if err != nil {
		return
	}
	umask := g.umask
	for {
		var n notification
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(g.listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n)))
		switch errno {
		case 0:
			g.answer(&n, &umask)
		case unix.EINTR, unix.ENOENT: // the caller died in between
		default:
			g.ended(fmt.Errorf("the guard of the workspace ended: %w", errno))
			return
		}
	}
}

// undisturbed keeps signals from the calling thread, which is locked. A signal (Go
// sends some to itself) that comes while a descriptor is being handed over makes
// the kernel answer the call with 0 and no descriptor.
func undisturbed() (before unix.Sigset_t) {
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	_ = unix.PthreadSigmask(unix.SIG_BLOCK, &all, &before)
	return before
}

// verdict is what a caller gets: an error, or a descriptor, or zero.
type verdict struct {
	errno unix.Errno
	fd    int // -1: none
	flags int // O_CLOEXEC, for fd
	goOn  bool
	later bool // somebody else answers
}

func failed(e unix.Errno) verdict { return verdict{errno: e, fd: -1} }

func done() verdict { return verdict{fd: -1} }

// result is done or the error of a call made for the caller.
func result(err error) verdict {
	if err == nil {
		return done()
	}
	var e unix.Errno
	if errors.As(err, &e) {
		return failed(e)
	}
	return failed(unix.EIO)
}

func (g *Guard) answer(n *notification, umask *int) {
	t := &task{g: g, id: n.id, tid: int(n.pid), args: n.args}
	defer t.close()
	if t.trusted() {
		g.reply(n.id, verdict{goOn: true, fd: -1})
		return
	}
	o := g.ops[n.nr]
	if o == nil {
		g.reply(n.id, failed(unix.ENOSYS))
		return
	}
	t.op = o.name
	if o.creates {
		want := g.umask
		if g.strange.Load() {
			var errno unix.Errno
			if want, errno = t.callersUmask(); errno != 0 {
				g.reply(n.id, failed(errno))
				return
			}
		}
		if want != *umask {
			unix.Umask(want)
			*umask = want
		}
	}
	if v := o.do(t); !v.later {
		g.reply(n.id, v)
	}
}

// reply ends a call, on a thread that no signal reaches. What fails because the
// caller is gone needs no answer.
func (g *Guard) reply(id uint64, v verdict) {
	r := response{id: id, errno: -int32(v.errno)}
	switch {
	case v.goOn:
		r = response{id: id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	case v.fd >= 0:
		a := addFD{id: id, src: uint32(v.fd), newFlags: uint32(v.flags & unix.O_CLOEXEC)}
		if !noticed(v.fd) {
			a.flags = unix.SECCOMP_ADDFD_FLAG_SEND
			g.handing.RLock()
		}
		fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(g.listener), unix.SECCOMP_IOCTL_NOTIF_ADDFD, uintptr(unsafe.Pointer(&a)))
		unix.Close(v.fd)
		if a.flags != 0 {
			g.handing.RUnlock()
		}
		if errno == unix.ENOENT || errno == 0 && a.flags != 0 {
			return
		}
		r.val = int64(fd)
		if errno != 0 { // the caller has no room for a descriptor
			r = response{id: id, errno: -int32(errno)}
		}
	}
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(g.listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
}

// noticed says of what kind a caller notices at once that the guard has a copy open for a
// moment longer: of a FIFO it would be the reader that is not there, and what can be
// executed would be busy (ETXTBSY). That copy goes before the caller goes on, which costs
// two more switches. No signal ends the call in between
// (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV). Of other files it is noticed by the calls
// that ask for letGo.
func noticed(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 != 0
}

// settled returns when all that was handed over so far is closed here.
func (g *Guard) settled() {
	g.handing.Lock()
	defer g.handing.Unlock()
}

// letGo lets a call go on that could notice a copy here: nothing is judged, so it does
// not matter what its pointers lead to.
func (t *task) letGo() verdict {
	t.g.settled()
	return verdict{goOn: true, fd: -1}
}

// alive reports whether the call still waits: what was learnt from its process
// before is then its own, not that of a process with the same number.
func (g *Guard) alive(id uint64) bool {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(g.listener), unix.SECCOMP_IOCTL_NOTIF_ID_VALID, uintptr(unsafe.Pointer(&id)))
	return errno == 0
}

// folder returns the guarded folder in which a real path lies, and its elements
// below that.
func (g *Guard) folder(at string) (*folder, []string) {
	for i := range g.folders {
		f := &g.folders[i]
		if at == f.root {
			return f, nil
		}
		if rest, ok := strings.CutPrefix(at, strings.TrimSuffix(f.root, "/")+"/"); ok {
			return f, strings.Split(rest, "/")
		}
	}
	return nil, nil
}

// op is one system call.
type op struct {
	name    string
	creates bool // by the caller's umask
	do      func(*task) verdict
}

func operations() (map[int32]*op, error) {
	ops := []op{
		{"open", true, func(t *task) verdict { return t.open(t.cwd(), 0, int(int32(t.args[1])), t.args[2]) }},
		{"creat", true, func(t *task) verdict {
			return t.open(t.cwd(), 0, unix.O_CREAT|unix.O_WRONLY|unix.O_TRUNC, t.args[1])
		}},
		{"openat", true, func(t *task) verdict { return t.open(t.fd(0), 1, int(int32(t.args[2])), t.args[3]) }},
		{"mkdir", true, func(t *task) verdict { return t.mkdir(t.cwd(), 0, t.args[1]) }},
		{"mkdirat", true, func(t *task) verdict { return t.mkdir(t.fd(0), 1, t.args[2]) }},
		{"mknod", true, func(t *task) verdict { return t.mknod(t.cwd(), 0, t.args[1]) }},
		{"mknodat", true, func(t *task) verdict { return t.mknod(t.fd(0), 1, t.args[2]) }},
		{"symlink", false, func(t *task) verdict { return t.symlink(0, t.cwd(), 1) }},
		{"symlinkat", false, func(t *task) verdict { return t.symlink(0, t.fd(1), 2) }},
		{"link", false, func(t *task) verdict { return t.link(t.cwd(), 0, t.cwd(), 1, 0) }},
		{"linkat", false, func(t *task) verdict { return t.link(t.fd(0), 1, t.fd(2), 3, int(int32(t.args[4]))) }},
		{"rename", false, func(t *task) verdict { return t.rename(t.cwd(), 0, t.cwd(), 1, 0) }},
		{"renameat", false, func(t *task) verdict { return t.rename(t.fd(0), 1, t.fd(2), 3, 0) }},
		{"renameat2", false, func(t *task) verdict { return t.rename(t.fd(0), 1, t.fd(2), 3, uint(uint32(t.args[4]))) }},
		{"unlink", false, func(t *task) verdict { return t.unlink(t.cwd(), 0, 0) }},
		{"unlinkat", false, func(t *task) verdict { return t.unlink(t.fd(0), 1, int(int32(t.args[2]))) }},
		{"rmdir", false, func(t *task) verdict { return t.unlink(t.cwd(), 0, unix.AT_REMOVEDIR) }},
		{"truncate", false, func(t *task) verdict { return t.truncate(0, int64(t.args[1])) }},
		{"bind", true, func(t *task) verdict { return t.bind() }},
		{"umask", false, func(t *task) verdict {
			if t.g.base == "" && int(t.args[0]&0o777) != t.g.umask {
				t.g.strange.Store(true)
			}
			return verdict{goOn: true, fd: -1} // it has no pointer that could be exchanged
		}},
		{"chmod", false, func(t *task) verdict { return t.chmod(t.cwd(), 0, t.args[1], 0) }},
		{"fchmod", false, func(t *task) verdict { return t.fchmod(t.fd(0), t.args[1]) }},
		{"fchmodat", false, func(t *task) verdict { return t.chmod(t.fd(0), 1, t.args[2], 0) }},
		{"fchmodat2", false, func(t *task) verdict { return t.chmod(t.fd(0), 1, t.args[2], int(int32(t.args[3]))) }},
		{"flock", false, (*task).letGo},
		{"fcntl", false, (*task).letGo},
	}
	numbers, err := seccomp.Numbers()
	if err != nil {
		return nil, err
	}
	byNumber := map[int32]*op{}
	for i := range ops {
		if nr, ok := numbers[ops[i].name]; ok {
			byNumber[int32(nr)] = &ops[i]
		}
	}
	return byNumber, nil
}
