// Package hostport parses host names and ports once into values that can be
// compared: lower case, no trailing dot, letters-digits-hyphens only, never an
// IP address in any spelling. It is pure and stands in front of every decision
// about a destination (DESIGN section 5, rules 1 to 4).
package hostport

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Host is a canonical DNS name. The zero Host matches nothing.
type Host struct{ name string }

// String returns the canonical name.
func (h Host) String() string { return h.name }

// IsZero reports an unset Host.
func (h Host) IsZero() bool { return h.name == "" }

// Errors that callers tell apart.
var (
	ErrIPLiteral = errors.New("is an IP address, not a name")
	ErrMalformed = errors.New("is not a valid host name")
)

// ParseHost canonicalises a DNS name. One trailing dot and upper case are
// accepted and removed. Refused: IP literals in every spelling a resolver
// accepts (dotted, octal, hex, short, integer, bracketed, mapped), non-ASCII,
// underscores outside a leading label, empty labels, labels over 63 and names
// over 253 bytes (RFC 1035 section 2.3.4), and a numeric last label (the WHATWG
// "ends in a number" rule, which keeps all IPv4 spellings out).
func ParseHost(s string) (Host, error) {
	if looksLikeIP(s) {
		return Host{}, fmt.Errorf("%q %w", s, ErrIPLiteral)
	}
	name := strings.TrimSuffix(s, ".")
	if name == "" || len(name) > 253 {
		return Host{}, fmt.Errorf("%q %w", clip(s), ErrMalformed)
	}
	b := []byte(name)
	labelStart := 0
	for i := 0; i <= len(b); i++ {
		if i < len(b) && b[i] != '.' {
			c := b[i]
			switch {
			case 'A' <= c && c <= 'Z':
				b[i] = c + 'a' - 'A'
			case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-':
			default:
				return Host{}, fmt.Errorf("%q %w", clip(s), ErrMalformed)
			}
			continue
		}
		label := b[labelStart:i]
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return Host{}, fmt.Errorf("%q %w", clip(s), ErrMalformed)
		}
		labelStart = i + 1
	}
	return Host{string(b)}, nil
}

// looksLikeIP is true for anything an inet_aton or a URL parser would read as
// an address.
func looksLikeIP(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if _, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil || strings.ContainsAny(s, ":[]%") {
		return true
	}
	last := s[strings.LastIndexByte(s, '.')+1:]
	if last == "" {
		return false
	}
	if strings.HasPrefix(last, "0x") || strings.HasPrefix(last, "0X") {
		return strings.Trim(last[2:], "0123456789abcdefABCDEF") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// Port is a TCP port, never 0 when it came from ParsePort.
type Port uint16

// ParsePort accepts 1 to 65535 in plain decimal, no sign, no leading zero.
func ParsePort(s string) (Port, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '0' || s[0] == '+' {
		return 0, fmt.Errorf("%q is not a port (1 to 65535)", clip(s))
	}
	return Port(n), nil
}

// HostPort is a canonical destination.
type HostPort struct {
	Host Host
	Port Port
}

func (hp HostPort) String() string { return hp.Host.name + ":" + strconv.Itoa(int(hp.Port)) }

// Parse splits and canonicalises "name:port".
func Parse(s string) (HostPort, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return HostPort{}, fmt.Errorf("%q has no port", clip(s))
	}
	h, err := ParseHost(s[:i])
	if err != nil {
		return HostPort{}, err
	}
	p, err := ParsePort(s[i+1:])
	if err != nil {
		return HostPort{}, err
	}
	return HostPort{h, p}, nil
}

// Pattern matches hosts: an exact name, or "*.example.com", which matches one
// or more labels in front of example.com and never example.com itself.
type Pattern struct {
	host     Host
	wildcard bool
}

// ParsePattern accepts a name or "*." and a name of at least two labels; a
// wildcard over a bare top-level domain is refused.
func ParsePattern(s string) (Pattern, error) {
	rest, wild := strings.CutPrefix(s, "*.")
	h, err := ParseHost(rest)
	if err != nil {
		return Pattern{}, err
	}
	if wild && !strings.Contains(h.name, ".") {
		return Pattern{}, fmt.Errorf("%q covers a whole top-level domain", s)
	}
	return Pattern{h, wild}, nil
}

// Match reports whether h is covered.
func (p Pattern) Match(h Host) bool {
	if p.host.IsZero() || h.IsZero() {
		return false
	}
	if !p.wildcard {
		return p.host == h
	}
	return strings.HasSuffix(h.name, "."+p.host.name)
}

// Exact returns the single host of a pattern without a wildcard.
func (p Pattern) Exact() (Host, bool) { return p.host, !p.wildcard && !p.host.IsZero() }

func (p Pattern) String() string {
	if p.wildcard {
		return "*." + p.host.name
	}
	return p.host.name
}
