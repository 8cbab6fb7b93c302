package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/frame"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/guard"
	"github.com/bulkhead-dev/bulkhead/internal/switches"
	"golang.org/x/sys/unix"
)

const (
	controlFD = 3
	setupFD   = 4 // of the confined supervisor: its Setup, JSON

	confinedChild = "guest-confined"
)

func init() {
	childproc.Register(Child, supervise)
	childproc.Register(confinedChild, superviseConfined)
	childproc.Register(jobChild, job)
}

// supervisor is pid 1.
type supervisor struct {
	conn     *frame.Conn
	oomScore *os.File
	host     *host // nil: no write is judged

	// mu is held over fork and bookkeeping together, so that the reaper never
	// meets a child that is not in the book yet.
	mu       sync.Mutex
	byPID    map[int]*command
	commands map[uint32]*command

	prepared chan struct{} // closed when this process is ready for commands beside it

	sights  *sights  // nil: nobody wants to know
	foreign *Foreign // nil: the host's kernel
	arrived arrivals
}

// command is one that was started. Exactly one of its ways to end reports it.
type command struct {
	id    uint32
	group int           // process group to signal; 0 until known
	job   chan struct{} // closed when the job child was reaped; nil without a terminal
	code  int           // the job child's own exit code
	line  *bridge       // under a foreign kernel, with a terminal
}

// supervise confines this process and executes itself again: a process has one
// Landlock domain for all of its threads only if it began with it, and the guard's
// threads may look into a command only from a domain that its own lies in.
func supervise() int {
	oomScore, err := openOOMScore()
	if err != nil {
		return failBegin(err)
	}
	begin(int(oomScore.Fd()))
	second, err := unix.FcntlInt(controlFD, unix.F_DUPFD_CLOEXEC, setupFD+1)
	if err != nil {
		return failBegin(err)
	}
	conn, err := frame.New(os.NewFile(uintptr(second), "control socket"))
	if err != nil {
		return failBegin(err)
	}
	var first request
	if _, err := conn.Receive(&first, frame.MaxPayload, 0); err != nil {
		return 0 // the controller is gone before it said anything
	}
	if first.Setup == nil {
		return 1
	}
	if os.Getpid() != 1 {
		return failSetup(conn, errors.New("the supervisor is not pid 1 of its own namespace"))
	}
	if first.Setup.Foreign != nil {
		unix.CloseOnExec(controlFD)
		if err := settleIn(*first.Setup); err != nil {
			return failSetup(conn, err)
		}
		return superviseWith(conn, *first.Setup, oomScore)
	}
	if err := confine(*first.Setup); err != nil {
		return failSetup(conn, err)
	}
	f, err := jsonFile(first.Setup)
	if err != nil {
		return failSetup(conn, err)
	}
	if err := unix.Dup3(int(f.Fd()), setupFD, 0); err != nil {
		return failSetup(conn, err)
	}
	err = unix.Exec(Path, []string{childproc.Argv0(confinedChild)}, []string{})
	runtime.KeepAlive(oomScore) // its descriptor may be the setup's now
	return failSetup(conn, fmt.Errorf("starting the confined supervisor: %w", err))
}

func failSetup(conn *frame.Conn, err error) int {
	_ = conn.Send(time.Now().Add(sendTimeout), report{Kind: kindFailed, Error: err.Error()})
	return 1
}

func failBegin(err error) int {
	fmt.Fprintln(os.Stderr, "guest:", err)
	return 1
}

// begin closes this process to others, and what somebody may have left open but kept.
func begin(kept ...int) {
	err := hide("bulkhead-guest")
	if err == nil {
		forgetIgnored()
	}
	if err == nil && !switches.Off("descriptors") {
		err = closeOthers(append(kept, controlFD)...)
	}
	if err != nil {
		os.Exit(failBegin(err))
	}
}

// openOOMScore must come before this process becomes undumpable.
func openOOMScore() (*os.File, error) {
	return os.OpenFile("/proc/self/oom_score_adj", os.O_WRONLY, 0)
}

// superviseConfined is the supervisor after it has confined itself.
func superviseConfined() int {
	oomScore, err := openOOMScore()
	if err != nil {
		return failBegin(err)
	}
	setupFile := os.NewFile(setupFD, "setup")
	var setup Setup
	if err := json.NewDecoder(setupFile).Decode(&setup); err != nil {
		return failBegin(err)
	}
	setupFile.Close()
	if err := hide("bulkhead-guest"); err != nil {
		return failBegin(err)
	}
	unix.CloseOnExec(controlFD)
	conn, err := frame.New(os.NewFile(controlFD, "control socket"))
	if err != nil {
		return failBegin(err)
	}
	return superviseWith(conn, setup, oomScore)
}

// superviseWith is the supervisor for the rest of its life.
func superviseWith(conn *frame.Conn, setup Setup, oomScore *os.File) int {
	fail := func(err error) int { return failSetup(conn, err) }
	devices, err := devicesOf(setup.Layers)
	if err == nil {
		err = verify(setup.Judged)
	}
	var watching *watcher
	if err == nil && setup.Watch != nil {
		watching, err = newWatcher(*setup.Watch)
	}
	if err != nil {
		return fail(err)
	}
	var files []*os.File
	if port := setup.RelayPort; port != 0 {
		l, err := listen(netip.AddrPortFrom(loopbacks[0], uint16(port)))
		if err != nil {
			return fail(fmt.Errorf("relay listener: %w", err))
		}
		defer l.Close()
		files = append(files, l)
	}
	ports, v6, err := listenPorts(setup.Ports)
	if err != nil {
		return fail(err)
	}
	files = append(files, ports...)
	s := &supervisor{conn: conn, oomScore: oomScore, byPID: map[int]*command{}, commands: map[uint32]*command{}, foreign: setup.Foreign, prepared: make(chan struct{}),
		arrived: arrivals{waiting: map[uint32]chan *os.File{}, slots: make(chan struct{}, maxArrivals)}}
	if setup.Sights {
		s.sights = newSights()
	}
	work := make(chan func())
	spawning := make(chan spawnReady)
	go s.spawn(setup.Guard, work, spawning)
	r := <-spawning
	if r.err == nil && setup.Guard != nil {
		s.host = newHost(s.report, s.sights.opened)
		_, r.err = guard.Start(*setup.Guard, r.listener, s.host, func(err error) { os.Exit(failBegin(err)) })
	}
	if r.err != nil {
		return fail(r.err)
	}
	go s.reap()
	// What only commands could disturb is made while the controller makes up its mind.
	go func() {
		prepareThreads(10)
		ignoreSignals()
		close(s.prepared)
	}()
	report := report{Kind: kindReady, V6: v6, Devices: devices}
	if s.foreign != nil {
		report.V6 = false
		s.report(report)
		go watching.run(s.report)
		s.serveListeners(setup, files)
		return s.serve(work)
	}
	s.report(report, files...)
	go watching.run(s.report)
	go s.sights.run(s.report)
	for _, f := range files {
		f.Close()
	}
	return s.serve(work)
}

// devicesOf says on which filesystems folders lie.
func devicesOf(paths []string) ([]uint64, error) {
	var out []uint64
	for _, p := range paths {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		out = append(out, uint64(st.Dev))
	}
	return out, nil
}

// verify compares what stands in the sandbox with what the controller judged:
// between the two somebody may have put a link or another folder in its place.
func verify(judged []Identity) error {
	for _, j := range judged {
		var st unix.Stat_t
		if err := unix.Lstat(string(j.Path), &st); err != nil || st.Dev != j.Dev || st.Ino != j.Ino {
			return errors.New(Exchanged + string(j.Path))
		}
	}
	return nil
}

type startRequest struct {
	start
	files []*os.File
}

// serve takes the controller's requests until it closes the connection.
// Returning ends pid 1, and with it everything in the sandbox.
func (s *supervisor) serve(work chan<- func()) int {
	for {
		var r request
		files, err := s.conn.Receive(&r, frame.MaxPayload, 4)
		if errors.Is(err, io.EOF) {
			return 0
		}
		if err != nil {
			return 1
		}
		switch {
		case r.Start != nil:
			<-s.prepared
			work <- func() { s.start(startRequest{*r.Start, files}) }
		case r.Signal != nil:
			work <- func() { s.signal(*r.Signal) }
		case r.Dial != nil && len(files) > 0:
			go s.dialBridged(*r.Dial, files[0])
		case r.Dial != nil:
			go s.dial(*r.Dial)
		case r.Kept != nil && s.host != nil:
			s.host.kept(*r.Kept, files)
		case r.Line != nil:
			s.setLine(*r.Line)
		case r.Carry != nil:
			s.carry(r.Carry.ID, files)
		}
	}
}

func (s *supervisor) report(r report, files ...*os.File) {
	if err := s.conn.Send(time.Time{}, r, files...); err != nil {
		os.Exit(0) // nobody is left to supervise for
	}
}

func (s *supervisor) signal(r signalRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.commands[r.ID]; c != nil && c.group > 0 {
		_ = unix.Kill(-c.group, unix.Signal(r.Signal))
	}
}

type spawnReady struct {
	listener int
	err      error
}

func (s *supervisor) setLine(r lineRequest) {
	s.mu.Lock()
	c := s.commands[r.ID]
	s.mu.Unlock()
	if c != nil && c.line != nil {
		c.line.set(r)
	}
}

// spawn starts and signals commands, all from one thread. Before Landlock ABI
// 8 each thread of a process is in a domain of its own, and a domain's processes
// can signal only their own: the commands must share one, and pid 1 must speak
// to them from it. The same thread has the filter that asks the guard.
func (s *supervisor) spawn(g *guard.Setup, work <-chan func(), ready chan<- spawnReady) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// A signal to the process asks for the domain of its first thread, which must
		// not be the commands' own. This goroutine keeps it from the next.
		ended := make(chan struct{})
		go func() { defer close(ended); s.spawn(g, work, ready) }()
		<-ended
		return
	}
	r := spawnReady{listener: -1}
	if s.foreign == nil {
		r.err = scopeThread()
	}
	if r.err == nil {
		r.listener, r.err = guardWrites(g)
	}
	ready <- r
	if r.err != nil {
		return
	}
	for do := range work {
		do()
	}
}

func (s *supervisor) start(r startRequest) {
	defer func() {
		for _, f := range r.files {
			f.Close()
		}
	}()
	refuse := func(f *failure) {
		s.report(report{Kind: kindRefused, ID: r.ID, NotFound: f.notFound, Error: f.text})
	}
	if r.validate() != nil {
		refuse(&failure{text: "malformed request"})
		return
	}
	var stdio [3]*os.File
	given := r.files
	for i, here := range r.Stdio {
		if here && len(given) > 0 {
			stdio[i], given = given[0], given[1:]
			// A Go controller makes its pipes non-blocking, on both sides.
			_ = unix.SetNonblock(int(stdio[i].Fd()), false)
		}
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		refuse(&failure{text: err.Error()})
		return
	}
	defer null.Close()
	for i, wanted := range r.Null {
		if wanted && stdio[i] == nil {
			stdio[i] = null
		}
	}
	if r.Terminal {
		var outside *os.File
		if s.foreign != nil {
			if len(given) == 0 {
				refuse(&failure{text: "malformed request"})
				return
			}
			outside = given[0]
		}
		if f := s.startJob(r.start, stdio, outside); f != nil {
			refuse(f)
		}
		return
	}
	var fds [3]uintptr
	for i, f := range stdio {
		if f == nil {
			f = null
		}
		fds[i] = f.Fd()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.preferVictims(true)
	pid, fail := launch(r.start, fds[:], launchOptions{session: true, numbers: s.foreign})
	s.preferVictims(false)
	if fail != nil {
		refuse(fail)
		return
	}
	c := &command{id: r.ID, group: pid}
	s.byPID[pid], s.commands[r.ID] = c, c
	s.report(report{Kind: kindStarted, ID: r.ID})
}

// preferVictims makes what is forked now a better victim than pid 1, whose
// death would end the sandbox, and than the host's processes, when memory runs
// out. The score is inherited.
func (s *supervisor) preferVictims(on bool) {
	score := "0"
	if on {
		score = "200"
	}
	_, _ = s.oomScore.WriteAt([]byte(score), 0)
}

// reap waits for every process that ends in the sandbox: the started commands
// and whatever else was orphaned.
func (s *supervisor) reap() {
	child := make(chan os.Signal, 1)
	signal.Notify(child, unix.SIGCHLD)
	for {
		s.reapAll()
		<-child
	}
}

func (s *supervisor) reapAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, unix.WNOHANG|unix.WUNTRACED, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid == 0 {
			return
		}
		c := s.byPID[pid]
		switch {
		case c == nil: // an orphan
		case st.Stopped():
			if c.job == nil {
				s.report(report{Kind: kindStopped, ID: c.id})
			}
		default:
			delete(s.byPID, pid)
			if c.job != nil {
				c.code = exitCode(st)
				close(c.job)
				continue
			}
			delete(s.commands, c.id)
			s.sights.flush(s.report)
			s.report(report{Kind: kindExited, ID: c.id, Code: exitCode(st)})
		}
	}
}

func exitCode(st unix.WaitStatus) int {
	if st.Signaled() {
		return 128 + int(st.Signal())
	}
	return st.ExitStatus()
}

// ignoreSignals takes signals that would end a Go process. They are caught,
// not ignored: an ignored signal would stay ignored in every command.
func ignoreSignals() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGABRT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE,
		unix.SIGALRM, unix.SIGVTALRM, unix.SIGIO, unix.SIGPWR, unix.SIGSTKFLT, unix.SIGSYS, unix.SIGTRAP, unix.SIGXCPU, unix.SIGXFSZ)
	go func() {
		for range c {
		}
	}()
}
