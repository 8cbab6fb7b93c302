package egress

import (
	"fmt"
	"net"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/egress/confine"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
)

// Descriptors of the gateway: its end of the control connection, and of the
// pipes for records and receipts.
const (
	controlFD  = 3
	recordsFD  = 4
	receiptsFD = 5
)

// spawn starts the child and returns our ends. The child gets
// no environment but settings of the Go runtime: without the first it keeps a
// descriptor on a cgroup file, which a confined process must not have; with one
// processor a small request takes about half the time, because no thread has to
// be woken on its way through the process, and one core still moves several
// hundred megabytes a second; goroutines that begin with the stack they usually
// need, and a collector that runs when the small heap has grown threefold,
// save a twentieth of a request.
func (g *Gateway) spawn() (_ *net.UnixConn, _ wire.Pipes, err error) {
	var pipes [4]*os.File // records and receipts, each to read and to write
	defer func() {
		for i, f := range pipes {
			if f != nil && (err != nil || i == 1 || i == 2) {
				f.Close()
			}
		}
	}()
	for i := 0; i < len(pipes); i += 2 {
		if pipes[i], pipes[i+1], err = os.Pipe(); err != nil {
			return nil, wire.Pipes{}, fmt.Errorf("control connection: %w", err)
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, wire.Pipes{}, fmt.Errorf("control connection: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "gateway")
	defer theirs.Close()
	ours := os.NewFile(uintptr(pair[0]), "controller")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, wire.Pipes{}, fmt.Errorf("control connection: %w", err)
	}
	g.cmd = &exec.Cmd{
		Path: childproc.Self(), Args: []string{childproc.Argv0("gateway")},
		Env:        []string{"GODEBUG=containermaxprocs=0,updatemaxprocs=0,adaptivestackstart=1", "GOTRACEBACK=single", "GOMAXPROCS=1", "GOGC=200"},
		Dir:        "/",
		Stderr:     g.said,
		ExtraFiles: []*os.File{theirs, pipes[1], pipes[2]}, // controlFD, recordsFD, receiptsFD
		// A group of its own: the terminal's Ctrl-C is not for the gateway.
		SysProcAttr: &unix.SysProcAttr{Setpgid: true},
	}
	if err := confine.StartBounded(g.cmd.Start); err != nil {
		conn.Close()
		return nil, wire.Pipes{}, fmt.Errorf("starting the gateway: %w", err)
	}
	return conn.(*net.UnixConn), wire.Pipes{In: pipes[0], Out: pipes[3]}, nil
}

// recordPipes are the child's ends.
func recordPipes() (wire.Pipes, error) {
	for _, fd := range []int{recordsFD, receiptsFD} {
		if err := unix.SetNonblock(fd, true); err != nil { // for the poller
			return wire.Pipes{}, fmt.Errorf("descriptor %d is no pipe: %w", fd, err)
		}
	}
	return wire.Pipes{In: os.NewFile(receiptsFD, "receipts"), Out: os.NewFile(recordsFD, "records")}, nil
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
