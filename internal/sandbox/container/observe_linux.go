package container

import (
	"errors"
	"net"
	"os"
	"path"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/container/trace"
)

// traceTime is how long runsc may take to connect to its monitoring.
const traceTime = time.Minute

// observe takes the one connection that runsc makes before it starts the sentry, and
// tells of what comes over it, to its end. It counts the processes and threads that
// the limit on them refused.
func observe(listener *os.File, spec sandbox.Spec, refused *atomic.Int64) {
	conn, err := accept(listener)
	if err != nil {
		return // without it runsc fails, and says so
	}
	defer conn.Close()
	buf := make([]byte, trace.MaxMessage)
	if _, err := conn.Read(buf); err != nil {
		return
	}
	if _, err := conn.Write(trace.Handshake); err != nil {
		return
	}
	var lost uint32
	for {
		n, _, flags, _, err := conn.ReadMsgUnix(buf, nil)
		if err != nil || n == 0 {
			return
		}
		p, err := trace.Read(buf[:n])
		if err != nil || flags&syscall.MSG_TRUNC != 0 {
			spec.Seen(sandbox.Seen{What: sandbox.SeenLost, Count: 1})
			continue
		}
		if p.Lost != lost {
			spec.Seen(sandbox.Seen{What: sandbox.SeenLost, Count: int(p.Lost - lost)})
			lost = p.Lost
		}
		if p.Kind == trace.Refused {
			refused.Add(1)
		}
		if s, ok := seen(p, spec.Watched); ok {
			spec.Seen(s)
		}
	}
}

func accept(listener *os.File) (*net.UnixConn, error) {
	l, err := net.FileListener(listener)
	listener.Close()
	if err != nil {
		return nil, err
	}
	defer l.Close()
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.New("not a socket of this host")
	}
	if err := u.SetDeadline(time.Now().Add(traceTime)); err != nil {
		return nil, err
	}
	return u.AcceptUnix()
}

// seen says what a point means to a person; of opened files those below watched.
func seen(p trace.Point, watched string) (sandbox.Seen, bool) {
	s := sandbox.Seen{PID: int(p.PID), Name: p.Name, Path: p.Path}
	switch p.Kind {
	case trace.Fork:
		s.What, s.Child = sandbox.SeenFork, int(p.Child)
	case trace.Exec:
		s.What = sandbox.SeenExec
	case trace.Exit:
		s.What = sandbox.SeenExit
		st := syscall.WaitStatus(p.Status)
		if s.Code = st.ExitStatus(); st.Signaled() {
			s.Code = 128 + int(st.Signal())
		}
	case trace.Open:
		const writes = syscall.O_WRONLY | syscall.O_RDWR | syscall.O_CREAT | syscall.O_TRUNC
		s.What = sandbox.SeenWrite
		if !path.IsAbs(s.Path) {
			s.Path = path.Join(p.At, s.Path)
		}
		s.Path = path.Clean(s.Path)
		return s, !p.Failed && p.Flags&writes != 0 && watched != "" && below(s.Path, watched)
	default:
		return s, false
	}
	return s, true
}
