package egress

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
)

// h2 is a connection of HTTP/2 whose frames are written by hand.
type h2 struct {
	io.Closer
	*http2.Framer
	next uint32
}

func (r *rig) h2(t testing.TB, name string) *h2 {
	t.Helper()
	c, err := r.secured(name+":443", name, "h2")
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, http2.ClientPreface)
	f := http2.NewFramer(c, c)
	f.AllowIllegalWrites = true
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.WriteSettings()
	return &h2{Closer: c, Framer: f, next: 1}
}

// ask sends one request and returns its status, or why there is none.
func (c *h2) ask(end bool, rest func(id uint32), pairs ...string) (status string, header map[string]string) {
	id := c.next
	c.next += 2
	c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block(pairs...), EndHeaders: true, EndStream: end})
	if rest != nil {
		rest(id)
	}
	for {
		f, err := c.ReadFrame()
		if err != nil {
			return "closed", nil
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				c.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			if f.StreamID == id && f.PseudoValue("status") != "" {
				header = map[string]string{}
				for _, h := range f.RegularFields() {
					header[h.Name] = h.Value
				}
				return f.PseudoValue("status"), header
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return "reset", nil
			}
		case *http2.GoAwayFrame:
			return "goaway", nil
		}
	}
}

// What HTTP/2 adds to the ways in which two servers read a request differently
// is refused: none of these reaches the upstream, and the connection's other
// requests are judged as ever.
func TestHTTP2Tricks(t *testing.T) {
	up := &arrivals{}
	r := startRelay(t, nil, serve(t, up, "readonly.test", "other.test"))
	get := func(path string, more ...string) []string {
		return append([]string{":method", "GET", ":scheme", "https", ":authority", "readonly.test", ":path", path}, more...)
	}
	post := func(more ...string) []string {
		return append([]string{":method", "POST", ":scheme", "https", ":authority", "other.test", ":path", "/docs/a"}, more...)
	}
	data := func(s string) func(*h2) func(uint32) {
		return func(c *h2) func(uint32) { return func(id uint32) { c.WriteData(id, true, []byte(s)) } }
	}
	for what, c := range map[string]struct {
		host  string
		pairs []string
		rest  func(*h2) func(uint32)
	}{
		"host differs": {"", get("/docs/a", "host", "evil.test"), nil}, "host twice": {"", get("/docs/a", "host", "readonly.test"), nil},
		"authority with userinfo": {"", []string{":method", "GET", ":scheme", "https", ":authority", "evil.test@readonly.test", ":path", "/docs/a"}, nil}, "no authority": {"", []string{":method", "GET", ":scheme", "https", ":path", "/docs/a"}, nil},
		"another authority": {"", []string{":method", "GET", ":scheme", "https", ":authority", "other.test", ":path", "/docs/a"}, nil}, "authority twice": {"", get("/docs/a", ":authority", "evil.test"), nil},
		"host instead": {"", []string{":method", "GET", ":scheme", "https", ":path", "/docs/a", "host", "evil.test"}, nil},
		"path twice":   {"", []string{":method", "GET", ":scheme", "https", ":authority", "readonly.test", ":path", "/docs/a", ":path", "/secret"}, nil},
		"method twice": {"", []string{":method", "GET", ":method", "DELETE", ":scheme", "https", ":authority", "readonly.test", ":path", "/docs/a"}, nil}, "unknown pseudo-header": {"", append([]string{":odd", "x"}, get("/docs/a")...), nil},
		"late pseudo-header": {"", get("/docs/a", "a", "b", ":path", "/secret"), nil}, "status": {"", append([]string{":status", "200"}, get("/docs/a")...), nil},
		"path without slash": {"", get("docs/a"), nil}, "absolute path": {"", get("https://readonly.test/docs/a"), nil}, "asterisk": {"", get("*"), nil}, "empty path": {"", get(""), nil}, "line end in the path": {"", get("/docs/a HTTP/1.1\r\nX: y"), nil}, "space in the path": {"", get("/docs/a b"), nil},
		"lower-case method": {"", []string{":method", "get", ":scheme", "https", ":authority", "readonly.test", ":path", "/docs/a"}, nil}, "method with space": {"", []string{":method", "GET /secret", ":scheme", "https", ":authority", "readonly.test", ":path", "/docs/a"}, nil},
		"TRACE": {"", []string{":method", "TRACE", ":scheme", "https", ":authority", "readonly.test", ":path", "/docs/a"}, nil}, "CONNECT": {"", []string{":method", "CONNECT", ":authority", "readonly.test:443"}, nil},
		"extended CONNECT": {"", []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "readonly.test", ":path", "/docs/a"}, nil},
		"upper case":       {"", get("/docs/a", "X-Upper", "x"), nil}, "space in a name": {"", get("/docs/a", "x y", "z"), nil}, "colon in a name": {"", get("/docs/a", "x:y", "z"), nil}, "empty name": {"", get("/docs/a", "", "z"), nil}, "line end in a value": {"", get("/docs/a", "x", "y\r\nhost: evil.test"), nil}, "NUL in a value": {"", get("/docs/a", "x", "y\x00z"), nil},
		"transfer-encoding": {"", get("/docs/a", "transfer-encoding", "chunked"), nil}, "connection": {"", get("/docs/a", "connection", "x-a"), nil}, "keep-alive": {"", get("/docs/a", "keep-alive", "1"), nil}, "upgrade": {"", get("/docs/a", "upgrade", "websocket", "sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-version", "13"), nil}, "proxy-connection": {"", get("/docs/a", "proxy-connection", "x"), nil}, "te": {"", get("/docs/a", "te", "gzip"), nil},
		"underscore": {"", get("/docs/a", "x_api_key", "1"), nil}, "override": {"", get("/docs/a", "x-http-method-override", "DELETE"), nil}, "rewrite": {"", get("/docs/a", "x-original-url", "/secret"), nil}, "announced trailers": {"", get("/docs/a", "trailer", "x"), nil},
		"a crumbled cookie": {"", get("/docs/a", "cookie", "a=b", "cookie", "session=attackers"), nil}, "a body of a GET": {"", get("/docs/a"), data("GET /secret")},
		"length too small": {"other.test", post("content-length", "2"), data("hello")}, "length too large": {"other.test", post("content-length", "10"), data("hello")}, "two lengths": {"other.test", post("content-length", "5", "content-length", "6"), data("hello")}, "negative length": {"other.test", post("content-length", "-1"), data("hello")},
		"trailers": {"other.test", post(), func(c *h2) func(uint32) {
			return func(id uint32) {
				c.WriteData(id, false, []byte("hello"))
				c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block("x-late", "1"), EndHeaders: true, EndStream: true})
			}
		}},
		"pseudo-header in trailers": {"other.test", post(), func(c *h2) func(uint32) {
			return func(id uint32) {
				c.WriteData(id, false, []byte("hello"))
				c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block(":path", "/secret"), EndHeaders: true, EndStream: true})
			}
		}},
	} {
		host := c.host
		if host == "" {
			host = "readonly.test"
		}
		conn := r.h2(t, host)
		var rest func(uint32)
		if c.rest != nil {
			rest = c.rest(conn)
		}
		status, _ := conn.ask(rest == nil, rest, c.pairs...)
		time.Sleep(5 * time.Millisecond)
		for _, s := range up.take() {
			// A body that breaks off may have begun to arrive; it never looks whole,
			// and trailers are cut off from what went before.
			broken := (what == "length too large" || what == "length too small") && strings.HasSuffix(s, brokenOff)
			if host == "other.test" && (strings.Contains(what, "trailers") || broken) && strings.HasPrefix(s, "POST /docs/a ") && !strings.Contains(s, "secret") {
				continue
			}
			t.Errorf("%s: status %s, the upstream saw %s", what, status, s)
		}
		if status == "200" && !strings.Contains(what, "trailers") {
			t.Errorf("%s: %s", what, status)
		}
		conn.Close()
	}
	conn := r.h2(t, "readonly.test")
	defer conn.Close()
	if status, _ := conn.ask(true, nil, get("/docs/a", "te", "trailers", "cookie", "")...); status != "200" {
		t.Errorf("control: %s", status)
	}
	up.take()
	// Paths, and many judged requests on one connection.
	for _, path := range []string{"/docs/../secret", "/docs/%2e%2e/secret", "/docs//secret", "/docs/./a", "/docs/a;x=../secret", "/docs/..%2fsecret", "/docs\\..\\secret", "/docs/%252e%252e/secret", "/docs/%00", "/docs/é", "/docs/a#b", "/secret", "/docs/a?_method=DELETE"} {
		if status, h := conn.ask(true, nil, get(path)...); status == "200" || status == "403" && h["bulkhead-denied"] == "" {
			t.Errorf("%q: %s %v", path, status, h)
		}
		if status, _ := conn.ask(true, nil, get("/docs/ok")...); status == "closed" || status == "goaway" {
			conn.Close()
			conn = r.h2(t, "readonly.test")
		}
	}
	for _, s := range up.take() {
		if s != `GET /docs/ok ""` {
			t.Errorf("the upstream saw %s", s)
		}
	}
}

// Who is refused while sending is let finish: a reset right behind the answer
// makes some clients (curl before 8, and git with it) forget the answer.
func TestRefusalWaitsForTheBody(t *testing.T) {
	r := startRelay(t, nil, serve(t, http.HandlerFunc(echo), "readonly.test"))
	c := r.h2(t, "readonly.test")
	defer c.Close()
	if status, _ := c.ask(false, nil, ":method", "POST", ":scheme", "https", ":authority", "readonly.test", ":path", "/docs/a"); status != "403" {
		t.Fatal(status)
	}
	var sent atomic.Bool
	time.AfterFunc(200*time.Millisecond, func() {
		sent.Store(true)
		c.WriteData(1, true, []byte("the rest"))
	})
	for {
		f, err := c.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := f.(*http2.RSTStreamFrame); ok {
			t.Fatalf("reset: %v", f.ErrCode)
		}
		if f, ok := f.(*http2.DataFrame); ok && f.StreamEnded() {
			if !sent.Load() {
				t.Error("the stream was closed, and so is to be reset, before the body had come")
			}
			return
		}
	}
}

// Floods of HTTP/2 end the connection that makes them, cost the gateway little
// and hinder nobody else.
func TestHTTP2Floods(t *testing.T) {
	var n atomic.Int32
	r := startRelay(t, nil, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { n.Add(1) }), "other.test"))
	good := []string{":method", "GET", ":scheme", "https", ":authority", "other.test", ":path", "/"}
	for what, flood := range map[string]func(c *h2) error{
		"rapid reset": func(c *h2) error {
			for id := uint32(1); id < 20001; id += 2 {
				c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block(good...), EndHeaders: true, EndStream: true})
				if err := c.WriteRSTStream(id, http2.ErrCodeCancel); err != nil {
					return err
				}
			}
			return nil
		},
		"CONTINUATION": func(c *h2) error {
			c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(good...), EndHeaders: false})
			for range 5000 {
				if err := c.WriteContinuation(1, false, block("x", strings.Repeat("y", 5000))); err != nil {
					return err
				}
			}
			return nil
		},
		"header bomb": func(c *h2) error {
			b := append(block(append(good, "bomb", strings.Repeat("y", 4000))...), bytes.Repeat([]byte{0xbe}, 12000)...)
			for id := uint32(1); id < 401; id += 2 {
				if err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b, EndHeaders: true, EndStream: true}); err != nil {
					return err
				}
			}
			return nil
		},
		"settings": func(c *h2) error {
			for range 20000 {
				if err := c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}); err != nil {
					return err
				}
			}
			return nil
		},
		"pings": func(c *h2) error {
			for range 20000 {
				if err := c.WritePing(false, [8]byte{}); err != nil {
					return err
				}
			}
			return nil
		},
		"streams": func(c *h2) error {
			for id := uint32(1); id < 4001; id += 2 {
				if err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block(good...), EndHeaders: true}); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		c := r.h2(t, "other.test")
		go io.Copy(io.Discard, readerOf(c))
		done := make(chan error, 1)
		go func() { done <- flood(c) }()
		start := time.Now()
		resp, _ := get(t, r.client(), "https://other.test/")
		if d := time.Since(start); resp.StatusCode != 200 || d > 3*time.Second {
			t.Errorf("beside %s: %s after %v", what, resp.Status, d)
		}
		select {
		case <-done:
		case <-time.After(15 * time.Second):
			t.Errorf("%s: still going", what)
		}
		c.Close()
	}
	if kb := memory(t, r.gw.PID()); kb > 128<<10 {
		t.Errorf("the gateway took %d MiB", kb>>10)
	} else {
		t.Logf("the gateway's peak: %d MiB, %d requests reached the upstream", kb>>10, n.Load())
	}
}

func readerOf(c *h2) io.Reader { return c.Closer.(io.Reader) }

// Bodies that are held to be judged share a budget: who finds none in time is
// told to come again, and the gateway's memory stays within bounds.
func TestHeldBodiesAreBounded(t *testing.T) {
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }), "api.anthropic.com")
	r := startRelay(t, func(c *Config) {
		c.Spec.Rules = append(c.Spec.Rules, anthropicRule())
		c.Limits.Held, c.Limits.HeldWait = 4<<20, 500*time.Millisecond
	}, up)
	body := `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"` + strings.Repeat("x", 3<<20) + `"}]}`
	send := func(b io.Reader, length int64) (*http.Response, error) {
		req, _ := http.NewRequest("POST", "https://api.anthropic.com/v1/messages", b)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Anthropic-Version", "2023-06-01")
		req.Header.Set("X-Api-Key", placeholder)
		if length > 0 {
			req.ContentLength = length
		}
		return r.client().Do(req)
	}
	// Two that hold and wait for the rest of their own bodies.
	var writers []*io.PipeWriter
	answers := make(chan string, 2)
	for range 2 {
		pr, pw := io.Pipe()
		writers = append(writers, pw)
		go func() {
			resp, err := send(pr, int64(len(body)))
			if err != nil {
				answers <- err.Error()
				return
			}
			resp.Body.Close()
			answers <- resp.Status
		}()
	}
	go io.WriteString(writers[0], body[:len(body)/2])
	time.Sleep(300 * time.Millisecond)
	go io.WriteString(writers[1], body[:len(body)/2])
	time.Sleep(300 * time.Millisecond)
	resp, err := send(strings.NewReader(body), 0)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || resp.Header.Get("Bulkhead-Denied") != "request-limit" || resp.Header.Get("X-Should-Retry") == "false" {
		t.Errorf("%s %v %s", resp.Status, resp.Header, b)
	}
	for _, w := range writers {
		w.CloseWithError(fmt.Errorf("gone"))
	}
	<-answers
	<-answers
	// What was held is free again.
	for i := 0; ; i++ {
		resp, err := send(strings.NewReader(`{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"`+strings.Repeat("x", 900<<10)+`"}]}`), 0)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == 200 {
			return
		}
		if time.Sleep(100 * time.Millisecond); i == 30 {
			t.Fatalf("afterwards: %s %v", resp.Status, resp.Header)
		}
	}
}

func anthropicRule() capability.Rule {
	return capability.Rule{Pos: line(9), Service: "anthropic", Operations: []string{"messages"}, Credential: "key"}
}
