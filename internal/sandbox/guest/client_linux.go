package guest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/door"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/frame"
	"golang.org/x/sys/unix"
)

// sendTimeout bounds how long a supervisor that does not read can hold up the
// controller.
const sendTimeout = 10 * time.Second

// Client is the controller's end. Safe for concurrent use.
type Client struct {
	conn  *frame.Conn
	asked asked
	seen  func(sandbox.Seen)
	ready chan struct{}
	done  chan struct{}

	mu       sync.Mutex
	x        exchange
	next     uint32
	procs    map[uint32]*Process
	dials    map[uint32]chan dialed
	listener *os.File
	ports    []sandbox.Listener
	devices  []uint64
	usage    sandbox.Usage
	err      error

	foreign bool
	doors   map[int]*os.File // our ends, by port
	arrived chan report
}

// NewClient starts the conversation on a connection, which it takes over. w is
// asked about writes; nil if nothing of the host is writable inside. seen is told of
// what Setup.Sights asks for.
func NewClient(conn *frame.Conn, s Setup, w *sandbox.Writes, seen func(sandbox.Seen)) *Client {
	s.Guard = guardSetup(w)
	c := &Client{conn: conn, asked: asked{conn: conn, writes: w}, seen: seen, ready: make(chan struct{}), done: make(chan struct{}), procs: map[uint32]*Process{}, dials: map[uint32]chan dialed{},
		x: exchange{guarded: w != nil, relay: s.RelayPort != 0, ports: len(s.Ports), layers: len(s.Layers), watched: s.Watch != nil, sights: s.Sights, commands: map[uint32]*commandState{}, dials: map[uint32]bool{},
			foreign: s.Foreign != nil, arrived: map[uint32]bool{}},
		foreign: s.Foreign != nil, doors: map[int]*os.File{}, arrived: make(chan report, maxWaiting)}
	c.x.listens = func(port int) bool { return c.doors[port] != nil }
	if c.foreign {
		go c.answerArrivals()
	}
	go c.receive(s)
	return c
}

// Ready waits until the supervisor is confined, and returns the relay's
// listener if one was asked for.
func (c *Client) Ready(ctx context.Context) (*os.File, error) {
	select {
	case <-c.ready:
		return c.listener, nil
	case <-c.done:
		return nil, c.Err()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Ports returns the listeners that Setup.Ports asked for, after Ready. The
// caller owns them.
func (c *Client) Ports() []sandbox.Listener {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ports
}

// Devices returns the devices of Setup.Layers as the supervisor saw them before any
// command ran, after Ready.
func (c *Client) Devices() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.devices
}

// Usage is what the supervisor last said about Setup.Watch.
func (c *Client) Usage() sandbox.Usage {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.usage
}

// Done is closed when the conversation has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err says why the conversation ended.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the conversation, and with it the supervisor.
func (c *Client) Close() { c.conn.Close() }

func (c *Client) receive(s Setup) {
	sent := make(chan error, 1)
	go func() { sent <- c.conn.Send(time.Now().Add(sendTimeout), request{Setup: &s}) }()
	var err error
	for err == nil {
		var r report
		var files []*os.File
		if files, err = c.conn.Receive(&r, maxReport, max(1, 1+2*len(s.Ports))); err != nil {
			break
		}
		if err = c.take(r, files, s); err != nil {
			for _, f := range files {
				f.Close()
			}
		}
	}
	c.conn.Close()
	c.mu.Lock()
	c.err = err
	for _, p := range c.procs {
		p.end(0, sandbox.ErrGone)
	}
	c.procs = nil
	for _, d := range c.dials {
		close(d)
	}
	c.dials = nil
	for _, d := range c.doors {
		d.Close()
	}
	c.mu.Unlock()
	close(c.done)
	<-sent
}

// take acts on one report. On an error the descriptors are still the caller's.
func (c *Client) take(r report, files []*os.File, s Setup) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.x.judge(r, len(files)); err != nil {
		return fmt.Errorf("the sandbox broke the protocol: %s", clean(err.Error()))
	}
	p := c.procs[r.ID]
	switch r.Kind {
	case kindReady:
		listeners := c.listeners
		if c.foreign {
			listeners = c.openDoors
		}
		if err := listeners(files, s); err != nil {
			return fmt.Errorf("the sandbox broke the protocol: %w", err)
		}
		c.devices = r.Devices
		close(c.ready)
	case kindFailed:
		return errors.New(clean(r.Error))
	case kindStarted:
		if len(files) > 0 {
			t, err := checkTerminal(files[0])
			if err != nil {
				return fmt.Errorf("the sandbox broke the protocol: %w", err)
			}
			files[0].Close()
			p.terminal = t
		}
		if r.Modes != nil {
			p.modes = *r.Modes
		}
		close(p.started)
	case kindRefused:
		p.refused = &sandbox.ExecError{Name: p.name, NotFound: r.NotFound, Err: errors.New(clean(r.Error))}
		delete(c.procs, r.ID)
		close(p.started)
	case kindStopped:
		select {
		case p.stopped <- struct{}{}:
		default: // the last stop was not seen yet; one notice is enough
		}
	case kindExited:
		delete(c.procs, r.ID)
		p.end(r.Code, nil)
	case kindDialed, kindClosed:
		return c.takeDial(r, files)
	case kindDenied, kindKeep, kindMade:
		return c.asked.take(r)
	case kindModes:
		if p != nil {
			p.modes = *r.Modes
		}
	case kindSeen:
		tellSeen(c.seen, r)
	case kindUsage:
		c.usage = sandbox.Usage{Bytes: r.Usage.Bytes, Inodes: r.Usage.Inodes, CPU: time.Duration(r.Usage.CPU), Looks: r.Usage.Looks, Full: string(r.Usage.Full), Crowded: r.Usage.Crowded}
	case kindArrived:
		c.arrived <- r // judge has bounded them
	}
	return nil
}

func tellSeen(seen func(sandbox.Seen), r report) {
	for _, s := range r.Sights {
		seen(sandbox.Seen{What: s.What, PID: s.PID, Name: string(s.Name), Path: string(s.Path), Code: -1})
	}
	if r.Lost > 0 {
		seen(sandbox.Seen{What: sandbox.SeenLost, Count: r.Lost})
	}
}

// Start starts a command, see sandbox.Instance.
func (c *Client) Start(ctx context.Context, cmd sandbox.Command) (*Process, error) {
	s := start{Argv: byteStrings(cmd.Argv), Env: byteStrings(cmd.Env), Dir: []byte(cmd.Dir),
		Terminal: cmd.Terminal, Rows: cmd.Rows, Cols: cmd.Cols}
	if err := s.validate(); err != nil {
		return nil, err
	}
	var files []*os.File
	for i, f := range cmd.Stdio {
		if f == nil {
			continue
		}
		null, err := checkStdio(f)
		if err != nil {
			return nil, fmt.Errorf("descriptor %d for %s: %w", i, cmd.Argv[0], err)
		}
		if s.Null[i] = null; null {
			continue
		}
		s.Stdio[i] = true
		if c.foreign {
			if f, err = reopened(f, i); err != nil {
				return nil, fmt.Errorf("descriptor %d for %s: %w", i, cmd.Argv[0], err)
			}
			defer f.Close()
		}
		files = append(files, f)
	}
	var line *os.File
	if c.foreign && cmd.Terminal {
		ours, theirs, err := door.Streams()
		if err != nil {
			return nil, err
		}
		defer theirs.Close()
		line, files = ours, append(files, theirs)
	}
	p := &Process{client: c, terminal: line, bridged: line != nil, name: cmd.Argv[0], started: make(chan struct{}), exited: make(chan struct{}), stopped: make(chan struct{}, 1)}
	c.mu.Lock()
	if c.procs == nil || !c.x.ready {
		c.mu.Unlock()
		return nil, sandbox.ErrGone
	}
	c.next++
	s.ID, p.id = c.next, c.next
	c.procs[p.id] = p
	c.x.commands[p.id] = &commandState{terminal: s.Terminal}
	c.mu.Unlock()

	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(sendTimeout)
	}
	if err := c.conn.Send(deadline, request{Start: &s}, files...); err != nil {
		c.conn.Close() // half a message is no message
		closeFile(line)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			return nil, sandbox.ErrGone
		}
		return nil, fmt.Errorf("starting %s: %w", cmd.Argv[0], err)
	}
	select {
	case <-p.started:
	case <-c.done:
		closeFile(line)
		return nil, sandbox.ErrGone
	case <-ctx.Done():
		go p.abandon()
		return nil, ctx.Err()
	}
	if p.refused != nil {
		closeFile(line)
		return nil, p.refused
	}
	return p, nil
}

func closeFile(f *os.File) {
	if f != nil {
		f.Close()
	}
}

func byteStrings(ss []string) [][]byte {
	bs := make([][]byte, len(ss))
	for i, s := range ss {
		bs[i] = []byte(s)
	}
	return bs
}

// Process is one command inside.
type Process struct {
	client  *Client
	id      uint32
	name    string
	started chan struct{}
	exited  chan struct{}
	stopped chan struct{}
	bridged bool // terminal is a socket

	// Written under client.mu before the channel that announces them is closed.
	terminal *os.File
	refused  *sandbox.ExecError
	code     int
	err      error
	modes    Modes // the last that were told
}

func (p *Process) end(code int, err error) {
	p.code, p.err = code, err
	close(p.exited)
}

// abandon kills a command whose caller no longer waits for its start.
func (p *Process) abandon() {
	select {
	case <-p.started:
		if p.refused != nil {
			return
		}
		if p.terminal != nil {
			p.terminal.Close()
		}
		_ = p.Signal(syscall.SIGKILL)
	case <-p.client.done:
	}
}

// Terminal implements sandbox.Process.
func (p *Process) Terminal() *os.File { return p.terminal }

// Wait implements sandbox.Process.
func (p *Process) Wait() (int, error) {
	<-p.exited
	return p.code, p.err
}

// Stopped implements sandbox.Process.
func (p *Process) Stopped() <-chan struct{} { return p.stopped }

// Signal implements sandbox.Process.
func (p *Process) Signal(sig os.Signal) error {
	n, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal %v is not of this system", sig)
	}
	select {
	case <-p.exited:
		return os.ErrProcessDone
	default:
	}
	err := p.client.conn.Send(time.Now().Add(sendTimeout), request{Signal: &signalRequest{ID: p.id, Signal: int(n)}})
	if err != nil {
		p.client.conn.Close()
		return sandbox.ErrGone
	}
	return nil
}

// checkTerminal accepts the controlling end of a pseudo-terminal only, and
// returns it in a form that deadlines and Close interrupt. The device's number
// is looked at before anything is done with it.
func checkTerminal(f *os.File) (t *os.File, err error) {
	err = control(f, func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFCHR || unix.Major(st.Rdev) != 5 || unix.Minor(st.Rdev) != 2 {
			return errors.New("the terminal is not one")
		}
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.SetNonblock(dup, true); err != nil {
			unix.Close(dup)
			return err
		}
		t = os.NewFile(uintptr(dup), "terminal")
		return nil
	})
	return t, err
}

// checkListener accepts a listening TCP socket at this address only.
func checkListener(f *os.File, at netip.AddrPort) error {
	return control(f, func(fd int) error {
		bad := fmt.Errorf("the listener for %v is not one", at)
		if proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || proto != unix.IPPROTO_TCP {
			return bad
		}
		if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on != 1 {
			return bad
		}
		if sa, err := unix.Getsockname(fd); err != nil || addrPort(sa) != at {
			return bad
		}
		return nil
	})
}

// checkStdio refuses what must not get into a sandbox, see sandbox.Command: a
// terminal could be typed into, a directory is a door, a socket a way out, and
// of a file or device the owner could change mode and times. null says that it
// is /dev/null, for which the guest takes the sandbox's own.
func checkStdio(f *os.File) (null bool, err error) {
	err = control(f, func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFIFO:
			return nil
		case unix.S_IFCHR:
			if null = st.Rdev == unix.Mkdev(1, 3); null {
				return nil
			}
			return errors.New("a terminal or device of the host can't be given to a sandbox (use a pipe)")
		case unix.S_IFDIR:
			return errors.New("a directory of the host can't be given to a sandbox (use a pipe)")
		case unix.S_IFSOCK:
			return errors.New("a socket of the host can't be given to a sandbox (use a pipe)")
		}
		return errors.New("a file of the host can't be given to a sandbox (use a pipe)")
	})
	return null, err
}

func control(f *os.File, do func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	return inner
}
