package warden

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/frame"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/process/cgroup"
	"github.com/bulkhead-dev/bulkhead/internal/switches"
	"golang.org/x/sys/unix"
)

func init() { childproc.Register(Child, run) }

const maxStderr = 4096 // bytes of the runtime's (and a dying supervisor's) words to keep

type keeper struct {
	cfg   Config
	conn  *frame.Conn
	first int // the runtime

	ended chan struct{} // closed when no child is left
	stop  chan struct{} // closed when everything must end
	once  sync.Once

	mu    sync.Mutex
	guest int // host pid of the sandbox's first process; 0 until known
}

func run() int {
	// The runtime's death signal is tied to the thread that forked it: this one,
	// which lives as long as the process.
	runtime.LockOSThread()
	if !switches.Off("descriptors") {
		if err := childproc.CloseInherited(3); err != nil {
			return 1
		}
	}
	conn, err := frame.New(os.NewFile(3, "control socket"))
	if err != nil {
		return 1
	}
	k := &keeper{conn: conn, ended: make(chan struct{}), stop: make(chan struct{})}
	files, err := k.receive()
	if err != nil {
		return 1
	}
	if err := k.start(files); err != nil {
		k.report(Report{Kind: KindError, Text: err.Error()})
		_ = cgroup.Remove(k.cfg.Group.Dirs)
		return 1
	}
	go k.awaitController()
	if k.cfg.Memory > 0 {
		go k.watchMemory()
	}
	select {
	case <-k.ended:
	case <-k.stop:
		k.killAll()
	}
	if err := cgroup.Remove(k.cfg.Group.Dirs); err != nil {
		return 1
	}
	return 0
}

func (k *keeper) receive() ([]*os.File, error) {
	files, err := k.conn.Receive(&k.cfg, frame.MaxPayload, frame.MaxFiles)
	for err == nil && len(files) < k.cfg.Files {
		var next []*os.File
		next, err = k.conn.Receive(&more{}, 1024, frame.MaxFiles)
		if len(next) == 0 && err == nil {
			err = errors.New("files are missing")
		}
		files = append(files, next...)
	}
	return files, err
}

func (k *keeper) report(r Report, files ...*os.File) {
	_ = k.conn.Send(time.Now().Add(10*time.Second), r, files...)
}

// start starts the runtime, and makes the TAP while bwrap works.
func (k *keeper) start(files []*os.File) error {
	if len(files) < 2 {
		return errors.New("warden: the guest's socket or the arguments are missing")
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("warden: becoming subreaper: %w", err)
	}
	if err := k.mountLayers(); err != nil { // while it may still name its own descriptors
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("warden: becoming undumpable: %w", err)
	}
	if k.cfg.SealDevices {
		if err := sealDevices(); err != nil {
			return err
		}
	}
	if k.cfg.Trace {
		if err := k.trace(); err != nil {
			return err
		}
	}
	if k.cfg.Init { // the runtime takes the link as it finds it
		if err := k.link(); err != nil {
			return err
		}
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("warden: %w", err)
	}
	defer null.Close()
	infoR, infoW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("warden: %w", err)
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("warden: %w", err)
	}
	fds := []uintptr{null.Fd(), null.Fd(), errW.Fd(), files[0].Fd(), files[1].Fd(), infoW.Fd()}
	for _, f := range files[2:] {
		fds = append(fds, f.Fd())
	}
	if k.cfg.Init {
		for len(fds) < FarFD {
			fds = append(fds, ^uintptr(0)) // not open
		}
		fds = append(fds, null.Fd())
	}
	k.first, err = k.fork(fds)
	for _, f := range append(files, infoW, errW) {
		f.Close()
	}
	if err != nil {
		return fmt.Errorf("starting %s: %w", k.cfg.Runtime, err)
	}
	go k.reap(errR)
	if k.cfg.Init {
		infoR.Close()
		k.announce(k.first)
	} else {
		go k.learnPID(infoR)
	}
	if !k.cfg.Init {
		if err := k.link(); err != nil {
			k.killAll()
			return err
		}
	}
	return nil
}

// link makes the TAP, if there is to be one, and hands it out.
func (k *keeper) link() error {
	if !k.cfg.TAP {
		return nil
	}
	tap, err := openTAP()
	if err != nil {
		return err
	}
	k.report(Report{Kind: KindTAP}, tap)
	return tap.Close()
}

// trace makes the socket for monitoring, and hands it out: what comes there is not
// for this process to read.
func (k *keeper) trace() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: TraceSocket})
	}
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		return fmt.Errorf("warden: the socket for monitoring: %w", err)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("warden: the socket for monitoring: %w", err)
	}
	f := os.NewFile(uintptr(dup), "monitoring")
	k.report(Report{Kind: KindTrace}, f)
	return f.Close()
}

// sealDevices makes /dev read-only in this process's own mount namespace. bwrap
// shows the host's device nodes inside, and root inside owns them: on a writable
// mount he could change the mode of the host's /dev/null. Reading and writing
// the devices themselves is not affected.
func sealDevices() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("warden: separating its mounts: %w", err)
	}
	if err := unix.Mount("/dev", "/dev", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("warden: binding /dev: %w", err)
	}
	ro := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/dev", unix.AT_RECURSIVE, &ro); err != nil {
		return fmt.Errorf("warden: making /dev read-only: %w", err)
	}
	return nil
}

// fork starts the runtime from this thread inside the sandbox's cgroups and on its
// processors, and brings the thread back.
func (k *keeper) fork(fds []uintptr) (int, error) {
	attr := &syscall.ProcAttr{Dir: "/", Env: []string{}, Files: fds, Sys: &syscall.SysProcAttr{Setsid: true}}
	if k.cfg.Init {
		attr.Sys.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS
		attr.Sys.Pdeathsig = syscall.SIGKILL
	}
	if k.cfg.Group.Unified != "" {
		fd, err := unix.Open(k.cfg.Group.Unified, unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_PATH, 0)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", k.cfg.Group.Unified, err)
		}
		defer unix.Close(fd)
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, fd
	}
	for _, f := range k.cfg.Group.Join {
		if err := os.WriteFile(f, []byte("0"), 0); err != nil {
			return 0, fmt.Errorf("joining the cgroup: %w", err)
		}
	}
	if len(k.cfg.CPUs) > 0 {
		var before, set unix.CPUSet
		if err := unix.SchedGetaffinity(0, &before); err != nil {
			return 0, fmt.Errorf("processors: %w", err)
		}
		for _, c := range k.cfg.CPUs {
			set.Set(c)
		}
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return 0, fmt.Errorf("processors: %w", err)
		}
		defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	}
	pid, err := syscall.ForkExec(k.cfg.Runtime, k.cfg.Command, attr)
	for _, f := range k.cfg.Group.Leave {
		if lerr := os.WriteFile(f, []byte("0"), 0); lerr != nil && err == nil {
			err = fmt.Errorf("leaving the cgroup: %w", lerr)
		}
	}
	return pid, err
}

// reap waits for every child; orphans of the runtime are children too.
func (k *keeper) reap(stderr *os.File) {
	words := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(io.LimitReader(stderr, maxStderr))
		words <- strings.TrimSpace(string(text))
		_, _ = io.Copy(io.Discard, stderr)
	}()
	for {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, 0, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			break
		}
		if pid == k.first {
			// Killed before its child had asked for a death signal, it leaves an
			// orphan that waits for it for ever.
			k.end()
		}
	}
	text := ""
	select {
	case text = <-words:
	case <-time.After(time.Second):
	}
	k.report(Report{Kind: KindEnded, Text: text, OOMKills: k.cfg.Group.OOMKills(), RefusedTasks: k.cfg.Group.RefusedTasks()})
	close(k.ended)
}

func (k *keeper) learnPID(info *os.File) {
	defer info.Close()
	var v struct {
		PID int `json:"child-pid"`
	}
	if err := json.NewDecoder(io.LimitReader(info, 4096)).Decode(&v); err != nil || v.PID <= 1 {
		return // bwrap failed; its words tell why
	}
	k.announce(v.PID)
}

func (k *keeper) announce(first int) {
	k.mu.Lock()
	k.guest = first
	k.mu.Unlock()
	k.report(Report{Kind: KindPID, PID: first})
}

// awaitController returns when the controller closes its end or dies.
func (k *keeper) awaitController() {
	_, _ = k.conn.Receive(&more{}, 0, 0)
	k.end()
}

func (k *keeper) end() { k.once.Do(func() { close(k.stop) }) }

// killAll kills what it started until nothing is left: the sandbox's first
// process (with it goes its pid namespace), bwrap, and whatever became an
// orphan in between.
func (k *keeper) killAll() {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		k.mu.Lock()
		guest := k.guest
		k.mu.Unlock()
		pids := children()
		if guest > 0 {
			for _, p := range pids { // a grandchild while bwrap lives
				pids = append(pids, childrenOf(p)...)
			}
		}
		for _, p := range pids {
			_ = unix.Kill(p, unix.SIGKILL)
		}
		select {
		case <-k.ended:
			return
		case <-tick.C:
		}
	}
}

func children() []int { return childrenOf(os.Getpid()) }

func childrenOf(pid int) []int {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil
	}
	var pids []int
	for _, t := range tasks {
		list, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		for _, f := range strings.Fields(string(list)) {
			if p, err := strconv.Atoi(f); err == nil && p > 1 {
				pids = append(pids, p)
			}
		}
	}
	return pids
}
