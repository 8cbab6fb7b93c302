package dial

import (
	"fmt"
	"net/netip"

	"github.com/bulkhead-dev/bulkhead/internal/switches"
)

// special are the ranges that are never dialled on the word of a name server:
// the IANA special-purpose registries (RFC 6890 and updates, as of 2026-10),
// without the few entries in them that are ordinary hosts, and two addresses
// that clouds reserved for themselves. IPv6 needs a short list because only
// 2000::/3 is global unicast at all.
var special = []struct {
	prefix netip.Prefix
	what   string
}{
	{pfx("0.0.0.0/8"), "this network"},
	{pfx("10.0.0.0/8"), "private"},
	{pfx("100.64.0.0/10"), "shared by carriers (CGNAT)"},
	{pfx("127.0.0.0/8"), "loopback"},
	{pfx("169.254.0.0/16"), "link-local (cloud metadata lives there)"},
	{pfx("172.16.0.0/12"), "private"},
	{pfx("192.0.0.0/24"), "reserved for protocols"},
	{pfx("192.0.2.0/24"), "documentation"},
	{pfx("192.88.99.0/24"), "a 6to4 relay"},
	{pfx("192.168.0.0/16"), "private"},
	{pfx("198.18.0.0/15"), "benchmarking (and our own synthetic addresses)"},
	{pfx("198.51.100.0/24"), "documentation"},
	{pfx("203.0.113.0/24"), "documentation"},
	{pfx("224.0.0.0/4"), "multicast"},
	{pfx("240.0.0.0/4"), "reserved or broadcast"},
	{pfx("168.63.129.16/32"), "Azure's host agent"},

	{pfx("2001::/23"), "reserved for protocols (Teredo, ORCHID, benchmarking)"},
	{pfx("2001:db8::/32"), "documentation"},
	{pfx("2002::/16"), "6to4, which embeds an IPv4 address"},
	{pfx("3fff::/20"), "documentation"},
}

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

var globalUnicast6 = pfx("2000::/3")

// judge says why an address must not be dialled, or nothing. own are the
// addresses of this host.
func judge(a netip.Addr, own map[netip.Addr]bool) error {
	if switches.Off("addresses") {
		return nil
	}
	if a.Zone() != "" || !a.IsValid() {
		return fmt.Errorf("%v is not a global address", a)
	}
	plain := a.Unmap()
	if plain.Is6() && !globalUnicast6.Contains(plain) {
		return fmt.Errorf("%v is loopback, private, link-local, multicast, translated (NAT64) or reserved", a)
	}
	for _, s := range special {
		if s.prefix.Contains(plain) {
			return fmt.Errorf("%v is %s", a, s.what)
		}
	}
	if own[plain] {
		return fmt.Errorf("%v is an address of this host itself", a)
	}
	return nil
}
