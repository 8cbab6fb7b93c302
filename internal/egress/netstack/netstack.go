// Package netstack ends every packet of the sandbox: a TCP/IP stack in the
// gateway's memory behind the TAP device that is the sandbox's only link.
//
// In: Ethernet frames from the link, written by hostile code. Out: TCP streams
// whose destination the Handler has accepted, queries to the gateway's own DNS
// address, and a Refused call for everything else. No packet is ever routed on.
//
// A filter in front of the stack lets in TCP, UDP, ARP and neighbour discovery
// from the sandbox's own two addresses; fragments, extension headers, ICMP,
// broadcast, multicast and every other protocol end there. A TCP connection
// that the Handler does not accept is reset, a datagram to any port but DNS is
// answered "port unreachable": refusals are fast, nothing times out.
//
// Figures: at most MaxFlows streams at a time, each with at most BufferMax bytes
// in either direction; at most maxHandshakes half-open ones; at most
// maxQueries DNS queries at a time, and some hundred that wait; further ones are
// dropped, which Dropped hears of, and clients ask again.
package netstack

import (
	"net"
	"net/netip"
)

const (
	// BufferMax bounds what one direction of one stream may hold.
	BufferMax     = 512 << 10
	bufferDefault = 256 << 10
	maxHandshakes = 128
	maxQueries    = 32
)

// Kind says what was refused.
type Kind string

// What can be refused.
const (
	KindTCP       Kind = "tcp"        // the Handler did not accept the destination
	KindUDP       Kind = "udp"        // a datagram that is no DNS query to the gateway
	KindICMP      Kind = "icmp"       // an echo request or another message
	KindOther     Kind = "protocol"   // another protocol, fragments, extension headers
	KindSpoofed   Kind = "spoofed"    // from an address that is not the sandbox's
	KindMulticast Kind = "multicast"  // to a group or broadcast address
	KindFlows     Kind = "flow-limit" // too many streams
)

// Handler judges and serves. Its methods are called concurrently.
type Handler interface {
	// Accept is asked before a connection is answered. It returns what serves
	// the stream, or nil to refuse; then it has recorded the refusal.
	Accept(dst netip.AddrPort) func(net.Conn)
	// DNS answers one query; nil drops it.
	DNS(query []byte) []byte
	// Refused hears of everything else that was refused. It must not block.
	Refused(kind Kind, dst netip.AddrPort)
	// Dropped hears of n DNS queries that came when there was no room, so that
	// each one is either answered or counted. It must not block.
	Dropped(n uint64)
}

// Config of a stack. Guest addresses belong to the sandbox, Gateway addresses
// to us; all others are answered for.
type Config struct {
	Guest4, Guest6     netip.Addr
	Gateway4, Gateway6 netip.Addr
	MTU                uint32
	MaxFlows           int
}
