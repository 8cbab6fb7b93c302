package dial

import (
	"context"
	"crypto/x509"
	"errors"
	"net/netip"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// route is the way to one name, put together from the entries that are about
// it, the narrowest first.
type route struct {
	connect netip.AddrPort
	proxy   *Proxy
	roots   func(context.Context) (*x509.CertPool, error)
}

func (d *Dialer) route(h hostport.Host) route {
	r := route{roots: func(ctx context.Context) (*x509.CertPool, error) {
		if d.cfg.Roots == nil {
			return nil, errors.New("no roots to verify it against")
		}
		return d.cfg.Roots(ctx)
	}}
	way, vouched, best, bestCA := false, false, -1, -1
	for i := range d.cfg.Upstreams {
		u := &d.cfg.Upstreams[i]
		width := u.width(h)
		if width < 0 {
			continue
		}
		if (u.Connect.IsValid() || u.Proxy != nil || u.Direct) && (!way || width > best) {
			way, best, r.connect, r.proxy = true, width, u.Connect, u.Proxy
		}
		if (u.CA != nil || u.Roots != nil) && (!vouched || width > bestCA) {
			vouched, bestCA = true, width
			if r.roots = u.Roots; u.CA != nil {
				r.roots = func(context.Context) (*x509.CertPool, error) { return u.CA, nil }
			}
		}
	}
	return r
}

// width says how closely the entry is about h: the number of letters that it
// spells; -1: not at all.
func (u *Upstream) width(h hostport.Host) int {
	name := h.String()
	switch {
	case u.Host == h:
		return len(name) + 1
	case !u.Host.IsZero():
		return -1
	case u.Below.IsZero():
		return 0
	case strings.HasSuffix(name, "."+u.Below.String()):
		return len(u.Below.String())
	}
	return -1
}

// interleave puts the families in turn, beginning with the one that the
// resolver put first (RFC 8305 section 4): if one of them leads nowhere, the
// next try is of the other.
func interleave(addrs []netip.AddrPort) []netip.AddrPort {
	var families [2][]netip.AddrPort
	for _, a := range addrs {
		i := 0
		if a.Addr().Is4() != addrs[0].Addr().Is4() {
			i = 1
		}
		families[i] = append(families[i], a)
	}
	out := make([]netip.AddrPort, 0, len(addrs))
	for i := range max(len(families[0]), len(families[1])) {
		for _, f := range families {
			if i < len(f) {
				out = append(out, f[i])
			}
		}
	}
	return out
}
