package guest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"golang.org/x/sys/unix"
)

const jobChild = "job"

// Descriptors of the job child, and the records it writes to the supervisor:
// one letter and a number.
const (
	jobSpecFD   = 3 // the start request, JSON
	jobStatusFD = 4
	jobTTYFD    = 5 // the terminal, also where 0, 1, 2 are something else

	jobStarted  = 's' // process id
	jobRefused  = 'r' // length of the text, which follows; the top bit says not found
	jobStopped  = 't'
	jobExited   = 'x' // exit code
	jobNotFound = 1 << 31
)

// startJob makes a terminal and a job child on it. The job child reports.
// outside is the socket for the terminal, nil if the terminal itself goes out.
func (s *supervisor) startJob(st start, stdio [3]*os.File, outside *os.File) *failure {
	fail := func(what string, err error) *failure { return &failure{text: what + ": " + err.Error()} }
	master, slave, err := openTerminal(st.Rows, st.Cols)
	if err != nil {
		return fail("terminal", err)
	}
	defer master.Close()
	defer slave.Close()
	st.Foreign = s.foreign != nil
	spec, err := jsonFile(st)
	if err != nil {
		return fail("request", err)
	}
	defer spec.Close()
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return fail("pipe", err)
	}
	defer statusW.Close()
	fds := []uintptr{slave.Fd(), slave.Fd(), slave.Fd(), spec.Fd(), statusW.Fd(), slave.Fd()}
	for i, f := range stdio {
		if f != nil {
			fds[i] = f.Fd()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.preferVictims(true)
	pid, err := syscall.ForkExec(Path, []string{childproc.Argv0(jobChild)}, &syscall.ProcAttr{
		Dir: "/", Env: []string{}, Files: fds,
		Sys: numbered(&syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: jobTTYFD}, s.foreign),
	})
	s.preferVictims(false)
	if err != nil {
		statusR.Close()
		return fail("job", err)
	}
	c := &command{id: st.ID, job: make(chan struct{})}
	s.byPID[pid], s.commands[st.ID] = c, c
	own, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		statusR.Close()
		return fail("terminal", err)
	}
	terminal := os.NewFile(uintptr(own), "terminal")
	if outside != nil {
		if c.line, err = s.bridgeTerminal(st.ID, pid, terminal, outside); err != nil {
			_ = unix.Kill(pid, unix.SIGKILL)
			statusR.Close()
			return fail("terminal", err)
		}
	}
	go s.follow(c, statusR, terminal)
	return nil
}

// follow turns the job child's records into reports. The child's records are
// not trusted: it lives among the commands.
func (s *supervisor) follow(c *command, status, master *os.File) {
	defer status.Close()
	started := false
	for {
		kind, n, text, err := readRecord(status)
		if err != nil {
			break
		}
		switch {
		case kind == jobStarted && !started && n > 1:
			started = true
			s.mu.Lock()
			c.group = int(n)
			s.mu.Unlock()
			if c.line != nil {
				s.report(report{Kind: kindStarted, ID: c.id, Modes: c.line.current()})
				go c.line.run()
				continue
			}
			s.report(report{Kind: kindStarted, ID: c.id}, master)
			master.Close()
		case kind == jobRefused && !started:
			master.Close()
			s.drop(c)
			s.report(report{Kind: kindRefused, ID: c.id, NotFound: n&jobNotFound != 0, Error: text})
			return
		case kind == jobStopped && started:
			s.report(report{Kind: kindStopped, ID: c.id})
		case kind == jobExited && started:
			if c.line != nil {
				c.line.settle()
			}
			s.drop(c)
			s.report(report{Kind: kindExited, ID: c.id, Code: int(n & 0xff)})
			return
		}
	}
	// The job child ended without a last word: somebody inside killed it.
	<-c.job
	if c.line != nil && started {
		c.line.settle()
	}
	s.drop(c)
	if !started {
		master.Close()
		s.report(report{Kind: kindRefused, ID: c.id, Error: fmt.Sprintf("the job process ended with code %d", c.code)})
		return
	}
	s.report(report{Kind: kindExited, ID: c.id, Code: c.code & 0xff})
}

func (s *supervisor) drop(c *command) {
	s.mu.Lock()
	delete(s.commands, c.id)
	s.mu.Unlock()
}

func readRecord(r io.Reader) (kind byte, n uint32, text string, err error) {
	var b [5]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, 0, "", err
	}
	kind, n = b[0], binary.BigEndian.Uint32(b[1:])
	if kind != jobRefused {
		return kind, n, "", nil
	}
	length := n &^ jobNotFound
	if length > 4096 {
		return 0, 0, "", errors.New("record too long")
	}
	t := make([]byte, length)
	if _, err := io.ReadFull(r, t); err != nil {
		return 0, 0, "", err
	}
	return kind, n, string(t), nil
}

func record(kind byte, n uint32, text string) []byte {
	b := append([]byte{kind}, binary.BigEndian.AppendUint32(nil, n)...)
	return append(b, text...)
}

// job is the session leader of one terminal: it starts the command in a
// process group of its own, makes that the foreground group before the command
// runs, and reports its stops and its end. Being its parent in the same session
// is what makes Ctrl-Z work.
func job() int {
	runtime.LockOSThread() // tracing is by thread
	if err := hide("bulkhead-job"); err != nil {
		return 1
	}
	prepareThreads(4)
	for fd := jobSpecFD; fd <= jobTTYFD; fd++ {
		unix.CloseOnExec(fd)
	}
	status := os.NewFile(jobStatusFD, "status")
	tell := func(kind byte, n uint32, text string) { _, _ = status.Write(record(kind, n, text)) }
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, unix.SIGHUP)
	foreground := make(chan os.Signal, 16)
	signal.Notify(foreground, unix.SIGWINCH, unix.SIGUSR1, unix.SIGUSR2, unix.SIGTSTP)
	ignoreTerminalSignals()

	data, err := io.ReadAll(os.NewFile(jobSpecFD, "request"))
	var st start
	if err == nil {
		err = json.Unmarshal(data, &st)
	}
	if err != nil {
		return 1
	}
	// gVisor asks whether the child may be traced while it still is our image.
	// Whoever attaches to us meanwhile gets what it has: the terminal's session.
	if st.Foreign {
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	}
	pid, fail := launch(st, []uintptr{0, 1, 2}, launchOptions{group: true, traced: true})
	if st.Foreign {
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	}
	if fail != nil {
		text := fail.text[:min(len(fail.text), 4096)]
		n := uint32(len(text))
		if fail.notFound {
			n |= jobNotFound
		}
		tell(jobRefused, n, text)
		return 0
	}
	// The command stands before its first instruction.
	var ws unix.WaitStatus
	if _, err := wait(pid, &ws, 0); err != nil || !ws.Stopped() {
		return 1
	}
	_ = unix.IoctlSetPointerInt(jobTTYFD, unix.TIOCSPGRP, pid)
	tell(jobStarted, uint32(pid), "")
	if err := unix.PtraceDetach(pid); err != nil {
		return 1
	}
	go func() {
		for range hangup { // the kernel tells the session leader only
			_ = unix.Kill(-pid, unix.SIGHUP)
			_ = unix.Kill(-pid, unix.SIGCONT)
			if st.Foreign {
				toForeground(unix.SIGHUP)
			}
		}
	}()
	go func() {
		for sig := range foreground {
			if st.Foreign {
				toForeground(sig)
			}
		}
	}()
	for {
		if _, err := wait(pid, &ws, unix.WUNTRACED); err != nil {
			return 1
		}
		if ws.Stopped() {
			tell(jobStopped, 0, "")
			continue
		}
		tell(jobExited, uint32(exitCode(ws)), "")
		return 0
	}
}

// toForeground passes on what the supervisor cannot send itself under a foreign
// kernel: only a process of the terminal's session knows the foreground group.
func toForeground(sig os.Signal) {
	as := map[os.Signal]unix.Signal{unix.SIGHUP: unix.SIGHUP, unix.SIGWINCH: unix.SIGWINCH, unix.SIGUSR1: unix.SIGINT, unix.SIGUSR2: unix.SIGQUIT, unix.SIGTSTP: unix.SIGTSTP}[sig]
	if group, err := unix.IoctlGetInt(jobTTYFD, unix.TIOCGPGRP); err == nil && group > 1 {
		_ = unix.Kill(-group, as)
	}
}

func wait(pid int, ws *unix.WaitStatus, options int) (int, error) {
	for {
		n, err := unix.Wait4(pid, ws, options, nil)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// ignoreTerminalSignals catches what would end or stop the session leader.
func ignoreTerminalSignals() {
	ignoreSignals()
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	go func() {
		for range c {
		}
	}()
}

// jsonFile holds a value for a child to read.
func jsonFile(v any) (*os.File, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("request", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "request")
	if _, err = f.Write(data); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openTerminal makes a pseudo-terminal of the sandbox's own devpts. The second
// end is opened from the first, not by its path.
func openTerminal(rows, cols uint16) (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	master = os.NewFile(uintptr(fd), "terminal")
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil && rows > 0 && cols > 0 {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	}
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno == unix.ENOTTY { // gVisor, whose devpts nothing inside can cover for pid 1
		if slave, err = peerByNumber(fd); err == nil {
			return master, slave, nil
		}
		master.Close()
		return nil, nil, err
	}
	if errno != 0 {
		master.Close()
		return nil, nil, errno
	}
	return master, os.NewFile(peer, "terminal"), nil
}

func peerByNumber(master int) (*os.File, error) {
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if err := f.Chown(0, 0); err != nil { // the user's, not the supervisor's
		f.Close()
		return nil, err
	}
	return f, nil
}

// bridgeTerminal makes the bridge between a terminal and its socket; it owns
// both when it runs.
func (s *supervisor) bridgeTerminal(id uint32, leader int, master, outside *os.File) (*bridge, error) {
	for _, f := range []**os.File{&master, &outside} {
		dup, err := unix.FcntlInt((*f).Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil {
			err = unix.SetNonblock(dup, true)
		}
		if err != nil {
			return nil, err
		}
		*f = os.NewFile(uintptr(dup), "terminal")
	}
	return newBridge(leader, master, outside, func(m *Modes) { s.report(report{Kind: kindModes, ID: id, Modes: m}) }), nil
}
