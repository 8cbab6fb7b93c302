// Package relay is the way into the gateway for sandboxes without a TAP device:
// a listener on the sandbox's own loopback that speaks the two languages of
// proxies, HTTP (CONNECT and absolute-form http://) and SOCKS5.
//
// In: connections from the sandbox, which name a destination. Out: streams that
// the Gate has accepted for exactly that destination, and plain HTTP requests
// for the Gate to decide on. Only names are destinations: a SOCKS request by
// address, an IP literal in any spelling, userinfo, NUL bytes and everything
// else that is not host:port are refused before anyone is asked. There are no
// users and no passwords: whoever reaches the listener is the session.
//
// Figures: maxFlows connections at a time, greetingTimeout for the first words,
// maxHeader bytes for a request's head.
package relay

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/egress/framing"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const (
	greetingTimeout = 10 * time.Second
	idleTimeout     = 90 * time.Second
	maxHeader       = 64 << 10
)

// Gate judges destinations.
type Gate interface {
	// Open returns what serves a stream to dst, or why it is refused; then the
	// refusal is recorded already.
	Open(dst hostport.HostPort) (func(net.Conn), *vocabulary.Reason)
	// Request decides on one absolute-form request for dst.
	Request(w http.ResponseWriter, r *http.Request, dst hostport.HostPort)
	// Malformed records and words a refusal that no decider was asked about.
	Malformed(target, code, message string) vocabulary.Reason
	// Deny answers an HTTP request with a refusal that is recorded already.
	Deny(w http.ResponseWriter, r *http.Request, resource string, reason vocabulary.Reason)
}

// Serve accepts until the listener is closed.
func Serve(l net.Listener, maxFlows int, gate Gate) error {
	s := &server{gate: gate, conns: make(chan net.Conn), done: make(chan struct{})}
	defer close(s.done)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	hs := &http.Server{
		Handler:                      s,
		ReadHeaderTimeout:            greetingTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeader,
		Protocols:                    protocols,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(io.Discard, "", 0),
		ConnContext:                  framing.Context,
	}
	go hs.Serve(s)
	defer hs.Close()
	return accept(l, maxFlows, s.connection, func() {
		gate.Malformed("", "flow-limit", fmt.Sprintf("more than %d connections at a time", maxFlows))
	})
}

// Forward serves a listener whose connections have one destination: a port of
// the host. It accepts until the listener is closed; serve closes what it gets.
func Forward(l net.Listener, maxFlows int, serve func(net.Conn), full func()) error {
	return accept(l, maxFlows, serve, full)
}

func accept(l net.Listener, maxFlows int, serve func(net.Conn), full func()) error {
	slots := make(chan struct{}, maxFlows)
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if te := (net.Error)(nil); errors.As(err, &te) && te.Timeout() || isTemporary(err) {
				time.Sleep(50 * time.Millisecond)
				continue
			}
			return fmt.Errorf("relay: %w", err)
		}
		select {
		case slots <- struct{}{}:
		default:
			full()
			c.Close()
			continue
		}
		go func() {
			defer func() { <-slots }()
			serve(c)
		}()
	}
}

type server struct {
	gate  Gate
	conns chan net.Conn
	done  chan struct{}
}

// connection finds out which language the client speaks.
func (s *server) connection(c net.Conn) {
	f := &flow{Conn: c, closed: make(chan struct{})}
	defer f.Close()
	f.SetDeadline(time.Now().Add(greetingTimeout))
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		return
	}
	if first[0] == socksVersion {
		s.socks(f)
		return
	}
	if first[0] < 'A' || first[0] > 'Z' {
		s.gate.Malformed("", "protocol-refused", "the relay speaks HTTP and SOCKS5")
		return
	}
	f.prefix = first[:]
	f.SetDeadline(time.Time{})
	select {
	case s.conns <- framing.New(f, func(message string) { s.gate.Malformed("", "bad-request", message) }):
		<-f.closed
	case <-s.done:
	}
}

// ServeHTTP serves one request to the proxy.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if message, refused := framing.Refusal(r); refused {
		s.gate.Deny(w, r, "", s.gate.Malformed("", "bad-request", message))
		return
	}
	if r.Method == http.MethodConnect {
		s.connect(w, r)
		return
	}
	dst, err := absoluteTarget(r)
	if err != nil {
		reason := s.gate.Malformed(clip(r.RequestURI), code(err), err.Error())
		s.gate.Deny(w, r, clip(r.RequestURI), reason)
		return
	}
	s.gate.Request(w, r, dst)
}

func (s *server) connect(w http.ResponseWriter, r *http.Request) {
	dst, err := connectTarget(r.RequestURI)
	if err != nil {
		reason := s.gate.Malformed(clip(r.RequestURI), code(err), err.Error())
		s.gate.Deny(w, r, clip(r.RequestURI), reason)
		return
	}
	serve, refused := s.gate.Open(dst)
	if refused != nil || serve == nil {
		if refused == nil {
			refused = &vocabulary.Reason{Code: "no-grant", Message: "refused"}
		}
		s.gate.Deny(w, r, dst.String(), *refused)
		return
	}
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		panic(http.ErrAbortHandler)
	}
	conn, rw, err := hijacker.Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer conn.Close()
	conn.SetDeadline(time.Time{})
	early := make([]byte, rw.Reader.Buffered())
	io.ReadFull(rw.Reader, early)
	if _, err := io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	serve(&flow{Conn: conn, prefix: early, closed: make(chan struct{})})
}

// connectTarget accepts host:port and nothing else.
func connectTarget(s string) (hostport.HostPort, error) {
	hp, err := hostport.Parse(s)
	if err != nil {
		return hostport.HostPort{}, fmt.Errorf("the CONNECT target %w", err)
	}
	return hp, nil
}

// absoluteTarget returns the destination of an absolute-form request.
func absoluteTarget(r *http.Request) (hostport.HostPort, error) {
	rest, ok := strings.CutPrefix(strings.ToLower(r.RequestURI), "http://")
	if !ok || r.URL == nil || r.URL.User != nil {
		return hostport.HostPort{}, errors.New("this is the relay of a Bulkhead session; it takes CONNECT host:port and http://host/ requests")
	}
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	if !strings.Contains(rest, ":") {
		rest += ":80"
	}
	return hostport.Parse(rest)
}

func code(err error) string {
	if errors.Is(err, hostport.ErrIPLiteral) {
		return "ip-literal"
	}
	return "bad-request"
}

// Accept, Close and Addr make the server a listener for its HTTP half.
func (s *server) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

func (s *server) Close() error   { return nil }
func (s *server) Addr() net.Addr { return &net.TCPAddr{} }

// flow is a connection whose first bytes were read already.
type flow struct {
	net.Conn
	prefix []byte
	once   sync.Once
	closed chan struct{}
}

func (f *flow) Read(b []byte) (int, error) {
	if len(f.prefix) > 0 {
		n := copy(b, f.prefix)
		f.prefix = f.prefix[n:]
		return n, nil
	}
	return f.Conn.Read(b)
}

func (f *flow) CloseWrite() error {
	if half, ok := f.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return f.Conn.Close()
}

// Abort resets the connection, where it can.
func (f *flow) Abort() { framing.Reset(f.Conn) }

func (f *flow) Close() error {
	err := f.Conn.Close()
	f.once.Do(func() { close(f.closed) })
	return err
}

func isTemporary(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Temporary() bool
	}](err)
	return ok && t.Temporary()
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
