package netstack

import (
	"fmt"
	"os"
	"sync"
	"time"

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

// read delivers frames until the device is gone.
func (t *tap) read(d stack.NetworkDispatcher) {
	defer t.reading.Done()
	frame := make([]byte, header.EthernetMinimumSize+int(t.MTU()))
	for {
		n, err := t.file.Read(frame)
		if err != nil {
			return
		}
		if n < header.EthernetMinimumSize {
			continue
		}
		dst := header.Ethernet(frame).DestinationAddress()
		if group := dst[0]&1 == 1; !group && dst != t.LinkAddress() {
			continue
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame[:n])})
		if t.ParseHeader(pkt) {
			d.DeliverNetworkPacket(pkt.NetworkProtocolNumber, pkt)
		}
		pkt.DecRef()
	}
}

// WritePackets implements stack.LinkWriter. A frame that the device has no room
// for is dropped, as on any network.
func (t *tap) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.closed {
		return 0, &tcpip.ErrClosedForSend{}
	}
	n := 0
	for _, pkt := range pkts.AsSlice() {
		var array [8]unix.Iovec
		iovecs := array[:0]
		for _, v := range pkt.AsSlices() {
			iovecs = rawfile.AppendIovecFromBytes(iovecs, v, rawfile.MaxIovs)
		}
		if errno := rawfile.NonBlockingWriteIovec(t.fd, iovecs); errno != 0 {
			return n, tcpip.TranslateErrno(errno)
		}
		n++
	}
	return n, nil
}

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
	return stack.CapabilityResolutionRequired
}

var _ stack.LinkEndpoint = (*tap)(nil)
