// Package warden keeps a sandbox's outer half: the process between the
// controller and the program that makes the sandbox (bwrap, or what starts
// gVisor): the runtime.
//
// The warden (childproc "warden") runs outside the sandbox with the user's
// identity, in a user and network namespace of its own where a TAP or a foreign
// kernel is wanted, and in a user and mount namespace where layers are (root has a
// mount namespace always). It gets everything over its control socket (descriptor
// 3, package frame), so that nothing shows in ps. It makes the TAP and sends its
// descriptor, starts the runtime in the sandbox's cgroup, and stays: when the
// controller closes the socket or dies, when the runtime or the sandbox ends, or
// when the sandbox exceeds a limit that no cgroup enforces, it kills everything,
// waits until the last process is gone, removes the cgroup and exits.
//
// It reads nothing that comes from inside the sandbox but the numbers that the
// kernel shows about its processes.
package warden

import "github.com/bulkhead-dev/bulkhead/internal/sandbox/process/cgroup"

// Child is the warden's name in the child registry.
const Child = "warden"

// TraceSocket is where the runtime finds the socket for its monitoring: in the
// abstract names of the sandbox's network namespace on the host.
const TraceSocket = "@bulkhead-trace"

// Interface is the TAP's name inside the sandbox.
const Interface = "tap0"

// Descriptors as the runtime and its child see them. Files of Config come behind.
const (
	GuestFD = 3 // the guest supervisor's control socket
	ArgsFD  = 4 // what the runtime is to do: bwrap's arguments, for --args
	InfoFD  = 5 // for bwrap's --info-fd; the warden makes it
	DataFD  = 6 // the first of the data files
	// FarFD is an empty device, for a runtime that is Init. gVisor moves its standard
	// streams to 256 and on: a table of descriptors that has the room from the start
	// does not grow, for which the host would make a program with threads wait (a
	// grace period of RCU, some 10 ms).
	FarFD = 300
)

// Config is what the warden gets to know.
type Config struct {
	Runtime string   `json:"runtime"`
	Command []string `json:"command"` // argv of the runtime
	// Init makes the runtime the first process of a pid and mount namespace of
	// its own, so that everything that it starts ends with it. Otherwise it makes
	// those itself, and says over InfoFD which process is the first.
	Init  bool         `json:"init,omitempty"`
	TAP   bool         `json:"tap,omitempty"`
	Group cgroup.Group `json:"group"` // to start bwrap in, and to remove at the end
	// Without a cgroup for them:
	CPUs   []int    `json:"cpus,omitempty"`   // the processors the sandbox may use
	Memory int64    `json:"memory,omitempty"` // bytes; watched
	Tmpfs  []string `json:"tmpfs,omitempty"`  // mounts inside that use memory, for the watch
	// SealDevices makes the host's /dev read-only for the sandbox; Start sets it
	// for root, who owns the nodes.
	SealDevices bool `json:"seal_devices,omitempty"`
	// Layers are mounted before bwrap starts, in the warden's own view.
	Layers []Layer `json:"layers,omitempty"`
	// Trace makes the socket that the runtime sends its monitoring to; it is handed
	// out.
	Trace bool `json:"trace,omitempty"`
	// Files counts the descriptors that follow: the guest's socket, the
	// arguments, the data files.
	Files int `json:"files"`
}

// Layer is a copy-on-write view of a folder of the host, mounted over it. The
// paths are absolute and hold no link.
type Layer struct {
	Path  []byte `json:"path"`
	Upper []byte `json:"upper"` // what is written
	Work  []byte `json:"work"`  // the kernel's own
	// Device and Inode are the folder's: another one in its place is refused.
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

// The kinds of reports.
const (
	KindLayer = "layer" // one is mounted; Device is what stat says of all in it
	KindTAP   = "tap"   // the TAP's descriptor comes along
	KindTrace = "trace" // the listening socket for monitoring comes along
	KindPID   = "pid"   // the sandbox's first process exists
	KindError = "error" // setting up failed; Text says why
	KindLimit = "limit" // Text names the limit that was exceeded; the sandbox is killed
	KindEnded = "ended" // nothing runs any more; Text is what the runtime said
)

// Report is what the warden sends.
type Report struct {
	Kind string `json:"kind"`
	PID  int    `json:"pid,omitempty"`
	Text string `json:"text,omitempty"`
	// With KindLayer.
	Device uint64 `json:"device,omitempty"`
	// With KindEnded, what the cgroup counted.
	OOMKills     int64 `json:"oom_kills,omitempty"`
	RefusedTasks int64 `json:"refused_tasks,omitempty"`
}

// more carries files that did not fit the message with the Config.
type more struct{}
