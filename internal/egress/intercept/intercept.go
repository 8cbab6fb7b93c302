// Package intercept turns a byte stream whose destination has been accepted
// into HTTP requests for the handler that decides on each of them.
//
// In: a connection from the sandbox and the one name and port that it is bound
// to. On a TLS flow the first bytes must be a ClientHello and its SNI must be
// that name, or the connection ends; the handshake uses a certificate of the
// session's own CA. HTTP/1.1 and HTTP/2 come out of it, and only HTTP/1.1 of a
// plain flow. Nothing is ever passed through because it could not be read.
//
// Slow or silent clients are cut off: helloTimeout for the first bytes and the
// handshake, headerTimeout for a request's head, idleTimeout between requests.
// A head has at most maxHeader bytes, a connection at most maxStreams HTTP/2
// streams.
package intercept

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/egress/framing"
	"github.com/bulkhead-dev/bulkhead/internal/egress/gather"
	"github.com/bulkhead-dev/bulkhead/internal/egress/httpauthz"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const (
	helloTimeout  = 10 * time.Second
	headerTimeout = 10 * time.Second
	idleTimeout   = 90 * time.Second
	lingerTimeout = 300 * time.Millisecond
	maxHeader     = 64 << 10
	maxStreams    = 100
)

// Handler decides on one request that came over a connection bound to dst.
type Handler func(w http.ResponseWriter, r *http.Request, dst hostport.HostPort, secure bool)

// Refused hears why a connection was ended before any request.
type Refused func(dst hostport.HostPort, code, message string)

// Server serves the connections of one session.
type Server struct {
	authority *Authority
	handler   Handler
	refused   Refused
	server    *http.Server
	conns     chan net.Conn
	done      chan struct{}
	stop      sync.Once
}

// New starts a Server. Without an authority every TLS flow is refused.
func New(a *Authority, h Handler, refused Refused) *Server {
	s := &Server{authority: a, handler: h, refused: refused, conns: make(chan net.Conn), done: make(chan struct{})}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	s.server = &http.Server{
		Handler:                      http.HandlerFunc(s.serve),
		ReadHeaderTimeout:            headerTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeader,
		Protocols:                    protocols,
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(io.Discard, "", 0),
		ConnContext:                  bind,
	}
	go s.server.Serve(listener{s})
	return s
}

// Close ends all connections.
func (s *Server) Close() {
	s.stop.Do(func() { close(s.done) })
	s.server.Close()
}

type boundKey struct{}

func bind(ctx context.Context, c net.Conn) context.Context {
	ctx = framing.Context(ctx, c)
	if fc, ok := c.(*framing.Conn); ok {
		c = fc.Conn
	}
	if tc, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = tc.NetConn() // of TLS
	}
	if t, ok := c.(*gather.Transport); ok {
		c = t.NetConn()
	}
	f, _ := c.(*flow)
	return context.WithValue(ctx, boundKey{}, f)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	f, _ := r.Context().Value(boundKey{}).(*flow)
	if f == nil {
		panic(http.ErrAbortHandler)
	}
	if message, refused := framing.Refusal(r); refused {
		s.refused(f.dst, httpauthz.CodeBadRequest, message)
		denial(f.dst, f.secure, httpauthz.CodeBadRequest, message).Write(w, r)
		return
	}
	s.handler(w, r, f.dst, f.secure)
}

// denial words a refusal that comes before there is a request.
func denial(dst hostport.HostPort, secure bool, code, message string) httpauthz.Denial {
	scheme := "http://"
	if secure {
		scheme = "https://"
	}
	return httpauthz.Denial{
		Status: http.StatusBadRequest, Action: "tcp.connect", Resource: vocabulary.Resource(scheme + dst.String() + "/"),
		Reason: vocabulary.Reason{Code: code, Message: message},
	}
}

// Serve takes over a connection bound to dst and returns when it has ended.
func (s *Server) Serve(conn net.Conn, dst hostport.HostPort, secure bool) {
	f := &flow{Conn: conn, bytes: gather.Under(conn), dst: dst, secure: secure, closed: make(chan struct{})}
	defer f.Close()
	f.SetDeadline(time.Now().Add(helloTimeout))
	var out net.Conn = f
	if secure {
		tc, code, err := s.handshake(f)
		if err != nil {
			s.refused(dst, code, err.Error())
			return
		}
		out = tc
	}
	f.SetDeadline(time.Time{})
	if tc, ok := out.(*tls.Conn); !ok || tc.ConnectionState().NegotiatedProtocol != "h2" {
		if ok {
			out = gather.Over(tc, tc.NetConn().(*gather.Transport))
		}
		out = framing.New(out, func(message string) { s.refused(dst, "bad-request", message) })
	}
	select {
	case s.conns <- out:
	case <-s.done:
		return
	}
	<-f.closed
}

// handshake answers a ClientHello for the bound name.
func (s *Server) handshake(f *flow) (*tls.Conn, string, error) {
	if s.authority == nil {
		return nil, "protocol-refused", errors.New("this session has no CA")
	}
	hello := make([]byte, 5)
	n, err := io.ReadFull(f.Conn, hello)
	f.prefix = hello[:n]
	if !startsTLS(f.prefix) || err != nil {
		if err == nil && looksLikeHTTP(f.prefix) {
			text := denial(f.dst, false, "protocol-refused", "this port is granted for https only, and the request was plain http").Text()
			fmt.Fprintf(f.Conn, "HTTP/1.1 400 Bad Request\r\n%s: protocol-refused\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", httpauthz.DeniedHeader, len(text), text)
			// What is still unread would turn the end into a reset.
			f.Conn.SetReadDeadline(time.Now().Add(lingerTimeout))
			io.CopyN(io.Discard, f.Conn, maxHeader)
		}
		if err != nil {
			return nil, "protocol-refused", fmt.Errorf("no TLS handshake came within %v", helloTimeout)
		}
		return nil, "protocol-refused", errors.New("the connection does not speak TLS, and nothing else is granted on this port")
	}
	cfg, err := s.authority.config(f.dst.Host)
	if err != nil {
		return nil, "protocol-refused", err
	}
	mismatch := ""
	under := gather.Under(f)
	tc := tls.Server(under, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		h, err := hostport.ParseHost(hello.ServerName)
		if err != nil || h != f.dst.Host {
			mismatch = fmt.Sprintf("the connection was opened for %s and asks for %q by SNI", f.dst.Host, hello.ServerName)
			return &tls.Config{MinVersion: tls.VersionTLS12}, nil // no certificate: unrecognized_name
		}
		return cfg, nil
	}})
	ctx, cancel := context.WithTimeout(context.Background(), helloTimeout)
	defer cancel()
	if err := tc.HandshakeContext(ctx); err != nil {
		if mismatch != "" {
			return nil, "name-mismatch", errors.New(mismatch)
		}
		return nil, "tls-failed", fmt.Errorf("the client ended the TLS handshake (%v); does it trust the session's CA?", err)
	}
	return tc, "", nil
}

// startsTLS accepts a handshake record of TLS 1.0 to 1.3 (RFC 8446 section 5.1).
func startsTLS(b []byte) bool {
	return len(b) == 5 && b[0] == 0x16 && b[1] == 3 && b[2] <= 4
}

func looksLikeHTTP(b []byte) bool {
	for _, m := range []string{"GET ", "HEAD ", "POST ", "PUT ", "PATCH", "DELET", "OPTIO", "PRI *"} {
		if bytes.HasPrefix(b, []byte(m)[:min(len(m), len(b))]) && len(b) >= 4 {
			return true
		}
	}
	return false
}

// flow is a connection with what it is bound to.
type flow struct {
	net.Conn
	bytes  *gather.Transport // reads and writes Conn
	dst    hostport.HostPort
	secure bool
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
	return f.bytes.Read(b)
}

func (f *flow) Write(b []byte) (int, error) { return f.bytes.Write(b) }

// Abort resets the connection, where it can.
func (f *flow) Abort() { framing.Reset(f.Conn) }

// ReadNow implements gather.Waitless.
func (f *flow) ReadNow(b []byte) (int, error) {
	if len(f.prefix) > 0 {
		return f.Read(b)
	}
	return f.bytes.ReadNow(b)
}

func (f *flow) Close() error {
	err := f.Conn.Close()
	f.once.Do(func() { close(f.closed) })
	return err
}

type listener struct{ s *Server }

func (l listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.s.conns:
		return c, nil
	case <-l.s.done:
		return nil, net.ErrClosed
	}
}

func (l listener) Close() error   { return nil }
func (l listener) Addr() net.Addr { return &net.TCPAddr{} }
