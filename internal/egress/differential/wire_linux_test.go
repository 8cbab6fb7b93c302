package differential

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// drain bounds the wait for a server to end a connection that we have ended.
const drain = 5 * time.Second

// tap is what the gateway takes for the upstream of one lane: every byte that
// comes goes to both servers and into a record; one of the two answers.
type tap struct {
	s       *servers
	lane    int
	plain   net.Listener // HTTP/1.1
	secured net.Listener // TLS, with HTTP/1.1 or HTTP/2
	cert    tls.Certificate

	mu       sync.Mutex
	h2       bool   // offered by the next connections
	answerer string // "nginx" or "node"
	conns    []*tapped
	open     sync.WaitGroup
	marks    sync.Map // by address: connections that only say that those before were accepted
}

// tapped is one connection to the upstream.
type tapped struct {
	h2   bool
	mu   sync.Mutex
	sent []byte
}

func newTap(s *servers, lane int, cert tls.Certificate) (*tap, error) {
	t := &tap{s: s, lane: lane, cert: cert}
	for _, l := range []*net.Listener{&t.plain, &t.secured} {
		var err error
		if *l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, err
		}
		go func() {
			for {
				c, err := (*l).Accept()
				if err != nil {
					return
				}
				if mark, ok := t.marks.LoadAndDelete(c.RemoteAddr().String()); ok {
					c.Close()
					close(mark.(chan struct{}))
					continue
				}
				t.open.Add(1)
				go func() {
					defer t.open.Done()
					defer c.Close()
					t.serve(c, *l == t.secured)
				}()
			}
		}()
	}
	return t, nil
}

// reset prepares the next case.
func (t *tap) reset(h2 bool, answerer string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.h2, t.answerer, t.conns = h2, answerer, nil
}

func (t *tap) serve(c net.Conn, secure bool) {
	t.mu.Lock()
	answerer, conn := t.answerer, &tapped{}
	protos := []string{"http/1.1"}
	if t.h2 {
		protos = []string{"h2"}
	}
	t.mu.Unlock()
	if secure {
		tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{t.cert}, NextProtos: protos, SessionTicketsDisabled: true})
		if tc.Handshake() != nil {
			return
		}
		conn.h2 = tc.ConnectionState().NegotiatedProtocol == "h2"
		c = tc
	}
	t.mu.Lock()
	t.conns = append(t.conns, conn)
	t.mu.Unlock()
	first, second := t.s.socket("nginx", t.lane, conn.h2), t.s.socket("lane", t.lane, conn.h2)
	if answerer == "node" {
		first, second = second, first
	}
	var out [2]net.Conn
	var ended [2]chan struct{}
	said := [2]*answers{{h2: conn.h2}, {h2: conn.h2}}
	for i, path := range []string{first, second} {
		up, err := net.Dial("unix", path)
		if err != nil {
			panic(err) // the servers are ours
		}
		defer up.Close()
		out[i], ended[i] = up, make(chan struct{})
		go func() {
			defer close(ended[i])
			if i > 0 {
				io.Copy(said[i], up)
				return
			}
			io.Copy(io.MultiWriter(said[i], c), up)
			if half, ok := c.(interface{ CloseWrite() error }); ok {
				half.CloseWrite()
			}
		}()
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := c.Read(buf)
		conn.mu.Lock()
		conn.sent = append(conn.sent, buf[:n]...)
		conn.mu.Unlock()
		for _, up := range out {
			up.SetWriteDeadline(time.Now().Add(drain))
			up.Write(buf[:n]) // who has ended the connection reads no more
		}
		if err != nil {
			break
		}
	}
	// The other one may be behind: a server gives up what it has not answered when
	// its client goes.
	for deadline := time.Now().Add(behind); said[1].count() < said[0].count() && time.Now().Before(deadline); {
		select {
		case <-ended[1]:
			deadline = time.Time{}
		case <-time.After(settle / 4):
		}
	}
	for i, up := range out {
		up.(*net.UnixConn).CloseWrite()
		up.SetReadDeadline(time.Now().Add(drain))
		<-ended[i]
	}
}

// answers are the bytes that a server has sent.
type answers struct {
	h2 bool
	mu sync.Mutex
	b  []byte
}

func (a *answers) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.b = append(a.b, p...)
	return len(p), nil
}

// count says how many answers have begun.
func (a *answers) count() (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.h2 {
		return bytes.Count(a.b, []byte("HTTP/1.1 "))
	}
	for b := a.b; len(b) >= 9; {
		if http2.FrameType(b[3]) == http2.FrameHeaders {
			n++
		}
		b = b[min(len(b), 9+int(b[0])<<16+int(b[1])<<8+int(b[2])):]
	}
	return n
}

// finish waits until all connections have ended, at both ends, and returns them.
// A connection whose stream was broken off is idle only a little later.
func (t *tap) finish(closeIdle func()) (conns []*tapped, ended bool) {
	closeIdle()
	for _, l := range []net.Listener{t.plain, t.secured} {
		t.mark(l)
	}
	all := make(chan struct{})
	go func() {
		t.open.Wait()
		close(all)
	}()
	for range 3000 {
		select {
		case <-all:
			t.mu.Lock()
			defer t.mu.Unlock()
			return slices.Clone(t.conns), true
		case <-time.After(10 * time.Millisecond):
			closeIdle()
		}
	}
	return nil, false
}

// mark returns when all connections that were made before have been accepted.
func (t *tap) mark(l net.Listener) {
	accepted := make(chan struct{})
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		// Bound before it connects, so that its address is known in time.
		var err error
		raw.Control(func(fd uintptr) {
			if err = syscall.Bind(int(fd), &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
				return
			}
			var at syscall.Sockaddr
			if at, err = syscall.Getsockname(int(fd)); err == nil {
				t.marks.Store(fmt.Sprintf("127.0.0.1:%d", at.(*syscall.SockaddrInet4).Port), accepted)
			}
		})
		return err
	}}
	c, err := d.Dial("tcp4", l.Addr().String())
	if err != nil {
		panic(err) // the listener is ours
	}
	defer c.Close()
	<-accepted
}

// readWire reads what was sent with Go's parsers. rest says what is left over
// that is no request.
func readWire(conns []*tapped) (out []reading, rest []string) {
	for i, c := range conns {
		read, r, why := readHTTP1, []reading(nil), ""
		if c.h2 {
			read = readHTTP2
		}
		if r, why = read(c.sent, i); why != "" {
			rest = append(rest, why)
		}
		out = append(out, r...)
	}
	return out, rest
}

func readHTTP1(b []byte, conn int) (out []reading, rest string) {
	br := bufio.NewReader(bytes.NewReader(b))
	for {
		if _, err := br.Peek(1); err != nil {
			return out, ""
		}
		req, err := http.ReadRequest(br)
		if err != nil {
			return out, fmt.Sprintf("no request on the wire: %v in %q", err, b)
		}
		hash := sha256.New()
		n, err := io.Copy(hash, req.Body)
		r := reading{
			conn: conn, nth: len(out) + 1, proto: "1.1", method: req.Method, target: req.RequestURI, host: req.Host, path: req.URL.Path,
			length: int(n), hash: hex.EncodeToString(hash.Sum(nil)), whole: err == nil,
		}
		for name, values := range req.Header {
			for _, v := range values {
				r.header = append(r.header, [2]string{name, v})
			}
		}
		for name := range req.Trailer {
			r.trailers = append(r.trailers, name)
		}
		if out = append(out, r); err != nil {
			return out, ""
		}
	}
}

func readHTTP2(b []byte, conn int) (out []reading, rest string) {
	b, ok := bytes.CutPrefix(b, []byte(http2.ClientPreface))
	if strings.HasPrefix(http2.ClientPreface, string(b)) {
		return nil, "" // opened, and not used
	}
	if !ok {
		return nil, fmt.Sprintf("no preface in %q", b)
	}
	f := http2.NewFramer(io.Discard, bytes.NewReader(b))
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	streams, bodies := map[uint32]int{}, map[uint32][]byte{}
	end := func(id uint32) {
		r := &out[streams[id]]
		sum := sha256.Sum256(bodies[id])
		r.whole, r.length, r.hash = true, len(bodies[id]), hex.EncodeToString(sum[:])
	}
	for {
		frame, err := f.ReadFrame()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return out, ""
		}
		if err != nil {
			return out, fmt.Sprintf("HTTP/2 on the wire: %v (%v)", err, f.ErrorDetail())
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			if i, ok := streams[frame.StreamID]; ok {
				for _, h := range frame.Fields {
					out[i].trailers = append(out[i].trailers, h.Name)
				}
			} else {
				streams[frame.StreamID] = len(out)
				r := reading{conn: conn, nth: len(out) + 1, proto: "2", method: frame.PseudoValue("method"), target: frame.PseudoValue("path"), host: frame.PseudoValue("authority")}
				for _, h := range frame.RegularFields() {
					r.header = append(r.header, [2]string{h.Name, h.Value})
				}
				out = append(out, r)
			}
			if frame.StreamEnded() {
				end(frame.StreamID)
			}
		case *http2.DataFrame:
			bodies[frame.StreamID] = append(bodies[frame.StreamID], frame.Data()...)
			if frame.StreamEnded() {
				end(frame.StreamID)
			}
		}
	}
}
