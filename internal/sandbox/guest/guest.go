// Package guest is the supervisor inside a sandbox and the controller's end of
// the conversation with it.
//
// The supervisor (childproc "guest") is pid 1 of the sandbox. It is trusted
// until it runs the first command, and confines itself before that: it checks
// that it holds no capability, becomes undumpable (so nobody inside can attach
// to it or read it), applies resource limits, Landlock and the system call
// filter to itself; everything it starts inherits them. If any step fails it
// reports and exits, and nothing runs. It starts commands, reaps every process,
// and exits when the control socket ends, which ends the pid namespace.
//
// A command with a terminal is started by a second child ("job"), a session
// leader: only a process group whose leader's parent is in the same session
// can be stopped by Ctrl-Z.
//
// The conversation is frames (package frame) of one JSON object over a Unix
// stream socket, descriptor 3 of the supervisor. The controller's side (Client)
// takes everything from the supervisor as hostile, since what runs beside it is:
// messages are bounded, out-of-order messages end the instance, and received
// descriptors are checked for what they are.
package guest

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/guard"
)

// Names in the child registry, and where the binary lies inside the sandbox.
const (
	Child = "guest"
	Dir   = "/run/bulkhead"
	Path  = Dir + "/bulkhead"
)

// SupervisorID is the supervisor's own number under a foreign kernel: nothing
// that it starts can signal it or attach to it. It is started with it as its group;
// as its user only root has the capabilities that it needs to become another.
const SupervisorID = 65533

const (
	maxReport = 64 << 10 // bytes of one message from the supervisor
	maxText   = 500      // characters of an error text from the supervisor
	// maxWaiting is how many connections may wait for their sockets: what the
	// supervisor keeps to (maxArrivals), and what is on its way.
	maxWaiting = 256
)

// Setup is the first message to the supervisor: how to confine itself.
type Setup struct {
	// ReadOnly and Writable are the paths that Landlock opens. Nothing else in
	// the sandbox's file system can be opened.
	ReadOnly Paths `json:"read_only,omitempty"`
	Writable Paths `json:"writable,omitempty"`
	// Layers are paths whose devices come with the ready report: there must be what
	// the warden mounted.
	Layers Paths `json:"layers,omitempty"`
	// Judged must stand where they say, by their numbers; see Identities.
	Judged []Identity `json:"judged,omitempty"`
	// RelayPort asks for a listener on 127.0.0.1, sent with the ready report.
	RelayPort int `json:"relay_port,omitempty"`
	// Ports asks for listeners on the sandbox's loopback that stand for ports of
	// the host; they are sent with the ready report, see report.V6.
	Ports []int `json:"ports,omitempty"`
	// Where no cgroup enforces the limits. 0: no limit.
	DataLimit uint64 `json:"data_limit,omitempty"` // RLIMIT_DATA, bytes
	TaskLimit uint64 `json:"task_limit,omitempty"` // RLIMIT_NPROC, processes and threads
	// Of each process:
	FileLimit       uint64 `json:"file_limit,omitempty"`       // RLIMIT_FSIZE, bytes
	DescriptorLimit uint64 `json:"descriptor_limit,omitempty"` // RLIMIT_NOFILE
	// Watch asks for usage reports; nil: none.
	Watch    *Watch `json:"watch,omitempty"`
	PinCPUs  bool   `json:"pin_cpus,omitempty"`
	BoundShm bool   `json:"bound_shm,omitempty"`
	// Guard says which writes are decided by name; nil: none.
	Guard *guard.Setup `json:"guard,omitempty"`
	// Sights asks for reports of processes, and of files of the guard's folders that
	// are opened for writing.
	Sights bool `json:"sights,omitempty"`
	// Foreign is set where the kernel inside is not the host's.
	Foreign *Foreign `json:"foreign,omitempty"`
}

// Foreign is what is different under a kernel of the sandbox's own (gVisor). No
// descriptor can be handed out, see bridge_linux.go; the boundary is that kernel
// and what holds it, so that Landlock and a system call filter inside have
// nothing to add and are not applied.
type Foreign struct {
	// Commands get these numbers in a user namespace of their own, where the
	// supervisor's, which is 0, stands for them.
	UID int `json:"uid"`
	GID int `json:"gid"`
	// Files and Links are made before anything is started. They lie in memory
	// file systems of the sandbox.
	Files []File `json:"files,omitempty"`
	Links []Link `json:"links,omitempty"`
}

// File is a private file to begin with.
type File struct {
	Path []byte `json:"path"`
	Data []byte `json:"data"`
	Perm uint32 `json:"perm"`
}

// Link is a symbolic link to begin with.
type Link struct {
	Path []byte `json:"path"`
	To   []byte `json:"to"`
}

// Watch says what usage reports are about.
type Watch struct {
	// Memory are the mount points of memory file systems.
	Memory Paths `json:"memory,omitempty"`
	// Inodes: there are so many at most; 0: they are not counted.
	Inodes int64 `json:"inodes,omitempty"`
	CPU    bool  `json:"cpu,omitempty"`
	// Descriptors: a process may have so many open; 0: they are not counted.
	Descriptors int64 `json:"descriptors,omitempty"`
	// Tasks: there may be so many, ours included; 0: they are not counted.
	Tasks int64 `json:"tasks,omitempty"`
}

// maxName is how long the name of a process may be: TASK_COMM_LEN.
const maxName = 16

// usage is what a usage report says, see sandbox.Usage.
type usage struct {
	Bytes  int64 `json:"bytes,omitempty"`
	Inodes int64 `json:"inodes,omitempty"`
	CPU    int64 `json:"cpu,omitempty"` // nanoseconds
	Looks  int64 `json:"looks,omitempty"`
	// Full is a process that has all descriptors open that it may have.
	Full guard.Bytes `json:"full,omitempty"`
	// Crowded: hardly another process or thread may be made.
	Crowded bool `json:"crowded,omitempty"`
}

// sight is a sandbox.Seen.
type sight struct {
	What sandbox.SeenKind `json:"what"`
	PID  int              `json:"pid,omitempty"`
	Name guard.Bytes      `json:"name,omitempty"`
	Path guard.Bytes      `json:"path,omitempty"`
}

// maxSights bounds a report of them.
const maxSights = 64

// Modes are a terminal's settings; see sandbox.Modes.
type Modes = sandbox.Modes

// Identity is a sandbox.Identity.
type Identity struct {
	Path []byte `json:"path"`
	Dev  uint64 `json:"dev"`
	Ino  uint64 `json:"ino"`
}

// Identities is what the supervisor gets of sandbox.Spec.Judged.
func Identities(judged []sandbox.Identity) []Identity {
	out := make([]Identity, len(judged))
	for i, j := range judged {
		out[i] = Identity{[]byte(j.Path), j.Dev, j.Ino}
	}
	return out
}

// Exchanged begins what a supervisor says if something else stands in a place.
const Exchanged = "exchanged since it was judged: "

// WasExchanged finds that in what a part of a sandbox said.
func WasExchanged(text string) (path string, ok bool) {
	_, path, ok = strings.Cut(text, Exchanged)
	return path, ok
}

// Paths travel as bytes: a file's name need not be UTF-8, and JSON text must be.
type Paths []string

// MarshalJSON implements json.Marshaler.
func (p Paths) MarshalJSON() ([]byte, error) {
	raw := make([][]byte, len(p))
	for i, s := range p {
		raw[i] = []byte(s)
	}
	return json.Marshal(raw)
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *Paths) UnmarshalJSON(b []byte) error {
	var raw [][]byte
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	*p = make(Paths, len(raw))
	for i, s := range raw {
		(*p)[i] = string(s)
	}
	return nil
}

// request is what the controller sends: exactly one member is set.
type request struct {
	Setup  *Setup         `json:"setup,omitempty"`
	Start  *start         `json:"start,omitempty"`
	Signal *signalRequest `json:"signal,omitempty"`
	Dial   *dialRequest   `json:"dial,omitempty"`
	Kept   *keptRequest   `json:"kept,omitempty"`
	// Seal is for a guard beside a foreign kernel: commands come; ready answers.
	Seal bool `json:"seal,omitempty"`
	// Under a foreign kernel:
	Line  *lineRequest  `json:"line,omitempty"`
	Carry *carryRequest `json:"carry,omitempty"`
}

// keptRequest answers a keep report.
type keptRequest struct {
	ID    uint32 `json:"id"`
	Error string `json:"error,omitempty"` // no version was made
	// Spool is how many bytes the spool that comes along may get.
	Spool int64 `json:"spool,omitempty"`
}

// lineRequest changes a terminal. What is zero or nil stays.
type lineRequest struct {
	ID    uint32 `json:"id"`
	Rows  uint16 `json:"rows,omitempty"`
	Cols  uint16 `json:"cols,omitempty"`
	Modes *Modes `json:"modes,omitempty"`
}

// carryRequest answers kindArrived: the socket for the connection comes along,
// or it is refused.
type carryRequest struct {
	ID uint32 `json:"id"`
}

// dialRequest asks for a connection to a port of the sandbox's own loopback. To
// a foreign kernel the socket for it comes along.
type dialRequest struct {
	ID   uint32 `json:"id"`
	Port int    `json:"port"`
}

// start has byte strings, because arguments need not be UTF-8.
type start struct {
	ID       uint32   `json:"id"`
	Argv     [][]byte `json:"argv"`
	Env      [][]byte `json:"env"`
	Dir      []byte   `json:"dir"`
	Terminal bool     `json:"terminal,omitempty"`
	Rows     uint16   `json:"rows,omitempty"`
	Cols     uint16   `json:"cols,omitempty"`
	Stdio    [3]bool  `json:"stdio"` // which descriptors come with the message
	Null     [3]bool  `json:"null"`  // which are the sandbox's own /dev/null
	// Foreign is the supervisor's word to the job child.
	Foreign bool `json:"foreign,omitempty"`
}

type signalRequest struct {
	ID     uint32 `json:"id"`
	Signal int    `json:"signal"`
}

// The kinds of reports.
const (
	kindReady   = "ready"   // confined; the listeners come along
	kindFailed  = "failed"  // could not confine itself; Error says why
	kindStarted = "started" // the terminal's controlling end comes along
	kindRefused = "refused" // the command could not be started
	kindStopped = "stopped"
	kindExited  = "exited"  // Code is 128+n for a signal
	kindDialed  = "dialed"  // the connection comes along
	kindClosed  = "closed"  // nothing listens on the port; Error says why
	kindDenied  = "denied"  // a write at Path was refused; Error says why, Op how
	kindKeep    = "keep"    // what is at Path is about to change; a kept request answers
	kindMade    = "made"    // nothing stood at Path before
	kindModes   = "modes"   // a terminal's settings changed
	kindArrived = "arrived" // a connection to one of the listeners waits for its socket
	kindUsage   = "usage"   // what is used has changed
	kindSeen    = "seen"    // Sights, and how many more there were
)

// report is what the supervisor sends.
type report struct {
	Kind     string `json:"kind"`
	ID       uint32 `json:"id,omitempty"`
	Code     int    `json:"code,omitempty"`
	NotFound bool   `json:"not_found,omitempty"`
	Error    string `json:"error,omitempty"`
	// V6, with ready: after the relay's listener and those on 127.0.0.1 come the
	// same ports on ::1. A sandbox without IPv6 has none.
	V6 bool `json:"v6,omitempty"`
	// With denied, keep and made.
	Path  guard.Bytes `json:"path,omitempty"`
	Op    string      `json:"op,omitempty"`
	Again bool        `json:"again,omitempty"`
	Tree  bool        `json:"tree,omitempty"`
	// Devices, with ready: of Setup.Layers.
	Devices []uint64 `json:"devices,omitempty"`
	// Modes, with started and modes: the terminal's settings.
	Modes *Modes `json:"modes,omitempty"`
	Port  int    `json:"port,omitempty"`
	// With seen.
	Sights []sight `json:"sights,omitempty"`
	Lost   int     `json:"lost,omitempty"`
	// Usage, with usage.
	Usage *usage `json:"usage,omitempty"`
}

// clean makes a text from the sandbox fit for a terminal and a log.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if rs := []rune(s); len(rs) > maxText {
		s = string(rs[:maxText]) + "…"
	}
	return s
}

func (s *start) validate() error {
	switch {
	case len(s.Argv) == 0 || len(s.Argv[0]) == 0:
		return fmt.Errorf("a command needs a name")
	case len(s.Dir) == 0 || s.Dir[0] != '/':
		return fmt.Errorf("working directory %q is not absolute", s.Dir)
	}
	for _, list := range [][][]byte{s.Argv, s.Env, {s.Dir}} {
		for _, b := range list {
			if strings.IndexByte(string(b), 0) >= 0 {
				return fmt.Errorf("a command's arguments, environment and directory can't contain a zero byte")
			}
		}
	}
	return nil
}

// exchange holds what the controller knows of its commands, and judges what
// the supervisor says about them. It does no input or output.
type exchange struct {
	guarded  bool // the supervisor judges writes
	relay    bool // a listener comes with ready
	ports    int  // and so many more
	layers   int  // so many devices come with it
	watched  bool // usage is reported
	sights   bool // what is seen is
	foreign  bool // nothing comes out: connections arrive at listeners instead
	listens  func(port int) bool
	ready    bool
	commands map[uint32]*commandState
	dials    map[uint32]bool
	arrived  map[uint32]bool // not yet answered
}

type commandState struct {
	running  bool
	terminal bool
}

// judge says whether the report may come now, with that many descriptors, and
// records what it means. An error ends the conversation.
func (x *exchange) judge(r report, files int) error {
	want := 0
	switch r.Kind {
	case kindReady:
		if x.ready {
			return fmt.Errorf("ready twice")
		}
		if x.relay {
			want = 1
		}
		want += x.ports
		if r.V6 {
			want += x.ports
		}
		if len(r.Devices) != x.layers {
			return fmt.Errorf("%d devices, expected %d", len(r.Devices), x.layers)
		}
		if x.foreign {
			want = 0
		}
		x.ready = true
	case kindFailed:
		if x.ready {
			return fmt.Errorf("failed after ready")
		}
	case kindStarted, kindRefused:
		c := x.commands[r.ID]
		if c == nil || c.running {
			return fmt.Errorf("%s for a command that is not being started", r.Kind)
		}
		if r.Kind == kindRefused {
			delete(x.commands, r.ID)
			break
		}
		c.running = true
		switch {
		case c.terminal && !x.foreign:
			want = 1
		case c.terminal && r.Modes == nil:
			return fmt.Errorf("a terminal without settings")
		}
	case kindStopped, kindExited:
		c := x.commands[r.ID]
		if c == nil || !c.running {
			return fmt.Errorf("%s for a command that does not run", r.Kind)
		}
		if r.Kind == kindExited {
			if r.Code < 0 || r.Code > 255 {
				return fmt.Errorf("exit code %d", r.Code)
			}
			delete(x.commands, r.ID)
		}
	case kindDialed, kindClosed:
		if !x.dials[r.ID] {
			return fmt.Errorf("%s for a connection that nobody asked for", r.Kind)
		}
		delete(x.dials, r.ID)
		if r.Kind == kindDialed && !x.foreign {
			want = 1
		}
	case kindDenied, kindKeep, kindMade:
		if !x.guarded || !x.ready || !strings.HasPrefix(string(r.Path), "/") {
			return fmt.Errorf("%s of a write that nobody judges", r.Kind)
		}
	case kindModes:
		// The command's end may have been told before its terminal's last words.
		if c := x.commands[r.ID]; !x.foreign || r.Modes == nil || c != nil && !c.terminal {
			return fmt.Errorf("settings of no terminal")
		}
	case kindArrived:
		switch {
		case !x.foreign || !x.ready || !x.listens(r.Port):
			return fmt.Errorf("a connection to no listener")
		case x.arrived[r.ID] || len(x.arrived) >= maxWaiting:
			return fmt.Errorf("too many connections that wait")
		}
		x.arrived[r.ID] = true
	case kindSeen:
		if !x.sights || !x.ready || len(r.Sights) > maxSights || r.Lost < 0 {
			return fmt.Errorf("sights that nobody wants to know")
		}
		for _, s := range r.Sights {
			if s.PID < 0 || s.What != sandbox.SeenExec && s.What != sandbox.SeenExit && s.What != sandbox.SeenWrite {
				return fmt.Errorf("a sight that is none")
			}
		}
	case kindUsage:
		if u := r.Usage; !x.watched || !x.ready || u == nil || u.Bytes < 0 || u.Inodes < 0 || u.CPU < 0 || u.Looks < 0 || len(u.Full) > maxName {
			return fmt.Errorf("a usage that is none")
		}
	default:
		return fmt.Errorf("unknown report")
	}
	if files != want {
		return fmt.Errorf("%s with %d descriptors, expected %d", r.Kind, files, want)
	}
	return nil
}
