// Package instance is the part of a sandbox that all backends with a warden
// share: the controller's hold on a warden and on a guest supervisor, together
// a sandbox.Instance.
//
// It runs in the controller. A backend starts the two and hands them to New;
// from then on they end together: whichever dies first takes the other along,
// the warden's last report says why, and when Done is closed nothing of either
// runs and the cgroup is removed, also if the warden was killed.
package instance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/process/cgroup"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/warden"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"golang.org/x/sys/unix"
)

// errNotReady: the warden ended first.
var errNotReady = errors.New("the sandbox ended before it was ready")

// wardenPatience is how long a warden may take to end before it is killed
// itself.
const wardenPatience = 3 * time.Second

// Parts are what an Instance is made of.
type Parts struct {
	Spec   sandbox.Spec
	Limits *Enforcement
	Warden *warden.Handle
	Guest  *guest.Client
	// Beside is the guard beside a foreign kernel; nil: there is none.
	Beside *guest.Beside
	// Door is the inode of the supervisor's end of the guest's socket, by which
	// orphans are found; see Inode.
	Door uint64
	// Foreign: the kernel inside numbers devices by itself, and who arranged the
	// mounts has looked at the layers.
	Foreign bool
	// Trace takes over the listening socket for monitoring, if the warden was to make
	// one.
	Trace func(listener *os.File)
	// RefusedTasks is what Trace counted; nil: it counts nothing.
	RefusedTasks func() int64
	// Runtime is what the warden runs ("bwrap"), for messages.
	Runtime string
	// Explain turns what the warden or the runtime said into an error with the
	// remedy.
	Explain func(text string) error
}

// Instance implements sandbox.Instance.
type Instance struct {
	Parts

	known chan struct{} // closed when the pid (and the TAP) are there
	words chan struct{} // closed when the warden says no more
	trace chan struct{} // closed when Trace has returned; nil: it was not called
	done  chan struct{}

	mu     sync.Mutex
	link   *os.File
	layers []uint64 // devices of the layers that the warden mounted
	pid    int
	pidfd  int // -1 until known
	failed string
	limit  string
	ended  bool // the warden saw everything end
	// unguarded: the guard ended first.
	unguarded bool
	killed    bool
	cause     error
	exceeded  []string

	oomKills, refusedTasks int64
}

// New takes the parts over.
func New(p Parts) *Instance {
	i := &Instance{Parts: p, pidfd: -1, known: make(chan struct{}), words: make(chan struct{}), done: make(chan struct{})}
	go i.listen()
	go i.supervise()
	return i
}

// listen takes the warden's reports until it ends.
func (i *Instance) listen() {
	defer close(i.words)
	announced := false
	for {
		r, f, err := i.Warden.Receive()
		if err != nil {
			return
		}
		i.mu.Lock()
		switch r.Kind {
		case warden.KindTAP:
			i.link = f
		case warden.KindTrace:
			if i.Trace != nil && f != nil {
				i.trace = make(chan struct{})
				go func() {
					defer close(i.trace)
					i.Trace(f)
				}()
			}
		case warden.KindLayer:
			i.layers = append(i.layers, r.Device)
		case warden.KindPID:
			i.pid = r.PID
			if fd, err := unix.PidfdOpen(r.PID, 0); err == nil {
				i.pidfd = fd
			}
		case warden.KindError:
			i.failed = words(r.Text)
		case warden.KindLimit:
			i.limit = r.Text
		case warden.KindEnded:
			i.ended = true
			i.oomKills, i.refusedTasks = r.OOMKills, r.RefusedTasks
			if r.Text != "" {
				i.failed = words(r.Text)
			}
		}
		if !announced && i.pid > 0 && (i.link != nil || i.Spec.Network != sandbox.NetTAP) {
			announced = true
			close(i.known)
		}
		i.mu.Unlock()
	}
}

// Await waits until the instance can be used; on an error its caller still has
// to Kill it.
func (i *Instance) Await(ctx context.Context) error {
	listener, err := i.Guest.Ready(ctx)
	if err == nil {
		select {
		case <-i.known:
		case <-i.words:
			err = errNotReady
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err == nil && i.Beside != nil {
		err = i.Beside.Seal(ctx)
	}
	if err == nil {
		i.mu.Lock()
		defer i.mu.Unlock()
		if listener != nil {
			i.link = listener
		}
		if seen := i.Guest.Devices(); !i.Foreign && !slices.Equal(seen, i.layers) {
			return vocabulary.Exitf(vocabulary.ExitRefused, "the staged workspace was exchanged while the sandbox was made\nnothing was started\nrun the command again")
		}
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// The parts tell it better than the end of a connection.
	i.Guest.Close()
	i.Warden.Stop()
	select {
	case <-i.words:
	case <-time.After(wardenPatience):
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.failed != "":
		return i.Explain(i.failed)
	case !i.ended:
		return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "the sandbox's warden died before the sandbox was ready\nnothing was started")
	case errors.Is(err, net.ErrClosed), errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, errNotReady):
		return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "the sandbox's supervisor or %s died before the sandbox was ready\nnothing was started", i.Runtime)
	}
	return i.Explain(err.Error())
}

// supervise ends everything when one part has ended.
func (i *Instance) supervise() {
	var guard <-chan struct{}
	if i.Beside != nil {
		guard = i.Beside.Done()
		defer i.Beside.Close()
	}
	select {
	case <-i.Guest.Done():
	case <-i.words:
	case <-guard:
		i.mu.Lock()
		i.unguarded = true
		i.mu.Unlock()
	}
	i.Guest.Close()
	i.Warden.Stop()
	select {
	case <-i.words:
	case <-time.After(wardenPatience):
		_ = i.Warden.Cmd.Process.Kill()
		<-i.words
	}
	_ = i.Warden.Cmd.Wait()
	i.Warden.Close()
	<-i.Guest.Done()
	if i.Beside != nil {
		select { // its last words
		case <-i.Beside.Done():
		case <-time.After(wardenPatience):
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.ended {
		killHolders(i.Door)
	}
	if i.pidfd >= 0 {
		if !i.ended {
			// The warden did not live to see it: death signals do its work,
			// this makes sure.
			_ = unix.PidfdSendSignal(i.pidfd, unix.SIGKILL, nil, 0)
			awaitExit(i.pidfd)
		}
		unix.Close(i.pidfd)
		i.pidfd = -1
	}
	if !i.ended { // the warden can't tell any more
		i.oomKills, i.refusedTasks = i.Limits.Group.OOMKills(), i.Limits.Group.RefusedTasks()
	}
	if i.trace != nil { // it has its last points from the dead
		select {
		case <-i.trace:
		case <-time.After(wardenPatience):
		}
	}
	if i.RefusedTasks != nil {
		i.refusedTasks += i.RefusedTasks()
	}
	i.exceeded = exceeded(i.Spec.Limits, i.oomKills, i.refusedTasks)
	if i.limit != "" {
		i.exceeded = append(i.exceeded, i.limit)
	}
	err := cgroup.Remove(i.Limits.Group.Dirs)
	i.cause = i.judge()
	if i.cause == nil && err != nil {
		i.cause = err
	}
	close(i.done)
}

// judge says why the instance ended.
func (i *Instance) judge() error {
	guestErr := i.Guest.Err()
	switch {
	case i.limit != "":
		return fmt.Errorf("the sandbox exceeded its limit on %s and was ended", i.limit)
	case i.killed:
		return nil
	case i.oomKills > 0:
		return fmt.Errorf("the sandbox exceeded its limit on %s", strings.Join(i.exceeded, " and on "))
	case !i.ended:
		return errors.New("the sandbox ended: its warden died")
	case i.failed == noRoom && i.refusedTasks > 0:
		return fmt.Errorf("the sandbox ended: %s within its limit on %s\nraise limits.pids, or let the work need less", noRoom, strings.Join(i.exceeded, " and on "))
	case i.failed == noRoom:
		return fmt.Errorf("the sandbox ended: %s\n%s", noRoom, tasksRemedy)
	case i.failed != "":
		return fmt.Errorf("the sandbox ended: %s", i.failed)
	case i.unguarded:
		return fmt.Errorf("the sandbox ended: the guard of its workspace ended: %w", i.Beside.Err())
	case guestErr != nil && !errors.Is(guestErr, io.EOF) && !errors.Is(guestErr, unix.ECONNRESET) && !errors.Is(guestErr, net.ErrClosed):
		return fmt.Errorf("the sandbox ended: %w", guestErr)
	}
	return fmt.Errorf("the sandbox ended: its supervisor or %s died", i.Runtime)
}

// awaitExit waits for a process that was killed; as pid 1 of its namespace it
// is gone only after all others.
func awaitExit(pidfd int) {
	deadline := time.Now().Add(wardenPatience)
	for time.Now().Before(deadline) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 100)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// Link implements sandbox.Instance.
func (i *Instance) Link() *os.File {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.link
}

// Listeners implements sandbox.Instance.
func (i *Instance) Listeners() []sandbox.Listener { return i.Guest.Ports() }

// Dial implements sandbox.Instance.
func (i *Instance) Dial(ctx context.Context, port int) (net.Conn, error) {
	return i.Guest.Dial(ctx, port)
}

// Start implements sandbox.Instance.
func (i *Instance) Start(ctx context.Context, c sandbox.Command) (sandbox.Process, error) {
	p, err := i.Guest.Start(ctx, c)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Host names what the instance has on the host beside PID, for tests that kill
// it: the warden's process id and the folders of its cgroup.
func (i *Instance) Host() (warden int, cgroups []string) {
	return i.Warden.Cmd.Process.Pid, i.Limits.Group.Dirs
}

// Means says for each limit of memory, tasks and processors what enforces it here.
func (i *Instance) Means() []string { return i.Limits.means(i.Spec.Limits, i.Foreign) }

// Usage implements sandbox.Instance.
func (i *Instance) Usage() sandbox.Usage { return i.Guest.Usage() }

// PID implements sandbox.Instance.
func (i *Instance) PID() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.pid
}

// Done implements sandbox.Instance.
func (i *Instance) Done() <-chan struct{} { return i.done }

// Cause implements sandbox.Instance.
func (i *Instance) Cause() error {
	select {
	case <-i.done:
	default:
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cause
}

// Exceeded names the limits that were hit while the instance ran, also those
// that it survived (a process killed for memory, a fork refused). After Done.
func (i *Instance) Exceeded() []string {
	select {
	case <-i.done:
	default:
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.exceeded
}

// Kill implements sandbox.Instance.
func (i *Instance) Kill() error {
	i.mu.Lock()
	i.killed = true
	i.mu.Unlock()
	i.Warden.Stop()
	<-i.done
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.limit != "" || i.oomKills > 0 {
		return nil // a limit did it before
	}
	return i.cause
}
