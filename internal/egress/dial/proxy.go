package dial

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
)

// Proxy is an HTTP proxy of the operator's that understands CONNECT. Every
// connection goes through it as a tunnel, plain http too: what is in it is the
// gateway's own. The proxy resolves the name, so its address can't be judged
// here; that is the operator's word.
type Proxy struct {
	// Host is a name, or Addr an address.
	Host hostport.Host
	Addr netip.Addr
	Port hostport.Port
	TLS  bool
	// Roots verify the proxy itself, with TLS.
	Roots func(context.Context) (*x509.CertPool, error)
	// Auth returns user:password, or is nil. It records the use.
	Auth func(context.Context) (secret.Value, error)
}

// ErrProxy: the operator's proxy did not make the tunnel.
var ErrProxy = errors.New("the operator's proxy")

// maxProxyAnswer bounds the head of the proxy's answer to CONNECT.
const maxProxyAnswer = 16 << 10

func (p *Proxy) String() string {
	name := p.Host.String()
	if p.Addr.IsValid() {
		name = p.Addr.String()
	}
	return net.JoinHostPort(name, fmt.Sprint(p.Port))
}

// tunnel makes a connection to what is permitted through the proxy.
func (d *Dialer) tunnel(ctx context.Context, x *Proxy, p *capability.Permit) (conn net.Conn, err error) {
	fail := func(format string, args ...any) (net.Conn, error) {
		if conn != nil {
			conn.Close()
		}
		return nil, fmt.Errorf("%w at %s %s", ErrProxy, x, fmt.Sprintf(format, args...))
	}
	if conn, err = d.reach(ctx, x); err != nil {
		return fail("cannot be reached: %v", err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if x.TLS {
		if x.Roots == nil {
			return fail("cannot be verified")
		}
		roots, err := x.Roots(ctx)
		if err != nil {
			return fail("cannot be verified: %v", err)
		}
		name := x.Host.String()
		if x.Addr.IsValid() {
			name = x.Addr.String()
		}
		tc := tls.Client(conn, &tls.Config{ServerName: name, RootCAs: roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
		if err := tc.HandshakeContext(ctx); err != nil {
			return fail("did not come to terms over TLS: %v", err)
		}
		conn = tc
	}
	target := fmt.Sprintf("%s:%d", p.Host(), p.Port())
	var req strings.Builder
	fmt.Fprintf(&req, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", target, target)
	if x.Auth != nil {
		pair, err := x.Auth(ctx)
		if err != nil {
			return fail("needs a credential that is not available: %v", err)
		}
		fmt.Fprintf(&req, "Proxy-Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString(pair.Reveal()))
		pair.Wipe()
	}
	req.WriteString("\r\n")
	if _, err := io.WriteString(conn, req.String()); err != nil {
		return fail("hung up: %v", err)
	}
	limited := &io.LimitedReader{R: conn, N: maxProxyAnswer}
	r := bufio.NewReader(limited)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	switch {
	case err != nil:
		return fail("answered in no known way")
	case resp.StatusCode == http.StatusProxyAuthRequired && x.Auth == nil:
		return fail("asks for a login (407); name one in the policy: upstreams: {...: {proxy: ..., credential: NAME}}")
	case resp.StatusCode == http.StatusProxyAuthRequired:
		return fail("refuses the login (407)")
	case resp.StatusCode != http.StatusOK:
		return fail("refuses the connection (%d)", resp.StatusCode)
	}
	stop()
	conn.SetDeadline(time.Time{})
	if n := r.Buffered(); n > 0 { // the upstream spoke first
		early, _ := r.Peek(n)
		return &primed{Conn: conn, early: append([]byte(nil), early...)}, nil
	}
	return conn, nil
}

// reach dials the proxy. Its address is the operator's word and not judged.
func (d *Dialer) reach(ctx context.Context, x *Proxy) (net.Conn, error) {
	if x.Addr.IsValid() {
		return d.connect(ctx, netip.AddrPortFrom(x.Addr, uint16(x.Port)))
	}
	addrs, err := d.resolve(ctx, x.Host)
	if err != nil {
		return nil, err
	}
	var to []netip.AddrPort
	for _, a := range addrs {
		to = append(to, netip.AddrPortFrom(a.Unmap(), uint16(x.Port)))
	}
	return d.race(ctx, interleave(to)[:min(len(to), maxAddresses)])
}

// primed is a connection of which some bytes were read ahead.
type primed struct {
	net.Conn
	early []byte
}

func (c *primed) Read(b []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(b, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

func (c *primed) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}
