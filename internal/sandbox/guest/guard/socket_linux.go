package guard

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket takes a descriptor of the caller that is a socket.
func (t *task) socket(fd int) (int, unix.Errno) {
	pidfd, err := unix.PidfdOpen(t.tid, pidfdThread)
	if err != nil {
		if pidfd, err = unix.PidfdOpen(t.tid, 0); err != nil { // before Linux 6.9: the process's first thread only
			return -1, unix.EPERM
		}
	}
	defer unix.Close(pidfd)
	got, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		errno, _ := err.(unix.Errno)
		return -1, errno
	}
	t.own(got)
	if !t.g.alive(t.id) {
		return -1, unix.EINTR
	}
	if _, err := unix.GetsockoptInt(got, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return -1, unix.ENOTSOCK
	}
	return got, 0
}

const pidfdThread = unix.O_EXCL // PIDFD_THREAD

func bindTo(sock int, addr []byte) error {
	if _, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(sock), uintptr(unsafe.Pointer(&addr[0])), uintptr(len(addr))); errno != 0 {
		return errno
	}
	return nil
}
