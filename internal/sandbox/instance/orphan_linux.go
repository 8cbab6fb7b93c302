package instance

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// killHolders kills every process that holds the supervisor's end of a guest
// socket, until that end is closed everywhere. A warden that was killed while
// it started bwrap leaves a bwrap behind that dies of it, and bwrap's child,
// which waits for bwrap for ever because it asks for its death signal later
// (bubblewrap 0.8). Nobody but this sandbox has that socket.
func killHolders(door uint64) {
	deadline := time.Now().Add(wardenPatience)
	for door != 0 && isOpen(door) && time.Now().Before(deadline) {
		want := fmt.Sprintf("socket:[%d]", door)
		fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
		for _, fd := range fds {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(fd))))
			if err != nil || pid == os.Getpid() {
				continue
			}
			if target, err := os.Readlink(fd); err != nil || target != want {
				continue
			}
			pidfd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue
			}
			if target, err := os.Readlink(fd); err == nil && target == want { // still the same process
				_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
			}
			unix.Close(pidfd)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// isOpen says whether any process still has a Unix socket with that inode.
func isOpen(ino uint64) bool {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return false
	}
	want := strconv.FormatUint(ino, 10)
	for line := range bytes.Lines(table) {
		if f := bytes.Fields(line); len(f) > 6 && string(f[6]) == want {
			return true
		}
	}
	return false
}

// Inode is the number by which /proc knows a socket; 0 if it is not known.
func Inode(f *os.File) (ino uint64) {
	rc, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	_ = rc.Control(func(fd uintptr) {
		var st unix.Stat_t
		if unix.Fstat(int(fd), &st) == nil {
			ino = st.Ino
		}
	})
	return ino
}
