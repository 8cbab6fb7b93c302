//go:build unix

package direct

import (
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// File is one descriptor.
type File struct {
	raw syscall.RawConn
	in  call
	out call
}

// call is one system call under way. It lives in File so that its functions are
// made once and not for every call.
type call struct {
	p       []byte
	n       int
	errno   syscall.Errno
	wait    func(uintptr) bool // false: wait and come again
	waitnot func(uintptr) bool
}

// New prepares a descriptor of package os or net, which stays the owner; nil if
// c is none, or one that blocks.
func New(c any) *File {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	flags := 0
	if raw.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0) }) != nil || err != nil || flags&unix.O_NONBLOCK == 0 {
		return nil
	}
	f := &File{raw: raw}
	f.in.prepare(syscall.SYS_READ)
	f.out.prepare(syscall.SYS_WRITE)
	return f
}

func (c *call) prepare(nr uintptr) {
	c.waitnot = func(fd uintptr) bool {
		for {
			n, _, errno := syscall.RawSyscall(nr, fd, uintptr(unsafe.Pointer(unsafe.SliceData(c.p))), uintptr(len(c.p)))
			if errno == syscall.EINTR {
				continue
			}
			c.n, c.errno = int(n), errno
			return true
		}
	}
	c.wait = func(fd uintptr) bool { return c.waitnot(fd) && c.errno != syscall.EAGAIN }
}

// Read waits for the first bytes.
func (f *File) Read(p []byte) (int, error) { return f.read(p, f.in.wait) }

// ReadNow returns what is there, or ErrWait.
func (f *File) ReadNow(p []byte) (int, error) { return f.read(p, f.in.waitnot) }

func (f *File) read(p []byte, how func(uintptr) bool) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	f.in.p = p
	err := f.raw.Read(how)
	f.in.p = nil
	switch {
	case err != nil:
		return 0, err
	case f.in.errno == syscall.EAGAIN:
		return 0, ErrWait
	case f.in.errno != 0:
		return 0, os.NewSyscallError("read", f.in.errno)
	case f.in.n == 0:
		return 0, io.EOF
	}
	return f.in.n, nil
}

// Write returns when all of p is written.
func (f *File) Write(p []byte) (done int, err error) {
	for done < len(p) {
		f.out.p = p[done:]
		err := f.raw.Write(f.out.wait)
		f.out.p = nil
		switch {
		case err != nil:
			return done, err
		case f.out.errno != 0:
			return done, os.NewSyscallError("write", f.out.errno)
		}
		done += f.out.n
	}
	return done, nil
}
