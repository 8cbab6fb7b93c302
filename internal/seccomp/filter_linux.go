package seccomp

import (
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	lib "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/switches"
)

const (
	offsetNumber   = 0
	offsetArch     = 4
	offsetArgs     = 16 // 8 bytes each, the low half first on amd64 and arm64
	x32SyscallBit  = 0x40000000
	maxInstruction = 4096 // BPF_MAXINSNS
)

// Install puts the filter on all threads of this process. The caller has set
// no_new_privs.
func Install(o Options) error {
	if switches.Off("seccomp") {
		return nil
	}
	prog, err := Program(o)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(prog))
	for i, in := range prog {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// With TSYNC a positive result is the thread that could not be filtered.
	tid, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("the system call filter could not be installed: %w", errno)
	}
	if tid != 0 {
		return fmt.Errorf("the system call filter could not be installed on thread %d", tid)
	}
	return nil
}

// Program assembles the filter for this machine's architecture.
func Program(o Options) ([]bpf.RawInstruction, error) {
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		return nil, fmt.Errorf("no system call filter for %s (supported: amd64, arm64)", runtime.GOARCH)
	}
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("system call tables: %w", err)
	}
	policy := lib.Policy{DefaultAction: lib.ActionErrno, Syscalls: groups(info, o)}
	body, err := policy.Assemble()
	if err != nil {
		return nil, fmt.Errorf("assembling the system call filter: %w", err)
	}
	// The library's default can't carry an error number; its last instruction
	// is that default.
	body[len(body)-1] = bpf.RetConstant{Val: deny(unix.ENOSYS)}
	head, err := prologue(info, o)
	if err != nil {
		return nil, err
	}
	prog, err := bpf.Assemble(append(head, body...))
	if err != nil {
		return nil, fmt.Errorf("assembling the system call filter: %w", err)
	}
	if len(prog) > maxInstruction {
		return nil, fmt.Errorf("the system call filter has %d instructions, the kernel takes %d", len(prog), maxInstruction)
	}
	return prog, nil
}

func deny(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }

// prologue kills calls of other architectures and decides the calls whose
// arguments matter. The library's own conditions are not used: v1.6.0 goes on
// comparing the argument where the call's number should be.
func prologue(info *arch.Info, o Options) ([]bpf.Instruction, error) {
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(info.ID), SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS},
		bpf.LoadAbsolute{Off: offsetNumber, Size: 4},
	}
	if runtime.GOARCH == "amd64" {
		p = append(p,
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32SyscallBit, SkipTrue: 1},
			bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS})
	}
	for _, r := range rules(o) {
		for _, name := range r.syscalls {
			nr, ok := info.SyscallNames[name]
			if !ok || !r.conditional() {
				continue
			}
			b := block(r)
			if len(b) > 255 {
				return nil, fmt.Errorf("the system call filter's rule for %s is too long for one jump", name)
			}
			p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(nr), SkipTrue: uint8(len(b))})
			p = append(p, b...)
		}
	}
	return p, nil
}

// block judges one call's arguments. Every path through it ends in a return.
func block(r rule) []bpf.Instruction {
	alternatives, match, miss := r.when, deny(r.errno), uint32(unix.SECCOMP_RET_ALLOW)
	if r.only != nil {
		alternatives, match, miss = r.only, miss, match
	}
	var b []bpf.Instruction
	for _, a := range alternatives {
		// Built backwards: each test, when it fails, skips the rest of its
		// alternative.
		rest := []bpf.Instruction{bpf.RetConstant{Val: match}}
		for _, t := range slices.Backward(a) {
			rest = append(t.instructions(uint8(len(rest))), rest...)
		}
		b = append(b, rest...)
	}
	return append(b, bpf.RetConstant{Val: miss})
}

// instructions falls through if the test holds and skips rest if not.
func (t test) instructions(rest uint8) []bpf.Instruction {
	low := uint32(offsetArgs + 8*t.arg)
	switch t.op {
	case bits32:
		return []bpf.Instruction{
			bpf.LoadAbsolute{Off: low, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: t.value, SkipFalse: rest},
		}
	case above64:
		return []bpf.Instruction{
			bpf.LoadAbsolute{Off: low + 4, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 2},
			bpf.LoadAbsolute{Off: low, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: t.value, SkipFalse: rest},
		}
	}
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: low, Size: 4},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: t.mask},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: t.value, SkipTrue: rest},
	}
}

// groups are the calls whose arguments don't matter.
func groups(info *arch.Info, o Options) []lib.SyscallGroup {
	var gs []lib.SyscallGroup
	ruled := map[string]bool{}
	for _, r := range rules(o) {
		names := slices.DeleteFunc(slices.Clone(r.syscalls), func(n string) bool { _, ok := info.SyscallNames[n]; return !ok })
		for _, n := range names {
			ruled[n] = true
		}
		if len(names) > 0 && !r.conditional() {
			gs = append(gs, lib.SyscallGroup{Names: names, Action: lib.Action(deny(r.errno))})
		}
	}
	var allowed []string
	for n := range info.SyscallNames {
		if !ruled[n] {
			allowed = append(allowed, n)
		}
	}
	slices.SortFunc(allowed, func(a, b string) int { return info.SyscallNames[a] - info.SyscallNames[b] })
	return append(gs, lib.SyscallGroup{Names: allowed, Action: lib.ActionAllow})
}

// Denials lists what the filter denies and why.
func Denials(o Options) []Denial {
	var ds []Denial
	for _, r := range rules(o) {
		for _, n := range r.syscalls {
			ds = append(ds, Denial{Syscall: n, Errno: unix.ErrnoName(r.errno), Partly: r.conditional(), Why: r.why})
		}
	}
	return ds
}
