package netstack

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/link/loopback"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// counting is a Handler that holds queries back until go is closed.
type counting struct {
	goOn chan struct{}

	mu                sync.Mutex
	answered, dropped uint64
}

func (*counting) Accept(netip.AddrPort) func(net.Conn) { return nil }
func (*counting) Refused(Kind, netip.AddrPort)         {}

func (c *counting) Dropped(n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropped += n
}

func (c *counting) DNS([]byte) []byte {
	<-c.goOn
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered++
	return nil // an answer that is dropped on its way would count too
}

func (c *counting) sum() (answered, dropped uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answered, c.dropped
}

// Every query that reaches the stack is answered or counted, however many come
// while the controller is slow.
func TestEveryQueryIsAnsweredOrCounted(t *testing.T) {
	h := &counting{goOn: make(chan struct{})}
	s := &Stack{handler: h, stack: stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{udp.NewProtocol},
	})}
	defer s.Close()
	address := tcpip.AddrFrom4([4]byte{127, 0, 0, 1})
	if err := s.stack.CreateNIC(nic, loopback.New()); err != nil {
		t.Fatal(err)
	}
	if err := s.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: address.WithPrefix()}, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	s.stack.SetRouteTable([]tcpip.Route{{Destination: address.WithPrefix().Subnet(), NIC: nic}})
	at := tcpip.FullAddress{NIC: nic, Addr: address, Port: 53}
	server, err := gonet.DialUDP(s.stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	s.dns = append(s.dns, server)
	go s.queries(server)
	client, err := gonet.DialUDP(s.stack, nil, &at, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	const n = 20000
	for range n {
		if _, err := client.Write(make([]byte, 40)); err != nil {
			t.Fatal(err)
		}
	}
	close(h.goOn)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		answered, dropped := h.sum()
		if answered+dropped == n && answered > 0 && dropped > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("of %d queries %d were answered and %d counted as dropped", n, answered, dropped)
		}
	}
}
