package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/bulkhead-dev/bulkhead/internal/image/unpack"
)

// Patience is how long a registry may say nothing, and how slow it may be.
type Patience struct {
	Silence time.Duration
	// After Grace no layer may have come slower than Rate bytes a second.
	Grace time.Duration
	Rate  int64
}

// DefaultPatience lets slow lines through and ends what only drips.
var DefaultPatience = Patience{Silence: 30 * time.Second, Grace: time.Minute, Rate: 2 << 10}

// CanonicalName is the name by which an image of a registry is kept:
// "index.docker.io/library/debian:12" for "debian:12".
func CanonicalName(ref string) (string, error) {
	n, err := name.ParseReference(ref)
	if err != nil {
		return "", fmt.Errorf("%s is no name of an image: %w\nwrite [HOST/]NAME[:TAG], or oci:DIR, docker-archive:FILE, rootfs:DIR", unpack.Printable(ref), err)
	}
	return n.Name(), nil
}

// registry is one image's place in a registry.
type registry struct {
	ctx    context.Context
	puller *remote.Puller
	repo   name.Repository
	wait   Patience
}

func openRegistry(ctx context.Context, ref Reference, lim unpack.Limits, wait Patience) (*source, error) {
	n, err := name.ParseReference(ref.Where)
	if err != nil {
		return nil, err
	}
	client := newClient(n.Context().RegistryStr(), wait)
	puller, err := remote.NewPuller(remote.WithContext(ctx), remote.WithTransport(client), remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithUserAgent("bulkhead"), remote.WithRetryBackoff(remote.Backoff{Duration: 300 * time.Millisecond, Factor: 3, Steps: 3}))
	if err != nil {
		return nil, err
	}
	r := &registry{ctx, puller, n.Context(), wait}
	top, err := puller.Get(ctx, n)
	if err != nil {
		return nil, r.explain(err)
	}
	if len(top.Manifest) > maxDocument {
		return nil, fmt.Errorf("a manifest of %d bytes; %d are the most", len(top.Manifest), maxDocument)
	}
	if d, ok := n.(name.Digest); ok && d.DigestStr() != string(digestOf(top.Manifest)) {
		return nil, fmt.Errorf("%s was asked for, and came %s", d.DigestStr(), digestOf(top.Manifest))
	}
	s, err := fromManifest(r, top.Manifest, string(top.MediaType), lim)
	if err != nil {
		return nil, err
	}
	s.manifest = digestOf(top.Manifest)
	s.close = client.base.CloseIdleConnections
	return s, nil
}

func (r *registry) document(d descriptor) ([]byte, error) {
	if isIndex(d.MediaType, nil) || slices.Contains(manifestTypes, d.MediaType) {
		m, err := r.puller.Get(r.ctx, r.repo.Digest(string(d.Digest)))
		if err != nil {
			return nil, r.explain(err)
		}
		return m.Manifest, nil
	}
	b, err := r.blob(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return readDocument(b)
}

func (r *registry) layer(d descriptor) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return r.blob(d) }
}

func (r *registry) blob(d descriptor) (io.ReadCloser, error) {
	l, err := r.puller.Layer(r.ctx, r.repo.Digest(string(d.Digest)))
	if err != nil {
		return nil, r.explain(err)
	}
	body, err := l.Compressed()
	if err != nil {
		return nil, r.explain(err)
	}
	return &patient{body, r, time.Now(), 0}, nil
}

// patient ends a body that only drips.
type patient struct {
	io.ReadCloser
	r     *registry
	begun time.Time
	got   int64
}

func (p *patient) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	p.got += int64(n)
	if since := time.Since(p.begun); err == nil && since > p.r.wait.Grace && p.got < int64(since.Seconds()*float64(p.r.wait.Rate)) {
		return n, fmt.Errorf("%s is too slow: %d bytes in %v", p.r.repo.RegistryStr(), p.got, since.Round(time.Second))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = p.r.explain(err)
	}
	return n, err
}

// explain says what a person could do.
func (r *registry) explain(err error) error {
	host := r.repo.RegistryStr()
	var te *transport.Error
	var ne net.Error
	switch {
	case errors.As(err, &te) && (te.StatusCode == http.StatusUnauthorized || te.StatusCode == http.StatusForbidden):
		return fmt.Errorf("%s does not give it without a login, or to this one (HTTP %d)\nlog in: docker login %s, or put it into ~/.docker/config.json; see that the name is right",
			host, te.StatusCode, host)
	case errors.As(err, &te) && te.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%s has no such image", host)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return fmt.Errorf("%s does not answer any more", host)
	}
	return fmt.Errorf("%s", unpack.Printable(err.Error()))
}

// client is the only way out: to the registry, and to where it redirects.
type client struct {
	base     *http.Transport
	registry string // host, maybe with a port
	plain    bool   // HTTP: on this host's loopback only
	wait     Patience
	proxy    atomic.Value // host:port of the user's proxy
	// What the registry's own address is: others may not be closer to this host.
	near atomic.Int32
}

func newClient(registry string, wait Patience) *client {
	c := &client{registry: registry, wait: wait}
	host := registry
	if h, _, err := net.SplitHostPort(registry); err == nil {
		host = h
	}
	a, err := netip.ParseAddr(host)
	c.plain = host == "localhost" || err == nil && a.IsLoopback()
	c.base = &http.Transport{
		Proxy: func(r *http.Request) (*url.URL, error) {
			u, err := http.ProxyFromEnvironment(r)
			if err == nil && u != nil {
				c.proxy.Store(u.Hostname())
			}
			return u, err
		},
		DialContext: c.dial, TLSHandshakeTimeout: wait.Silence, ResponseHeaderTimeout: wait.Silence, ForceAttemptHTTP2: true,
	}
	return c
}

// RoundTrip implements http.RoundTripper.
func (c *client) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !(c.plain && r.URL.Scheme == "http" && r.URL.Host == c.registry) {
		return nil, fmt.Errorf("it leads to %s, which is not encrypted", unpack.Printable(r.URL.Redacted()))
	}
	redirects := 0
	for from := r.Response; from != nil && from.Request != nil; from = from.Request.Response {
		if redirects++; redirects > 10 {
			return nil, errors.New("more than 10 redirects")
		}
	}
	return c.base.RoundTrip(r)
}

// How near an address is.
const (
	global int32 = iota
	private
	loopback
	forbidden // link-local: where clouds keep secrets of their machines
)

func nearness(a netip.Addr) int32 {
	a = a.Unmap()
	switch {
	case a.IsLoopback():
		return loopback
	case a.IsLinkLocalUnicast(), a.IsMulticast(), a.IsUnspecified(), !a.IsValid(), a.Zone() != "", a == netip.MustParseAddr("168.63.129.16"):
		return forbidden
	case a.IsPrivate(), netip.MustParsePrefix("100.64.0.0/10").Contains(a), a.Is6() && !netip.MustParsePrefix("2000::/3").Contains(a):
		return private
	}
	return global
}

// dial connects to the registry, to the user's own proxy, and otherwise only to
// what is not nearer to this host than the registry.
func (c *client) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	registry := c.registry == addr || c.registry == host
	d := net.Dialer{Timeout: c.wait.Silence, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		n := nearness(to.Addr())
		if registry {
			c.near.Store(n)
			return nil
		}
		if p, _ := c.proxy.Load().(string); p == host {
			return nil
		}
		if n == forbidden || n > c.near.Load() {
			return fmt.Errorf("%s leads to %s (%s), an address of this machine or network that it does not live at itself", c.registry, host, to.Addr())
		}
		return nil
	}}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &impatient{conn, c.wait.Silence}, nil
}

// impatient ends a connection that says nothing.
type impatient struct {
	net.Conn
	silence time.Duration
}

func (i *impatient) Read(b []byte) (int, error) {
	if err := i.SetReadDeadline(time.Now().Add(i.silence)); err != nil {
		return 0, err
	}
	return i.Conn.Read(b)
}
