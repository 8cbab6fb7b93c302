package terminal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// stopTime is how long a stop that was asked for may take to happen. Only
	// in an orphaned process group, which cannot be stopped, it is waited out.
	stopTime = 200 * time.Millisecond
	// answerTime is for the terminal to answer a query sent within recentQuery
	// of the end. Terminals answer in a few milliseconds, over ssh in a round trip.
	answerTime  = 100 * time.Millisecond
	recentQuery = 500 * time.Millisecond
	// hangUpTime is for the command to end by itself when the terminal is closed.
	hangUpTime = time.Second
	// lookTime is how often a relay in the background looks whether it is in
	// the foreground again. Shells say so with SIGCONT; this is for the others.
	lookTime = time.Second
)

// run is one command being relayed. Its methods are of the main loop's
// goroutine, unless they say otherwise.
type run struct {
	*Relay
	proc Process

	tty    *hostTTY // nil without a terminal
	screen int      // where the pseudo-terminal's output goes
	master *pseudo
	input  *keyboard
	output *pump
	pumps  []*pump // the other streams
	feed   *feed

	filterMu  sync.Mutex
	filter    filter
	lastQuery time.Time
	moved     func() // nil: nobody wants to know

	wanted   bool        // keys are wanted: raw mode, when in the foreground
	lines    bool        // until then, lines are
	echoes   bool        // the pseudo-terminal began with showing what is typed
	raw      atomic.Bool // raw mode is on
	unstopp  bool        // our process group cannot be stopped
	wantKeys chan struct{}
	hungUp   chan struct{}
	cont     chan os.Signal
	signals  chan os.Signal
}

// sigaction is the kernel's struct, the same on amd64 and arm64. Its zero value
// is the default action.
type sigaction struct {
	handler, flags, restorer, mask uint64
}

func setSigaction(sig syscall.Signal, set, kept *sigaction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(kept)), unsafe.Sizeof(set.mask), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// Run carries the streams until the command has ended and everything that it
// wrote is written. It returns the command's exit code; an error if the sandbox
// died, if ctx ended or the terminal was closed (the command may still run then),
// or if a stream could not be written. The user's terminal is restored in every case. Signals that reach
// this process meanwhile are forwarded to the command.
func (r *Relay) Run(ctx context.Context, proc Process, opt Options) (code int, err error) {
	defer r.Close()
	s := &run{Relay: r, proc: proc, wantKeys: make(chan struct{}, 1), hungUp: make(chan struct{}, 1),
		cont: make(chan os.Signal, 1), signals: make(chan os.Signal, 16)}
	s.filter.clipboard, s.moved = opt.Clipboard, opt.Moved
	if err := r.closeStdio(); err != nil {
		return 0, err
	}

	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTSTP} {
		if !signal.Ignored(sig) { // nohup, or a shell without job control
			signal.Notify(s.signals, sig)
		}
	}
	signal.Notify(s.signals, syscall.SIGWINCH)
	signal.Notify(s.cont, syscall.SIGCONT)
	defer signal.Stop(s.signals)
	defer signal.Stop(s.cont)

	if err := s.start(); err != nil {
		s.finish()
		return 0, err
	}
	defer s.finish()

	type end struct {
		code int
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		code, err := proc.Wait()
		ended <- end{code, err}
	}()
	look := time.NewTicker(lookTime)
	defer look.Stop()
	hungUp := s.hungUp
	var abandoned <-chan time.Time
	for {
		select {
		case e := <-ended:
			if err := s.drain(ctx); err != nil && e.err == nil {
				return e.code, err
			}
			return e.code, e.err
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-proc.Stopped():
			s.suspend()
		case sig := <-s.signals:
			s.signal(sig)
		case <-s.cont:
			s.update()
			s.resize()
		case <-s.wantKeys:
			s.wanted = true
			s.update()
			if !s.raw.Load() && !s.unstopp && !signal.Ignored(syscall.SIGTTOU) {
				// A full-screen program in the background: what it would get itself.
				s.unstopp = !s.stopSelf(syscall.SIGTTOU)
				s.update()
				s.resize()
			}
		case <-look.C:
			if s.tty != nil && (s.wanted || s.lines) && s.input.state.Load() == paused {
				s.update()
				s.resize()
			}
		case <-hungUp:
			// The user's terminal is gone: so is the sandbox's.
			hungUp = nil
			s.closeMaster()
			abandoned = time.After(hangUpTime)
		case <-abandoned:
			return 0, ErrHungUp
		}
	}
}

// start takes the terminal if it may, and sets everything going.
func (s *run) start() error {
	if s.Terminal() {
		t := s.proc.Terminal()
		if t == nil {
			return errors.New("the sandbox has made no terminal")
		}
		defer t.Close()
		own, err := duplicate(t)
		if err != nil {
			return fmt.Errorf("the sandbox's terminal: %w", err)
		}
		s.master = &pseudo{own, s.proc.Line()}
		if s.screen, err = number(s.Relay.screen()); err != nil {
			return err
		}
		if s.tty, err = openTTY(s.Relay); err != nil {
			return err
		}
		s.wanted = s.Relay.tty[0] && s.Relay.tty[1]
		s.lines = s.Relay.tty[0] && !s.wanted
		s.resize()
		s.likeOutside()
		s.input = newKeyboard(s.tty, s.master, s.hangUp)
		if err := s.input.start(s.rescue); err != nil {
			return err
		}
		s.output = newPump(s.master.File, s.noting(s.show))
		s.goes(func() {
			s.output.run()
			if s.output.err != nil {
				s.hangUp()
			}
		})
		s.update()
	}
	for i, f := range s.ours {
		if f == nil {
			continue
		}
		fd, err := number(s.host[i])
		if err != nil {
			return fmt.Errorf("%s: %w", streamNames[i], err)
		}
		if i == 0 {
			wake, err := newWakeup()
			if err != nil {
				return err
			}
			s.feed = &feed{from: fd, to: f, wake: wake, done: make(chan struct{})}
			s.goes(s.feed.run)
			continue
		}
		p := newPump(f, s.noting(func(b []byte) error { return writeAll(fd, b, -1) }))
		s.pumps = append(s.pumps, p)
		s.goes(func() {
			p.run()
			f.Close() // after an error the command is told by SIGPIPE
		})
	}
	return nil
}

// noting tells Options.Moved of what to writes.
func (s *run) noting(to func([]byte) error) func([]byte) error {
	if s.moved == nil {
		return to
	}
	return func(b []byte) error {
		s.moved()
		return to(b)
	}
}

// goes starts a goroutine that restores the terminal if it panics.
func (s *run) goes(f func()) {
	go func() {
		defer s.rescue()
		f()
	}()
}

func (s *run) rescue() {
	if p := recover(); p != nil {
		s.tty.leave()
		panic(p)
	}
}

// show filters a piece of output and puts it on the user's screen. It runs in
// the output pump.
func (s *run) show(b []byte) error {
	s.filterMu.Lock()
	before := s.filter.queries
	out := s.filter.Append(make([]byte, 0, len(b)+maxHeld+2), b)
	if s.filter.queries != before {
		s.lastQuery = time.Now()
	}
	s.filterMu.Unlock()
	err := writeAll(s.screen, out, -1)
	if !s.raw.Load() && s.readsKeys() {
		select {
		case s.wantKeys <- struct{}{}:
		default:
		}
	}
	return err
}

// readsKeys is true when the command inside has left line mode, or has begun to
// hide what is typed.
func (s *run) readsKeys() bool {
	t, err := s.master.termios()
	if err != nil {
		return false
	}
	return t.Lflag&unix.ICANON == 0 || s.echoes && t.Lflag&unix.ECHO == 0
}

// hangUp may be called from any goroutine.
func (s *run) hangUp() {
	select {
	case s.hungUp <- struct{}{}:
	default:
	}
}

func (s *run) closeMaster() {
	if s.master != nil {
		s.input.stop()
		s.master.Close()
	}
}

// update brings the terminal's mode and what is read of it in line with what
// is wanted and with who has the terminal.
func (s *run) update() {
	if s.tty == nil {
		return
	}
	foreground := s.tty.foreground()
	switch {
	case !foreground:
		s.raw.Store(false)
		s.tty.forget()
		s.input.set(paused)
	case s.wanted:
		s.raw.Store(s.tty.enter() == nil)
		s.input.set(keys)
	case s.lines:
		s.input.set(lines)
	}
}

// resize gives the pseudo-terminal the size of the user's, which sends SIGWINCH
// inside if it changed.
func (s *run) resize() {
	if s.master == nil {
		return
	}
	if rows, cols := s.Size(); rows != 0 || cols != 0 {
		s.master.resize(rows, cols)
	}
}

// likeOutside gives the pseudo-terminal the user's settings: erase character,
// UTF-8, flow control. Not if the command has already made its own.
func (s *run) likeOutside() {
	host, err := unix.IoctlGetTermios(s.tty.fd, unix.TCGETS)
	if err != nil || host.Lflag&unix.ICANON == 0 {
		return
	}
	const fresh = unix.ICANON | unix.ECHO
	inner, err := s.master.termios()
	if err != nil || inner.Lflag&fresh != fresh {
		return
	}
	inner.Iflag, inner.Oflag, inner.Lflag, inner.Cc = host.Iflag, host.Oflag, host.Lflag, host.Cc
	if s.lines {
		inner.Lflag &^= unix.ECHO // the user's terminal has shown it already
	}
	s.echoes = inner.Lflag&unix.ECHO != 0
	_ = s.master.setTermios(inner)
}

// signal forwards a signal of the outside.
func (s *run) signal(sig os.Signal) {
	switch sig {
	case syscall.SIGWINCH:
		s.resize()
	case syscall.SIGTSTP:
		// SIGSTOP, because a process group without a shell of its own inside
		// would not be stopped by SIGTSTP.
		if s.proc.Signal(syscall.SIGSTOP) == nil {
			select {
			case <-s.proc.Stopped(): // its report is not to stop us again
			case <-time.After(stopTime):
			}
		}
		s.suspend()
	default:
		s.proc.Signal(sig)
	}
}

// suspend stops us as the job inside has stopped, and continues both.
func (s *run) suspend() {
	if s.tty != nil {
		select {
		case <-s.output.settle(false):
		case <-time.After(stopTime): // a terminal that takes nothing
		}
		s.input.set(paused)
		s.toScreen((*modes).off)
		s.leave()
	}
	s.stopSelf(syscall.SIGTSTP)
	if s.tty != nil {
		s.update()
		s.toScreen((*modes).again)
		s.resize()
	}
	s.proc.Signal(syscall.SIGCONT)
}

// toScreen writes mode changes, if the screen is ours to change.
func (s *run) toScreen(which func(*modes) []byte) {
	if !s.tty.foreground() {
		return
	}
	s.filterMu.Lock()
	out := which(&s.filter.modes)
	s.filterMu.Unlock()
	writeAll(s.screen, out, stopTime)
}

func (s *run) leave() {
	s.raw.Store(false)
	s.tty.leave()
}

// stopSelf stops our whole process group, as the terminal would have done, and
// returns when it is continued. It is false if the group cannot be stopped.
func (s *run) stopSelf(sig syscall.Signal) bool {
	select {
	case <-s.cont:
	default:
	}
	if signal.Ignored(sig) {
		return false
	}
	// signal.Reset leaves a handler for SIGTSTP that ignores it, so the default
	// action, which an orphaned group is spared, is set by hand.
	var kept sigaction
	if err := setSigaction(sig, &sigaction{}, &kept); err != nil {
		return false
	}
	defer setSigaction(sig, &kept, nil)
	if err := syscall.Kill(0, sig); err != nil {
		return false
	}
	select {
	case <-s.cont:
		return true
	case <-time.After(stopTime):
		return false
	}
}

// drain waits until everything that the command wrote is written. A signal to
// end, or ctx, ends the waiting: whoever sends it does not want the rest.
func (s *run) drain(ctx context.Context) error {
	all := s.pumps
	if s.output != nil {
		all = append([]*pump{s.output}, all...)
	}
	var waits []<-chan struct{}
	for _, p := range all {
		waits = append(waits, p.settle(true))
	}
	for _, w := range waits {
	waiting:
		for {
			select {
			case <-w:
				break waiting
			case <-ctx.Done():
				return context.Cause(ctx)
			case sig := <-s.signals:
				switch sig {
				case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT:
					return nil
				}
			}
		}
	}
	for _, p := range s.pumps {
		if p.err != nil && !errors.Is(p.err, unix.EPIPE) {
			return fmt.Errorf("writing the command's output: %w", p.err)
		}
	}
	return nil
}

// finish restores the terminal and ends what can be ended.
func (s *run) finish() {
	if s.feed != nil {
		s.feed.stop()
		s.rewind(s.feed.ahead)
		s.ours[0] = nil
	}
	if s.tty == nil {
		if s.master != nil {
			s.master.Close()
		}
		return
	}
	s.input.stop()
	s.toScreen((*modes).off)
	s.filterMu.Lock()
	asked := time.Since(s.lastQuery) < recentQuery
	s.filterMu.Unlock()
	if asked && s.raw.Load() {
		time.Sleep(answerTime)
		if s.tty.foreground() {
			unix.IoctlSetInt(s.tty.fd, unix.TCFLSH, unix.TCIFLUSH)
		}
	}
	s.leave()
	s.tty.close()
	s.master.Close()
}
