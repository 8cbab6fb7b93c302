package netstack

import (
	"fmt"
	"net/netip"
	"os"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const nic = tcpip.NICID(1)

// linkAddress is ours on the link: locally administered, the same everywhere.
const linkAddress = tcpip.LinkAddress("\x02\x62\x75\x6c\x6b\x01")

// Stack is a running stack.
type Stack struct {
	stack   *stack.Stack
	link    *tap
	handler Handler
	flows   chan struct{}
	dns     []*gonet.UDPConn

	mu      sync.Mutex
	dropped uint64 // queries that Dropped has heard of
}

// New starts a stack on the TAP descriptor link, which it owns from now on.
func New(link *os.File, cfg Config, h Handler) (*Stack, error) {
	s := &Stack{
		handler: h, flows: make(chan struct{}, cfg.MaxFlows),
		stack: stack.New(stack.Options{
			NetworkProtocols: []stack.NetworkProtocolFactory{
				ipv4.NewProtocol, arp.NewProtocol,
				// No duplicate address detection and no router discovery: nobody
				// else is on the link, and the first would cost a second.
				ipv6.NewProtocolWithOptions(ipv6.Options{NDPConfigs: ipv6.NDPConfigurations{HandleRAs: ipv6.HandlingRAsDisabled}}),
			},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
		}),
	}
	if err := s.start(link, cfg); err != nil {
		link.Close()
		s.Close()
		return nil, fmt.Errorf("netstack: %w", err)
	}
	return s, nil
}

func (s *Stack) start(link *os.File, cfg Config) error {
	ep, err := newTAP(link, cfg.MTU, linkAddress)
	if err != nil {
		return err
	}
	s.link = ep
	if terr := s.options(); terr != nil {
		return fmt.Errorf("options: %v", terr)
	}
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s.stack, bufferDefault, maxHandshakes, s.connection).HandlePacket)
	s.stack.SetTransportProtocolHandler(udp.ProtocolNumber, s.datagram)
	if terr := s.stack.CreateNIC(nic, newFilter(ep, cfg, s.handler)); terr != nil {
		return fmt.Errorf("link: %v", terr)
	}
	for _, a := range []netip.Addr{cfg.Gateway4, cfg.Gateway6} {
		if terr := s.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
			Protocol: protocolOf(a), AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix(),
		}, stack.AddressProperties{}); terr != nil {
			return fmt.Errorf("address %v: %v", a, terr)
		}
	}
	// Promiscuous: packets to any address are ours. Spoofing: we answer from it.
	if terr := s.stack.SetPromiscuousMode(nic, true); terr != nil {
		return fmt.Errorf("promiscuous: %v", terr)
	}
	if terr := s.stack.SetSpoofing(nic, true); terr != nil {
		return fmt.Errorf("spoofing: %v", terr)
	}
	s.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	for _, a := range []netip.Addr{cfg.Gateway4, cfg.Gateway6} {
		c, err := gonet.DialUDP(s.stack, &tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(a.AsSlice()), Port: 53}, nil, protocolOf(a))
		if err != nil {
			return fmt.Errorf("dns: %w", err)
		}
		s.dns = append(s.dns, c)
		go s.queries(c)
	}
	return nil
}

func (s *Stack) options() tcpip.Error {
	sack := tcpip.TCPSACKEnabled(true)
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: bufferDefault, Max: BufferMax}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: bufferDefault, Max: BufferMax}
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &rcv, &snd, &moderate} {
		if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return err
		}
	}
	return nil
}

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return netip.AddrPortFrom(addr, port)
}

// connection answers one SYN, in a goroutine of its own.
func (s *Stack) connection(r *tcp.ForwarderRequest) {
	id := r.ID() // gone after Complete
	dst := addrPort(id.LocalAddress, id.LocalPort)
	serve := s.handler.Accept(dst)
	if serve == nil {
		r.Complete(true)
		return
	}
	select {
	case s.flows <- struct{}{}:
	default:
		s.handler.Refused(KindFlows, dst)
		r.Complete(true)
		return
	}
	defer func() { <-s.flows }()
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		r.Complete(true)
		return
	}
	r.Complete(false)
	ep.SocketOptions().SetKeepAlive(true)
	conn := newStream(&wq, ep, s.link)
	defer conn.Close()
	serve(conn)
}

// datagram sees what no endpoint takes; false makes it "port unreachable".
func (s *Stack) datagram(id stack.TransportEndpointID, _ *stack.PacketBuffer) bool {
	s.handler.Refused(KindUDP, addrPort(id.LocalAddress, id.LocalPort))
	return false
}

func (s *Stack) queries(c *gonet.UDPConn) {
	slots := make(chan struct{}, maxQueries)
	buf := make([]byte, 4096)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		s.countDropped()
		query := append([]byte(nil), buf[:n]...)
		slots <- struct{}{} // what comes meanwhile waits in the endpoint
		go func() {
			defer func() { <-slots }()
			if answer := s.handler.DNS(query); answer != nil {
				c.WriteTo(answer, from)
			}
		}()
	}
}

// countDropped tells of what the endpoints had no room for. Only they take
// datagrams, and one is dropped only while others wait, so that a read follows.
func (s *Stack) countDropped() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.stack.Stats().UDP.ReceiveBufferErrors.Value(); now > s.dropped {
		s.handler.Dropped(now - s.dropped)
		s.dropped = now
	}
}

// Close ends every stream and the link.
func (s *Stack) Close() {
	for _, c := range s.dns {
		c.Close()
	}
	s.stack.Close()
	if s.link != nil {
		s.link.Close()
	}
}
