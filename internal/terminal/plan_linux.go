package terminal

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"golang.org/x/term"
)

// Relay is a plan for the three streams, for one command.
type Relay struct {
	host  [3]*os.File
	tty   [3]bool
	stdio [3]*os.File // what the sandbox gets
	ours  [3]*os.File // our ends of the pipes that we made
	made  [3]bool     // stdio[i] is ours to close
	peek  *os.File    // a second reading end, of a regular standard input
}

var streamNames = [3]string{"standard input", "standard output", "standard error"}

// Plan decides for each stream whether it is a terminal, handed through or
// relayed. A nil stream is /dev/null. The files stay the caller's.
func Plan(stdin, stdout, stderr *os.File) (*Relay, error) {
	r := &Relay{host: [3]*os.File{stdin, stdout, stderr}}
	for i, f := range r.host {
		if err := r.plan(i, f); err != nil {
			r.Close()
			return nil, err
		}
	}
	return r, nil
}

func (r *Relay) plan(i int, f *os.File) error {
	if f == nil {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		r.stdio[i], r.made[i] = null, true
		return nil
	}
	fd, err := number(f)
	if err != nil {
		return fmt.Errorf("%s: %w", streamNames[i], err)
	}
	if term.IsTerminal(fd) {
		r.tty[i] = true
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%s: %w", streamNames[i], err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return fmt.Errorf("%s is a directory (%s): a descriptor of it would let the sandbox out of its files.\nIf the command shall read it, add it to mounts: in the policy and name it as an argument", streamNames[i], f.Name())
	case unix.S_IFIFO:
		// A named one has an inode in some folder, whose mode could be changed.
		var fs unix.Statfs_t
		if unix.Fstatfs(fd, &fs) == nil && fs.Type == unix.PIPEFS_MAGIC {
			r.stdio[i] = f
			return nil
		}
	case unix.S_IFCHR:
		if st.Rdev == unix.Mkdev(1, 3) { // /dev/null
			r.stdio[i] = f
			return nil
		}
	}
	if i == 2 && r.ours[1] != nil && sameFile(r.host[1], f) {
		r.stdio[2] = r.stdio[1] // "2>&1": one pipe keeps the order of what is written
		return nil
	}
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("%s: %w", streamNames[i], err)
	}
	r.made[i] = true
	if i != 0 {
		r.stdio[i], r.ours[i] = write, read
		return nil
	}
	r.stdio[i], r.ours[i] = read, write
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		r.peek, err = duplicate(read)
	}
	return err
}

// sameFile is true if both are one open file, whose position they share.
func sameFile(a, b *os.File) bool {
	x, err1 := number(a)
	y, err2 := number(b)
	if err1 != nil || err2 != nil {
		return false
	}
	if x == y {
		return true
	}
	// KCMP_FILE compares the open file descriptions.
	pid := uintptr(os.Getpid())
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, 0, uintptr(x), uintptr(y), 0)
	if errno == 0 {
		return r == 0
	}
	sa, err1 := a.Stat()
	sb, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(sa, sb)
}

// number returns the descriptor without the side effects of Fd.
func number(f *os.File) (int, error) {
	fd := -1
	c, err := f.SyscallConn()
	if err == nil {
		err = c.Control(func(n uintptr) { fd = int(n) })
	}
	return fd, err
}

// Terminal says whether the sandbox needs a pseudo-terminal: if any of the
// three streams is one.
func (r *Relay) Terminal() bool { return r.tty[0] || r.tty[1] || r.tty[2] }

// Stdio is for the command: nil where the pseudo-terminal goes.
func (r *Relay) Stdio() [3]*os.File { return r.stdio }

// Size of the user's terminal, 0 and 0 without one or where it does not know.
func (r *Relay) Size() (rows, cols uint16) {
	if !r.Terminal() {
		return 0, 0
	}
	fd, err := number(r.screen())
	if err != nil {
		return 0, 0
	}
	ws, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return ws.Row, ws.Col
}

// screen is where the pseudo-terminal's output goes.
func (r *Relay) screen() *os.File {
	for _, i := range []int{1, 2, 0} {
		if r.tty[i] {
			return r.host[i]
		}
	}
	return nil
}

// Close closes what Plan made, for a command that was never started. Run does
// it too.
func (r *Relay) Close() error {
	err := r.closeStdio()
	for i, f := range r.ours {
		if f != nil {
			err = errors.Join(err, f.Close())
			r.ours[i] = nil
		}
	}
	if r.peek != nil {
		err = errors.Join(err, r.peek.Close())
		r.peek = nil
	}
	return err
}

// closeStdio closes the sandbox's ends here, so that the end of the last
// process inside is the end of the stream.
func (r *Relay) closeStdio() error {
	var err error
	for i, f := range r.stdio {
		if f != nil && r.made[i] {
			err = errors.Join(err, f.Close())
			r.made[i] = false
		}
	}
	r.stdio = [3]*os.File{}
	return err
}

// rewind moves the position of a regular standard input back by what nobody
// read: ahead bytes that we hold, and what is in the pipe.
func (r *Relay) rewind(ahead int64) {
	if r.peek == nil {
		return
	}
	unread := 0
	if fd, err := number(r.peek); err == nil {
		unread, _ = unix.IoctlGetInt(fd, unix.TIOCINQ)
	}
	if back := ahead + int64(unread); back > 0 {
		r.host[0].Seek(-back, io.SeekCurrent)
	}
}

// duplicate returns a second descriptor that the poller of the runtime serves.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := number(f)
	if err != nil {
		return nil, err
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(dup, true); err != nil {
		unix.Close(dup)
		return nil, err
	}
	return os.NewFile(uintptr(dup), f.Name()), nil
}
