package dial

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
)

func host(t *testing.T, s string) hostport.Host {
	t.Helper()
	h, err := hostport.ParseHost(s)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// permit is a true one: only the decider can make it.
func permit(t *testing.T, dst string) *capability.Permit {
	t.Helper()
	set, err := capability.Compile(capability.Spec{Rules: []capability.Rule{{TCP: dst}}}, catalog.Default())
	if err != nil {
		t.Fatal(err)
	}
	hp, err := hostport.Parse(dst)
	if err != nil {
		t.Fatal(err)
	}
	_, d := set.Connect(hp)
	if d.Permit == nil {
		t.Fatalf("no permit for %s", dst)
	}
	return d.Permit
}

func TestNarrowestRoute(t *testing.T) {
	all, below, one := &Proxy{Port: 1}, &Proxy{Port: 2}, netip.MustParseAddrPort("10.0.0.1:443")
	corp := x509.NewCertPool()
	extra := func(context.Context) (*x509.CertPool, error) { return corp, nil }
	d := New(Config{Upstreams: []Upstream{
		{Proxy: all, Roots: extra},
		{Below: host(t, "corp.example"), Proxy: below},
		{Below: host(t, "lab.corp.example"), Direct: true},
		{Host: host(t, "api.corp.example"), Connect: one, CA: x509.NewCertPool()},
	}})
	for name, want := range map[string]struct {
		proxy   *Proxy
		connect netip.AddrPort
		extra   bool
	}{
		"github.com":            {all, netip.AddrPort{}, true},
		"corp.example":          {all, netip.AddrPort{}, true},
		"notcorp.example":       {all, netip.AddrPort{}, true},
		"x.corp.example":        {below, netip.AddrPort{}, true},
		"x.lab.corp.example":    {nil, netip.AddrPort{}, true},
		"api.corp.example":      {nil, one, false},
		"x.api.corp.example":    {below, netip.AddrPort{}, true},
		"api.corp.example.evil": {all, netip.AddrPort{}, true},
	} {
		r := d.route(host(t, name))
		roots, _ := r.roots(context.Background())
		if r.proxy != want.proxy || r.connect != want.connect || (roots == corp) != want.extra {
			t.Errorf("%s: proxy %v, connect %v, the operator's roots %v", name, r.proxy, r.connect, roots == corp)
		}
	}
}

func TestInterleave(t *testing.T) {
	var in []netip.AddrPort
	for _, s := range []string{"[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1", "192.0.2.1:1"} {
		in = append(in, netip.MustParseAddrPort(s))
	}
	var out []string
	for _, a := range interleave(in) {
		out = append(out, a.Addr().String())
	}
	if got := strings.Join(out, " "); got != "2001:db8::1 192.0.2.1 2001:db8::2 2001:db8::3" {
		t.Error(got)
	}
}

// proxyServer is a CONNECT proxy on the loopback; it leads everything to target.
func proxyServer(t *testing.T, login, target string, seen *atomic.Value) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				req, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil || req.Method != http.MethodConnect {
					return
				}
				seen.Store(req.Host)
				if login != "" && req.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte(login)) {
					io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n")
					return
				}
				up, err := net.Dial("tcp", target)
				if err != nil {
					io.WriteString(c, "HTTP/1.1 503 no\r\n\r\n")
					return
				}
				defer up.Close()
				io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
				go io.Copy(up, c)
				io.Copy(c, up)
			}()
		}
	}()
	ap := l.Addr().(*net.TCPAddr).AddrPort()
	return &Proxy{Addr: ap.Addr(), Port: hostport.Port(ap.Port())}
}

// greeter speaks first, as many opaque protocols do.
func greeter(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "220 hello\r\n")
			c.Close()
		}
	}()
	return l.Addr().String()
}

func TestProxy(t *testing.T) {
	var seen atomic.Value
	x := proxyServer(t, "me:pass", greeter(t), &seen)
	login := func(s string) func(context.Context) (secret.Value, error) {
		return func(context.Context) (secret.Value, error) { return secret.New([]byte(s)), nil }
	}
	for name, c := range map[string]struct {
		auth func(context.Context) (secret.Value, error)
		want string
	}{
		"with the login":    {login("me:pass"), ""},
		"without a login":   {nil, "asks for a login"},
		"with a wrong one":  {login("me:wrong"), "refuses the login"},
		"revoked meanwhile": {func(context.Context) (secret.Value, error) { return secret.Value{}, errors.New("revoked") }, "not available: revoked"},
	} {
		t.Run(name, func(t *testing.T) {
			p := *x
			p.Auth = c.auth
			// No name server: the name is the proxy's to resolve.
			d := New(Config{Upstreams: []Upstream{{Proxy: &p}}})
			conn, err := d.Opaque(context.Background(), permit(t, "mail.corp.example:2525"))
			if c.want != "" {
				if !errors.Is(err, ErrProxy) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "pass") {
					t.Fatal(err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			got, _ := io.ReadAll(conn)
			if string(got) != "220 hello\r\n" || seen.Load() != "mail.corp.example:2525" {
				t.Errorf("%q through a tunnel to %v", got, seen.Load())
			}
		})
	}
	t.Run("loopback", func(t *testing.T) {
		seen.Store("")
		d := New(Config{Upstreams: []Upstream{{Proxy: x}}})
		if conn, err := d.Opaque(context.Background(), permit(t, "localhost:1")); err == nil || seen.Load() != "" {
			t.Errorf("this host's own port was looked for at the proxy: %v %v", conn, seen.Load())
		}
	})
}

// A proxy that lies, floods or stalls is an error in time.
func TestHostileProxy(t *testing.T) {
	for name, answer := range map[string]string{
		"no http":      "220 smtp\r\n",
		"endless head": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 1<<20),
		"nothing":      "",
		"redirect":     "HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				if c, err := l.Accept(); err == nil {
					io.WriteString(c, answer)
					io.Copy(io.Discard, c)
					c.Close()
				}
			}()
			ap := l.Addr().(*net.TCPAddr).AddrPort()
			d := New(Config{Upstreams: []Upstream{{Proxy: &Proxy{Addr: ap.Addr(), Port: hostport.Port(ap.Port())}}}})
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			start := time.Now()
			if _, err := d.Opaque(ctx, permit(t, "a.example:443")); !errors.Is(err, ErrProxy) || time.Since(start) > 3*time.Second {
				t.Error(err, time.Since(start))
			}
		})
	}
}

// nameserver answers A and AAAA queries for every name; each answer may differ.
func nameserver(t *testing.T, answer func(q dnsmessage.Type) []netip.Addr) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			r := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
			for _, a := range answer(q.Type) {
				h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 0}
				if a.Is4() && q.Type == dnsmessage.TypeA {
					r.Answers = append(r.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
				}
				if a.Is6() && q.Type == dnsmessage.TypeAAAA {
					r.Answers = append(r.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
				}
			}
			if b, err := r.Pack(); err == nil {
				pc.WriteTo(b, from)
			}
		}
	}()
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

// A name that leads to the loopback, by whatever record, is never dialled, and
// one that alternates between a public and a private address is judged anew,
// and dialled as judged, for each connection.
func TestRebinding(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	hits := atomic.Int32{}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			hits.Add(1)
			c.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	n := atomic.Int32{}
	ns := nameserver(t, func(q dnsmessage.Type) []netip.Addr {
		if n.Add(1)%3 == 0 {
			return []netip.Addr{netip.MustParseAddr("192.0.2.7")}
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	})
	d := New(Config{Nameservers: []netip.AddrPort{ns}})
	p := permit(t, hostport.HostPort{Host: host(t, "rebind.example"), Port: hostport.Port(port)}.String())
	for range 200 {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		if c, err := d.Opaque(ctx, p); err == nil {
			c.Close()
			t.Error("connected")
		}
		cancel()
	}
	if hits.Load() != 0 {
		t.Errorf("%d connections reached the loopback", hits.Load())
	}
	// The control: where the operator says so, the same port answers.
	d = New(Config{Upstreams: []Upstream{{Host: host(t, "rebind.example"), Connect: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port))}}})
	c, err := d.Opaque(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// Happy eyeballs: an address that does not answer holds up nothing for long,
// one that refuses not at all, and the losers are closed.
func TestRace(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	good := l.Addr().(*net.TCPAddr).AddrPort()
	refusing := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), good.Port())
	unreachable := netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), good.Port())
	silent := netip.MustParseAddrPort("192.0.2.1:443")
	d := New(Config{})
	for name, addrs := range map[string][]netip.AddrPort{
		"refused first":     {refusing, good},
		"unreachable first": {unreachable, good},
		"silent first":      {silent, good},
		"all before":        {unreachable, refusing, silent, good},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			start := time.Now()
			c, err := d.race(ctx, addrs)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if took := time.Since(start); took > 3*stagger {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestLocalhostIsTheHost(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	evil := nameserver(t, func(dnsmessage.Type) []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.66")} })
	d := New(Config{Nameservers: []netip.AddrPort{evil}, Hosts: map[string][]netip.Addr{"localhost": {netip.MustParseAddr("192.0.2.67")}}})
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	c, err := d.Opaque(ctx, permit(t, hostport.HostPort{Host: Localhost, Port: hostport.Port(port)}.String()))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := d.Opaque(ctx, permit(t, hostport.HostPort{Host: host(t, "x.localhost"), Port: hostport.Port(port)}.String())); !errors.Is(err, ErrAddress) {
		t.Errorf("x.localhost: %v", err)
	}
}
