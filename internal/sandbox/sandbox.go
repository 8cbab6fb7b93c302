// Package sandbox is the contract between a session and an isolation backend.
//
// A Backend turns a Spec, in which everything is already decided and resolved,
// into an Instance: a boundary that stands, with the guest supervisor inside
// it and no command running yet. The session then attaches the gateway to the
// instance's link, and only then starts commands. All of it runs in the
// controller; what lies beyond the Instance is hostile.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// NetworkKind says what the sandbox has for a network.
type NetworkKind uint8

// The networks. None of them has a route to the host.
const (
	// NetNone: only the sandbox's own loopback.
	NetNone NetworkKind = iota
	// NetTAP: a TAP device whose other end is Link: every packet ends there.
	NetTAP
	// NetRelay: only loopback, with a TCP listener on 127.0.0.1:RelayPort
	// inside, whose listening descriptor is Link.
	NetRelay
)

// RelayPort is where the relay listens inside the sandbox.
const RelayPort = 3128

// Addresses on the TAP link. The sandbox has Guest, the gateway answers for
// every other address. 198.18.0.0/15 is reserved for benchmarks (RFC 2544) and
// fd62:756c::/64 is a unique local prefix (RFC 4193): neither exists outside.
const (
	LinkGuest4   = "198.18.0.2/15"
	LinkGateway4 = "198.18.0.1" // also the DNS server
	LinkGuest6   = "fd62:756c::2/64"
	LinkGateway6 = "fd62:756c::1"
	LinkMTU      = 65520
)

// How the TAP link is set up (TUNSETIFF, TUNSETOFFLOAD; numbers of Linux): each
// frame has a struct virtio_net_hdr before it, and the sandbox's kernel makes no
// sums of what never leaves this machine's memory.
const (
	LinkFlags   = 0x2 | 0x1000 | 0x4000 // IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
	LinkOffload = 0x1                   // TUN_F_CSUM
)

// Limits of a session. Zero means no limit. A limit that the host cannot
// enforce makes Prepare fail: never weaker than asked.
type Limits struct {
	Memory int64 // bytes, all processes together
	PIDs   int   // processes and threads
	CPUs   float64
	Wall   time.Duration // enforced by the session
	// Disk and Inodes bound what is kept in the sandbox's memory file systems: each
	// of them at once as far as its kernel can, all together by the session, which
	// looks at Instance.Usage. No file grows beyond Disk.
	Disk, Inodes int64
	Descriptors  int64         // of each process
	Idle         time.Duration // enforced by the session, by Instance.Usage
}

// Usage is what a sandbox was last seen to use.
type Usage struct {
	Bytes, Inodes int64         // in its memory file systems
	CPU           time.Duration // of all its commands so far; it only says how busy they are
	Looks         int64         // how often CPU was looked at
	Full          string        // a process that has as many descriptors open as it may; "": none was seen
	Crowded       bool          // it was seen with hardly room for another process or thread
}

// Spec describes a sandbox completely. Nothing in it is a policy any more.
type Spec struct {
	Session  vocabulary.SessionID
	Mounts   []vocabulary.Mount // in order; see vocabulary.Mount
	UID, GID int                // inside, the same as outside
	Hostname string
	Network  NetworkKind
	// HostPorts are ports of the host that a grant covers: the sandbox's own
	// loopback has a listener for each, and Instance.Listeners hands them out.
	HostPorts []int
	Limits    Limits
	// Judged are files and folders of the host among Mounts, by their path inside,
	// as they were when they were judged. If another stands there in the sandbox,
	// nothing runs.
	Judged []Identity
	// Seen is told of what the backend's kernel shows of what happens inside; it does
	// not wait. What that is, is the backend's matter; nil: nobody wants to know.
	Seen func(Seen) `json:"-"`
	// Watched is the folder of which files that are opened for writing are told; "":
	// of none.
	Watched string
	// Writes says what may be written in the host's folders among Mounts; nil if
	// none of them is writable.
	Writes *Writes
}

// Seen is one thing that happened inside, as far as the commands inside did not
// deceive who saw it: it is for people to read, and nothing is decided by it.
type Seen struct {
	What SeenKind
	PID  int    // as commands inside see it
	Name string // of the process
	// Path is the program that was started, or the file.
	Path  string
	Child int // of a fork
	Code  int // of an exit, 128+n for a signal; -1: not known
	Count int // of what was lost
}

// SeenKind is a kind of Seen.
type SeenKind uint8

// The kinds.
const (
	SeenFork  SeenKind = iota // a process was made
	SeenExec                  // it became another program
	SeenExit                  // it ended
	SeenWrite                 // a file was opened for writing
	SeenLost                  // so many more things happened, and are not known
)

// Identity is a file or folder of the host.
type Identity struct {
	Path     string
	Dev, Ino uint64
}

// Writes is the rule for every write by path in writable folders of the host.
// The backend asks before each, and carries out what it has judged.
type Writes struct {
	Folders []WritableFolder
	// Protected are paths relative to any folder, with patterns as elements: what
	// the host runs or obeys later. None comes into being. What is below ".git/"
	// counts for every git directory.
	Protected []ProtectedPath
	// Installed are names of folders, such as node_modules, below which only
	// git's entries are protected.
	Installed []string
	// Fixed are files that change by rule only (git's configuration) and are not
	// removed or moved.
	Fixed []string
	// Refused is told of each refusal; it does not wait.
	Refused func(op, path, reason string) `json:"-"`
	// Keep makes a version of what is at a path of a folder with Versions, before
	// it changes. Safe for concurrent use. With the first answer for a folder may
	// come a spool, which the backend then owns.
	Keep func(Change) (*Spool, error) `json:"-"`
	// Made is told of what comes to stand where nothing stood before, in a folder
	// that is not new itself. It does not wait.
	Made func(path string) `json:"-"`
}

// Change is what is about to happen to a path.
type Change struct {
	Path string
	// Again asks for one more version of a path that has one.
	Again bool
	// Tree says that a folder goes with all that is in it.
	Tree bool
}

// Spool is a file to which pid 1 appends what small files of a folder were before
// they change (package spool), instead of asking for each.
type Spool struct {
	File  *os.File // for writing
	Limit int64    // bytes
}

// WritableFolder is a folder of the host, by its path inside.
type WritableFolder struct {
	Path     string
	NoDelete bool // rw-no-delete: nothing that was there is lost
	Versions bool // what was there is kept before it changes
}

// ProtectedPath is one line of Writes.Protected.
type ProtectedPath struct{ Path, Reason string }

// Command is one command to start inside.
type Command struct {
	Argv []string // Argv[0] is looked up on the PATH of Env, inside
	Env  []string // the whole environment, KEY=VALUE
	Dir  string   // absolute, inside
	// Terminal asks for a new pseudo-terminal made inside the sandbox. Of
	// Stdio, the nil entries are connected to it. Rows and Cols are its size.
	Terminal   bool
	Rows, Cols uint16
	// Stdio are the descriptors for 0, 1, 2: pipes or /dev/null, never a
	// terminal, a directory or a socket of the host. Start does not close them.
	Stdio [3]*os.File
}

// Modes are the settings of a terminal: the fields of Linux's struct termios.
type Modes struct {
	Iflag, Oflag, Cflag, Lflag uint32
	Cc                         [19]uint8
}

// Line is what a pseudo-terminal has beside its bytes.
type Line interface {
	// Resize sets its size; the foreground job gets SIGWINCH if that is new.
	Resize(rows, cols uint16) error
	Modes() (Modes, error)
	SetModes(Modes) error
}

// Listener is a listening socket on the sandbox's loopback. Where the kernel
// that listens is not the host's, File is a door instead: see package door.
type Listener struct {
	Port int
	File *os.File
}

// Instance is a boundary that stands. Safe for concurrent use.
type Instance interface {
	// Link is the gateway's end of the network: the TAP descriptor (NetTAP) or
	// the listening socket (NetRelay), which may be a door; nil for NetNone. The
	// caller owns it.
	Link() *os.File
	// Listeners are the listening sockets inside, one or two (IPv4 and IPv6) for
	// each of Spec.HostPorts. The caller owns them.
	Listeners() []Listener
	// Dial connects to a port of the sandbox's own loopback.
	Dial(ctx context.Context, port int) (net.Conn, error)
	// Start runs a command. A command that can't be found or executed is an
	// *ExecError.
	Start(context.Context, Command) (Process, error)
	// Usage is kept up to date, by about a second, if a limit needs it; zero
	// otherwise.
	Usage() Usage
	// PID is the host's view of the sandbox's first process, for posture tests.
	PID() int
	// Done is closed when nothing of the instance runs any more.
	Done() <-chan struct{}
	// Cause says why the instance ended, after Done: nil after Kill or a normal
	// end, otherwise which part died or which limit was hit.
	Cause() error
	// Kill ends everything inside, and returns when it is gone and its cgroup
	// and other host state are removed. Idempotent.
	Kill() error
}

// Process is one command inside.
type Process interface {
	// Terminal is the controlling end of the pseudo-terminal, or a socket that
	// leads to it (then Line is not nil); nil without one. The caller owns it.
	Terminal() *os.File
	// Line is for the settings of a pseudo-terminal behind a socket. It is nil
	// where Terminal is the pseudo-terminal itself.
	Line() Line
	// Wait returns the exit code of the contract: the command's own, or 128+n
	// for a signal. It fails if the sandbox died before it was known.
	Wait() (int, error)
	// Signal sends a signal to the command's process group.
	Signal(os.Signal) error
	// Stopped delivers a value each time the command's foreground job stopped
	// (Ctrl-Z); Signal(SIGCONT) goes on.
	Stopped() <-chan struct{}
}

// Backend makes instances. Check says, before anything is started, whether
// this host can give this isolation; its error is for the terminal (what is
// missing, how to get it) and becomes exit code 12.
type Backend interface {
	Isolation() vocabulary.Isolation
	Check(Spec) error
	Prepare(context.Context, Spec) (Instance, error)
}

// ErrGone is returned for what the sandbox did not live to answer.
var ErrGone = errors.New("the sandbox has ended")

// ExecError says that a command could not be started.
type ExecError struct {
	Name     string
	NotFound bool // exit 127; otherwise 126
	Err      error
}

func (e *ExecError) Error() string { return fmt.Sprintf("%s: %v", e.Name, e.Err) }
func (e *ExecError) Unwrap() error { return e.Err }
