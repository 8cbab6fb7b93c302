package netstack

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func addressOf(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

type deaf struct{ Handler }

func (deaf) Refused(Kind, netip.AddrPort) {}

// What the filter lets in is TCP, UDP or neighbour discovery of the sandbox's own
// addresses, whole, and to one destination.
func FuzzFilter(f *testing.F) {
	guest4, guest6 := netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("fd62:756c::2")
	good := make([]byte, header.IPv4MinimumSize)
	header.IPv4(good).Encode(&header.IPv4Fields{TotalLength: 20, TTL: 64, Protocol: 6, SrcAddr: addressOf(guest4), DstAddr: addressOf(netip.MustParseAddr("203.0.113.7"))})
	f.Add(good)
	fragment := append([]byte(nil), good...)
	fragment[6] |= 0x20
	f.Add(fragment)
	six := make([]byte, header.IPv6MinimumSize+8)
	header.IPv6(six).Encode(&header.IPv6Fields{TransportProtocol: 17, HopLimit: 64, SrcAddr: addressOf(guest6), DstAddr: addressOf(netip.MustParseAddr("2001:db8::7"))})
	f.Add(six)
	hops := append([]byte(nil), six...)
	hops[6] = 0
	f.Add(hops)
	fl := &filter{cfg: Config{Guest4: guest4, Guest6: guest6}, handler: deaf{}}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= header.IPv4MinimumSize {
			h := header.IPv4(append([]byte(nil), b...))
			if fl.ipv4(h[:header.IPv4MinimumSize]) {
				src, dst := h.SourceAddress(), h.DestinationAddress()
				if src != addressOf(guest4) || header.IsV4MulticastAddress(dst) || dst == header.IPv4Broadcast || h.More() || h.FragmentOffset() != 0 || h.HeaderLength() != 20 || h.Protocol() != 6 && h.Protocol() != 17 {
					t.Fatalf("let in: %x", b)
				}
			}
		}
		if len(b) >= header.IPv6MinimumSize {
			h := header.IPv6(append([]byte(nil), b[:min(len(b), header.IPv6MinimumSize+header.ICMPv6HeaderSize)]...))
			next, src := h.NextHeader(), h.SourceAddress()
			if fl.ipv6(h) {
				discovery := next == uint8(header.ICMPv6ProtocolNumber)
				if !discovery && (src != addressOf(guest6) || next != 6 && next != 17 || header.IsV6MulticastAddress(h.DestinationAddress())) {
					t.Fatalf("let in: %x", b)
				}
				if discovery && src != addressOf(guest6) && !header.IsV6LinkLocalUnicastAddress(src) {
					t.Fatalf("let in: %x", b)
				}
			}
		}
	})
}
