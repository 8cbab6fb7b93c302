package dial

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// scripted is an upstream that answers each request of a connection by the next
// line of its script, and counts.
type scripted struct {
	l        net.Listener
	conns    atomic.Int32
	requests atomic.Int32
	mu       sync.Mutex
	open     []net.Conn
}

// serveScript runs answer for each request; false ends the connection.
func serveScript(t testing.TB, answer func(n int32, r *http.Request, c net.Conn) bool) *scripted {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{l: l}
	t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range s.open {
			c.Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			s.mu.Lock()
			s.open = append(s.open, c)
			s.mu.Unlock()
			go func() {
				defer c.Close()
				for in := bufio.NewReader(c); ; {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					io.Copy(io.Discard, r.Body)
					if !answer(s.requests.Add(1), r, c) {
						return
					}
				}
			}()
		}
	}()
	return s
}

func (s *scripted) exchanger() *exchanger {
	return &exchanger{dial: func(ctx context.Context, addr string, _ bool) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}}
}

func (s *scripted) target() target { return target{addr: s.l.Addr().String()} }

func smallOne(t *testing.T, ctx context.Context, method, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, "http://up.test/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }
	}
	return r
}

func ok(c net.Conn, body string) bool {
	fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	return true
}

func ask(t *testing.T, x *exchanger, s *scripted, method, body string) (string, error) {
	t.Helper()
	resp, err := x.roundTrip(smallOne(t, context.Background(), method, body), s.target())
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return fmt.Sprint(resp.StatusCode, " ", string(b)), err
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	s := serveScript(t, func(n int32, r *http.Request, c net.Conn) bool { return ok(c, r.Method) })
	x := s.exchanger()
	for _, method := range []string{"GET", "POST", "DELETE", "GET"} {
		if got, err := ask(t, x, s, method, map[string]string{"POST": "data"}[method]); err != nil || got != "200 "+method {
			t.Errorf("%s: %q, %v", method, got, err)
		}
	}
	if n := s.conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	x.closeIdle()
	if _, err := ask(t, x, s, "GET", ""); err != nil || s.conns.Load() != 2 {
		t.Errorf("after closeIdle: %v, %d connections", err, s.conns.Load())
	}
}

// What follows an answer, or an answer that is not read to its end, must never
// be taken for the next one's.
func TestConnectionsAreGivenUp(t *testing.T) {
	cases := map[string]struct {
		answer string
		read   int // bytes of the body
	}{
		"more than its length":      {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 99},
		"a body to HEAD":            {"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 99},
		"not read to the end":       {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + strings.Repeat("x", 100), 10},
		"the rest is still to come": {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + strings.Repeat("x", 10), 10},
		"Connection: close":         {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 99},
		"HTTP/1.0":                  {"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 99},
		"bytes after the last":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nevil", 99},
		"an upgrade nobody wanted":  {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: evil\r\nConnection: Upgrade\r\n\r\nevil", 99},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := serveScript(t, func(n int32, r *http.Request, conn net.Conn) bool {
				if n == 1 {
					io.WriteString(conn, c.answer)
					return true
				}
				return ok(conn, "second")
			})
			x := s.exchanger()
			method := "GET"
			if strings.Contains(name, "HEAD") {
				method = "HEAD"
			}
			resp, err := x.roundTrip(smallOne(t, context.Background(), method, ""), s.target())
			if err != nil {
				t.Fatal(err)
			}
			io.CopyN(io.Discard, resp.Body, int64(c.read))
			resp.Body.Close()
			time.Sleep(20 * time.Millisecond) // all of the answer has arrived
			if got, err := ask(t, x, s, "POST", "b"); err != nil || got != "200 second" || s.conns.Load() != 2 {
				t.Errorf("next: %q, %v over %d connections", got, err, s.conns.Load())
			}
		})
	}
}

// An idle connection that the upstream closed is noticed before a request is
// risked on it.
func TestClosedIdleConnection(t *testing.T) {
	s := serveScript(t, func(n int32, r *http.Request, c net.Conn) bool { ok(c, "x"); return n > 1 })
	x := s.exchanger()
	ask(t, x, s, "GET", "")
	time.Sleep(50 * time.Millisecond)
	if got, err := ask(t, x, s, "POST", "b"); err != nil || got != "200 x" || s.requests.Load() != 2 {
		t.Errorf("%q, %v, %d requests", got, err, s.requests.Load())
	}
	s.mu.Lock()
	for _, c := range s.open {
		c.Close()
	}
	s.mu.Unlock()
	time.Sleep(50 * time.Millisecond)
	x.tidy()
	if x.count != 0 || len(x.idle) != 0 {
		t.Errorf("%d connections are kept that the upstream has closed", x.count)
	}
}

// A connection that ends under a request: only what changes nothing is asked
// again, and only when nothing was answered.
func TestAskedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		method, said string
		again        bool
	}{
		"GET":              {"GET", "", true},
		"GET, half a head": {"GET", "HTTP/1.1 200 OK\r\n", false},
		"POST":             {"POST", "", false},
		"DELETE":           {"DELETE", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := serveScript(t, func(n int32, r *http.Request, conn net.Conn) bool {
				if n == 2 {
					io.WriteString(conn, c.said)
					return false
				}
				return ok(conn, "x")
			})
			x := s.exchanger()
			if _, err := ask(t, x, s, "GET", ""); err != nil {
				t.Fatal(err)
			}
			_, err := ask(t, x, s, c.method, "")
			if c.again != (err == nil) || c.again != (s.requests.Load() == 3) {
				t.Errorf("%v, %d requests", err, s.requests.Load())
			}
		})
	}
	// A fresh connection is never tried twice.
	s := serveScript(t, func(int32, *http.Request, net.Conn) bool { return false })
	if _, err := ask(t, s.exchanger(), s, "GET", ""); err == nil || s.requests.Load() != 1 {
		t.Errorf("%v, %d requests", err, s.requests.Load())
	}
}

func TestAnswersBeforeTheAnswer(t *testing.T) {
	for n, good := range map[int]bool{0: true, maxInterim: true, maxInterim + 1: false} {
		s := serveScript(t, func(_ int32, r *http.Request, c net.Conn) bool {
			io.WriteString(c, strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", n))
			return ok(c, "x")
		})
		if got, err := ask(t, s.exchanger(), s, "GET", ""); good != (err == nil) || good && got != "200 x" {
			t.Errorf("%d interim answers: %q, %v", n, got, err)
		}
	}
}

func TestEndlessHead(t *testing.T) {
	s := serveScript(t, func(_ int32, r *http.Request, c net.Conn) bool {
		io.WriteString(c, "HTTP/1.1 200 OK\r\n")
		for {
			if _, err := io.WriteString(c, "X: "+strings.Repeat("x", 1000)+"\r\n"); err != nil {
				return false
			}
		}
	})
	if _, err := ask(t, s.exchanger(), s, "GET", ""); !errors.Is(err, errHeadTooLong) {
		t.Errorf("%v", err)
	}
}

// The end of a request's context ends it, before the answer and within it, and
// the connection with it.
func TestContextEndsExchange(t *testing.T) {
	why := errors.New("enough")
	for _, head := range []string{"", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"} {
		s := serveScript(t, func(_ int32, r *http.Request, c net.Conn) bool {
			io.WriteString(c, head)
			return true
		})
		ctx, cancel := context.WithCancelCause(context.Background())
		time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
		x := s.exchanger()
		resp, err := x.roundTrip(smallOne(t, ctx, "GET", ""), s.target())
		if head != "" && err == nil {
			_, err = io.ReadAll(resp.Body)
		}
		if err != why || x.count != 0 {
			t.Errorf("after %q: %v, %d idle", head, err, x.count)
		}
	}
}

func TestWhatIsSmall(t *testing.T) {
	x := &exchanger{}
	ctx := context.Background()
	with := func(r *http.Request, edit func(*http.Request)) *http.Request { edit(r); return r }
	r1 := func(method, body string) *http.Request {
		r := smallOne(t, ctx, method, body)
		r.ProtoMajor, r.ProtoMinor = 1, 1
		return r
	}
	for name, c := range map[string]struct {
		r    *http.Request
		want bool
	}{
		"GET":         {r1("GET", ""), true},
		"POST":        {r1("POST", "small"), true},
		"large body":  {r1("POST", strings.Repeat("x", smallRequest+1)), false},
		"large head":  {with(r1("GET", ""), func(r *http.Request) { r.Header.Set("X", strings.Repeat("x", smallRequest)) }), false},
		"streamed":    {with(r1("POST", "x"), func(r *http.Request) { r.GetBody = nil }), false},
		"no length":   {with(r1("POST", "x"), func(r *http.Request) { r.ContentLength = -1 }), false},
		"upgrade":     {with(r1("GET", ""), func(r *http.Request) { r.Header.Set("Upgrade", "websocket") }), false},
		"expectation": {with(r1("POST", "x"), func(r *http.Request) { r.Header.Set("Expect", "100-continue") }), false},
		"HTTP/2":      {with(r1("GET", ""), func(r *http.Request) { r.ProtoMajor = 2 }), false},
		"CONNECT":     {r1("CONNECT", ""), false},
	} {
		if got := x.takes(c.r); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestBadHeadersAreNotSent(t *testing.T) {
	s := serveScript(t, func(_ int32, r *http.Request, c net.Conn) bool { return ok(c, "x") })
	for _, h := range []http.Header{{"X": {"a\r\nY: b"}}, {"X\r\nY": {"b"}}} {
		r := smallOne(t, context.Background(), "GET", "")
		r.Header = h
		if _, err := s.exchanger().roundTrip(r, s.target()); err == nil || s.conns.Load() != 0 {
			t.Errorf("%q: %v", h, err)
		}
	}
}

// A buffer goes back to the pool without what was in it.
func TestNothingIsLeftInBuffers(t *testing.T) {
	s := serveScript(t, func(_ int32, r *http.Request, c net.Conn) bool { return ok(c, "x") })
	x := s.exchanger()
	for range 20 {
		r := smallOne(t, context.Background(), "GET", "")
		r.Header.Set("Authorization", "Bearer the-secret")
		resp, err := x.roundTrip(r, s.target())
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		b := buffers.Get().(*bytes.Buffer)
		if left := b.AvailableBuffer(); bytes.Contains(left[:cap(left)], []byte("the-secret")) {
			t.Fatal("the credential is still there")
		}
	}
}

// What an upstream answers is read as net/http reads it, its interim answers left
// out, and a connection is used again only if nothing of it is left: then the next
// answer is that to the next request.
func FuzzExchange(f *testing.F) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, s := range []string{
		ok + "Content-Length: 2\r\n\r\nok", ok + "Content-Length: 2\r\n\r\nok" + ok + "Content-Length: 6\r\n\r\nSECOND", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n" + ok,
		ok + "\r\nuntil the end", ok + "Connection: close\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 204 No\r\n\r\n", "HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n" + ok, "HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nTUNNEL",
		"HTTP/1.1 100 Continue\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nok", strings.Repeat("HTTP/1.1 103 Early\r\n\r\n", 7) + ok + "Content-Length: 0\r\n\r\n", ok + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nx", ok + "Content-Length: 10\r\n\r\nshort", "", "HTTP", "\x15\x03\x03\x00\x02\x02\x28",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 16<<10 {
			return
		}
		const mark = "the answer to the second request"
		wantStatus, wantBody, wantErr, whole := 0, "", error(nil), false
		for in, n := bufio.NewReader(bytes.NewReader(data)), 0; wantErr == nil && n <= maxInterim; n++ {
			var resp *http.Response
			if resp, wantErr = http.ReadResponse(in, &http.Request{Method: "GET"}); wantErr != nil {
				break
			}
			if resp.StatusCode == http.StatusSwitchingProtocols {
				wantStatus = resp.StatusCode
				break
			}
			if resp.StatusCode >= 200 {
				var b []byte
				b, wantErr = io.ReadAll(resp.Body)
				wantStatus, wantBody = resp.StatusCode, string(b)
				whole = wantErr == nil && !resp.Close
				break
			}
		}
		s := serveScript(t, func(n int32, r *http.Request, c net.Conn) bool {
			if r.URL.Path == "/second" {
				fmt.Fprintf(c, ok+"Content-Length: %d\r\n\r\n%s", len(mark), mark)
				return true
			}
			c.Write(data)
			return whole // the connection stays open, with what is left in it
		})
		x := s.exchanger()
		defer x.closeIdle()
		ask := func(path string) (status int, body string, err error) {
			req, _ := http.NewRequest("GET", "http://up.test"+path, nil)
			resp, err := x.roundTrip(req, s.target())
			if err != nil {
				return 0, "", err
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			return resp.StatusCode, string(b), err
		}
		status, body, err := ask("/first")
		if status != wantStatus || body != wantBody || status != 0 && (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: %d %q %v, net/http reads %d %q %v", data, status, body, err, wantStatus, wantBody, wantErr)
		}
		if status, body, err := ask("/second"); err != nil || status != 200 || body != mark {
			t.Fatalf("%q: the second request was answered %d %q %v", data, status, body, err)
		}
	})
}
