package differential

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/egress/dial"
	"github.com/bulkhead-dev/bulkhead/internal/egress/httpauthz"
	"github.com/bulkhead-dev/bulkhead/internal/egress/intercept"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const (
	name        = "up.test" // the one host that is granted
	realSecret  = "sk-real-5fJ29xPqLm0ZsWc7"
	placeholder = "sk-bulk-000000000000held"
)

// patience bounds one case. behind is how long an answer is awaited that may
// never come. settle is how long nothing may move before a client
// that waits for an answer to half a request is taken for done.
const (
	patience = 20 * time.Second
	behind   = 300 * time.Millisecond
	settle   = 2 * time.Millisecond
)

// forge is a typed service on the same host, with escaped slashes in a segment,
// closed lists of query keys and a body that is read.
const forge = `service: forge
description: A forge that stands on the same host as the raw grants.
hosts: ["http://up.test", up.test]
bodies:
  issue: {limit: 64KiB, keys: [title, body], text: [title, body]}
operations:
  read:
    allows: Reads a project's issues.
    does-not: Write them.
    resource: "{project}"
    query: [page, state]
    match:
      - GET,HEAD up.test/projects/{project:path}
      - GET,HEAD up.test/projects/{project:path}/issues
      - GET,HEAD up.test/tree/{project:segments}/list
  write:
    allows: Writes a project's issues.
    does-not: Delete them.
    resource: "{project}"
    needs-resources: true
    query: []
    body: issue
    match:
      - POST up.test/projects/{project:path}/issues
`

func at(n int) vocabulary.Position { return vocabulary.Position{File: "policy.yaml", Line: n} }

// grants are what oracle_linux_test.go's covered says in other words.
func grants(scheme string) []capability.Rule {
	rules := []capability.Rule{
		{Pos: at(1), HTTP: scheme + "://up.test/docs/**"},
		{Pos: at(2), HTTP: scheme + "://up.test/items/*", Methods: []string{"GET", "POST", "PUT", "DELETE"}},
		{Pos: at(3), HTTP: scheme + "://up.test/v1/messages", Methods: []string{"POST"}},
		{Pos: at(4), Service: "forge", Operations: []string{"read"}, Resources: []string{"acme/widgets"}},
		{Pos: at(5), Service: "forge", Operations: []string{"write"}, Resources: []string{"acme/widgets"}},
	}
	if scheme == "https" {
		rules = append(rules, capability.Rule{Pos: at(6), HTTP: "https://up.test/keyed/**", Methods: []string{"GET", "POST"}, Credential: "key", Header: "authorization", Scheme: "Bearer"})
	}
	return rules
}

// lane is a gateway with upstreams of its own; it runs one case at a time.
type lane struct {
	number  int
	s       *servers
	tap     *tap
	set     *capability.Set
	roots   *x509.CertPool // the upstream's
	session *x509.CertPool // the session's
	server  *intercept.Server
	now     atomic.Pointer[run]
}

// certificates of the session and of the upstream, made once.
var makeCA = sync.OnceValues(func() (ca struct {
	session, upstream       *x509.Certificate
	sessionKey, upstreamKey *ecdsa.PrivateKey
	leaf                    tls.Certificate
}, err error) {
	sign := func(tmpl, parent *x509.Certificate, pub, key *ecdsa.PrivateKey) *x509.Certificate {
		tmpl.SerialNumber, tmpl.NotBefore, tmpl.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(48*time.Hour)
		der, e := x509.CreateCertificate(rand.Reader, tmpl, parent, &pub.PublicKey, key)
		if err = errors.Join(err, e); e != nil {
			return tmpl
		}
		cert, e := x509.ParseCertificate(der)
		err = errors.Join(err, e)
		return cert
	}
	key := func() *ecdsa.PrivateKey {
		k, e := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		err = errors.Join(err, e)
		return k
	}
	authority := func(cn string, k *ecdsa.PrivateKey) *x509.Certificate {
		t := &x509.Certificate{Subject: pkix.Name{CommonName: cn}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
		return sign(t, t, k, k)
	}
	ca.sessionKey, ca.upstreamKey = key(), key()
	ca.session, ca.upstream = authority("session CA", ca.sessionKey), authority("upstream CA", ca.upstreamKey)
	leafKey := key()
	leaf := sign(&x509.Certificate{DNSNames: []string{name, "gitlab.com"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca.upstream, leafKey, ca.upstreamKey)
	ca.leaf = tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: leafKey}
	return ca, err
})

func newLane(s *servers, number int, rules []capability.Rule) (*lane, error) {
	ca, err := makeCA()
	if err != nil {
		return nil, err
	}
	l := &lane{number: number, s: s, roots: x509.NewCertPool(), session: x509.NewCertPool()}
	l.roots.AddCert(ca.upstream)
	l.session.AddCert(ca.session)
	if l.tap, err = newTap(s, number, ca.leaf); err != nil {
		return nil, err
	}
	cat, err := catalog.Default().With([]catalog.Extra{{Name: "forge", File: "forge.yaml", Data: []byte(forge)}})
	if err != nil {
		return nil, err
	}
	if l.set, err = capability.Compile(capability.Spec{Default: vocabulary.Position{File: "policy.yaml"}, Rules: rules}, cat); err != nil {
		return nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(ca.sessionKey)
	if err != nil {
		return nil, err
	}
	authority, err := intercept.NewAuthority(ca.session.Raw, key)
	if err != nil {
		return nil, err
	}
	l.server = intercept.New(authority, func(w http.ResponseWriter, r *http.Request, dst hostport.HostPort, secure bool) {
		l.now.Load().serve(w, r, dst, secure)
	}, func(_ hostport.HostPort, _, message string) { l.now.Load().refused(message) })
	return l, nil
}

// run is one case on its way.
type run struct {
	l      *lane
	dialer *dial.Dialer
	active atomic.Int32
	bodies atomic.Int32 // handlers that wait for a body's next byte

	mu      sync.Mutex
	judged  []*judged
	refusal []string
	cut     bool // the client waited in the middle of a request, and was ended
}

func (r *run) refused(message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusal = append(r.refusal, message)
}

// judged is one request as the gateway read it.
type judged struct {
	set  *capability.Set
	dial *dial.Dialer

	mu       sync.Mutex
	request  catalog.Request
	header   http.Header // as it is to be sent, with the placeholder
	decision capability.Decision
	records  []v1.Event
	body     hash.Hash
	length   int
	declared int64
	bodyEnd  error // io.EOF: it is whole
	answered bool  // by a server, that had read it
}

func (j *judged) Body(r catalog.Request) catalog.Need { return j.set.Body(r) }
func (j *judged) EscapedSlash(r catalog.Request) bool { return j.set.EscapedSlash(r) }

func (j *judged) Decide(r catalog.Request, id capability.Identity) capability.Decision {
	d := j.set.Decide(r, id)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.request, j.decision = r, d
	j.request.Query = maps.Clone(r.Query)
	j.header = r.Header.Clone()
	for name, value := range d.Rewrite {
		if j.header.Del(name); value != "" {
			j.header.Set(name, value)
		}
	}
	return d
}

func (j *judged) Authorize(_ context.Context, e v1.Event, use *wire.CredentialUse) (secret.Value, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.records = append(j.records, e)
	if use == nil {
		return secret.Value{}, nil
	}
	j.header.Set("Accept-Encoding", "identity")
	return secret.New([]byte(realSecret)), nil
}

func (j *judged) RoundTrip(p *capability.Permit, req *http.Request) (*http.Response, error) {
	resp, err := j.dial.RoundTrip(p, req)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.answered = err == nil && resp.StatusCode == http.StatusOK && resp.Header.Get("X-Read") == "yes"
	return resp, err
}

// watched is a request's body as the gateway reads it.
type watched struct {
	io.ReadCloser
	j *judged
	r *run
}

func (w *watched) Read(p []byte) (int, error) {
	w.r.bodies.Add(1)
	n, err := w.ReadCloser.Read(p)
	w.r.bodies.Add(-1)
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	w.j.body.Write(p[:n])
	w.j.length += n
	if w.j.bodyEnd == nil {
		w.j.bodyEnd = err
	}
	return n, err
}

func (r *run) serve(w http.ResponseWriter, req *http.Request, dst hostport.HostPort, secure bool) {
	r.active.Add(1)
	defer r.active.Add(-1)
	j := &judged{set: r.l.set, dial: r.dialer, body: sha256.New(), declared: req.ContentLength}
	r.mu.Lock()
	r.judged = append(r.judged, j)
	r.mu.Unlock()
	if req.Body == nil || req.Body == http.NoBody || req.ContentLength == 0 {
		j.bodyEnd = io.EOF
	} else {
		req.Body = &watched{req.Body, j, r}
	}
	h := &httpauthz.Handler{
		Decider: j, Controller: j, Upstream: j, Identity: capability.Identity{Placeholders: map[string]string{"key": placeholder}},
		Denied: func(e v1.Event) { r.refused(e.Reason.Message) },
	}
	h.Serve(w, req, dst, secure)
}

// inside is the gateway's end of a pipe to the client; it knows when somebody
// waits for more.
type inside struct {
	net.Conn
	waiting atomic.Bool
	ended   atomic.Bool
}

func (c *inside) Read(p []byte) (int, error) {
	c.waiting.Store(true)
	n, err := c.Conn.Read(p)
	c.waiting.Store(false)
	return n, err
}

func (c *inside) Close() error {
	c.ended.Store(true)
	return c.Conn.Close()
}

// play is one client: it gets the connection, writes to it, and returns.
type play func(c net.Conn) error

// result is everything that is known about one case.
type result struct {
	judged  []*judged
	refusal []string
	cut     bool
	answer  []byte // over HTTP/1.1 without TLS
	wire    report
	rest    []string
	nginx   report
	node    report
}

// through sends what a client plays through the gateway: to dst, and from there
// over HTTP/2 if h2, to both servers, of which one answers.
func (l *lane) through(dst hostport.HostPort, secure, h2 bool, answerer string, p play) (*result, error) {
	l.tap.reset(h2, answerer)
	to := l.tap.plain
	if secure {
		to = l.tap.secured
	}
	r := &run{l: l, dialer: dial.New(dial.Config{Upstreams: []dial.Upstream{{Host: dst.Host, Connect: netip.MustParseAddrPort(to.Addr().String()), CA: l.roots}}})}
	l.now.Store(r)
	client, server := net.Pipe()
	in := &inside{Conn: server}
	served := make(chan struct{})
	go func() {
		defer close(served)
		l.server.Serve(in, dst, secure)
	}()
	out := &result{}
	played := make(chan error, 1)
	read := make(chan struct{})
	go func() {
		if secure {
			played <- p(client)
			close(read)
			return
		}
		go func() {
			defer close(read)
			out.answer, _ = io.ReadAll(client)
		}()
		played <- p(client)
	}()
	err := r.quiet(in, played)
	client.Close()
	<-served
	<-read
	for deadline := time.Now().Add(patience); r.active.Load() > 0; time.Sleep(settle / 4) {
		if time.Now().After(deadline) {
			return nil, errors.New("a handler does not end")
		}
	}
	conns, ended := l.tap.finish(r.dialer.CloseIdle)
	if !ended {
		return nil, errors.New("a connection to the upstream does not end")
	}
	if err != nil {
		return nil, err
	}
	out.wire.readings, out.rest = readWire(conns)
	out.nginx, out.node, err = l.s.take(l.number)
	r.mu.Lock()
	defer r.mu.Unlock()
	out.judged, out.refusal, out.cut = r.judged, r.refusal, r.cut
	return out, err
}

// past sends bytes past the gateway to both servers.
func (l *lane) past(b []byte) (*result, error) {
	l.tap.reset(false, "node")
	c, err := net.Dial("tcp", l.tap.plain.Addr().String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return nil, err
	}
	conns, ended := l.tap.finish(func() {})
	if !ended {
		return nil, errors.New("a connection does not end")
	}
	out := &result{}
	out.wire.readings, out.rest = readWire(conns)
	out.nginx, out.node, err = l.s.take(l.number)
	return out, err
}

// quiet returns when the client has sent everything and nothing moves any more.
func (r *run) quiet(in *inside, played <-chan error) error {
	deadline := time.Now().Add(patience)
	sent, still := false, 0
	for !in.ended.Load() {
		if time.Now().After(deadline) {
			return fmt.Errorf("nothing ends for %v: everything sent %v, the gateway waits for more %v, %d requests under way, %d of them wait for their bodies", patience, sent, in.waiting.Load(), r.active.Load(), r.bodies.Load())
		}
		select {
		case err := <-played:
			if err != nil {
				return nil // the gateway has ended the connection
			}
			sent = true
		default:
		}
		active := r.active.Load()
		if !sent || !in.waiting.Load() || active > 0 && r.bodies.Load() < active {
			still = 0
			time.Sleep(settle / 16)
			continue
		}
		if still++; still > 2 && active == 0 || still > 6 {
			r.cut = active > 0
			return nil
		}
		time.Sleep(settle / 6)
	}
	return nil
}

func (j *judged) bodyHash() string { return hex.EncodeToString(j.body.Sum(nil)) }
