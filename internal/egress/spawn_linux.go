package egress

import (
	"fmt"
	"net"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/egress/confine"
)

// controlFD is the gateway's end of the control connection.
const controlFD = 3

// spawn starts the child and returns our end of the connection. The child gets
// no environment but settings of the Go runtime: without the first it keeps a
// descriptor on a cgroup file, which a confined process must not have; with one
// processor a small request takes about half the time, because no thread has to
// be woken on its way through the process, and one core still moves several
// hundred megabytes a second.
func (g *Gateway) spawn() (*net.UnixConn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("control connection: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "gateway")
	defer theirs.Close()
	ours := os.NewFile(uintptr(pair[0]), "controller")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("control connection: %w", err)
	}
	g.cmd = &exec.Cmd{
		Path: childproc.Self(), Args: []string{childproc.Argv0("gateway")},
		Env:        []string{"GODEBUG=containermaxprocs=0,updatemaxprocs=0", "GOTRACEBACK=single", "GOMAXPROCS=1"},
		Dir:        "/",
		Stderr:     g.said,
		ExtraFiles: []*os.File{theirs},
		// A group of its own: the terminal's Ctrl-C is not for the gateway.
		SysProcAttr: &unix.SysProcAttr{Setpgid: true},
	}
	if err := confine.StartBounded(g.cmd.Start); err != nil {
		conn.Close()
		return nil, fmt.Errorf("starting the gateway: %w", err)
	}
	return conn.(*net.UnixConn), nil
}

// controlConn is the child's end.
func controlConn() (*net.UnixConn, error) {
	f := os.NewFile(controlFD, "control")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("descriptor %d is no control connection", controlFD)
	}
	return u, nil
}
