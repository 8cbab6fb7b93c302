package session

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/publish"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/process/cgroup"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// How long the two ends of the control socket wait for each other.
const (
	queueTime  = 500 * time.Millisecond // for a place in the queue
	answerTime = 5 * time.Second        // for a request, and for its answer
	startTime  = 20 * time.Second       // for a further command to start
)

// controlServer serves the control socket inside the controller.
type controlServer struct {
	fd   int
	file *os.File
	ops  controlOps
}

func listenControl(id vocabulary.SessionID, ops controlOps) (*controlServer, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("session control socket: %w", err)
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: socketName(os.Getuid(), id)}), unix.Listen(fd, unix.SOMAXCONN)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("session control socket: %w", err)
	}
	s := &controlServer{fd: fd, file: os.NewFile(uintptr(fd), "control listener"), ops: ops}
	go s.serve()
	return s, nil
}

func (s *controlServer) Close() error { return s.file.Close() }

func (s *controlServer) serve() {
	rc, err := s.file.SyscallConn()
	if err != nil {
		return
	}
	for {
		var nfd int
		var aerr error
		err := rc.Read(func(fd uintptr) bool {
			nfd, _, aerr = unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return aerr != syscall.EAGAIN
		})
		if err != nil {
			return
		}
		if aerr != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors, say: not a busy loop
			continue
		}
		if !peerAllowed(nfd) {
			unix.Close(nfd)
			continue
		}
		go s.handle(newPacketConn(nfd))
	}
}

// peerAllowed admits the session's own user and root.
func peerAllowed(fd int) bool {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return err == nil && (int(cred.Uid) == os.Getuid() || cred.Uid == 0)
}

func (s *controlServer) handle(c *packetConn) {
	defer c.Close()
	c.f.SetReadDeadline(time.Now().Add(answerTime)) // who connects has something to say
	var req request
	files, err := c.receive(&req)
	c.f.SetReadDeadline(time.Time{})
	if err != nil {
		return
	}
	defer closeAll(files)
	switch req.Op {
	case "info":
		info := s.ops.info()
		c.send(reply{Kind: "info", Info: &info})
	case "stop":
		s.ops.stop()
		c.send(reply{Kind: "done"})
	case "revoke":
		if err := s.ops.revoke(); err != nil {
			c.send(reply{Kind: "error", Message: err.Error(), Code: vocabulary.ExitBulkheadFailed})
			return
		}
		c.send(reply{Kind: "done"})
	case "publish":
		if err := s.ops.publish(publish.Port{Host: req.Host, Inside: req.Inside}); err != nil {
			c.send(reply{Kind: "error", Message: err.Error(), Code: exitCodeOf(err)})
			return
		}
		c.send(reply{Kind: "done"})
	case "exec":
		s.exec(c, req, files)
	default:
		c.send(reply{Kind: "error", Message: "unknown operation; are both bulkhead binaries of one version?", Code: vocabulary.ExitBulkheadFailed})
	}
}

func (s *controlServer) exec(c *packetConn, req request, files []*os.File) {
	cmd := sandbox.Command{Terminal: req.Terminal, Rows: req.Rows, Cols: req.Cols}
	rest := files
	for i, present := range req.Stdio {
		if !present {
			continue
		}
		if len(rest) == 0 {
			c.send(reply{Kind: "error", Message: "descriptors are missing", Code: vocabulary.ExitBulkheadFailed})
			return
		}
		cmd.Stdio[i], rest = rest[0], rest[1:]
	}
	proc, err := s.ops.exec(context.Background(), req.Argv, req.Term, cmd)
	if err != nil {
		c.send(reply{Kind: "error", Message: err.Error(), Code: exitCodeOf(err)})
		return
	}
	started := reply{Kind: "started"}
	var pass []*os.File
	if t := proc.Terminal(); t != nil {
		started.Terminal, started.Line = true, proc.Line() != nil
		pass = append(pass, t)
	}
	err = c.send(started, pass...)
	closeAll(pass)
	if err != nil {
		proc.Signal(syscall.SIGHUP)
		return
	}
	// The client is gone when receive fails; its command then gets a hangup, as
	// a command does whose terminal was closed.
	exited := make(chan struct{})
	go func() {
		for {
			var r request
			fs, err := c.receive(&r)
			closeAll(fs)
			if err != nil {
				select {
				case <-exited:
				default:
					proc.Signal(syscall.SIGHUP)
				}
				return
			}
			if r.Op == "signal" && r.Signal > 0 && r.Signal < 65 {
				proc.Signal(syscall.Signal(r.Signal))
			}
			if line := proc.Line(); line != nil {
				setLine(c, line, r)
			}
		}
	}()
	go func() {
		for {
			select {
			case <-exited:
				return
			case _, ok := <-proc.Stopped():
				if !ok {
					return
				}
				c.send(reply{Kind: "stopped"})
			}
		}
	}()
	code, err := proc.Wait()
	close(exited)
	if err != nil {
		c.send(reply{Kind: "error", Message: err.Error(), Code: vocabulary.ExitBulkheadFailed})
		return
	}
	c.send(reply{Kind: "exit", Code: code})
}

// setLine does what the client asks of a terminal behind a socket.
func setLine(c *packetConn, line sandbox.Line, r request) {
	switch {
	case r.Op == "modes":
		m, _ := line.Modes()
		c.send(reply{Kind: "modes", Modes: &m})
	case r.Op == "line" && r.Modes != nil:
		line.SetModes(*r.Modes)
	case r.Op == "line":
		line.Resize(r.Rows, r.Cols)
	}
}

// Remote is a running session of this user, seen from another process.
type Remote struct {
	uid int
	id  vocabulary.SessionID
}

// Find returns the running session with that id.
func Find(id vocabulary.SessionID) (*Remote, error) {
	for _, r := range remotes() {
		if r.id == id {
			return r, nil
		}
	}
	return nil, fmt.Errorf("no running session %s of yours (see: bulkhead session list)", id)
}

// List returns what every running session of this user says of itself; root
// sees everyone's.
func List() []Info {
	cgroup.Sweep() // what none of them is
	var all []Info
	var mu sync.Mutex
	var each sync.WaitGroup
	for _, r := range remotes() {
		each.Go(func() { // side by side: one that hangs holds up no other
			if info, err := r.Info(); err == nil {
				mu.Lock()
				all = append(all, *info)
				mu.Unlock()
			}
		})
	}
	each.Wait()
	sort.Slice(all, func(i, j int) bool { return all[i].Started.Before(all[j].Started) })
	return all
}

// remotes reads the kernel's list of Unix sockets, so that nothing on disk can
// be stale.
func remotes() (found []*Remote) {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return nil
	}
	defer f.Close()
	seen := map[string]bool{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		i := strings.Index(sc.Text(), " @bulkhead/")
		if i < 0 {
			continue
		}
		name := sc.Text()[i+1:]
		uidText, idText, ok := strings.Cut(strings.TrimPrefix(name, "@bulkhead/"), "/")
		uid, uerr := strconv.Atoi(uidText)
		id, ierr := vocabulary.ParseSessionID(idText)
		if !ok || uerr != nil || ierr != nil || seen[name] || (uid != os.Getuid() && os.Getuid() != 0) {
			continue
		}
		seen[name] = true
		found = append(found, &Remote{uid, id})
	}
	return found
}

func (r *Remote) dial() (*packetConn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	// EAGAIN: a crowd is before us, or a controller that is stopped.
	for deadline := time.Now().Add(queueTime); ; time.Sleep(5 * time.Millisecond) {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: socketName(r.uid, r.id)})
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("session %s does not answer: %w", r.id, err)
	}
	// Another local user could bind the name of a session that has ended.
	if cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil || int(cred.Uid) != r.uid {
		unix.Close(fd)
		return nil, fmt.Errorf("the socket of session %s belongs to another user", r.id)
	}
	return newPacketConn(fd), nil
}

func (r *Remote) call(req request, files ...*os.File) (*reply, error) {
	c, err := r.dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.send(req, files...); err != nil {
		return nil, err
	}
	c.f.SetReadDeadline(time.Now().Add(answerTime))
	var rep reply
	fs, err := c.receive(&rep)
	closeAll(fs)
	if err != nil {
		return nil, fmt.Errorf("session %s: %w", r.id, err)
	}
	if rep.Kind == "error" {
		return nil, vocabulary.Exitf(rep.Code, "%s", rep.Message)
	}
	return &rep, nil
}

// Info asks what the session is.
func (r *Remote) Info() (*Info, error) {
	rep, err := r.call(request{Op: "info"})
	if err != nil {
		return nil, err
	}
	if rep.Info == nil {
		return nil, fmt.Errorf("session %s answers without its description", r.id)
	}
	return rep.Info, nil
}

// Stop ends the session.
func (r *Remote) Stop() error { _, err := r.call(request{Op: "stop"}); return err }

// Revoke cuts the session's credentials; it returns when no further use is
// possible.
func (r *Remote) Revoke() error { _, err := r.call(request{Op: "revoke"}); return err }

// Publish opens a port of this host for one inside.
func (r *Remote) Publish(p publish.Port) error {
	_, err := r.call(request{Op: "publish", Host: p.Host, Inside: p.Inside})
	return err
}

// Exec starts a command in the session. Closing the returned process's
// connection (this process ending) hangs the command up.
func (r *Remote) Exec(argv []string, term string, cmd sandbox.Command) (sandbox.Process, error) {
	c, err := r.dial()
	if err != nil {
		return nil, err
	}
	req := request{Op: "exec", Argv: argv, Term: term, Terminal: cmd.Terminal, Rows: cmd.Rows, Cols: cmd.Cols}
	var pass []*os.File
	for i, f := range cmd.Stdio {
		if f != nil {
			req.Stdio[i] = true
			pass = append(pass, f)
		}
	}
	var rep reply
	var files []*os.File
	if err = c.send(req, pass...); err == nil {
		c.f.SetReadDeadline(time.Now().Add(startTime))
		files, err = c.receive(&rep)
		c.f.SetReadDeadline(time.Time{})
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("session %s: %w", r.id, err)
	}
	if rep.Kind != "started" || rep.Terminal != (len(files) == 1) {
		c.Close()
		closeAll(files)
		return nil, vocabulary.Exitf(max(rep.Code, 1), "%s", rep.Message)
	}
	p := &remoteProcess{c: c, stopped: make(chan struct{}, 1), done: make(chan struct{})}
	if rep.Terminal {
		p.tty = files[0]
	}
	if rep.Line {
		p.line = &remoteLine{p: p, answers: make(chan sandbox.Modes)}
	}
	go p.follow()
	return p, nil
}

// remoteProcess is a sandbox.Process in another controller's session.
type remoteProcess struct {
	c       *packetConn
	tty     *os.File
	line    *remoteLine
	stopped chan struct{}
	done    chan struct{}
	code    int
	err     error
}

func (p *remoteProcess) follow() {
	defer close(p.done)
	for {
		var rep reply
		fs, err := p.c.receive(&rep)
		closeAll(fs)
		switch {
		case err != nil:
			p.err = fmt.Errorf("the session has ended: %w", err)
			return
		case rep.Kind == "stopped":
			select {
			case p.stopped <- struct{}{}:
			default:
			}
		case rep.Kind == "modes" && p.line != nil && rep.Modes != nil:
			select {
			case p.line.answers <- *rep.Modes:
			case <-time.After(answerTime): // nobody asked
			}
		case rep.Kind == "exit":
			p.code = rep.Code
			return
		case rep.Kind == "error":
			p.err = errors.New(rep.Message)
			return
		}
	}
}

func (p *remoteProcess) Terminal() *os.File { return p.tty }
func (p *remoteProcess) Line() sandbox.Line {
	if p.line == nil {
		return nil
	}
	return p.line
}
func (p *remoteProcess) Stopped() <-chan struct{} { return p.stopped }
func (p *remoteProcess) Wait() (int, error)       { <-p.done; return p.code, p.err }
func (p *remoteProcess) Signal(s os.Signal) error {
	sig, ok := s.(syscall.Signal)
	if !ok {
		return errors.New("not a signal of this system")
	}
	return p.c.send(request{Op: "signal", Signal: int(sig)})
}

// remoteLine is the terminal of a command in another controller's session.
type remoteLine struct {
	p       *remoteProcess
	mu      sync.Mutex // one question at a time
	answers chan sandbox.Modes
}

func (l *remoteLine) Resize(rows, cols uint16) error {
	return l.p.c.send(request{Op: "line", Rows: rows, Cols: cols})
}

func (l *remoteLine) SetModes(m sandbox.Modes) error {
	return l.p.c.send(request{Op: "line", Modes: &m})
}

func (l *remoteLine) Modes() (sandbox.Modes, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.p.c.send(request{Op: "modes"}); err != nil {
		return sandbox.Modes{}, err
	}
	select {
	case m := <-l.answers:
		return m, nil
	case <-l.p.done:
		return sandbox.Modes{}, sandbox.ErrGone
	case <-time.After(answerTime):
		return sandbox.Modes{}, errors.New("the session does not answer")
	}
}
