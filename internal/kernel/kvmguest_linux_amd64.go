package kernel

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests and layouts of linux/kvm.h, the stable ABI version 12.
const (
	kvmGetAPIVersion       = 0xAE00
	kvmCreateVM            = 0xAE01
	kvmGetVCPUMmapSize     = 0xAE04
	kvmCreateVCPU          = 0xAE41
	kvmSetUserMemoryRegion = 0x4020AE46
	kvmRun                 = 0xAE80
	kvmSetRegs             = 0x4090AE82
	kvmGetSregs            = 0x8138AE83
	kvmSetSregs            = 0x4138AE84

	kvmExitReason = 8  // offset in struct kvm_run
	kvmExitPort   = 34 // offset of io.port
	kvmExitData   = 40 // offset of io.data_offset
	kvmExitIO     = 2
	kvmExitHLT    = 5

	guestSize = 0x5000
	guestAddr = 0x1000 // the code
	pageMap   = 0x2000 // three levels of page tables, one page each
	guestPort = 0x3f8
)

// The guests add two registers, write the sum to a port and halt, so that a
// right answer proves that instructions were carried out. The second one does it
// with paging and in 64-bit mode, as every kernel does, and after a loop: hosts
// exist whose /dev/kvm carries out one instruction at a time, about 500 times
// slower than hardware, so that a kernel seems to hang at its start.
var (
	realGuest = []byte{
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0x00, 0xd8, //       add al, bl
		0xee, //             out dx, al
		0xf4, //             hlt
	}
	longGuest = []byte{
		0xb9, 0x40, 0x4b, 0x4c, 0x00, // mov ecx, 5000000
		0xff, 0xc9, //                   dec ecx
		0x75, 0xfc, //                   jnz to the dec
		0x66, 0xba, 0xf8, 0x03, //       mov dx, 0x3f8
		0x00, 0xd8, //                   add al, bl
		0xee, //                         out dx, al
		0xf4, //                         hlt
	}
)

// kvmRegs is struct kvm_regs; only rax, rbx, rip and rflags are used.
type kvmRegs struct {
	rax, rbx uint64
	_        [14]uint64
	rip      uint64
	rflags   uint64
}

func kvmChild() int {
	runtime.LockOSThread() // a VCPU belongs to its thread
	var f kvmFacts
	for mode, long := range map[string]bool{"real-mode": false, "64-bit": true} {
		if err := runGuest(&f.Step, long); err != nil {
			f.Err = "in a " + mode + " guest: " + err.Error()
			return answer(f)
		}
	}
	f.Ran = true
	return answer(f)
}

func runGuest(step *string, long bool) error {
	ioctl := func(name string, fd int, req, arg uintptr) (int, error) {
		*step = name
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
		if errno != 0 {
			return 0, errno
		}
		return int(r), nil
	}
	*step = "open"
	kvm, err := unix.Open(kvmPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if v, err := ioctl("KVM_GET_API_VERSION", kvm, kvmGetAPIVersion, 0); err != nil || v != 12 {
		return fmt.Errorf("version %d, %v", v, err)
	}
	vm, err := ioctl("KVM_CREATE_VM", kvm, kvmCreateVM, 0)
	if err != nil {
		return err
	}
	*step = "mmap"
	mem, err := unix.Mmap(-1, 0, guestSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	code := realGuest
	if long {
		code = longGuest
	}
	copy(mem[guestAddr:], code)
	region := struct {
		slot, flags      uint32
		guest, size, our uint64
	}{size: uint64(len(mem)), our: uint64(uintptr(unsafe.Pointer(&mem[0])))}
	if _, err := ioctl("KVM_SET_USER_MEMORY_REGION", vm, kvmSetUserMemoryRegion, uintptr(unsafe.Pointer(&region))); err != nil {
		return err
	}
	vcpu, err := ioctl("KVM_CREATE_VCPU", vm, kvmCreateVCPU, 0)
	if err != nil {
		return err
	}
	size, err := ioctl("KVM_GET_VCPU_MMAP_SIZE", kvm, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return err
	}
	*step = "mmap of the VCPU"
	run, err := unix.Mmap(vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	var sregs [312]byte // struct kvm_sregs, which begins with cs: base u64, limit u32, selector u16
	if _, err := ioctl("KVM_GET_SREGS", vcpu, kvmGetSregs, uintptr(unsafe.Pointer(&sregs))); err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(sregs[0:], 0)
	binary.LittleEndian.PutUint16(sregs[12:], 0)
	if long {
		enterLongMode(mem, &sregs)
	}
	if _, err := ioctl("KVM_SET_SREGS", vcpu, kvmSetSregs, uintptr(unsafe.Pointer(&sregs))); err != nil {
		return err
	}
	regs := kvmRegs{rax: 40, rbx: 2, rip: guestAddr, rflags: 2}
	if _, err := ioctl("KVM_SET_REGS", vcpu, kvmSetRegs, uintptr(unsafe.Pointer(&regs))); err != nil {
		return err
	}
	said := -1
	for range 4 { // two exits are expected
		if _, err := ioctl("KVM_RUN", vcpu, kvmRun, 0); err != nil {
			if err == unix.EINTR {
				continue
			}
			return err
		}
		reason := binary.LittleEndian.Uint32(run[kvmExitReason:])
		switch reason {
		case kvmExitIO:
			if port := binary.LittleEndian.Uint16(run[kvmExitPort:]); port != guestPort {
				return fmt.Errorf("the guest wrote to port %#x", port)
			}
			offset := binary.LittleEndian.Uint64(run[kvmExitData:])
			if offset >= uint64(len(run)) {
				return fmt.Errorf("data at %d of %d", offset, len(run))
			}
			said = int(run[offset])
		case kvmExitHLT:
			if said != 42 {
				return fmt.Errorf("the guest computed %d for 40+2", said)
			}
			return nil
		default:
			return fmt.Errorf("the guest ended with reason %d", reason)
		}
	}
	return fmt.Errorf("the guest does not come to its end")
}

// enterLongMode maps the first 2 MiB to themselves and describes a processor
// that is in 64-bit mode already (Intel SDM volume 3, sections 4.5 and 10.8.5).
func enterLongMode(mem []byte, sregs *[312]byte) {
	const presentWritable, large = 3, 1 << 7
	le := binary.LittleEndian
	le.PutUint64(mem[pageMap:], pageMap+0x1000|presentWritable)
	le.PutUint64(mem[pageMap+0x1000:], pageMap+0x2000|presentWritable)
	le.PutUint64(mem[pageMap+0x2000:], presentWritable|large)
	// struct kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g
	segment := func(at int, kind, l byte) {
		s := sregs[at : at+24]
		clear(s)
		le.PutUint32(s[8:], 0xffffffff)
		s[14], s[15], s[17], s[18], s[19], s[20] = kind, 1, 1-l, 1, l, 1
	}
	const codeSegment, dataSegment = 11, 3
	segment(0, codeSegment, 1)
	for i := 1; i < 6; i++ { // ds, es, fs, gs, ss
		segment(24*i, dataSegment, 0)
	}
	const cr0, cr3, cr4, efer = 224, 240, 248, 264
	le.PutUint64(sregs[cr0:], 1<<31|1<<0) // paging, protection
	le.PutUint64(sregs[cr3:], pageMap)
	le.PutUint64(sregs[cr4:], 1<<5)        // physical address extension
	le.PutUint64(sregs[efer:], 1<<10|1<<8) // long mode, active and enabled
}
