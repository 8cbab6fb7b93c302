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

	guestAddr = 0x1000
	guestPort = 0x3f8
)

// guestCode adds two registers, writes the sum to a port and halts, so that a
// right answer proves that instructions were carried out.
var guestCode = []byte{
	0xba, 0xf8, 0x03, // mov dx, 0x3f8
	0x00, 0xd8, //       add al, bl
	0xee, //             out dx, al
	0xf4, //             hlt
}

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
	if err := runGuest(&f.Step); err != nil {
		f.Err = err.Error()
	} else {
		f.Ran = true
	}
	return answer(f)
}

func runGuest(step *string) error {
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
	mem, err := unix.Mmap(-1, 0, 0x1000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	copy(mem, guestCode)
	region := struct {
		slot, flags      uint32
		guest, size, our uint64
	}{guest: guestAddr, size: uint64(len(mem)), our: uint64(uintptr(unsafe.Pointer(&mem[0])))}
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
