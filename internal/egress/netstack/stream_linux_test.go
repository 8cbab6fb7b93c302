package netstack

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/loopback"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// streams returns a stream and who is at its other end.
func streams(t *testing.T) (*stream, *gonet.TCPConn) {
	t.Helper()
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	t.Cleanup(s.Destroy)
	sizes := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: bufferDefault, Max: BufferMax}
	s.SetTransportProtocolOption(tcp.ProtocolNumber, &sizes)
	at := tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4([4]byte{127, 0, 0, 1}), Port: 443}
	if err := s.CreateNIC(1, loopback.New()); err != nil {
		t.Fatal(err)
	}
	if err := s.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: at.Addr.WithPrefix()}, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}})
	var wq waiter.Queue
	listener, err := s.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if err != nil {
		t.Fatal(err)
	}
	entry, waiting := waiter.NewChannelEntry(waiter.ReadableEvents)
	wq.EventRegister(&entry)
	if err := listener.Bind(at); err != nil {
		t.Fatal(err)
	}
	if err := listener.Listen(1); err != nil {
		t.Fatal(err)
	}
	far, derr := gonet.DialTCP(s, at, ipv4.ProtocolNumber)
	if derr != nil {
		t.Fatal(derr)
	}
	<-waiting
	ep, of, err := listener.Accept(nil)
	if err != nil {
		t.Fatal(err)
	}
	near := newStream(of, ep, nil)
	t.Cleanup(func() { near.Close(); far.Close(); listener.Close() })
	return near, far
}

// Small writes to somebody who does not read take the memory that large ones take.
func TestSmallWritesAreBounded(t *testing.T) {
	near, far := streams(t)
	piece := make([]byte, 30)
	kept := 0
	for {
		near.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := near.Write(piece); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			break
		}
		kept++
	}
	arrived, _ := far.Read(make([]byte, 1<<20))
	queued := kept*len(piece) - arrived
	if most := BufferMax / segmentCost; queued/len(piece) > most+fitWrites {
		t.Errorf("%d segments of %d bytes wait to be sent, %d should be the most", queued/len(piece), len(piece), most)
	}

	// Large ones get their room again.
	go io.Copy(io.Discard, far)
	near.SetWriteDeadline(time.Now().Add(time.Minute))
	for range 2 * fitWrites {
		if _, err := near.Write(make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if room := near.ep.SocketOptions().GetSendBufferSize(); room < bufferDefault {
		t.Errorf("%d bytes of room for large writes", room)
	}
}
