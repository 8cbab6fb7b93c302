package egress

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// brokenOff is behind what was not whole.
const brokenOff = " (broken off)"

// arrivals collects what an upstream saw.
type arrivals struct {
	mu   sync.Mutex
	seen []string
}

func (a *arrivals) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	end := ""
	if err != nil {
		end = brokenOff
	}
	a.mu.Lock()
	a.seen = append(a.seen, fmt.Sprintf("%s %s %q%s", r.Method, r.RequestURI, body, end))
	a.mu.Unlock()
	w.Header().Set("X-Upstream", "yes")
}

func (a *arrivals) take() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.seen
	a.seen = nil
	return s
}

// raw sends bytes inside TLS and returns everything that comes back.
func (r *rig) raw(name, request string) string {
	r.t.Helper()
	c, err := r.secured(name+":443", name, "http/1.1")
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, request)
	var out []byte
	buf := make([]byte, 4096)
	for wait := 2 * time.Second; ; wait = 60 * time.Millisecond { // the first answer may take its time
		c.SetReadDeadline(time.Now().Add(wait))
		n, err := c.Read(buf)
		if out = append(out, buf[:n]...); err != nil {
			return string(out)
		}
	}
}

// Whatever the framing trick, the second request never arrives unjudged: the
// path /secret is not granted on readonly.test.
func TestSmuggling(t *testing.T) {
	up := &arrivals{}
	r := startRelay(t, nil, serve(t, up, "readonly.test"))
	const host = "Host: readonly.test\r\n"
	const sentinel = "GET /secret HTTP/1.1\r\n" + host + "\r\n"
	n := fmt.Sprint(len(sentinel))
	for i, head := range []string{
		"Content-Length: " + n + "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"Transfer-Encoding: chunked\r\nContent-Length: " + n + "\r\n\r\n0\r\n\r\n",
		"Content-Length: 0\r\nContent-Length: " + n + "\r\n\r\n",
		"Content-Length: +0\r\n\r\n", "Content-Length: -1\r\n\r\n", "Content-Length: 0,0\r\n\r\n", "Content-Length: 0x0\r\n\r\n", "Content-Length: 0 0\r\n\r\n",
		"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
		"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", " Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
		"Transfer-Encoding: chunked\r\n\r\n0;ext=\"a\nb\"\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0\n\n", "Transfer-Encoding: chunked\r\n\r\n00000000000000000\r\n\r\n",
		"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n 0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
		"X: y\rContent-Length: 0\r\n\r\n", "X: a\r\n b\r\n\r\n", "X: \x00\r\n\r\n", "\x00X: y\r\n\r\n", "X y: z\r\n\r\n", ": z\r\n\r\n", "Host: readonly.test\r\n\r\n", "Host: evil.test\r\n\r\n", "\r\n\r\n", "\r\n",
		"Connection: close\r\n\r\n", "Trailer: X\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
	} {
		for _, first := range []string{"GET /docs/a HTTP/1.1\r\n", "GET /docs/a HTTP/1.0\r\n"} {
			answer := r.raw("readonly.test", first+host+head+sentinel)
			for _, s := range up.take() {
				if strings.Contains(s, "secret") || !strings.HasPrefix(s, `GET /docs/a "`) {
					t.Errorf("%q reached the upstream after %q", s, head)
				}
			}
			// Ambiguous framing is not merely rebuilt but refused: with 400 in the
			// head, by a broken connection in the body.
			if i < 14 && !strings.HasPrefix(answer, "HTTP/1.1 400 ") || i < 24 && strings.Contains(answer, "200 OK") {
				t.Errorf("%q%q was answered %.40q", first, head, answer)
			}
			if strings.Count(answer, "X-Upstream") > 1 {
				t.Errorf("two answers from the upstream after %q: %s", head, answer)
			}
		}
	}
	if !strings.Contains(r.raw("readonly.test", "GET /docs/a HTTP/1.1\r\n"+host+"\r\n"), "X-Upstream: yes") {
		t.Error("control: an ordinary request does not pass")
	}
}

// Every request of a connection is judged by itself.
func TestPipelining(t *testing.T) {
	up := &arrivals{}
	r := startRelay(t, nil, serve(t, up, "readonly.test"))
	var b strings.Builder
	for i := range 10 {
		fmt.Fprintf(&b, "GET /docs/%d HTTP/1.1\r\nHost: readonly.test\r\n\r\n", i)
	}
	b.WriteString("POST /docs/no HTTP/1.1\r\nHost: readonly.test\r\nContent-Length: 2\r\n\r\nxxGET /docs/after HTTP/1.1\r\nHost: readonly.test\r\n\r\n")
	answer := r.raw("readonly.test", b.String())
	if got := up.take(); len(got) != 10 {
		t.Errorf("the upstream saw %q", got)
	}
	if !strings.Contains(answer, "403") {
		t.Errorf("no denial in %s", answer)
	}
}

func TestNamesMustAgree(t *testing.T) {
	up := &arrivals{}
	r := startRelay(t, nil, serve(t, up, "api.test", "other.test"), servePlain(t, up, "plain.test"))
	for _, sni := range []string{"api.test", "evil.test", "xother.test"} {
		if _, err := r.secured("other.test:443", sni, "http/1.1"); err == nil {
			t.Errorf("CONNECT other.test, SNI %s: accepted", sni)
		}
	}
	c, _ := r.tunnel("other.test:443")
	if err := tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake(); err == nil {
		t.Error("no SNI: accepted")
	}
	for i := 0; len(r.rec.with("name-mismatch")) < 4; i++ {
		if time.Sleep(10 * time.Millisecond); i == 200 {
			t.Fatalf("events for SNI mismatches: %v", r.rec.with("name-mismatch"))
		}
	}
	for _, head := range []string{
		"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n", "GET / HTTP/1.1\r\nHost: other.test:444\r\n\r\n", "GET / HTTP/1.1\r\nHost: other.test@evil.test\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: \r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.0\r\n\r\n",
		"GET https://api.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n", "GET http://other.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n", "GET https://u@other.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n",
		"GET //api.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n", "GET other.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n",
	} {
		answer := r.raw("other.test", head)
		if got := up.take(); len(got) != 0 || strings.Contains(answer, "X-Upstream") {
			t.Errorf("%q reached the upstream: %q", head, got)
		}
	}
	for _, host := range []string{"OTHER.test", "other.test.", "other.test:443", "Other.Test.:443"} {
		r.raw("other.test", "GET /ok HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
		if got := up.take(); len(got) != 1 {
			t.Errorf("Host: %s: %q", host, got)
		}
	}
	for _, host := range []string{"api.test", "other.test:444", "evil.test"} { // :authority of HTTP/2
		resp, body := get(t, r.client(), "https://other.test/", func(r *http.Request) { r.Host = host })
		if got := up.take(); resp.ProtoMajor != 2 || resp.Header.Get("Bulkhead-Denied") != "name-mismatch" || len(got) != 0 {
			t.Errorf(":authority %s: %s %s %s, upstream saw %q", host, resp.Proto, resp.Status, body, got)
		}
	}
	r.raw("other.test", "GET https://other.test/abs HTTP/1.1\r\nHost: other.test\r\n\r\n")
	if got := up.take(); len(got) != 1 || !strings.HasPrefix(got[0], "GET /abs ") {
		t.Errorf("absolute form of the right host: %q", got)
	}
}

func TestTargetsMustBeNames(t *testing.T) {
	r := startRelay(t, nil)
	for _, target := range []string{
		"127.0.0.1:443", "2130706433:443", "0x7f000001:443", "0177.0.0.1:443", "127.1:443", "[::1]:443", "[::ffff:127.0.0.1]:443", "169.254.169.254:80",
		"other.test@evil.test:443", "evil.test#@other.test:443", "evil.test\\@other.test:443", "other.test:443@evil.test:443", "other.test:0", "other.test:65536", "other.test:+443", "other.test:0443", "other.test", "other.test:",
		"a..test:443", "-a.test:443", "оther.test:443", "other.test\x00.evil.test:443", "nowhere.test:443", "other.test:22", "localhost:443",
	} {
		if _, status := r.tunnel(target); strings.Contains(status, " 200 ") {
			t.Errorf("CONNECT %q: %s", target, status)
		}
	}
	for _, name := range []string{"evil.test\x00.other.test", "evil.test .other.test", "evil.test/.other.test", "evil.test#.other.test", "evil.test@other.test", "127.0.0.1", ""} {
		c, err := net.Dial("tcp", r.proxy)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		c.Write([]byte{5, 1, 0})
		io.ReadFull(c, make([]byte, 2))
		c.Write(append(append([]byte{5, 1, 0, 3, byte(len(name))}, name...), 1, 187))
		reply := make([]byte, 10)
		if _, err := io.ReadFull(c, reply); err != nil || reply[1] == 0 {
			t.Errorf("SOCKS %q: %v %v", name, reply, err)
		}
		c.Close()
	}
	r.rec.wait(t, "ip-literal")
}

func TestOnlyTLSOnATLSPort(t *testing.T) {
	up := &arrivals{}
	r := startRelay(t, nil, serve(t, up, "other.test"))
	for _, first := range []string{"SSH-2.0-OpenSSH_9.2\r\n", "\x15\x03\x01\x00\x02\x01\x00", "\x16\x03\x09\x00\x05hello", "GET / HTTP/1.1\r\nHost: other.test\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"} {
		c, status := r.tunnel("other.test:443")
		if !strings.Contains(status, "200") {
			t.Fatal(status)
		}
		io.WriteString(c, first)
		c.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(c)
		if strings.Contains(string(b), "X-Upstream") {
			t.Errorf("%q was answered by the upstream", first)
		}
	}
	for i := 0; len(r.rec.with("protocol-refused")) < 5; i++ {
		if time.Sleep(10 * time.Millisecond); i == 200 {
			t.Fatalf("events: %v", r.rec.with("protocol-refused"))
		}
	}
	if got := up.take(); len(got) != 0 {
		t.Errorf("the upstream saw %q", got)
	}
}

func TestUpgradesAndOverrides(t *testing.T) {
	up := &arrivals{}
	r := startRelay(t, nil, serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Alt-Svc", `h3=":443"; ma=86400`)
		w.Header().Set("Bulkhead-Denied", "forged")
		for _, h := range []string{"Upgrade", "Http2-Settings", "X-Forwarded-For", "Proxy-Authorization"} {
			if req.Header.Get(h) != "" {
				t.Errorf("%s reached the upstream", h)
			}
		}
		up.ServeHTTP(w, req)
	}), "other.test"))
	for _, head := range []string{
		"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n", "TRACE / HTTP/1.1\r\n", "TRACK / HTTP/1.1\r\n", "trace / HTTP/1.1\r\n", "get / HTTP/1.1\r\n", "DEBUG / HTTP/1.1\r\n", "CONNECT / HTTP/1.1\r\n", "CONNECT other.test:443 HTTP/1.1\r\n", "PRI * HTTP/1.1\r\n", "OPTIONS * HTTP/1.1\r\n",
		"POST / HTTP/1.1\r\nX-HTTP-Method-Override: DELETE\r\n", "POST / HTTP/1.1\r\nX-Method-Override: DELETE\r\n", "POST /?_method=DELETE HTTP/1.1\r\n", "GET / HTTP/1.1\r\nX-Original-URL: /admin\r\n", "GET / HTTP/1.1\r\nX-Rewrite-URL: /admin\r\n",
		"GET / HTTP/1.1\r\nConnection: Authorization\r\n", "GET / HTTP/1.1\r\nConnection: close, x-api-key\r\n", "GET / HTTP/1.1\r\nX_Api_Key: 1\r\n", "GET / HTTP/1.1\r\nExpect: 417-please\r\n",
	} {
		answer := r.raw("other.test", head+"Host: other.test\r\n\r\n")
		if got := up.take(); len(got) != 0 || strings.Contains(answer, "TUNNEL") || strings.Contains(answer, " 101 ") {
			t.Errorf("%q: upstream saw %q, answer %s", head, got, answer)
		}
	}
	answer := r.raw("other.test", "GET / HTTP/1.1\r\nHost: other.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n")
	if !strings.Contains(answer, "200 OK") || strings.Contains(answer, "Alt-Svc") || strings.Contains(answer, "Bulkhead-Denied") {
		t.Errorf("h2c offer: %s", answer)
	}
}

// Requests for everything that a server could read as another path.
func TestAmbiguousPaths(t *testing.T) {
	up := &arrivals{}
	r := startRelay(t, nil, serve(t, up, "readonly.test", "other.test"))
	for _, path := range []string{
		"/docs/../secret", "/docs/%2e%2e/secret", "/docs/%2E./secret", "/docs/..%2fsecret", "/docs/..%5csecret", "/docs\\..\\secret", "/docs//secret", "/docs/./a", "/docs/a;x=../secret", "/docs/..;/secret",
		"/docs/%252e%252e/secret", "/docs/%c0%ae%c0%ae/secret", "/docs/a%00", "/docs/%", "/docs/%zz", "/docs/%2", "/docs/a%0d%0aX:y", "/docs/\xff", "/docs/a|b", "/docs/a^b", "/docs/...", "/docs/.%00./secret", "/%2fdocs/x", "/docs/a%23b", "/docs/a%3fb", "/docs/..%c0%afsecret", "/docs/é",
	} {
		r.raw("readonly.test", "GET "+path+" HTTP/1.1\r\nHost: readonly.test\r\n\r\n")
		if got := up.take(); len(got) != 0 {
			t.Errorf("%q arrived as %q", path, got)
		}
	}
	for _, path := range []string{"/docs/a%20b", "/docs/a+b%2b", "/docs/caf%C3%A9", "/docs/a:b@c,d=e&f$!*()'~", "/docs/trailing/", "/docs/x.y..z"} {
		r.raw("readonly.test", "GET "+path+" HTTP/1.1\r\nHost: readonly.test\r\n\r\n")
		if got := up.take(); len(got) != 1 || got[0] != "GET "+path+` ""` {
			t.Errorf("%q arrived as %q", path, got)
		}
	}
	r.raw("other.test", "GET /@scope%2fname HTTP/1.1\r\nHost: other.test\r\n\r\n")
	if got := up.take(); len(got) != 1 || got[0] != `GET /@scope%2fname ""` {
		t.Errorf("npm's scoped name: %q", got)
	}
}

func TestEchoIsRemoved(t *testing.T) {
	forms := map[string]string{
		"raw": realSecret, "base64": base64.StdEncoding.EncodeToString([]byte(realSecret)), "basic": base64.StdEncoding.EncodeToString([]byte("user:" + realSecret)),
		"shifted": base64.StdEncoding.EncodeToString([]byte("xy" + realSecret + "z")), "url64": base64.RawURLEncoding.EncodeToString([]byte(realSecret)),
		"hex": hex.EncodeToString([]byte(realSecret)), "query": url.QueryEscape(realSecret), "json": fmt.Sprintf("{%q:1}", realSecret),
	}
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "identity" {
			t.Errorf("encoding %q", r.Header.Get("Accept-Encoding"))
		}
		form := forms[r.URL.Query().Get("form")]
		w.Header().Set("X-Echo", "it is "+form)
		w.Header().Set("Location", "https://evil.test/?"+form)
		w.Header().Set("Trailer", "X-End")
		rc := http.NewResponseController(w)
		for i := 0; i < len(form); i += 5 { // cut into pieces
			io.WriteString(w, form[i:min(i+5, len(form))])
			rc.Flush()
			time.Sleep(time.Millisecond)
		}
		io.WriteString(w, "-and-"+form+"-end")
		w.Header().Set("X-End", form)
	}), "api.test")
	r := startRelay(t, nil, up)
	for name, form := range forms {
		resp, body := get(t, r.client(), "https://api.test/?form="+name, bearer(placeholder), func(r *http.Request) { r.Header.Set("Range", "bytes=0-3") })
		all := body + fmt.Sprint(resp.Header) + fmt.Sprint(resp.Trailer)
		core := form[4 : len(form)-4] // alignment may leave bits of the neighbours
		if strings.Contains(all, core) || strings.Contains(all, realSecret) {
			t.Errorf("%s: %s", name, all)
		}
		if len(body) != 2*len(form)+len("-and--end") || !strings.HasSuffix(body, "-end") {
			t.Errorf("%s: length changed: %q", name, body)
		}
	}
	r.rec.wait(t, "credential-echo")
}

func TestRedirectsAreTheClients(t *testing.T) {
	hits := &arrivals{}
	evil := serve(t, hits, "evil.test")
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://evil.test/steal", http.StatusTemporaryRedirect)
	}), "api.test")
	r := startRelay(t, nil, up, evil)
	resp, _ := get(t, r.client(), "https://api.test/", bearer(placeholder))
	if resp.StatusCode != 307 || resp.Header.Get("Location") != "https://evil.test/steal" {
		t.Errorf("%s %v", resp.Status, resp.Header)
	}
	follow := r.client()
	follow.CheckRedirect = nil
	req, _ := http.NewRequest("GET", "https://api.test/", nil)
	bearer(placeholder)(req)
	if resp, err := follow.Do(req); err == nil {
		resp.Body.Close()
		t.Errorf("followed to %s", resp.Status)
	}
	if got := hits.take(); len(got) != 0 {
		t.Errorf("the other host saw %q", got)
	}
}

func TestRebinding(t *testing.T) {
	hit := false
	l, err := net.Listen("tcp", "127.0.0.1:443")
	if err == nil {
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				hit = true
				c.Close()
			}
		}()
	}
	for _, addr := range []string{"127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fd00::1", "64:ff9b::7f00:1", "100.64.0.1", "0.0.0.0"} {
		r := startRelay(t, func(c *Config) { c.Hosts = map[string][]string{"rebind.test": {addr}} })
		resp, body := get(t, r.client(), "https://rebind.test/")
		if resp.StatusCode != 403 || resp.Header.Get("Bulkhead-Denied") != "address-refused" {
			t.Errorf("%s: %s %s", addr, resp.Status, body)
		}
		r.rec.wait(t, "address-refused")
		r.gw.Close()
	}
	if hit {
		t.Error("the loopback listener was reached")
	}
}

func TestUpstreamMustBeGenuine(t *testing.T) {
	up := &arrivals{}
	u := serve(t, up, "wrong-name.test")
	u.names = []string{"other.test"} // leads there, but the certificate is not for it
	r := startRelay(t, nil, u)
	resp, body := get(t, r.client(), "https://other.test/")
	if resp.StatusCode != 502 || resp.Header.Get("Bulkhead-Denied") != "upstream-tls" {
		t.Errorf("%s %s", resp.Status, body)
	}
	v := serve(t, up, "other.test")
	v.ca = newCA(t, "another CA") // the operator's CA is another one
	r = startRelay(t, nil, v)
	if resp, _ := get(t, r.client(), "https://other.test/"); resp.StatusCode != 502 {
		t.Errorf("foreign CA: %s", resp.Status)
	}
	if got := up.take(); len(got) != 0 {
		t.Errorf("requests were sent: %q", got)
	}
}

// Malformed answers end in 502 or a broken connection, never in a second answer
// or an answer that looks whole, and the gateway lives on.
func TestHostileUpstream(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var mu sync.Mutex
	var reply string
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					mu.Lock()
					defer mu.Unlock()
					io.WriteString(c, reply)
				}
			}()
		}
	}()
	r := startRelay(t, nil, &upstream{addr: l.Addr().String(), names: []string{"plain.test"}})
	for _, s := range []string{
		"", "garbage", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 99 x\r\n\r\n", "HTTP/1.1 1000 x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", "HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nTUNNEL", "HTTP/1.1 101 Switching\r\n\r\nTUNNEL",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 300<<10) + "\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx", "HTTP/1.1 200 OK\r\n: x\r\n\r\n",
	} {
		mu.Lock()
		reply = s
		mu.Unlock()
		resp, err := r.client().Get("http://plain.test/")
		if err != nil {
			continue
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 502 && err == nil || bytes.Contains(b, []byte("TUNNEL")) {
			t.Errorf("%.60q became %s %q", s, resp.Status, b)
		}
	}
	mu.Lock()
	reply = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	mu.Unlock()
	if _, body := get(t, r.client(), "http://plain.test/"); body != "ok" {
		t.Errorf("afterwards: %q", body)
	}
}

// Idle and slow clients do not keep others out, and are cut off.
func TestSlowClients(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT PROVEN: slow clients are cut off (takes 12 s)")
	}
	up := &arrivals{}
	r := startRelay(t, func(c *Config) { c.Limits.MaxFlows = 64 }, serve(t, up, "other.test"))
	var slow []net.Conn
	for i := range 40 {
		c, err := net.Dial("tcp", r.proxy)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 {
			io.WriteString(c, "CONNECT other.test:443 HT")
		}
		slow = append(slow, c)
	}
	if resp, _ := get(t, r.client(), "https://other.test/"); resp.StatusCode != 200 {
		t.Errorf("beside slow clients: %s", resp.Status)
	}
	for i, c := range slow {
		c.SetReadDeadline(time.Now().Add(12 * time.Second))
		if _, err := io.ReadAll(c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("client %d was not cut off", i)
		}
	}
}
