// Package seccomp holds the system call filter that every process of a process
// sandbox lives under, as data with a reason per denied call, and installs it.
//
// It runs in the guest supervisor (pid 1 inside), once, before anything hostile
// exists; children inherit it. Everything the tables of go-seccomp-bpf know is
// allowed except what rules.go denies. A number unknown to the tables answers
// ENOSYS, as on an older kernel, so that a new call is never let in unseen.
// Calls of another architecture (i386, x32 on amd64) kill the process, because
// their numbers mean something else.
//
// The filter narrows what the kernel offers; it is not the boundary by itself.
// Arguments behind pointers (paths, clone3's struct) can't be judged by a filter:
// calls that need it are denied as a whole.
package seccomp

// Options are the variants of the filter. The zero value is the filter alone.
type Options struct {
	// PinCPUs denies sched_setaffinity, where a CPU limit is enforced by the
	// affinity that the sandbox inherits.
	PinCPUs bool
	// BoundShm denies System V segments over 64 KiB, where no cgroup counts
	// them: at most 4,096 of those exist in an IPC namespace (shmmni).
	BoundShm bool
}

// Denial is one line of the filter for people: shown by documentation and
// compared by posture tests.
type Denial struct {
	Syscall string
	Errno   string // what the caller gets, e.g. "EPERM"
	Partly  bool   // denied for some arguments only
	Why     string
}
