package egress

import (
	"bufio"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func TestMain(m *testing.M) {
	childproc.Dispatch()
	os.Exit(m.Run())
}

const (
	realSecret  = "sk-real-5fJ29xPqLm0ZsWc7"
	placeholder = "sk-bulk-000000000000held"
)

// authority is a CA made for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t testing.TB, name string) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func (a authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a authority) leaf(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// upstream is a real server on loopback that stands in for granted hosts.
type upstream struct {
	ca    authority
	addr  string
	names []string
}

func serve(t testing.TB, h http.Handler, names ...string) *upstream {
	t.Helper()
	u := &upstream{ca: newCA(t, "upstream CA"), names: names}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, TLSConfig: &tls.Config{Certificates: []tls.Certificate{u.ca.leaf(t, names...)}}}
	go srv.ServeTLS(l, "", "")
	t.Cleanup(func() { srv.Close() })
	u.addr = l.Addr().String()
	return u
}

func servePlain(t testing.TB, h http.Handler, names ...string) *upstream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return &upstream{addr: l.Addr().String(), names: names}
}

func (u *upstream) entries() (out []Upstream) {
	for _, n := range u.names {
		e := Upstream{Host: n, Connect: u.addr}
		if u.ca.cert != nil {
			e.CAPEM = u.ca.pem()
		}
		out = append(out, e)
	}
	return out
}

// recorder is the controller of a test.
type recorder struct {
	mu     sync.Mutex
	events []v1.Event
	broken bool
	asked  int
	secret string // realSecret if empty
}

func (r *recorder) Record(e v1.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken {
		return errors.New("no space left on device")
	}
	r.events = append(r.events, e)
	return nil
}

func (r *recorder) Credential(name string, _ vocabulary.Action, _ vocabulary.Resource) (secret.Value, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	if name != "key" {
		return secret.Value{}, errors.New("no such credential")
	}
	return secret.New([]byte(cmp.Or(r.secret, realSecret))), nil
}

func (r *recorder) with(code string) (out []v1.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Reason.Code == code {
			out = append(out, e)
		}
	}
	return out
}

func (r *recorder) allowed() (out []v1.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Verdict == vocabulary.Allow {
			out = append(out, e)
		}
	}
	return out
}

// wait polls for an event with this code.
func (r *recorder) wait(t testing.TB, code string) v1.Event {
	t.Helper()
	for range 2000 {
		if e := r.with(code); len(e) > 0 {
			return e[0]
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t.Fatalf("no event %q among %v", code, r.events)
	return v1.Event{}
}

func line(n int) vocabulary.Position { return vocabulary.Position{File: "policy.yaml", Line: n} }

var allMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

// config grants api.test (with the credential), other.test, plain.test and
// opaque.test, all led to the upstreams.
func config(t testing.TB, network sandbox.NetworkKind, ca authority, ups ...*upstream) Config {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Session: vocabulary.NewSessionID(), CACert: ca.cert.Raw, CAKey: key, Network: network,
		Placeholders: map[string]string{"key": placeholder},
		Spec: capability.Spec{Default: vocabulary.Position{File: "policy.yaml"}, Rules: []capability.Rule{
			{Pos: line(1), HTTP: "https://api.test/**", Methods: allMethods, Credential: "key", Header: "authorization", Scheme: "Bearer"},
			{Pos: line(2), HTTP: "https://other.test/**", Methods: allMethods},
			{Pos: line(3), HTTP: "http://plain.test/**", Methods: []string{"GET", "POST"}},
			{Pos: line(4), TCP: "opaque.test:7000"},
			{Pos: line(5), HTTP: "https://rebind.test/**", Methods: []string{"GET"}},
			{Pos: line(6), HTTP: "https://readonly.test/docs/**", Methods: []string{"GET"}},
		}},
	}
	for _, u := range ups {
		cfg.Upstreams = append(cfg.Upstreams, u.entries()...)
	}
	return cfg
}

// rig is a gateway behind a relay listener.
type rig struct {
	t     testing.TB
	gw    *Gateway
	rec   *recorder
	ca    authority
	proxy string
}

func startRelay(t testing.TB, edit func(*Config), ups ...*upstream) *rig {
	t.Helper()
	r := &rig{t: t, rec: &recorder{}, ca: newCA(t, "session CA")}
	cfg := config(t, sandbox.NetRelay, r.ca, ups...)
	if edit != nil {
		edit(&cfg)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r.proxy = l.Addr().String()
	link, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	if r.gw, err = Start(context.Background(), cfg, r.rec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.gw.Close() })
	if err := r.gw.Attach(link); err != nil {
		t.Fatal(err)
	}
	return r
}

// client is an ordinary client of the sandbox.
func (r *rig) client() *http.Client {
	return &http.Client{
		Timeout: 20 * time.Second,
		Transport: &http.Transport{
			Proxy:             http.ProxyURL(&url.URL{Scheme: "http", Host: r.proxy}),
			TLSClientConfig:   &tls.Config{RootCAs: r.ca.pool()},
			ForceAttemptHTTP2: true, DisableCompression: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// tunnel opens a CONNECT tunnel and leaves the rest to the test.
func (r *rig) tunnel(target string) (net.Conn, string) {
	r.t.Helper()
	c, err := net.Dial("tcp", r.proxy)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(15 * time.Second))
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
	br := bufio.NewReader(c)
	status, err := br.ReadString('\n')
	if err != nil {
		return c, ""
	}
	if strings.Contains(status, " 200 ") {
		for {
			l, err := br.ReadString('\n')
			if err != nil || l == "\r\n" {
				break
			}
		}
	}
	return c, strings.TrimSpace(status)
}

// secured is a tunnel with TLS for one name and one protocol.
func (r *rig) secured(target, sni, alpn string) (*tls.Conn, error) {
	r.t.Helper()
	c, status := r.tunnel(target)
	if !strings.Contains(status, " 200 ") {
		return nil, errors.New(status)
	}
	tc := tls.Client(c, &tls.Config{ServerName: sni, RootCAs: r.ca.pool(), NextProtos: []string{alpn}})
	return tc, tc.Handshake()
}
