package netstack

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// link is a tap whose frames arrive at the other end of a socket.
func link(t *testing.T) (*tap, func() bool) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	far := os.NewFile(uintptr(pair[1]), "far")
	t.Cleanup(func() { unix.Close(pair[0]); far.Close() })
	return &tap{fd: pair[0]}, func() bool {
		far.SetReadDeadline(time.Now().Add(20 * ackDelay))
		_, err := far.Read(make([]byte, 4096))
		return err == nil
	}
}

func segment(ack uint32, flags header.TCPFlags, options, data int) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: 60, Payload: buffer.MakeWithData(make([]byte, data))})
	header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize + options)).Encode(&header.TCPFields{
		AckNum: ack, Flags: flags, DataOffset: uint8(header.TCPMinimumSize + options), WindowSize: 1000,
	})
	return pkt
}

const ack, push = header.TCPFlagAck, header.TCPFlagAck | header.TCPFlagPsh

// talking is the state of a stream that has answered often.
func talking(l *tap) *acks { return &acks{link: l, sent: quickSegments, acked: 100} }

func TestAcksThatGoAtOnce(t *testing.T) {
	l, _ := link(t)
	for name, c := range map[string]struct {
		a *acks
		p *stack.PacketBuffer
	}{
		"data":             {talking(l), segment(110, push, 0, 5)},
		"an end":           {talking(l), segment(110, ack|header.TCPFlagFin, 0, 0)},
		"a reset":          {talking(l), segment(110, ack|header.TCPFlagRst, 0, 0)},
		"of much":          {talking(l), segment(101+littleData, ack, 0, 0)},
		"a wider window":   {talking(l), segment(100, ack, 0, 0)},
		"what is missing":  {talking(l), segment(110, ack, timestamps+12, 0)},
		"a new stream":     {&acks{link: l, sent: quickSegments - 1, acked: 100}, segment(110, ack, 0, 0)},
		"after its end":    {&acks{link: l, sent: quickSegments, acked: 100, closed: true}, segment(110, ack, 0, 0)},
		"a repetition":     {talking(l), segment(90, ack, 0, 0)},
		"no TCP in packet": {talking(l), stack.NewPacketBuffer(stack.PacketBufferOptions{})},
	} {
		if c.a.hold(c.p) {
			t.Errorf("%s was held back", name)
		}
	}
}

func TestAckHeldBack(t *testing.T) {
	l, written := link(t)
	a := talking(l)
	if !a.hold(segment(110, ack, timestamps, 0)) {
		t.Fatal("not held back")
	}
	if a.hold(segment(110, push, timestamps, 5)) || a.held != nil {
		t.Fatal("the answer says it, and it is still to be written")
	}
	if written() {
		t.Error("written nevertheless")
	}
	// The second goes at once, for both.
	a.hold(segment(120, ack, 0, 0))
	if a.hold(segment(130, ack, 0, 0)) || a.held != nil {
		t.Error("two are held back")
	}
	// Without an answer it goes by itself, and the stream counts as new.
	if !a.hold(segment(140, ack, 0, 0)) || !written() {
		t.Error("never written")
	}
	if a.hold(segment(150, ack, 0, 0)) {
		t.Error("a client that waits for acknowledgements has to wait again")
	}
	a.sent = quickSegments
	a.hold(segment(160, ack, 0, 0))
	if a.close(); a.held != nil || !written() {
		t.Error("lost at the end")
	}
}

func TestFramesAndTheirHeader(t *testing.T) {
	p := segment(1, push, 0, 3000)
	if h := vnetHeader(p); h != [vnetSize]byte{} {
		t.Errorf("a packet whose sum is made: %v", h)
	}
	p.GSOOptions = stack.GSO{Type: stack.GSOTCPv6, NeedsCsum: true, CsumOffset: header.TCPChecksumOffset, L3HdrLen: header.IPv6MinimumSize, MSS: 3000}
	if h := vnetHeader(p); h[vnetFlags] != needsSum || h[vnetGSOType] != 0 || h[vnetStart] != header.EthernetMinimumSize+header.IPv6MinimumSize || h[vnetOffset] != header.TCPChecksumOffset {
		t.Errorf("one segment: %v", h)
	}
	p.GSOOptions.MSS = 1000
	if h := vnetHeader(p); h[vnetGSOType] != gsoTCP6 || binary.NativeEndian.Uint16(h[vnetGSOSize:]) != 1000 {
		t.Errorf("three segments: %v", h)
	}
	p.GSOOptions.Type = stack.GSOTCPv4
	if h := vnetHeader(p); h[vnetGSOType] != gsoTCP4 {
		t.Errorf("IPv4: %v", h)
	}
}

// taker is a stack that keeps what it is given.
type taker chan []byte

func (k taker) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	k <- pkt.Data().AsRange().ToSlice()
}
func (taker) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// Packets arrive as they were sent, small and large; a frame of a kind that the
// link was not set up for does not.
func TestFramesAreRead(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	far := os.NewFile(uintptr(pair[1]), "far")
	defer far.Close()
	l, err := newTAP(os.NewFile(uintptr(pair[0]), "link"), 65520, linkAddress)
	if err != nil {
		t.Fatal(err)
	}
	got := make(taker, 1)
	l.Attach(got)
	defer l.Attach(nil)
	send := func(gso byte, n int) []byte {
		b := append(make([]byte, vnetSize), string(linkAddress)+"\x02\x00\x00\x00\x00\x01\x08\x00"...)
		b[vnetGSOType] = gso
		for i := range n {
			b = append(b, byte(i*7))
		}
		if _, err := far.Write(b); err != nil {
			t.Fatal(err)
		}
		return b[headSize:]
	}
	for _, n := range []int{20, 1500, largeFrame - 1, largeFrame, 40, 65520, 60000, 1} {
		send(gsoTCP4, n)
		if want := send(0, n); !bytes.Equal(<-got, want) {
			t.Errorf("%d bytes arrived as others", n)
		}
	}
}

func TestDeadlines(t *testing.T) {
	var d direction
	d.wake = make(chan struct{}, 1)
	d.set(time.Now().Add(time.Hour))
	d.set(time.Now().Add(20 * time.Millisecond)) // earlier than the timer
	<-d.wake
	if d.over() == nil {
		t.Fatal("not over at the deadline")
	}
	d.set(time.Time{})
	if d.over() != nil {
		t.Fatal("over without a deadline")
	}
	d.set(time.Now().Add(20 * time.Millisecond))
	d.set(time.Now().Add(60 * time.Millisecond)) // the timer rings too early
	<-d.wake
	if d.over() == nil || time.Now().Before(d.at) {
		t.Fatal("over before the deadline")
	}
	d.set(time.Unix(1, 0))
	if <-d.wake; d.over() == nil {
		t.Fatal("a deadline in the past")
	}
	d.close()
	if <-d.wake; d.over() == nil {
		t.Fatal("not over after Close")
	}
}

// nobody hears what a stack would.
type nobody struct{}

func (nobody) Accept(netip.AddrPort) func(net.Conn) { return nil }
func (nobody) DNS([]byte) []byte                    { return nil }
func (nobody) Refused(Kind, netip.AddrPort)         {}
func (nobody) Dropped(uint64)                       {}

// Whatever frames the sandbox sends, the stack goes on.
func FuzzFrames(f *testing.F) {
	cfg := Config{
		Guest4: netip.MustParseAddr("198.18.0.2"), Guest6: netip.MustParseAddr("fd62:756c::2"),
		Gateway4: netip.MustParseAddr("198.18.0.1"), Gateway6: netip.MustParseAddr("fd62:756c::1"), MTU: 65520, MaxFlows: 4,
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		f.Fatal(err)
	}
	s, err := New(os.NewFile(uintptr(pair[0]), "link"), cfg, nobody{})
	if err != nil {
		f.Fatal(err)
	}
	far := os.NewFile(uintptr(pair[1]), "far")
	go io.Copy(io.Discard, far)
	f.Cleanup(func() { far.Close(); s.Close() })
	head := func(vnet, payload string) []byte {
		return []byte(vnet + "\x02\x62\x75\x6c\x6b\x01" + "\x02\x00\x00\x00\x00\x01" + payload)
	}
	none := "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	syn := "\x08\x00\x45\x00\x00\x28\x00\x00\x40\x00\x40\x06\x00\x00\xc6\x12\x00\x02\xc6\x12\x00\x01" + "\x10\x00\x01\xbb\x00\x00\x00\x01\x00\x00\x00\x00\x50\x02\xff\xff\x00\x00\x00\x00"
	f.Add(head(none, syn))
	f.Add(head("\x01\x01\xff\xff\x01\x00\xff\xff\xff\xff", syn))
	f.Add(head(none, "\x86\xdd\x60\x00\x00\x00"))
	f.Add(head(none, "\x08\x06"))
	f.Add([]byte{1})
	f.Add(make([]byte, 40<<10))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) == 0 || len(frame) > headSize+int(cfg.MTU) {
			return
		}
		if _, err := far.Write(frame); err != nil {
			t.Fatal("the link has ended: ", err)
		}
	})
}
