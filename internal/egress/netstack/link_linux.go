package netstack

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/rawfile"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// tap is the TAP device as the stack's link. gVisor's own endpoint waits for
// frames in a system call that the Go scheduler does not see coming, so each
// frame costs two changes of thread; this one waits in the runtime's poller, and
// a frame costs one read. What has arrived meanwhile is read before it waits
// again, and delivered by the goroutine that read it.
type tap struct {
	file *os.File // non-blocking, in the poller

	mu         sync.RWMutex // also keeps the descriptor open while it is written
	closed     bool
	dispatcher stack.NetworkDispatcher
	mtu        uint32
	address    tcpip.LinkAddress
	onClose    func()
	fd         int
	reading    sync.WaitGroup
}

var noDeadline, passed = time.Time{}, time.Unix(1, 0)

// newTAP takes over the device behind link.
func newTAP(link *os.File, mtu uint32, address tcpip.LinkAddress) (*tap, error) {
	raw, err := link.SyscallConn()
	if err != nil {
		return nil, err
	}
	own := -1
	var derr error
	if err := raw.Control(func(fd uintptr) { own, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, derr
	}
	link.Close()
	if err := unix.SetNonblock(own, true); err != nil {
		unix.Close(own)
		return nil, err
	}
	t := &tap{file: os.NewFile(uintptr(own), "link"), fd: own, mtu: mtu, address: address}
	if err := t.file.SetReadDeadline(noDeadline); err != nil {
		t.file.Close()
		return nil, fmt.Errorf("the link cannot be polled: %w", err)
	}
	return t, nil
}

// The header that the kernel puts before each frame and expects before each
// (struct virtio_net_hdr; IFF_VNET_HDR). Multi-byte fields have the host's order.
const (
	vnetSize    = 10
	vnetFlags   = 0 // a byte
	vnetGSOType = 1 // a byte
	vnetHdrLen  = 2
	vnetGSOSize = 4
	vnetStart   = 6 // where the sum begins
	vnetOffset  = 8 // and where from there it is written

	needsSum = 1
	gsoTCP4  = 1
	gsoTCP6  = 4
)

const (
	// headSize is what is read apart from the packet.
	headSize = vnetSize + header.EthernetMinimumSize
	// largeFrame is from where on a packet keeps the buffer that it was read into;
	// a smaller one would pin more than twice its size.
	largeFrame = 32 << 10
)

// read delivers frames until the device is gone.
func (t *tap) read(d stack.NetworkDispatcher) {
	defer t.reading.Done()
	raw, err := t.file.SyscallConn()
	if err != nil {
		return
	}
	head := make([]byte, headSize)
	room := buffer.NewViewSize(int(t.MTU()))
	defer func() { room.Release() }()
	var n int
	var errno unix.Errno
	iovecs := make([]unix.Iovec, 2)
	once := func(fd uintptr) bool {
		iovecs[0], iovecs[1] = rawfile.IovecFromBytes(head), rawfile.IovecFromBytes(room.AsSlice())
		n, errno = readv(fd, iovecs)
		return errno != unix.EAGAIN
	}
	for {
		if err := raw.Read(once); err != nil || errno != 0 || n == 0 {
			return
		}
		if n -= headSize; n <= 0 || head[vnetGSOType] != 0 { // never asked for
			continue
		}
		eth := header.Ethernet(head[vnetSize:])
		dst := eth.DestinationAddress()
		if group := dst[0]&1 == 1; !group && dst != t.LinkAddress() {
			continue
		}
		var payload buffer.Buffer
		if n < largeFrame {
			payload = buffer.MakeWithData(room.AsSlice()[:n])
		} else {
			room.CapLength(n)
			payload = buffer.MakeWithView(room)
			room = buffer.NewViewSize(int(t.MTU()))
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: payload})
		pkt.NetworkProtocolNumber = eth.Type()
		d.DeliverNetworkPacket(pkt.NetworkProtocolNumber, pkt)
		pkt.DecRef()
	}
}

// readv reads one frame without waiting (package direct says why it is raw).
func readv(fd uintptr, iovecs []unix.Iovec) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(iovecs))), uintptr(len(iovecs)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// WritePackets implements stack.LinkWriter. A frame that the device has no room
// for is dropped, as on any network.
func (t *tap) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, pkt := range pkts.AsSlice() {
		if s, ok := pkt.Owner.(*stream); !ok || s == nil || !s.acks.hold(pkt) {
			if err := t.write(pkt); err != nil {
				return n, err
			}
		}
		n++
	}
	return n, nil
}

func (t *tap) write(pkt *stack.PacketBuffer) tcpip.Error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.closed {
		return &tcpip.ErrClosedForSend{}
	}
	vnet := vnetHeader(pkt)
	var array [8]unix.Iovec
	iovecs := rawfile.AppendIovecFromBytes(array[:0], vnet[:], rawfile.MaxIovs)
	for _, v := range pkt.AsSlices() {
		iovecs = rawfile.AppendIovecFromBytes(iovecs, v, rawfile.MaxIovs)
	}
	if errno := rawfile.NonBlockingWriteIovec(t.fd, iovecs); errno != 0 {
		return tcpip.TranslateErrno(errno)
	}
	return nil
}

// vnetHeader leaves the sum of a TCP segment to the kernel, which need not make it
// at all: nobody looks at it on the way to the sandbox's own socket.
func vnetHeader(pkt *stack.PacketBuffer) (h [vnetSize]byte) {
	o := pkt.GSOOptions
	if o.Type == stack.GSONone || !o.NeedsCsum {
		return h
	}
	h[vnetFlags] = needsSum
	binary.NativeEndian.PutUint16(h[vnetHdrLen:], uint16(pkt.HeaderSize()))
	binary.NativeEndian.PutUint16(h[vnetStart:], header.EthernetMinimumSize+o.L3HdrLen)
	binary.NativeEndian.PutUint16(h[vnetOffset:], o.CsumOffset)
	if pkt.Data().Size() > int(o.MSS) {
		h[vnetGSOType] = gsoTCP4
		if o.Type == stack.GSOTCPv6 {
			h[vnetGSOType] = gsoTCP6
		}
		binary.NativeEndian.PutUint16(h[vnetGSOSize:], o.MSS)
	}
	return h
}

// SupportedGSO implements stack.GSOEndpoint: a sandbox that asks for small
// segments gets large ones, which its own kernel takes apart.
func (*tap) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// GSOMaxSize implements stack.GSOEndpoint.
func (*tap) GSOMaxSize() uint32 { return math.MaxUint16 }

// AddHeader implements stack.LinkEndpoint.
func (t *tap) AddHeader(pkt *stack.PacketBuffer) {
	header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: pkt.EgressRoute.LocalLinkAddress, DstAddr: pkt.EgressRoute.RemoteLinkAddress, Type: pkt.NetworkProtocolNumber,
	})
}

// ParseHeader implements stack.LinkEndpoint.
func (t *tap) ParseHeader(pkt *stack.PacketBuffer) bool {
	b, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	if ok {
		pkt.NetworkProtocolNumber = header.Ethernet(b).Type()
	}
	return ok
}

// Attach implements stack.LinkEndpoint; nil ends the reading.
func (t *tap) Attach(d stack.NetworkDispatcher) {
	t.mu.Lock()
	first := t.dispatcher == nil
	t.dispatcher = d
	t.mu.Unlock()
	switch {
	case d == nil:
		t.file.SetReadDeadline(passed)
		t.reading.Wait()
	case first:
		t.reading.Add(1)
		go t.read(d)
	}
}

// Close implements stack.LinkEndpoint and gives the device back.
func (t *tap) Close() {
	t.mu.Lock()
	again := t.closed
	t.closed = true
	t.mu.Unlock()
	if again {
		return
	}
	t.file.Close()
	if t.onClose != nil {
		t.onClose()
	}
}

// The rest of stack.LinkEndpoint.

func (t *tap) IsAttached() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.dispatcher != nil
}

func (t *tap) MTU() uint32 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.mtu
}

func (t *tap) SetMTU(mtu uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mtu = mtu
}

func (t *tap) LinkAddress() tcpip.LinkAddress {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.address
}

func (t *tap) SetLinkAddress(a tcpip.LinkAddress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.address = a
}

func (t *tap) SetOnCloseAction(f func())             { t.onClose = f }
func (t *tap) MaxHeaderLength() uint16               { return header.EthernetMinimumSize }
func (t *tap) Wait()                                 { t.reading.Wait() }
func (*tap) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (*tap) Capabilities() stack.LinkEndpointCapabilities {
	// A wrong sum is not worth finding: who could write one could write a right
	// one, and memory does not garble packets.
	return stack.CapabilityResolutionRequired | stack.CapabilityRXChecksumOffload
}

var (
	_ stack.LinkEndpoint = (*tap)(nil)
	_ stack.GSOEndpoint  = (*tap)(nil)
)
