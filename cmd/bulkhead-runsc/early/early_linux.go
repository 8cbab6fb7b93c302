// Package early takes the place of the initialiser of gVisor's hostmm, which registers
// for the barriers of its KVM platform. For that the host makes a program with threads
// wait for a grace period of RCU, some 10 ms, in each of the seven programs that a
// container's start is. systrap needs to know of the other barrier only.
//
// Packages are initialised in the order of their paths where their imports allow it:
// this one imports less than hostmm does, and comes before gvisor.dev. TestEarly looks.
package early

import (
	_ "unsafe" // for linkname

	"golang.org/x/sys/unix"
)

// task is the head of the runtime's initTask, of which there is one for each package.
type task struct{ state, functions uint32 }

const done = 2

//go:linkname hostmm gvisor.dev/gvisor/pkg/sentry/hostmm..inittask
var hostmm task

//go:linkname haveMembarrierGlobal gvisor.dev/gvisor/pkg/sentry/hostmm.haveMembarrierGlobal
var haveMembarrierGlobal bool

func init() {
	hostmm.state = done
	const query, global = 0, 1 // MEMBARRIER_CMD_QUERY, MEMBARRIER_CMD_GLOBAL
	can, _, errno := unix.RawSyscall(unix.SYS_MEMBARRIER, query, 0, 0)
	haveMembarrierGlobal = errno == 0 && can&global != 0
}
