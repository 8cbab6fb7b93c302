package netstack

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/nested"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// filter stands between the link and the stack and lets in what the stack is
// meant to see.
type filter struct {
	nested.Endpoint
	cfg     Config
	handler Handler
}

func newFilter(child stack.LinkEndpoint, cfg Config, h Handler) *filter {
	f := &filter{cfg: cfg, handler: h}
	f.Endpoint.Init(child, f)
	return f
}

// DeliverNetworkPacket implements stack.NetworkDispatcher.
func (f *filter) DeliverNetworkPacket(protocol tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	ok := false
	switch protocol {
	case header.ARPProtocolNumber:
		ok = true
	case header.IPv4ProtocolNumber:
		if b, whole := pkt.Data().PullUp(header.IPv4MinimumSize); whole {
			ok = f.ipv4(b)
		}
	case header.IPv6ProtocolNumber:
		n := min(pkt.Data().Size(), header.IPv6MinimumSize+header.ICMPv6HeaderSize)
		if b, whole := pkt.Data().PullUp(n); whole && n >= header.IPv6MinimumSize {
			ok = f.ipv6(b)
		}
	}
	if ok {
		f.Endpoint.DeliverNetworkPacket(protocol, pkt)
	}
}

func (f *filter) refuse(k Kind, dst netip.Addr) bool {
	f.handler.Refused(k, netip.AddrPortFrom(dst, 0))
	return false
}

func (f *filter) ipv4(b []byte) bool {
	h := header.IPv4(b)
	src, _ := netip.AddrFromSlice(h.SourceAddressSlice())
	dst, _ := netip.AddrFromSlice(h.DestinationAddressSlice())
	proto := h.Protocol()
	switch {
	case proto == uint8(header.IGMPProtocolNumber) && dst.IsMulticast():
		return false // kernels join groups on their own
	case src != f.cfg.Guest4:
		return f.refuse(KindSpoofed, dst)
	case dst.IsMulticast() || dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return f.refuse(KindMulticast, dst)
	case h.More() || h.FragmentOffset() != 0 || h.HeaderLength() != header.IPv4MinimumSize:
		return f.refuse(KindOther, dst)
	case proto == uint8(header.ICMPv4ProtocolNumber):
		return f.refuse(KindICMP, dst)
	case proto != uint8(header.TCPProtocolNumber) && proto != uint8(header.UDPProtocolNumber):
		return f.refuse(KindOther, dst)
	}
	return true
}

func (f *filter) ipv6(b []byte) bool {
	h := header.IPv6(b)
	src, _ := netip.AddrFromSlice(h.SourceAddressSlice())
	dst, _ := netip.AddrFromSlice(h.DestinationAddressSlice())
	if h.NextHeader() == uint8(header.ICMPv6ProtocolNumber) {
		if len(b) < header.IPv6MinimumSize+header.ICMPv6HeaderSize {
			return false
		}
		switch header.ICMPv6(b[header.IPv6MinimumSize:]).Type() {
		case header.ICMPv6NeighborSolicit, header.ICMPv6NeighborAdvert:
			if dst.IsMulticast() {
				toAllNodes(h)
			}
			// From nowhere means duplicate address detection: an answer would
			// take the sandbox's own address away.
			return src == f.cfg.Guest6 || src.IsLinkLocalUnicast()
		case header.ICMPv6RouterSolicit, header.ICMPv6MulticastListenerReport, header.ICMPv6MulticastListenerV2Report, header.ICMPv6MulticastListenerDone:
			return false // kernels ask on their own
		}
		return f.refuse(KindICMP, dst)
	}
	switch {
	case h.NextHeader() == uint8(header.IPv6HopByHopOptionsExtHdrIdentifier) && dst.IsMulticast():
		return false // multicast listener reports, as above
	case src != f.cfg.Guest6:
		return f.refuse(KindSpoofed, dst)
	case dst.IsMulticast():
		return f.refuse(KindMulticast, dst)
	case h.NextHeader() != uint8(header.TCPProtocolNumber) && h.NextHeader() != uint8(header.UDPProtocolNumber):
		return f.refuse(KindOther, dst)
	}
	return true
}

// toAllNodes readdresses a solicitation from the group of the address that it
// asks for, one of millions, to the group that the stack is in.
func toAllNodes(h header.IPv6) {
	icmp := header.ICMPv6(h[header.IPv6MinimumSize:])
	old := h.DestinationAddress()
	icmp.UpdateChecksumPseudoHeaderAddress(old, header.IPv6AllNodesMulticastAddress)
	h.SetDestinationAddress(header.IPv6AllNodesMulticastAddress)
}
