package terminal

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// hostTTY is the user's terminal. Its methods may be called from any
// goroutine, and on nil.
type hostTTY struct {
	fd   int      // for reading and for the modes
	own  *os.File // opened by us, or nil
	mu   sync.Mutex
	mode *term.State // from before raw mode; nil when raw mode is not ours
}

// openTTY takes standard input if it is the terminal. Otherwise a descriptor
// that can be read is needed: standard output may be open for writing only.
func openTTY(r *Relay) (*hostTTY, error) {
	if r.tty[0] {
		fd, err := number(r.host[0])
		return &hostTTY{fd: fd}, err
	}
	fd, err := number(r.screen())
	if err != nil {
		return nil, err
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil && flags&unix.O_ACCMODE == unix.O_RDWR {
		return &hostTTY{fd: fd}, nil
	}
	f, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return &hostTTY{fd: fd}, nil // no controlling terminal: nothing is read
	}
	own, err := number(f)
	return &hostTTY{fd: own, own: f}, err
}

func (t *hostTTY) close() {
	if t != nil && t.own != nil {
		t.own.Close()
	}
}

// foreground is true if this process may read and change the terminal without
// being stopped; also when it is not our controlling terminal, which has no
// foreground for us.
func (t *hostTTY) foreground() bool {
	group, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	return err != nil || group == unix.Getpgrp()
}

// lineMode is false while another program of the pipeline reads keys.
func (t *hostTTY) lineMode() bool {
	m, err := unix.IoctlGetTermios(t.fd, unix.TCGETS)
	return err == nil && m.Lflag&unix.ICANON != 0
}

// enter switches to raw mode, once.
func (t *hostTTY) enter() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mode != nil {
		return nil
	}
	mode, err := term.MakeRaw(t.fd)
	if err != nil {
		return fmt.Errorf("raw mode: %w", err)
	}
	t.mode = mode
	return nil
}

// leave puts the terminal back as enter found it, unless somebody else has it.
func (t *hostTTY) leave() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mode != nil && t.foreground() {
		term.Restore(t.fd, t.mode)
	}
	t.mode = nil
}

// forget gives up what enter noted: a shell took the terminal away and has set
// its own modes.
func (t *hostTTY) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mode = nil
}

// control calls f with the descriptor, which stays open meanwhile.
func control(file *os.File, f func(fd int) error) error {
	c, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := c.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

func termiosOf(file *os.File) (t *unix.Termios, err error) {
	err = control(file, func(fd int) error {
		t, err = unix.IoctlGetTermios(fd, unix.TCGETS)
		return err
	})
	return t, err
}

// What the keyboard does.
const (
	paused int32 = iota
	lines
	keys
	stopped
)

// sharedTime is how long keys are left to a pager before looking again.
const sharedTime = 50 * time.Millisecond

// keyboard carries what the user types to the pseudo-terminal.
type keyboard struct {
	tty    *hostTTY
	to     *pseudo
	hangUp func()
	state  atomic.Int32
	wake   *wakeup
	done   chan struct{}
}

func newKeyboard(tty *hostTTY, to *pseudo, hangUp func()) *keyboard {
	return &keyboard{tty: tty, to: to, hangUp: hangUp, done: make(chan struct{})}
}

func (k *keyboard) start(rescue func()) error {
	var err error
	if k.wake, err = newWakeup(); err != nil {
		return err
	}
	fd, err := number(k.wake.f)
	if err != nil {
		return err
	}
	go func() {
		defer rescue()
		defer close(k.done)
		k.run(fd)
	}()
	return nil
}

// set may be called from any goroutine.
func (k *keyboard) set(state int32) {
	if k.state.Swap(state) != state {
		k.wake.wake()
	}
}

// stop ends the reading. It waits for it, but not forever: a terminal may
// block a read after poll called it readable, if another process was faster.
func (k *keyboard) stop() {
	if k == nil || k.wake == nil || k.state.Load() == stopped {
		return
	}
	k.set(stopped)
	k.to.SetWriteDeadline(longAgo)
	select {
	case <-k.done:
		k.wake.f.Close()
	case <-time.After(stopTime):
	}
}

func (k *keyboard) run(wake int) {
	buf := make([]byte, chunk)
	var word [8]byte
	for {
		state := k.state.Load()
		fd, events, timeout := k.tty.fd, int16(unix.POLLIN), time.Duration(-1)
		switch {
		case state == stopped:
			return
		case state == paused:
			fd = -1
		case !k.tty.foreground():
			// Taken away without a signal: the main loop looks from time to time.
			k.state.CompareAndSwap(state, paused)
			continue
		case state == lines && !k.tty.lineMode():
			fd, timeout = -1, sharedTime
		}
		got, woken := poll(fd, events, wake, timeout)
		if woken {
			unix.Read(wake, word[:])
			continue
		}
		if got == 0 || k.state.Load() != state || state == lines && !k.tty.lineMode() {
			continue
		}
		n, err := unix.Read(k.tty.fd, buf)
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
			continue
		case err != nil || n == 0 && state == keys:
			if got&unix.POLLHUP == 0 && err == unix.EIO {
				// An orphaned group in the background.
				k.state.CompareAndSwap(state, paused)
				continue
			}
			k.hangUp()
			return
		case n == 0:
			buf[0], n = k.endOfFile(), 1
			if buf[0] == 0 {
				continue
			}
		}
		if _, err := k.to.Write(buf[:n]); err != nil {
			return // the pseudo-terminal is gone, and the main loop knows
		}
	}
}

// endOfFile is what to send when the user ended a line-mode input: the end-of-file
// character, if the command inside reads lines too.
func (k *keyboard) endOfFile() byte {
	t, err := k.to.termios()
	if err != nil || t.Lflag&unix.ICANON == 0 {
		return 0
	}
	return t.Cc[unix.VEOF]
}
