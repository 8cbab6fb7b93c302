package egress

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// hostile is an upstream whose every answer is written by hand.
type hostile struct {
	mu     sync.Mutex
	answer func(net.Conn, *http2.Framer, uint32) // nil framer: HTTP/1.1
}

func (h *hostile) set(f func(net.Conn, *http2.Framer, uint32)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer = f
}

func (h *hostile) get() func(net.Conn, *http2.Framer, uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.answer
}

func (h *hostile) listen(t testing.TB, config *tls.Config) string {
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
				c.SetDeadline(time.Now().Add(20 * time.Second))
				if config == nil {
					for br := bufio.NewReader(c); ; {
						req, err := http.ReadRequest(br)
						if err != nil {
							return
						}
						io.Copy(io.Discard, req.Body)
						h.get()(c, nil, 0)
						if req.URL.Path != "/keep" {
							return
						}
					}
				}
				tc := tls.Server(c, config)
				defer tc.Close()
				h.http2(tc)
			}()
		}
	}()
	return l.Addr().String()
}

func (h *hostile) http2(c net.Conn) {
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(c, c)
	f.WriteSettings()
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return
		}
		switch fr := fr.(type) {
		case *http2.SettingsFrame:
			if !fr.IsAck() {
				f.WriteSettingsAck()
			}
		case *http2.HeadersFrame:
			h.get()(c, f, fr.StreamID)
		}
	}
}

// block encodes headers, also ones that no proper library would.
func block(pairs ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i+1 < len(pairs); i += 2 {
		e.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return b.Bytes()
}

// outcome of one hostile answer as an ordinary client sees it.
type outcome struct {
	status  int
	body    string
	err     error
	took    time.Duration
	refused []string // codes of the events that came of it
}

func (r *rig) suffer(url string) outcome {
	before := len(r.rec.denied())
	start := time.Now()
	c := r.client()
	defer c.CloseIdleConnections()
	o := outcome{}
	resp, err := c.Get(url)
	if o.err = err; err == nil {
		o.status = resp.StatusCode
		var b []byte
		b, o.err = io.ReadAll(resp.Body)
		o.body = string(b)
		resp.Body.Close()
	}
	o.took = time.Since(start)
	for i := 0; len(r.rec.denied()) == before && i < 20; i++ {
		time.Sleep(10 * time.Millisecond)
	}
	for _, e := range r.rec.denied()[before:] {
		o.refused = append(o.refused, e.Reason.Code)
	}
	return o
}

func (r *recorder) denied() (out []struct{ Reason vocabulary.Reason }) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Verdict == vocabulary.Deny {
			out = append(out, struct{ Reason vocabulary.Reason }{e.Reason})
		}
	}
	return out
}

func (o outcome) check(t *testing.T, what string, wants string) {
	t.Helper()
	if o.took > 8*time.Second {
		t.Errorf("%s: took %v", what, o.took)
	}
	switch wants {
	case "502":
		if o.status != 502 || o.err != nil || !strings.HasPrefix(o.body, "bulkhead: ") || len(o.refused) != 1 {
			t.Errorf("%s: %d %.200q %v, events %q; want 502 and one event", what, o.status, o.body, o.err, o.refused)
		}
	case "broken":
		if o.status == 502 || o.err == nil || len(o.refused) != 1 {
			t.Errorf("%s: %d %.200q %v, events %q; want a broken answer and one event", what, o.status, o.body, o.err, o.refused)
		}
	default:
		if o.err != nil || o.body != wants || len(o.refused) != 0 {
			t.Errorf("%s: %d %.200q %v, events %q; want %q", what, o.status, o.body, o.err, o.refused, wants)
		}
	}
}

const ok = "HTTP/1.1 200 OK\r\n"

// Malformed answers over HTTP/1.1 end in 502, or break off if their beginning was
// fine; each leaves one event, none looks whole, none is taken for two.
func TestHostileHTTP1(t *testing.T) {
	h := &hostile{}
	r := startRelay(t, func(c *Config) { c.Limits.Quiet = 1500 * time.Millisecond }, &upstream{addr: h.listen(t, nil), names: []string{"plain.test"}})
	h.set(func(conn net.Conn, _ *http2.Framer, _ uint32) { io.WriteString(conn, ok+"Content-Length: 2\r\n\r\nok") })
	r.suffer("http://plain.test/").check(t, "before", "ok")
	before := descriptors(r.gw.PID())
	long := strings.Repeat("a", 300<<10)
	for _, c := range []struct{ what, wants, answer string }{
		{"nothing", "502", ""}, {"garbage", "502", "garbage\r\n\r\n"}, {"binary", "502", "\x00\x01\x02\x03\r\n\r\n"}, {"HTTP/2 preface", "502", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"}, {"TLS alert", "502", "\x15\x03\x01\x00\x02\x02\x28"},
		{"a request", "502", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"}, {"another version", "502", "HTTP/3.7 200 OK\r\n\r\n"}, {"HTTP/0.9", "502", "<html>hello</html>"}, {"no version", "502", "200 OK\r\n\r\n"},
		{"status of letters", "502", "HTTP/1.1 abc\r\n\r\n"}, {"status 99", "502", "HTTP/1.1 99 x\r\n\r\n"}, {"status 1000", "502", "HTTP/1.1 1000 x\r\n\r\n"}, {"status -1", "502", "HTTP/1.1 -1 x\r\n\r\n"}, {"status 000", "502", "HTTP/1.1 000 x\r\n\r\n"}, {"status 2", "502", "HTTP/1.1 2 x\r\n\r\n"},
		{"no header name", "502", ok + ": x\r\n\r\n"}, {"space in a name", "502", ok + "A b: x\r\n\r\n"}, {"NUL in a value", "502", ok + "A: x\x00y\r\n\r\n"}, {"no colon", "502", ok + "Content-Length\r\n\r\n"}, {"folded first", "502", ok + " A: b\r\n\r\n"},
		{"long header", "502", ok + "X: " + long + "\r\n\r\n"}, {"many headers", "502", ok + strings.Repeat("X: "+strings.Repeat("b", 100)+"\r\n", 5000) + "\r\n"}, {"long status line", "502", "HTTP/1.1 200 " + long + "\r\n\r\n"}, {"head without end", "502", ok + "A: b\r\n"},
		{"two lengths", "502", ok + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"}, {"negative length", "502", ok + "Content-Length: -1\r\n\r\n"}, {"length with sign", "502", ok + "Content-Length: +2\r\n\r\nxx"}, {"length in hex", "502", ok + "Content-Length: 0x2\r\n\r\nxx"}, {"huge length", "502", ok + "Content-Length: 99999999999999999999\r\n\r\n"}, {"list of lengths", "502", ok + "Content-Length: 2, 3\r\n\r\nxx"},
		{"unknown coding", "502", ok + "Transfer-Encoding: gzip\r\n\r\nx"}, {"two codings", "502", ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"}, {"coding twice", "502", ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"101", "502", "HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nTUNNEL"}, {"bare 101", "502", "HTTP/1.1 101 Switching\r\n\r\nTUNNEL"}, {"endless 100s", "502", strings.Repeat("HTTP/1.1 100 Continue\r\nX: "+strings.Repeat("c", 1000)+"\r\n\r\n", 1000)},
		{"short body", "broken", ok + "Content-Length: 10\r\n\r\nshort"}, {"no body", "broken", ok + "Content-Length: 10\r\n\r\n"}, {"chunk size of letters", "broken", ok + "Transfer-Encoding: chunked\r\n\r\nzz\r\n"}, {"cut chunk", "broken", ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhel"}, {"no last chunk", "broken", ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"},
		{"chunk without CRLF", "broken", ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n"}, {"huge chunk size", "broken", ok + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"}, {"negative chunk", "broken", ok + "Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n"}, {"endless chunk line", "broken", ok + "Transfer-Encoding: chunked\r\n\r\n5;" + long + "\r\nhello\r\n0\r\n\r\n"}, {"bad trailer", "broken", ok + "Transfer-Encoding: chunked\r\n\r\n0\r\nA b: c\r\n\r\n"},
		// Both: RFC 9112 has the coding win, and what follows is nobody's answer.
		{"length and coding", "hello", ok + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"},
		{"two answers", "hello", ok + "Content-Length: 5\r\n\r\nhello" + ok + "Content-Length: 6\r\n\r\nSECOND"}, {"body of a 204", "", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello"}, {"body of a 304", "", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello"},
	} {
		h.set(func(conn net.Conn, _ *http2.Framer, _ uint32) { io.WriteString(conn, c.answer) })
		o := r.suffer("http://plain.test/")
		o.check(t, c.what, c.wants)
		if strings.Contains(o.body, "TUNNEL") || strings.Contains(o.body, "SECOND") {
			t.Errorf("%s: %q", c.what, o.body)
		}
	}
	// Response splitting: what looks like headers in a value's line stays apart.
	h.set(func(conn net.Conn, _ *http2.Framer, _ uint32) {
		io.WriteString(conn, ok+"X: a\rSet-Cookie: forged=1\r\nContent-Length: 2\r\n\r\nok")
	})
	if o := r.suffer("http://plain.test/"); o.status == 200 {
		if resp, _ := get(t, r.client(), "http://plain.test/"); resp.Header.Get("Set-Cookie") != "" {
			t.Errorf("a header was forged: %v", resp.Header)
		}
	}
	// Endless: a head that goes on and on, a silence before and within.
	stop := make(chan struct{})
	for what, f := range map[string]func(net.Conn){
		"silence": func(net.Conn) { <-stop },
		"a slow head": func(c net.Conn) {
			io.WriteString(c, ok)
			for {
				if _, err := io.WriteString(c, "X: "+strings.Repeat("y", 4000)+"\r\n"); err != nil {
					return
				}
			}
		},
	} {
		h.set(func(conn net.Conn, _ *http2.Framer, _ uint32) { f(conn) })
		if o := r.suffer("http://plain.test/"); o.status != 502 && o.status != 504 || o.took > 8*time.Second || len(o.refused) != 1 {
			t.Errorf("%s: %+v", what, o)
		}
	}
	h.set(func(conn net.Conn, _ *http2.Framer, _ uint32) {
		io.WriteString(conn, ok+"Content-Length: 10\r\n\r\nhal")
		<-stop
	})
	r.suffer("http://plain.test/").check(t, "silence within", "broken")
	close(stop)
	// An answer that nobody asked for does not become the next one's.
	h.set(func(conn net.Conn, _ *http2.Framer, _ uint32) {
		io.WriteString(conn, ok+"Content-Length: 5\r\n\r\nhello"+ok+"Content-Length: 6\r\n\r\nSECOND")
	})
	for range 4 {
		r.suffer("http://plain.test/keep").check(t, "an answer ahead", "hello")
	}
	h.set(func(conn net.Conn, _ *http2.Framer, _ uint32) { io.WriteString(conn, ok+"Content-Length: 2\r\n\r\nok") })
	r.suffer("http://plain.test/").check(t, "afterwards", "ok")
	r.returnsTo(t, before)
}

// The same over HTTP/2.
func TestHostileHTTP2(t *testing.T) {
	h := &hostile{}
	up := &upstream{ca: newCA(t, "upstream CA"), names: []string{"other.test"}}
	up.addr = h.listen(t, &tls.Config{Certificates: []tls.Certificate{up.ca.leaf(t, "other.test")}, NextProtos: []string{"h2"}})
	r := startRelay(t, func(c *Config) { c.Limits.Quiet = 1500 * time.Millisecond }, up)
	headers := func(f *http2.Framer, id uint32, end bool, pairs ...string) {
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block(pairs...), EndHeaders: true, EndStream: end})
	}
	big := strings.Repeat("h", 5000)
	fine := func(_ net.Conn, f *http2.Framer, id uint32) {
		headers(f, id, false, ":status", "200")
		f.WriteData(id, true, []byte("ok"))
	}
	h.set(fine)
	r.suffer("https://other.test/").check(t, "before", "ok")
	before := descriptors(r.gw.PID())
	for _, c := range []struct {
		what, wants string
		answer      func(c net.Conn, f *http2.Framer, id uint32)
	}{
		{"closed", "502", func(c net.Conn, _ *http2.Framer, _ uint32) { c.Close() }},
		{"garbage", "502", func(c net.Conn, _ *http2.Framer, _ uint32) {
			io.WriteString(c, strings.Repeat("garbage!", 100))
			c.Close()
		}},
		{"HTTP/1.1", "502", func(c net.Conn, _ *http2.Framer, _ uint32) {
			io.WriteString(c, ok+"Content-Length: 2\r\n\r\nok")
			c.Close()
		}},
		{"reset", "502", func(_ net.Conn, f *http2.Framer, id uint32) { f.WriteRSTStream(id, http2.ErrCodeInternal) }},
		{"GOAWAY", "502", func(c net.Conn, f *http2.Framer, id uint32) {
			f.WriteGoAway(id, http2.ErrCodeEnhanceYourCalm, []byte("go"))
			c.Close()
		}},
		{"no status", "502", func(_ net.Conn, f *http2.Framer, id uint32) { headers(f, id, true, "a", "b") }},
		{"two statuses", "502", func(_ net.Conn, f *http2.Framer, id uint32) { headers(f, id, true, ":status", "200", ":status", "201") }},
		{"status of letters", "502", func(_ net.Conn, f *http2.Framer, id uint32) { headers(f, id, true, ":status", "abc") }},
		{"status 101", "502", func(_ net.Conn, f *http2.Framer, id uint32) { headers(f, id, true, ":status", "101") }},
		{"status 99", "502", func(_ net.Conn, f *http2.Framer, id uint32) { headers(f, id, true, ":status", "99") }},
		{"late pseudo-header", "502", func(_ net.Conn, f *http2.Framer, id uint32) { headers(f, id, true, "a", "b", ":status", "200") }},
		{"unknown pseudo-header", "502", func(_ net.Conn, f *http2.Framer, id uint32) { headers(f, id, true, ":status", "200", ":odd", "x") }},
		{"a request's pseudo-header", "502", func(_ net.Conn, f *http2.Framer, id uint32) { headers(f, id, true, ":status", "200", ":path", "/") }},
		{"upper case", "502", func(_ net.Conn, f *http2.Framer, id uint32) { headers(f, id, true, ":status", "200", "X-Upper", "x") }},
		{"line end in a value", "502", func(_ net.Conn, f *http2.Framer, id uint32) {
			headers(f, id, true, ":status", "200", "x", "a\r\nset-cookie: forged=1")
		}},
		{"broken HPACK", "502", func(_ net.Conn, f *http2.Framer, id uint32) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		}},
		{"huge table", "502", func(_ net.Conn, f *http2.Framer, id uint32) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x3f, 0xff, 0xff, 0xff, 0x07, 0x88}, EndHeaders: true})
		}},
		{"header bomb", "502", func(_ net.Conn, f *http2.Framer, id uint32) {
			b := block(":status", "200", "bomb", big)
			b = append(b, bytes.Repeat([]byte{0xbe}, 16000)...) // the dynamic table's first, again and again
			f.AllowIllegalWrites = true
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b[:16000], EndHeaders: false})
			f.WriteContinuation(id, true, b[16000:])
		}},
		{"CONTINUATION flood", "502", func(_ net.Conn, f *http2.Framer, id uint32) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block(":status", "200"), EndHeaders: false})
			for range 5000 {
				if f.WriteContinuation(id, false, block("x", big)) != nil {
					return
				}
			}
		}},
		{"empty CONTINUATIONs", "502", func(c net.Conn, f *http2.Framer, id uint32) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block(":status", "200"), EndHeaders: false})
			for range 200000 {
				if f.WriteContinuation(id, false, nil) != nil {
					return
				}
			}
			c.Close()
		}},
		{"DATA before HEADERS", "502", func(_ net.Conn, f *http2.Framer, id uint32) { f.WriteData(id, true, []byte("early")) }},
		{"another frame within headers", "502", func(_ net.Conn, f *http2.Framer, id uint32) {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block(":status", "200"), EndHeaders: false})
			f.WritePing(false, [8]byte{})
		}},
		{"push", "502", func(_ net.Conn, f *http2.Framer, id uint32) {
			f.WritePushPromise(http2.PushPromiseParam{StreamID: id, PromiseID: 2, BlockFragment: block(":method", "GET", ":path", "/", ":scheme", "https", ":authority", "evil.test"), EndHeaders: true})
		}},
		{"huge frame", "502", func(c net.Conn, _ *http2.Framer, id uint32) {
			c.Write([]byte{0xff, 0xff, 0xff, 0, 0, byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)})
			c.Write(make([]byte, 1<<20))
		}},
		{"window overflow", "502", func(_ net.Conn, f *http2.Framer, id uint32) {
			f.WriteWindowUpdate(0, 1<<31-1)
			f.WriteWindowUpdate(0, 1<<31-1)
		}},
		{"bad settings", "502", func(_ net.Conn, f *http2.Framer, _ uint32) {
			f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
		}},
		{"settings of odd length", "502", func(c net.Conn, _ *http2.Framer, _ uint32) { c.Write([]byte{0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5}) }},
		{"silence", "504", func(net.Conn, *http2.Framer, uint32) {}},
		{"1xx flood", "502", func(_ net.Conn, f *http2.Framer, id uint32) {
			for range 2000 {
				headers(f, id, false, ":status", "103", "x", big)
			}
		}},
		{"short body", "broken", func(_ net.Conn, f *http2.Framer, id uint32) {
			headers(f, id, false, ":status", "200", "content-length", "10")
			f.WriteData(id, true, []byte("short"))
		}},
		{"long body", "broken", func(_ net.Conn, f *http2.Framer, id uint32) {
			headers(f, id, false, ":status", "200", "content-length", "2")
			f.WriteData(id, true, []byte("much longer"))
		}},
		{"reset within", "broken", func(_ net.Conn, f *http2.Framer, id uint32) {
			headers(f, id, false, ":status", "200")
			f.WriteData(id, false, []byte("half"))
			f.WriteRSTStream(id, http2.ErrCodeCancel)
		}},
		{"closed within", "broken", func(c net.Conn, f *http2.Framer, id uint32) {
			headers(f, id, false, ":status", "200")
			f.WriteData(id, false, []byte("half"))
			c.Close()
		}},
		{"silence within", "broken", func(_ net.Conn, f *http2.Framer, id uint32) {
			headers(f, id, false, ":status", "200")
			f.WriteData(id, false, []byte("half"))
		}},
		{"flow control ignored", "broken", func(_ net.Conn, f *http2.Framer, id uint32) {
			headers(f, id, false, ":status", "200")
			for range 3000 {
				if f.WriteData(id, false, make([]byte, 16000)) != nil {
					return
				}
			}
		}},
		{"pseudo-header in trailers", "broken", func(_ net.Conn, f *http2.Framer, id uint32) {
			headers(f, id, false, ":status", "200")
			f.WriteData(id, false, []byte("x"))
			headers(f, id, true, ":status", "500")
		}},
		{"padding beyond the frame", "broken", func(c net.Conn, f *http2.Framer, id uint32) {
			headers(f, id, false, ":status", "200")
			b := []byte{0, 0, 2, 0, 8}
			c.Write(append(binary.BigEndian.AppendUint32(b, id), 200, 'x'))
		}},
		{"ping flood", "fine", func(_ net.Conn, f *http2.Framer, id uint32) {
			for range 1000 {
				if f.WritePing(false, [8]byte{}) != nil {
					return
				}
			}
			headers(f, id, false, ":status", "200")
			f.WriteData(id, true, []byte("fine"))
		}},
	} {
		h.set(c.answer)
		o := r.suffer("https://other.test/")
		if c.wants == "504" {
			if o.status != 504 || o.took > 8*time.Second || len(o.refused) != 1 {
				t.Errorf("%s: %+v", c.what, o)
			}
			continue
		}
		if c.wants == "broken" && o.status == 502 && o.err == nil && len(o.refused) == 1 {
			continue // seen before the head was passed on
		}
		o.check(t, c.what, c.wants)
	}
	h.set(fine)
	r.suffer("https://other.test/").check(t, "afterwards", "ok")
	r.returnsTo(t, before)
	if kb := memory(t, r.gw.PID()); kb > 96<<10 {
		t.Errorf("the gateway took %d MiB", kb>>10)
	} else {
		t.Logf("the gateway's peak: %d MiB", kb>>10)
	}
}
