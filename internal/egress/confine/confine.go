// Package confine takes everything from the gateway process that it does not
// need for moving bytes between descriptors and the network.
//
// Apply runs once, in the gateway, after its configuration is read and before
// the first hostile byte: no new privileges, no capabilities, no core dump, no
// ptrace; Landlock denies every file, every TCP port to listen on, and signals
// and abstract sockets outside; a seccomp filter for all threads leaves memory,
// threads, time, and sockets of the internet families. Exec, fork, ptrace,
// mount, bpf and everything else that is not on the list ends the process;
// calls by which the Go library merely asks (open, stat, prctl …) fail.
//
// Nothing here degrades: if Landlock or seccomp is missing, Apply fails and the
// gateway must not run. Landlock is enforced at the ABI that the kernel has.
// What an older one does not know the filter refuses alone: listening before
// ABI 4 (Linux 6.7), truncating before ABI 3.
//
// Figures: MaxFiles descriptors (two for each flow and some dozens of our own);
// MaxData bytes of writable memory, with the collector's soft limit below it.
package confine

const (
	// MaxFiles bounds descriptors: RLIMIT_NOFILE.
	MaxFiles = 2048
	// MaxData bounds writable private memory: RLIMIT_DATA. Go maps its heap in
	// steps of 64 MiB, so this is address space and not use.
	MaxData = 3 << 30
	// SoftMemory is where the garbage collector begins to work harder.
	SoftMemory = 768 << 20
)
