package policy

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// Direct as an upstream's proxy says: none, whatever a wider entry says.
const Direct = "direct"

func (r *reader) upstreams(n *yaml.Node) []Upstream {
	if n == nil {
		return nil
	}
	var out []Upstream
	seen := map[string]int{}
	for _, e := range r.entries(n, "upstreams") {
		before := len(r.errs)
		u := Upstream{Pos: r.pos(e.node), Host: r.upstreamHost(e)}
		if line, dup := seen[u.Host]; dup {
			r.errorf(e.node, "keep one of the two", "host %s stands here a second time, the first is at line %d", u.Host, line)
		}
		seen[u.Host] = e.node.Line
		t, ok := r.table(e.value, "an upstream", "connect", "ca", "proxy", "credential")
		if !ok {
			continue
		}
		r.upstream(e, t, &u)
		if len(r.errs) == before {
			out = append(out, u)
		}
	}
	return out
}

// upstreamHost accepts a name, *.name for all names below it, and * for all.
func (r *reader) upstreamHost(e entry) string {
	suffix, wild := strings.CutPrefix(e.key, "*.")
	if e.key == "*" {
		return "*"
	}
	h, err := hostport.ParseHost(suffix)
	if err != nil {
		if strings.Contains(suffix, "/") { // a URL, whose colon looks like an address
			err = fmt.Errorf("%s is not a host", quoted(e.key))
		}
		r.errorf(e.node, "the name that a grant covers, *.name for all below it, or *", "%s", err)
	}
	if wild {
		return "*." + h.String()
	}
	return h.String()
}

func (r *reader) upstream(e entry, t table, u *Upstream) {
	wild := strings.HasPrefix(u.Host, "*")
	connect, proxy := t.get("connect"), t.get("proxy")
	switch {
	case connect != nil && proxy != nil:
		r.errorf(proxy, "keep one of the two", "an upstream is reached by connect: or through proxy:, not both")
	case connect != nil && wild:
		r.errorf(connect, "name the one host that is there", "connect: is for one host, not for %s", quoted(u.Host))
	case connect == nil && proxy == nil && t.get("ca") == nil:
		r.missing(e.node, t, "connect", "upstream "+quoted(e.key)+" does not say where to connect", "write {connect: 127.0.0.1:9443}, or {proxy: http://proxy.corp.example:3128}")
	}
	if connect != nil {
		if v, ok := r.str(connect, "connect"); ok {
			addr, err := netip.ParseAddrPort(v.Value)
			if err != nil || addr.Port() == 0 || addr.Addr().Zone() != "" {
				r.errorf(connect, "an IP address and a port: 127.0.0.1:9443 or [::1]:9443", "%s is not an address", quoted(v.Value))
			}
			u.Connect = addr.String()
		}
	}
	if proxy != nil {
		if v, ok := r.str(proxy, "proxy"); ok {
			u.Proxy = v.Value
			if p, err := url.Parse(v.Value); v.Value != Direct && (err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Hostname() == "" || p.Port() == "" || p.Opaque != "" || p.Path != "" && p.Path != "/" || p.RawQuery != "" || p.Fragment != "") {
				r.errorf(proxy, "http://host:port or https://host:port; direct for none", "%s is not a proxy", quoted(v.Value))
			} else if err == nil && p.User != nil {
				r.errorf(proxy, "name a credential that holds user:password: credential: NAME", "the proxy's address has a password in it")
			}
		}
	}
	if n := t.get("ca"); n != nil {
		v, _ := r.path(n, "ca")
		u.CA = v.Value
	}
	if n := t.get("credential"); n != nil {
		if v, ok := r.str(n, "credential"); ok {
			u.Credential, u.CredentialPos = v.Value, v.Pos
		}
		if proxy == nil || u.Proxy == Direct {
			r.errorf(n, "it is what the proxy asks for; a service's credential belongs to a grant", "credential: without proxy:")
		}
	}
}
