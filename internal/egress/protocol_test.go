package egress

import (
	"bufio"
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The verdict comes before the body: a refused request gets no 100 Continue, an
// allowed one does, and the upstream is never asked to continue.
func TestExpectContinue(t *testing.T) {
	up := &arrivals{}
	r := startRelay(t, nil, serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Expect") != "" {
			t.Error("Expect reached the upstream")
		}
		up.ServeHTTP(w, req)
	}), "other.test", "readonly.test", "api.test"))
	for name, c := range map[string]struct{ head, want string }{
		"other.test":    {"", "HTTP/1.1 200 "},
		"readonly.test": {"", "HTTP/1.1 403 "},
		"api.test":      {"Authorization: Bearer somebody-elses-key-0000\r\n", "HTTP/1.1 403 "},
	} {
		conn, err := r.secured(name+":443", name, "http/1.1")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /docs/x HTTP/1.1\r\nHost: %s\r\n%sExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", name, c.head)
		br := bufio.NewReader(conn)
		line, _ := br.ReadString('\n')
		if strings.HasPrefix(line, "HTTP/1.1 100 ") {
			if strings.HasPrefix(c.want, "HTTP/1.1 403") {
				t.Errorf("%s: 100 Continue for a refused request", name)
			}
			br.ReadString('\n')
			io.WriteString(conn, "hello")
			line, _ = br.ReadString('\n')
		} else if strings.HasPrefix(c.want, "HTTP/1.1 200") {
			t.Errorf("%s: no 100 Continue: %q", name, line)
		}
		if !strings.HasPrefix(line, c.want) {
			t.Errorf("%s: %q", name, line)
		}
		conn.Close()
	}
	if got := up.take(); len(got) != 1 || got[0] != `POST /docs/x "hello"` {
		t.Errorf("the upstream saw %q", got)
	}
}

// An upstream that answers before the body has come ends the exchange: the
// answer arrives, the upstream never takes a part of the body for the whole, and
// nothing of the body is taken for a request.
func TestEarlyAnswer(t *testing.T) {
	var whole atomic.Int32
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.HasPrefix(req.URL.Path, "/next") {
			io.WriteString(w, "next")
			return
		}
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		w.Header().Set("Content-Length", "8")
		w.WriteHeader(413)
		io.WriteString(w, "too much")
		rc.Flush()
		if _, err := io.Copy(io.Discard, req.Body); err == nil {
			whole.Add(1)
		}
	}), "other.test")
	r := startRelay(t, nil, up)
	for what, body := range map[string]string{
		"with a length": "Content-Length: 1000000\r\n\r\n" + strings.Repeat("x", 70000),
		"chunked":       "Transfer-Encoding: chunked\r\n\r\n10000\r\n" + strings.Repeat("x", 65536) + "\r\n",
	} {
		conn, err := r.secured("other.test:443", "other.test", "http/1.1")
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "POST /a HTTP/1.1\r\nHost: other.test\r\n"+body)
		br := bufio.NewReader(conn)
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 413 || !resp.Close {
			t.Fatalf("%s: %v %v", what, resp, err)
		}
		b, err := io.ReadAll(resp.Body)
		if string(b) != "too much" || err != nil {
			t.Errorf("%s: %q %v", what, b, err)
		}
		go io.WriteString(conn, "GET /next HTTP/1.1\r\nHost: other.test\r\n\r\n")
		if _, err := http.ReadResponse(br, nil); err == nil {
			t.Errorf("%s: the connection went on", what)
		}
		conn.Close()
	}
	time.Sleep(200 * time.Millisecond)
	if whole.Load() != 0 {
		t.Error("the upstream took a part of a body for the whole")
	}
	// The same over HTTP/2, where the connection goes on.
	c := r.client()
	pr, pw := io.Pipe()
	go pw.Write(make([]byte, 1000))
	resp, err := c.Post("https://other.test/a", "", pr)
	if err != nil || resp.StatusCode != 413 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	pw.Close()
	if resp, body := get(t, c, "https://other.test/next"); body != "next" {
		t.Errorf("%s %q", resp.Status, body)
	}
	// HTTP/2 lets an upstream refuse a body with an answer and a reset.
	if n := len(r.rec.with("upstream-failed")); n != 0 {
		t.Errorf("%d failures on record", n)
	}
}

// A range without a credential passes. Under one, what is too short to find an
// echo in is cut from a longer one; several at once are answered with the whole.
func TestRanges(t *testing.T) {
	page := bytes.Repeat([]byte("0123456789abcdef"), 40<<10)
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/multi" {
			w.Header().Set("Content-Type", "multipart/byteranges; boundary=x")
			w.WriteHeader(206)
			return
		}
		http.ServeContent(w, req, "x.bin", time.Unix(1e9, 0), bytes.NewReader(page))
	}), "api.test", "other.test")
	r := startRelay(t, nil, up)
	for spec, want := range map[string][2]int{ // status without and with a credential
		"bytes=0-3": {206, 206}, "bytes=5-": {206, 206}, "bytes=-70000": {206, 206}, "bytes=-9": {206, 206}, "bytes=655350-655363": {206, 206}, "bytes=655359-": {206, 206}, "bytes=99999-100001": {206, 206}, "bytes=655360-655361": {416, 416}, "bytes=9-3": {416, 200}, "bytes=0-70000": {206, 206}, "bytes=10-20,30-40": {206, 200}, "bytes=10-,30-": {200, 200},
		"bytes=999999999-": {416, 416}, "items=0-3": {416, 200}, "BYTES=1-": {416, 206}, "bytes= 1-": {206, 200}, "bytes=-": {416, 200}, "bytes=1-99999999999999999999": {416, 200},
	} {
		var answers [2]string
		for i, name := range []string{"other.test", "api.test"} {
			resp, body := get(t, r.client(), "https://"+name+"/", func(req *http.Request) {
				req.Header.Set("Range", spec)
				if i == 1 {
					bearer(placeholder)(req)
				}
			})
			if resp.StatusCode != want[i] && !(strings.HasPrefix(spec, "BYTES") && resp.StatusCode == 416) {
				t.Errorf("%s, %s: %s, %d bytes", spec, name, resp.Status, len(body))
			}
			answers[i] = fmt.Sprint(resp.ContentLength, resp.Header["Content-Range"], resp.Header["Etag"], body)
		}
		if want[0] == 206 && want[1] == 206 && answers[0] != answers[1] {
			t.Errorf("%s: %.100q without a credential, %.100q with one", spec, answers[0], answers[1])
		}
	}
	head, _ := http.NewRequest("HEAD", "https://api.test/", nil)
	bearer(placeholder)(head)
	head.Header.Set("Range", "bytes=4-7")
	if resp, err := r.client().Do(head); err != nil || resp.StatusCode != 206 || resp.ContentLength != 4 || resp.Header.Get("Content-Range") != "bytes 4-7/655360" {
		t.Error(resp, err)
	}
	if resp, _ := get(t, r.client(), "https://api.test/multi", bearer(placeholder), func(r *http.Request) { r.Header.Set("Range", "bytes=0-") }); resp.StatusCode != 502 {
		t.Errorf("pieces under a credential: %s", resp.Status)
	}
}

// The echo of a credential can't be read piece by piece, and what a server means
// by a range otherwise than as a part of its answer stays as it was asked.
func TestEchoInRanges(t *testing.T) {
	page := append(bytes.Repeat([]byte("x"), 100_000), realSecret...)
	page = append(page, bytes.Repeat([]byte("y"), 100_000)...)
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/own":
			io.WriteString(w, req.Header.Get("Range"))
		case "/lies":
			w.Header().Set("Content-Range", "bytes 0-9/200000")
			w.WriteHeader(206)
			io.WriteString(w, "0123456789")
		case "/silent":
			w.WriteHeader(206)
			io.WriteString(w, realSecret[:9])
		default:
			http.ServeContent(w, req, "x.bin", time.Unix(1e9, 0), bytes.NewReader(page))
		}
	}), "api.test")
	r := startRelay(t, nil, up)
	ask := func(path, spec string) (*http.Response, string) {
		return get(t, r.client(), "https://api.test"+path, bearer(placeholder), func(req *http.Request) { req.Header.Set("Range", spec) })
	}
	var all strings.Builder
	for at := 100_000 - 7; at < 100_000+len(realSecret)+7; at += 7 {
		resp, body := ask("/", fmt.Sprintf("bytes=%d-%d", at, at+6))
		if resp.StatusCode != 206 || len(body) != 7 {
			t.Fatalf("%d: %s %q", at, resp.Status, body)
		}
		all.WriteString(body)
	}
	if got := all.String(); strings.Trim(got, "xy*") != "" || strings.Count(got, "*") != len(realSecret) {
		t.Errorf("read in pieces: %q", got)
	}
	r.rec.wait(t, "credential-echo")
	if resp, body := ask("/own", "bytes=5-9"); resp.StatusCode != 200 || body != "bytes=5-9" {
		t.Errorf("a range of something else: %s %q", resp.Status, body)
	}
	for _, path := range []string{"/lies", "/silent"} {
		if resp, body := ask(path, "bytes=100000-100009"); resp.StatusCode != 502 || strings.Contains(body, realSecret[:9]) {
			t.Errorf("%s: %s %q", path, resp.Status, body)
		}
	}
}

// An encoded answer could hide an echo: refused under a credential, whatever the
// coding; without one it passes as it is.
func TestEncodedAnswers(t *testing.T) {
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Encoding", req.URL.Query().Get("e"))
		io.WriteString(w, req.Header.Get("Authorization"))
	}), "api.test", "other.test")
	r := startRelay(t, nil, up)
	for _, e := range []string{"gzip", "deflate", "br", "zstd", "GZIP", "x-odd", "identity, gzip"} {
		if resp, body := get(t, r.client(), "https://api.test/?e="+url.QueryEscape(e), bearer(placeholder)); resp.StatusCode != 502 || resp.Header.Get("Bulkhead-Denied") != "upstream-encoding" {
			t.Errorf("%s: %s %q", e, resp.Status, body)
		}
		if resp, _ := get(t, r.client(), "https://other.test/?e="+url.QueryEscape(e)); resp.StatusCode != 200 || resp.Header.Get("Content-Encoding") != e {
			t.Errorf("%s without a credential: %s", e, resp.Status)
		}
	}
}

// HTTP/1.0 clients are answered in their own way, and see when an answer broke
// off.
func TestHTTP10(t *testing.T) {
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		rc := http.NewResponseController(w)
		io.WriteString(w, "first ")
		rc.Flush()
		if req.URL.Path == "/cut" {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, "second")
	}), "other.test")
	r := startRelay(t, nil, up)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	os.WriteFile(ca, r.ca.pem(), 0o600)
	for path, whole := range map[string]bool{"/": true, "/cut": false} {
		out, err := exec.Command("curl", "-sS", "-i", "--http1.0", "--max-time", "10", "--cacert", ca, "--proxy", "http://"+r.proxy, "https://other.test"+path).Output()
		if whole != (err == nil) || whole != strings.HasSuffix(string(out), "\r\n\r\nfirst second") || strings.Contains(string(out), "chunked") {
			t.Errorf("%s: %q %v", path, out, err)
		}
	}
	r.rec.wait(t, "upstream-truncated")
}

// A client that keeps cookies is asked for none: a request with one is refused.
func TestCookiesStayOutside(t *testing.T) {
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "session", Value: "1"})
		io.WriteString(w, req.Header.Get("Cookie"))
	}), "other.test")
	r := startRelay(t, nil, up)
	c := r.client()
	c.Jar, _ = cookiejar.New(nil)
	for range 2 {
		if resp, body := get(t, c, "https://other.test/"); resp.StatusCode != 200 || body != "" {
			t.Errorf("%s %s", resp.Status, body)
		}
	}
	resp, _ := get(t, c, "https://other.test/", func(req *http.Request) { req.Header.Set("Cookie", "session=1") })
	if resp.StatusCode != 403 || resp.Header.Get("Bulkhead-Denied") != "foreign-credential" {
		t.Errorf("a cookie: %s %v", resp.Status, resp.Header)
	}
}

// What a server mints for the real identity, and what would steer a client, does
// not reach the sandbox; what it needs does.
func TestAnswerHeaders(t *testing.T) {
	always := map[string]string{
		"Alt-Svc": `h3=":443"`, "Refresh": "0; url=https://evil.test/", "Clear-Site-Data": "*", "NEL": "{}", "Report-To": "{}", "Reporting-Endpoints": "x", "Proxy-Authenticate": "Basic", "Bulkhead-Denied": "forged",
		"X-Accel-Redirect": "/x", "X-Hop": "named by Connection", "Expect-CT": "x", "Speculation-Rules": "x", "Set-Cookie2": "x",
	}
	identity := map[string]string{
		"Authentication-Info": "nextnonce=x", "X-Amz-Security-Token": "x", "Authorization": "Bearer minted", "X-Auth-Token": "x", "X-Subject-Token": "x", "X-Csrf-Token": "x", "X-Refresh-Token": "x", "X-Xet-Access-Token": "x",
	}
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		h := w.Header()
		for _, m := range []map[string]string{always, identity} {
			for k, v := range m {
				h.Set(k, v)
			}
		}
		if req.ProtoMajor == 1 {
			h.Set("Connection", "X-Hop")
		}
		h.Add("Set-Cookie", "session=minted")
		h.Add("Set-Cookie", "__cf_bm=x; path=/")
		h.Add("Link", `<https://cdn.test/a,b>; rel=preconnect, <https://api.test/p?page=2>; rel="next"`)
		h.Add("Link", `</x>; rel="preload"; as=script`)
		h.Add("Www-Authenticate", `Bearer realm="https://auth.test/token",service="r"`)
		h.Add("Www-Authenticate", "Negotiate")
		h.Add("Www-Authenticate", "NTLM TlRMTVNTUAAC")
		h.Set("Location", "https://evil.test/")
		h.Set("Strict-Transport-Security", "max-age=1")
		h.Set("X-Ratelimit-Remaining", "5")
		h.Set("Trailer", "Set-Cookie, X-Fine")
		w.WriteHeader(307)
		io.WriteString(w, "x")
		h.Set("X-Fine", "yes")
		h.Set("Set-Cookie", "session=in-trailer")
	}), "api.test", "other.test")
	r := startRelay(t, nil, up)
	for _, h2 := range []bool{true, false} {
		for _, name := range []string{"other.test", "api.test"} {
			c := r.client()
			if !h2 {
				c.Transport.(*http.Transport).ForceAttemptHTTP2 = false
				c.Transport.(*http.Transport).TLSClientConfig.NextProtos = []string{"http/1.1"}
			}
			resp, _ := get(t, c, "https://"+name+"/", func(req *http.Request) {
				if name == "api.test" {
					bearer(placeholder)(req)
				}
			})
			for k := range always {
				if v := resp.Header.Get(k); v != "" && k != "X-Hop" {
					t.Errorf("%s: %s: %s", name, k, v)
				}
			}
			swapped := name == "api.test"
			for k := range identity {
				if (resp.Header.Get(k) != "") == swapped {
					t.Errorf("%s: %s: %q", name, k, resp.Header.Get(k))
				}
			}
			if got := resp.Header["Set-Cookie"]; len(got) > 0 {
				t.Errorf("%s: cookies %q", name, got)
			}
			if got := resp.Header["Link"]; len(got) != 1 || got[0] != `<https://api.test/p?page=2>; rel="next"` {
				t.Errorf("%s: links %q", name, got)
			}
			if got := resp.Header["Www-Authenticate"]; len(got) != 1 || !strings.HasPrefix(got[0], "Bearer ") {
				t.Errorf("%s: challenges %q", name, got)
			}
			if resp.StatusCode != 307 || resp.Header.Get("Location") == "" || resp.Header.Get("X-Ratelimit-Remaining") != "5" || resp.Trailer.Get("X-Fine") != "yes" || strings.Contains(fmt.Sprint(resp.Trailer), "session") {
				t.Errorf("%s: %s %v %v", name, resp.Status, resp.Header, resp.Trailer)
			}
		}
	}
}

// Early hints are not passed on, with or without an echo in them.
func TestInformational(t *testing.T) {
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		for range 3 {
			w.Header().Set("Link", "<https://evil.test/>; rel=preconnect")
			w.Header().Set("X-Echo", req.Header.Get("Authorization"))
			w.WriteHeader(103)
		}
		w.Header().Del("X-Echo")
		w.Header().Del("Link")
		io.WriteString(w, "done")
	}), "api.test")
	r := startRelay(t, nil, up)
	answer := r.raw("api.test", "GET / HTTP/1.1\r\nHost: api.test\r\nAuthorization: Bearer "+placeholder+"\r\n\r\n")
	if !strings.HasPrefix(answer, "HTTP/1.1 200 ") || strings.Contains(answer, "103") || strings.Contains(answer, "evil") {
		t.Errorf("%s", answer)
	}
}

// Refusals from before there is a request say what every denial says, in the
// language of the connection, and in their turn.
func TestEarlyRefusalsAreDenials(t *testing.T) {
	up := &arrivals{}
	r := startRelay(t, nil, serve(t, up, "other.test"), servePlain(t, up, "plain.test"))
	for what, in := range map[string]string{
		"two lengths": "POST / HTTP/1.1\r\nHost: other.test\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", "no request": "hello there\r\n\r\n", "bare LF": "GET / HTTP/1.1\nHost: other.test\n\n", "endless head": "GET / HTTP/1.1\r\nX: " + strings.Repeat("a", 70000),
	} {
		for _, before := range []string{"", "GET /first HTTP/1.1\r\nHost: other.test\r\n\r\n"} {
			answer := r.raw("other.test", before+in)
			i := strings.LastIndex(answer, "HTTP/1.1 400 ")
			if i < 0 || (i > 0) != (before != "") || !strings.Contains(answer[i:], "\r\nBulkhead-Denied: bad-request\r\n") || !strings.Contains(answer[i:], "\r\n\r\nbulkhead: ") {
				t.Errorf("%s: %q", what, answer)
			}
		}
	}
	up.take()
	// A body that turns out ambiguous on the way.
	answer := r.raw("other.test", "POST / HTTP/1.1\r\nHost: other.test\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n")
	if !strings.HasPrefix(answer, "HTTP/1.1 400 ") || !strings.Contains(answer, "Bulkhead-Denied: bad-request") {
		t.Errorf("chunk extension: %q", answer)
	}
	// Plain http where TLS is granted, and to the relay itself.
	c, _ := r.tunnel("other.test:443")
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
	b, _ := io.ReadAll(c)
	if !strings.HasPrefix(string(b), "HTTP/1.1 400 ") || !strings.Contains(string(b), "Bulkhead-Denied: protocol-refused") || !strings.Contains(string(b), "bulkhead: ") {
		t.Errorf("plain http: %q", b)
	}
	c, err := net.Dial("tcp", r.proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\nX : y\r\n\r\n")
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	b, _ = io.ReadAll(c)
	if !strings.HasPrefix(string(b), "HTTP/1.1 400 ") || !strings.Contains(string(b), "Bulkhead-Denied: bad-request") {
		t.Errorf("the relay: %q", b)
	}
	for i := 0; len(r.rec.with("bad-request")) < 10; i++ {
		if time.Sleep(10 * time.Millisecond); i == 200 {
			t.Fatalf("%d events", len(r.rec.with("bad-request")))
		}
	}
	if n := len(r.rec.with("bad-request")); n != 10 {
		t.Errorf("%d events for 10 refusals", n)
	}
}

// The denial as clients of several services read it.
func TestDenialDialects(t *testing.T) {
	r := startRelay(t, nil, serve(t, http.HandlerFunc(echo), "readonly.test"))
	ask := func(path string, head map[string]string) (*http.Response, map[string]any, string) {
		resp, body := get(t, r.client(), "https://readonly.test"+path, func(r *http.Request) {
			for k, v := range head {
				r.Header.Set(k, v)
			}
		})
		var m map[string]any
		json.Unmarshal([]byte(body), &m)
		return resp, m, body
	}
	if _, m, body := ask("/pkg", map[string]string{"User-Agent": "npm/11.0.0 node/v22", "Accept": "*/*"}); m == nil || !strings.HasPrefix(fmt.Sprint(m["error"]), "bulkhead: ") {
		t.Errorf("npm: %s", body)
	}
	if _, m, body := ask("/v2/x/manifests/1", map[string]string{"Accept": "application/vnd.oci.image.manifest.v1+json"}); !strings.Contains(fmt.Sprint(m["errors"]), "DENIED") || !strings.Contains(fmt.Sprint(m["errors"]), "bulkhead: ") {
		t.Errorf("a registry: %s", body)
	}
	if _, m, body := ask("/repos", map[string]string{"Accept": "application/vnd.github+json"}); !strings.HasPrefix(fmt.Sprint(m["message"]), "bulkhead: ") || m["errors"] != nil {
		t.Errorf("GitHub's clients: %s", body)
	}
	if resp, m, body := ask("/pkg", nil); m != nil || !strings.HasPrefix(body, "bulkhead: ") || resp.Header.Get("Retry-After") != "" {
		t.Errorf("others: %s", body)
	}
	conn, err := r.secured("readonly.test:443", "readonly.test", "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "GET /x HTTP/1.1\r\nHost: readonly.test\r\n\r\n")
	if line, _ := bufio.NewReader(conn).ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 403 Forbidden by bulkhead: ") || !strings.Contains(line, "policy.yaml:6") {
		t.Errorf("status line: %q", line)
	}
}

// One upstream that stalls uses up its own share and no other's, and who is
// turned away is told when to come again.
func TestStalledUpstreamLeavesRoom(t *testing.T) {
	release := make(chan struct{})
	var waiting atomic.Int32
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Host == "other.test" {
			waiting.Add(1)
			<-release
		}
	}), "api.test", "other.test")
	defer close(release)
	r := startRelay(t, func(c *Config) { c.Limits.Requests, c.Limits.PerUpstream = 40, 20 }, up)
	var clients []*http.Client
	for range 2 {
		clients = append(clients, r.client())
	}
	for i := range 20 {
		go clients[i%2].Get("https://other.test/")
	}
	for i := 0; waiting.Load() < 20; i++ {
		if time.Sleep(10 * time.Millisecond); i == 500 {
			t.Fatalf("%d are waiting", waiting.Load())
		}
	}
	if resp, body := get(t, clients[0], "https://other.test/"); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || resp.Header.Get("Bulkhead-Denied") != "request-limit" {
		t.Errorf("beyond its share: %s %s", resp.Status, body)
	}
	if resp, body := get(t, clients[1], "https://api.test/"); resp.StatusCode != 200 {
		t.Errorf("another upstream: %s %s", resp.Status, body)
	}
}

// An upstream that takes a request and never answers, or falls silent within an
// answer, is given up.
func TestSilentUpstream(t *testing.T) {
	stop := make(chan struct{})
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/within" {
			io.WriteString(w, "a beginning")
			http.NewResponseController(w).Flush()
		}
		<-stop
	}), "other.test")
	defer close(stop)
	r := startRelay(t, func(c *Config) { c.Limits.Quiet = 700 * time.Millisecond }, up)
	start := time.Now()
	if resp, body := get(t, r.client(), "https://other.test/"); resp.StatusCode != 504 || resp.Header.Get("Bulkhead-Denied") != "upstream-failed" {
		t.Errorf("%s %s", resp.Status, body)
	}
	resp, err := r.client().Get("https://other.test/within")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("a broken answer looks whole: %q", b)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("after %v", d)
	}
	r.rec.wait(t, "upstream-truncated")
}

// ECH is about a name that we never see: the outer one counts, and inside the
// connection the names must agree as always.
func TestECH(t *testing.T) {
	up := &arrivals{}
	r := startRelay(t, nil, serve(t, up, "other.test"))
	list := echConfig(t, "other.test")
	for target, ok := range map[string]bool{"other.test": true, "api.test": false} {
		c, _ := r.tunnel(target + ":443")
		tc := tls.Client(c, &tls.Config{ServerName: "secret.evil.test", RootCAs: r.ca.pool(), EncryptedClientHelloConfigList: list, MinVersion: tls.VersionTLS13})
		err := tc.Handshake()
		// The server does not do ECH: a client that insists learns it, after the
		// outer handshake has been finished for the outer name.
		if rejected := (*tls.ECHRejectionError)(nil); errorsAs(err, &rejected) != ok {
			t.Errorf("%s: %v", target, err)
		}
	}
	r.rec.wait(t, "name-mismatch") // of api.test
	if got := up.take(); len(got) != 0 {
		t.Errorf("the upstream saw %q", got)
	}
}

func errorsAs[T any](err error, target *T) bool { return errors.As(err, target) }

// echConfig makes an ECHConfigList (RFC 9849) with X25519 and AES-128-GCM.
func echConfig(t testing.TB, publicName string) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	contents := []byte{7, 0, 0x20} // config id, DHKEM(X25519)
	contents = append(binary.BigEndian.AppendUint16(contents, 32), key.PublicKey().Bytes()...)
	contents = append(contents, 0, 4, 0, 1, 0, 1, 32, byte(len(publicName)))
	contents = append(append(contents, publicName...), 0, 0)
	config := binary.BigEndian.AppendUint16([]byte{0xfe, 0x0d}, uint16(len(contents)))
	config = append(config, contents...)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(config))), config...)
}

// A client that is refused while it uploads gets the whole refusal, over either
// protocol, and nothing of what it sent goes anywhere.
func TestRefusedUploads(t *testing.T) {
	up := &arrivals{}
	r := startRelay(t, nil, serve(t, up, "readonly.test"))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	os.WriteFile(ca, r.ca.pem(), 0o600)
	big := filepath.Join(t.TempDir(), "big")
	os.WriteFile(big, make([]byte, 20<<20), 0o600)
	for _, version := range []string{"--http1.1", "--http2"} {
		for range 3 {
			out, err := exec.Command("curl", "-sS", version, "--max-time", "20", "--cacert", ca, "--proxy", "http://"+r.proxy, "-H", "Expect:", "--data-binary", "@"+big, "https://readonly.test/docs/x").CombinedOutput()
			if err != nil || !strings.HasPrefix(string(out), "bulkhead: ") {
				t.Errorf("%s: %v %.200s", version, err, out)
			}
		}
	}
	if got := up.take(); len(got) != 0 {
		t.Errorf("the upstream saw %.200q", got)
	}
}
