// Package dial is the only place of Bulkhead's gateway that opens a socket.
//
// In: a capability.Permit, which only the decider can make, for one host, port
// and scheme. Out: a connection, or an HTTP answer, of exactly that upstream.
//
// The name is resolved here, once for each connection, with the host's name
// servers and hosts file as the controller read them. Every address is judged
// and the judged address is dialled: never a private, loopback, link-local,
// metadata, multicast or otherwise special one, nor one of this host's own,
// unless the operator's upstreams entry names address and port for that name;
// then exactly that one. TLS to the upstream is always verified, for the granted
// name, against the host's roots or the CA of the upstreams entry.
//
// A pool of idle connections belongs to one Dialer, and a Dialer to one
// session. Figures: dialTimeout for all addresses of a name together, a second
// address is tried after stagger (RFC 8305 section 5).
package dial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/egress/gather"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

const (
	dialTimeout      = 15 * time.Second
	handshakeTimeout = 10 * time.Second
	stagger          = 250 * time.Millisecond
	maxAddresses     = 8
	maxIdle          = 256
	maxIdlePerHost   = 64
	idleTimeout      = 60 * time.Second
	maxHeaderBytes   = 256 << 10
	readBuffer       = 16 << 10 // a TLS record
	writeBuffer      = 36 << 10 // a chunk of the library, 32 KiB, with its size and end
)

// Localhost is the one name that stands for this host's own loopback: a grant
// has to spell it, and no name server or hosts file is asked what it means.
var Localhost, _ = hostport.ParseHost("localhost")

// Upstream says where a name really lives.
type Upstream struct {
	// Host is a name; Below, without a Host, stands for all names below it, and
	// neither for all names.
	Host, Below hostport.Host
	Connect     netip.AddrPort // zero: to be resolved
	Proxy       *Proxy         // nil: none
	// CA is what alone vouches for Host. Below and for all names it is a function
	// that adds to the host's roots.
	CA *x509.CertPool
	// Roots returns the host's roots with further ones; only without a Host.
	Roots func(context.Context) (*x509.CertPool, error)
	// Direct: no proxy, whatever a wider entry says.
	Direct bool
}

// Config of a Dialer.
type Config struct {
	Upstreams []Upstream
	// Roots returns the host's roots; it may wait for them.
	Roots       func(context.Context) (*x509.CertPool, error)
	Nameservers []netip.AddrPort
	Hosts       map[string][]netip.Addr // by canonical name
	Own         []netip.Addr            // addresses of this host
	Quota       Quota
	// Spent is told once of each bound of Quota that is reached; it may be nil.
	Spent func(*QuotaError)
}

// Reasons why there is no connection.
var (
	// ErrNoPermit: nobody decided that this may be dialled.
	ErrNoPermit = errors.New("dial: no permit for this destination")
	// ErrAddress: the name leads to an address that must not be dialled.
	ErrAddress = errors.New("leads to an address that is never dialled")
	// ErrResolve: the name could not be resolved.
	ErrResolve = errors.New("could not be resolved")
	// ErrVerify: the upstream's certificate is not valid for the name.
	ErrVerify = errors.New("showed a certificate that is not valid for it")
)

// Dialer opens connections for one session. Safe for concurrent use.
type Dialer struct {
	cfg       Config
	own       map[netip.Addr]bool
	resolver  *net.Resolver
	turn      atomic.Uint32
	transport *http.Transport // for requests that came over HTTP/2: either
	plain     *http.Transport // for the others: HTTP/1.1
	small     *exchanger      // for small ones of these
	sessions  tls.ClientSessionCache
	meter     *meter // nil: nothing is bounded
}

// New makes a Dialer. Without Roots no TLS upstream can be verified, and so
// none is reached.
func New(cfg Config) *Dialer {
	d := &Dialer{
		cfg: cfg, own: map[netip.Addr]bool{},
		sessions: tls.NewLRUClientSessionCache(64), meter: newMeter(cfg.Quota, cfg.Spent),
	}
	for _, a := range cfg.Own {
		d.own[a.Unmap().WithZone("")] = true
	}
	d.resolver = &net.Resolver{PreferGo: true, StrictErrors: false, Dial: d.nameserver}
	d.transport, d.plain = d.pool(true), d.pool(false)
	d.small = &exchanger{dial: func(ctx context.Context, addr string, secure bool) (net.Conn, error) {
		if secure {
			return d.pooled(ctx, addr, onlyHTTP1)
		}
		return d.pooled(ctx, addr, nil)
	}}
	return d
}

var onlyHTTP1 = []string{"http/1.1"}

// pool makes the transport of one of the two kinds of upstream connections. A
// request goes on in the protocol that it came in: HTTP/1.1 costs half of what
// HTTP/2 does, and what was not translated cannot be translated wrongly.
func (d *Dialer) pool(h2 bool) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(h2)
	alpn := onlyHTTP1
	if h2 {
		alpn = []string{"h2", "http/1.1"}
	}
	return &http.Transport{
		Proxy:                  nil,
		DialContext:            func(ctx context.Context, _, addr string) (net.Conn, error) { return d.pooled(ctx, addr, nil) },
		DialTLSContext:         func(ctx context.Context, _, addr string) (net.Conn, error) { return d.pooled(ctx, addr, alpn) },
		Protocols:              protocols,
		DisableCompression:     true, // bodies pass as they are
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdlePerHost,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeaderBytes,
		ReadBufferSize:         readBuffer,
		WriteBufferSize:        writeBuffer,
	}
}

type permitKey struct{}

// RoundTrip sends one request under a permit for its destination. It follows
// no redirect. The body of the answer streams.
func (d *Dialer) RoundTrip(p *capability.Permit, req *http.Request) (*http.Response, error) {
	want := "http"
	if p != nil && p.TLS() {
		want = "https"
	}
	if p == nil || p.Opaque() || req.URL.Scheme != want || !matches(p, req.URL.Hostname(), req.URL.Port()) {
		return nil, ErrNoPermit
	}
	ctx := context.WithValue(req.Context(), permitKey{}, p)
	// A connection through a proxy, or one that is counted, cannot be asked
	// whether it is still open.
	if d.meter == nil && d.small.takes(req) && d.route(p.Host()).proxy == nil {
		return d.small.roundTrip(req.WithContext(ctx), target{net.JoinHostPort(p.Host().String(), strconv.Itoa(int(p.Port()))), p.TLS()})
	}
	pool := d.plain
	if req.ProtoMajor == 2 && req.Header.Get("Upgrade") == "" {
		pool = d.transport // HTTP/2 cannot become another protocol
	}
	return pool.RoundTrip(req.WithContext(ctx))
}

func matches(p *capability.Permit, host, port string) bool {
	return host == p.Host().String() && port == strconv.Itoa(int(p.Port()))
}

// Opaque opens the connection of an opaque flow.
func (d *Dialer) Opaque(ctx context.Context, p *capability.Permit) (net.Conn, error) {
	if p == nil || !p.Opaque() {
		return nil, ErrNoPermit
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return d.open(ctx, p)
}

// CloseIdle drops the pool.
func (d *Dialer) CloseIdle() {
	d.transport.CloseIdleConnections()
	d.plain.CloseIdleConnections()
	d.small.closeIdle()
}

// pooled dials for the transport's pool. The permit of the request that needed
// the connection is in ctx; the pool's key is the same host, port and scheme.
func (d *Dialer) pooled(ctx context.Context, addr string, alpn []string) (net.Conn, error) {
	secure := alpn != nil
	p, _ := ctx.Value(permitKey{}).(*capability.Permit)
	host, port, err := net.SplitHostPort(addr)
	if err != nil || p == nil || p.Opaque() || p.TLS() != secure || !matches(p, host, port) {
		return nil, ErrNoPermit
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := d.open(ctx, p)
	if err != nil || !secure {
		return conn, err
	}
	return d.secure(ctx, p, conn, alpn)
}

func (d *Dialer) secure(ctx context.Context, p *capability.Permit, conn net.Conn, alpn []string) (net.Conn, error) {
	roots, err := d.route(p.Host()).roots(ctx)
	if err != nil || roots == nil {
		conn.Close()
		return nil, fmt.Errorf("%s %w: %v", p.Host(), ErrVerify, err)
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	under := gather.Under(conn)
	tc := tls.Client(under, &tls.Config{
		ServerName: p.Host().String(), RootCAs: roots, MinVersion: tls.VersionTLS12,
		NextProtos: alpn, ClientSessionCache: d.sessions,
	})
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		var invalid *tls.CertificateVerificationError
		if errors.As(err, &invalid) {
			return nil, fmt.Errorf("%s %w: %v", p.Host(), ErrVerify, invalid.Err)
		}
		return nil, fmt.Errorf("TLS with %s: %w", p.Host(), err)
	}
	if len(alpn) == 1 {
		return gather.Over(tc, under), nil
	}
	return tc, nil // the transport has to see that it is TLS, and which protocol
}

// open resolves, judges and dials; what the connection carries counts.
func (d *Dialer) open(ctx context.Context, p *capability.Permit) (net.Conn, error) {
	if err := d.meter.left(p.Host()); err != nil {
		return nil, err
	}
	conn, err := d.reachPermitted(ctx, p)
	if err != nil {
		return nil, err
	}
	return d.meter.over(conn, p.Host()), nil
}

func (d *Dialer) reachPermitted(ctx context.Context, p *capability.Permit) (net.Conn, error) {
	switch r := d.route(p.Host()); {
	case r.connect.IsValid():
		return d.connect(ctx, r.connect)
	case r.proxy != nil && p.Host() != Localhost:
		return d.tunnel(ctx, r.proxy, p)
	}
	if p.Host() == Localhost {
		return d.race(ctx, []netip.AddrPort{
			netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(p.Port())),
			netip.AddrPortFrom(netip.IPv6Loopback(), uint16(p.Port())),
		})
	}
	addrs, err := d.addresses(ctx, p.Host(), uint16(p.Port()))
	if err != nil {
		return nil, err
	}
	return d.race(ctx, addrs)
}

// addresses resolves a name and returns what of it may be dialled, in the order
// in which it is tried: the families in turn.
func (d *Dialer) addresses(ctx context.Context, h hostport.Host, port uint16) ([]netip.AddrPort, error) {
	addrs, err := d.resolve(ctx, h)
	if err != nil {
		return nil, err
	}
	var good []netip.AddrPort
	var refused error
	for _, a := range addrs {
		if err := judge(a, d.own); err != nil {
			refused = err
			continue
		}
		good = append(good, netip.AddrPortFrom(a.Unmap(), port))
	}
	if len(good) == 0 {
		return nil, fmt.Errorf("%s %w: %v", h, ErrAddress, refused)
	}
	return interleave(good)[:min(len(good), maxAddresses)], nil
}

func (d *Dialer) resolve(ctx context.Context, h hostport.Host) ([]netip.Addr, error) {
	if addrs := d.cfg.Hosts[h.String()]; len(addrs) > 0 {
		return addrs, nil
	}
	if len(d.cfg.Nameservers) == 0 {
		return nil, fmt.Errorf("%s %w: this host has no name servers", h, ErrResolve)
	}
	addrs, err := d.resolver.LookupNetIP(ctx, "ip", h.String()+".") // rooted: no search list
	if err != nil || len(addrs) == 0 {
		var de *net.DNSError
		if errors.As(err, &de) {
			err = errors.New(de.Err)
		}
		return nil, fmt.Errorf("%s %w: %v", h, ErrResolve, err)
	}
	return addrs, nil
}

// nameserver replaces the address that the library thinks of, which knows no
// resolv.conf here, by the configured ones in turn.
func (d *Dialer) nameserver(ctx context.Context, network, _ string) (net.Conn, error) {
	servers := d.cfg.Nameservers
	n := int(d.turn.Add(1)-1) % len(servers)
	if !strings.HasPrefix(network, "udp") {
		network = "tcp"
	}
	var nd net.Dialer
	return nd.DialContext(ctx, network, servers[n].String())
}

// connect dials one address.
func (d *Dialer) connect(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	var nd net.Dialer
	nd.SetMultipathTCP(false)
	return nd.DialContext(ctx, "tcp", to.String())
}

// race dials the addresses one after the other, the next one when the one
// before failed or took long, and takes the first that answers.
func (d *Dialer) race(ctx context.Context, addrs []netip.AddrPort) (net.Conn, error) {
	if len(addrs) == 1 {
		return d.connect(ctx, addrs[0])
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result, len(addrs))
	started, failed := 0, 0
	start := func() {
		to := addrs[started]
		started++
		go func() {
			conn, err := d.connect(ctx, to)
			results <- result{conn, err}
		}()
	}
	start()
	timer := time.NewTimer(stagger)
	defer timer.Stop()
	var first error
	for {
		select {
		case r := <-results:
			if r.err == nil {
				go func(open int) {
					for range open {
						if late := <-results; late.conn != nil {
							late.conn.Close()
						}
					}
				}(started - failed - 1)
				return r.conn, nil
			}
			failed++
			if first == nil {
				first = r.err
			}
			if failed == len(addrs) {
				return nil, first
			}
			if started < len(addrs) {
				start()
			}
		case <-timer.C:
			if started < len(addrs) {
				start()
				timer.Reset(stagger)
			}
		}
	}
}
