package egress

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/egress/dial"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// upstreamOf turns an entry of the configuration into the dialler's.
func upstreamOf(u Upstream, r *roots, client wire.Client) (up dial.Upstream, err error) {
	fail := func(err error) (dial.Upstream, error) {
		return dial.Upstream{}, fmt.Errorf("upstreams: %s: %w", u.Host, err)
	}
	name, below := strings.CutPrefix(u.Host, "*.")
	if u.Host != "*" {
		h, err := hostport.ParseHost(name)
		if err != nil {
			return fail(err)
		}
		if up.Host = h; below {
			up.Host, up.Below = hostport.Host{}, h
		}
	}
	if u.Connect != "" {
		if up.Connect, err = netip.ParseAddrPort(u.Connect); err != nil {
			return fail(fmt.Errorf("connect: %w", err))
		}
	}
	more := r
	if len(u.CAPEM) > 0 {
		alone := x509.NewCertPool()
		if !alone.AppendCertsFromPEM(u.CAPEM) {
			return fail(errors.New("ca holds no certificate"))
		}
		if up.Host.IsZero() {
			more = &roots{fetch: r.fetch, more: u.CAPEM}
			up.Roots = more.get
		} else {
			up.CA = alone
		}
	}
	switch {
	case u.Proxy == policy.Direct:
		up.Direct = true
	case u.Proxy != "":
		if up.Proxy, err = proxy(u.Proxy); err != nil {
			return fail(err)
		}
		up.Proxy.Roots = more.get
		if u.Credential != "" {
			up.Proxy.Auth = proxyAuth(client, u.Credential, up.Proxy.String())
		}
	}
	return up, nil
}

func proxy(s string) (*dial.Proxy, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("proxy is no URL")
	}
	p := &dial.Proxy{TLS: u.Scheme == "https"}
	if p.Port, err = hostport.ParsePort(u.Port()); err != nil {
		return nil, err
	}
	if p.Addr, err = netip.ParseAddr(u.Hostname()); err != nil {
		p.Host, err = hostport.ParseHost(u.Hostname())
	}
	return p, err
}

// proxyAuth asks the controller for the proxy's login, on record, for each
// tunnel.
func proxyAuth(client wire.Client, credential, at string) func(context.Context) (secret.Value, error) {
	return func(ctx context.Context) (secret.Value, error) {
		e := v1.Event{
			Actor: "gateway", Action: "proxy.connect", Resource: vocabulary.Resource(at), Verdict: vocabulary.Allow,
			Reason: vocabulary.Reason{Code: "operator", Message: "the operator's proxy is to be used"},
			Attrs:  map[string]string{"credential": credential},
		}
		return client.Authorize(ctx, e, &wire.CredentialUse{Name: credential, Action: e.Action, Resource: e.Resource})
	}
}

// roots are the host's roots. They are large and often not needed, so they are
// fetched from the controller when the first upstream is to be verified.
type roots struct {
	fetch func(context.Context) ([]byte, error)
	more  []byte // PEM, beside the host's

	mu   sync.Mutex
	pool *x509.CertPool
}

func (r *roots) get(ctx context.Context) (*x509.CertPool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pool != nil {
		return r.pool, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	pem, err := r.fetch(ctx)
	if err != nil {
		return nil, fmt.Errorf("the host's roots are not known: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("the host has no roots to verify upstreams with")
	}
	pool.AppendCertsFromPEM(r.more)
	r.pool = pool
	return pool, nil
}
