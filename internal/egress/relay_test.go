package egress

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// echo answers with what it got.
func echo(w http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	n, _ := io.Copy(h, r.Body)
	w.Header().Set("X-Proto", r.Proto)
	fmt.Fprintf(w, "%s %s host=%s auth=%q body=%d:%x", r.Method, r.RequestURI, r.Host, r.Header.Get("Authorization"), n, h.Sum(nil)[:4])
}

func get(t testing.TB, c *http.Client, url string, edit ...func(*http.Request)) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range edit {
		e(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func bearer(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

func TestGrantedRequestsPass(t *testing.T) {
	up := serve(t, http.HandlerFunc(echo), "api.test", "other.test")
	plain := servePlain(t, http.HandlerFunc(echo), "plain.test")
	r := startRelay(t, nil, up, plain)
	resp, body := get(t, r.client(), "https://other.test/a/b%20c?q=1%2F2&q=3")
	if resp.StatusCode != 200 || !strings.HasPrefix(body, `GET /a/b%20c?q=1%2F2&q=3 host=other.test auth=""`) {
		t.Errorf("https: %s %s", resp.Status, body)
	}
	if resp.Proto != "HTTP/2.0" || resp.Header.Get("X-Proto") != "HTTP/2.0" {
		t.Errorf("protocols: %s inside, %s outside", resp.Proto, resp.Header.Get("X-Proto"))
	}
	if _, body := get(t, r.client(), "http://plain.test/x"); !strings.HasPrefix(body, "GET /x host=plain.test") {
		t.Errorf("plain: %s", body)
	}
	allowed := r.rec.allowed()
	if len(allowed) != 2 || allowed[0].Resource == "" || allowed[0].Reason.Rule.Line != 2 || strings.Contains(fmt.Sprint(allowed), "1%2F2") {
		t.Errorf("events: %+v", allowed)
	}
}

func TestCredentialIsSwapped(t *testing.T) {
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+realSecret {
			w.WriteHeader(418)
		}
		io.WriteString(w, "ok")
	}), "api.test", "other.test")
	r := startRelay(t, nil, up)
	if resp, _ := get(t, r.client(), "https://api.test/v1", bearer(placeholder)); resp.StatusCode != 200 {
		t.Errorf("placeholder was not swapped: %s", resp.Status)
	}
	for _, token := range []string{"sk-attacker-000000000000000", placeholder + "x"} {
		resp, body := get(t, r.client(), "https://api.test/v1", bearer(token))
		if resp.StatusCode != 403 || resp.Header.Get("Bulkhead-Denied") == "" {
			t.Errorf("foreign credential: %s %s", resp.Status, body)
		}
	}
	for _, where := range []func(*http.Request){
		func(r *http.Request) { r.Header.Set("User-Agent", "x "+placeholder) },
		func(r *http.Request) { r.URL.RawQuery = "q=" + placeholder },
		func(r *http.Request) { r.URL.Path = "/" + placeholder },
		func(r *http.Request) { r.Header.Set("X-Custom", placeholder) },
	} {
		if resp, body := get(t, r.client(), "https://api.test/v1", bearer(placeholder), where); resp.StatusCode != 403 {
			t.Errorf("placeholder in another place: %s %s", resp.Status, body)
		}
	}
	for _, e := range r.rec.events {
		if strings.Contains(fmt.Sprint(e), realSecret) {
			t.Errorf("the secret is in an event: %v", e)
		}
	}
}

func TestDenialsCanBeRead(t *testing.T) {
	up := serve(t, http.HandlerFunc(echo), "readonly.test")
	r := startRelay(t, nil, up)
	resp, body := get(t, r.client(), "https://readonly.test/docs/x", func(r *http.Request) {
		r.Method = "DELETE"
		r.Header.Set("Accept", "application/json")
	})
	var d struct {
		Type     string
		Error    struct{ Type, Message string }
		Bulkhead struct{ Code, Action, Resource, Rule, Remedy string }
	}
	if err := json.Unmarshal([]byte(body), &d); err != nil || resp.StatusCode != 403 || d.Type != "error" || d.Error.Type != "permission_error" || d.Error.Message == "" || d.Bulkhead.Code != resp.Header.Get("Bulkhead-Denied") || d.Bulkhead.Code == "" {
		t.Errorf("%v: %s %s", err, resp.Status, body)
	}
	_, body = get(t, r.client(), "https://readonly.test/docs/x", func(r *http.Request) { r.Method = "DELETE"; r.Header.Set("Accept", "*/*") })
	if n := strings.Count(body, "\n"); n < 1 || n > 3 || !strings.HasPrefix(body, "bulkhead: ") {
		t.Errorf("plain denial: %q", body)
	}
	if _, status := r.tunnel("nowhere.test:443"); !strings.Contains(status, "403") {
		t.Errorf("CONNECT to an ungranted name: %q", status)
	}
	r.rec.wait(t, "no-grant")
}

func TestEventsStream(t *testing.T) {
	next := make(chan struct{})
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		rc := http.NewResponseController(w)
		rc.Flush()
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			rc.Flush()
			select {
			case <-next:
			case <-time.After(10 * time.Second):
				return
			}
		}
	}), "api.test", "other.test")
	r := startRelay(t, nil, up)
	for _, url := range []string{"https://other.test/stream", "https://api.test/stream"} {
		req, _ := http.NewRequest("POST", url, strings.NewReader("{}"))
		if strings.Contains(url, "api.test") {
			bearer(placeholder)(req)
		}
		resp, err := r.client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		br := bufio.NewReader(resp.Body)
		for i := range 3 {
			got, err := br.ReadString('\n')
			if err != nil || got != fmt.Sprintf("data: %d\n", i) {
				t.Fatalf("%s: event %d: %q, %v", url, i, got, err)
			}
			br.ReadString('\n')
			next <- struct{}{} // only now the next one is sent
		}
		resp.Body.Close()
	}
}

func TestTrailersPass(t *testing.T) {
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		w.Header().Set("Content-Type", "application/grpc")
		w.WriteHeader(200)
		io.WriteString(w, "message")
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", "fine")
	}), "other.test")
	r := startRelay(t, nil, up)
	resp, _ := get(t, r.client(), "https://other.test/grpc")
	if resp.Trailer.Get("Grpc-Status") != "0" || resp.Trailer.Get("Grpc-Message") != "fine" {
		t.Errorf("trailers: %v", resp.Trailer)
	}
}

// memory returns a process's resident bytes.
func memory(t testing.TB, pid int) (kb int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		fmt.Sscanf(l, "VmHWM: %d kB", &kb)
	}
	return kb
}

func TestBigBodiesTakeNoMemory(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 100 << 20
	}
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		w.Header().Set("X-Got", fmt.Sprint(n))
		chunk := bytes.Repeat([]byte("0123456789abcdef"), 4096)
		for sent := int64(0); sent < size; sent += int64(len(chunk)) {
			w.Write(chunk)
		}
	}), "api.test")
	r := startRelay(t, nil, up)
	req, _ := http.NewRequest("POST", "https://api.test/big", io.LimitReader(neverending('x'), size))
	bearer(placeholder)(req)
	c := r.client()
	c.Timeout = 2 * time.Minute
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n != size || resp.Header.Get("X-Got") != fmt.Sprint(size) {
		t.Errorf("up %s, down %d: %v", resp.Header.Get("X-Got"), n, err)
	}
	if kb := memory(t, r.gw.PID()); kb > 96<<10 {
		t.Errorf("the gateway took %d MiB for %d MiB each way", kb>>10, size>>20)
	} else {
		t.Logf("the gateway's peak: %d MiB", kb>>10)
	}
}

type neverending byte

func (b neverending) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(b)
	}
	return len(p), nil
}

func TestOpaqueFlow(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.(*net.TCPConn).CloseWrite() }()
		}
	}()
	r := startRelay(t, nil, &upstream{addr: l.Addr().String(), names: []string{"opaque.test"}})
	c, status := r.tunnel("opaque.test:7000")
	if !strings.Contains(status, "200") {
		t.Fatal(status)
	}
	io.WriteString(c, "hello")
	c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); string(b) != "hello" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if a := r.rec.allowed(); len(a) != 1 || a[0].Action != "tcp.connect" {
		t.Errorf("events: %v", a)
	}
	if _, status := r.tunnel("opaque.test:7001"); !strings.Contains(status, "403") {
		t.Errorf("another port: %s", status)
	}
}

func TestNoRecordNoAct(t *testing.T) {
	hits := 0
	up := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits++ }), "api.test", "other.test")
	r := startRelay(t, nil, up)
	r.rec.broken = true
	resp, body := get(t, r.client(), "https://api.test/", bearer(placeholder))
	if resp.StatusCode != 503 || resp.Header.Get("Bulkhead-Denied") != "no-record" || hits != 0 || r.rec.asked != 0 {
		t.Errorf("%s %s, %d hits, %d credentials", resp.Status, body, hits, r.rec.asked)
	}
	// Nor where no credential has to be waited for.
	resp, body = get(t, r.client(), "https://other.test/")
	if resp.StatusCode != 503 || resp.Header.Get("Bulkhead-Denied") != "no-record" || hits != 0 {
		t.Errorf("without a credential: %s %s, %d hits", resp.Status, body, hits)
	}
}

func TestRevoke(t *testing.T) {
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		for {
			if _, err := io.WriteString(w, "data: x\n\n"); err != nil || rc.Flush() != nil {
				return
			}
			select {
			case <-r.Context().Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}), "api.test", "other.test")
	r := startRelay(t, nil, up)
	open := func(url string, edit func(*http.Request)) io.ReadCloser {
		req, _ := http.NewRequest("GET", url, nil)
		edit(req)
		resp, err := r.client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(resp.Body, make([]byte, 9))
		return resp.Body
	}
	with := open("https://api.test/", bearer(placeholder))
	without := open("https://other.test/", func(*http.Request) {})
	defer with.Close()
	defer without.Close()
	start := time.Now()
	if err := r.gw.Revoke(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, with); err == nil {
		t.Error("the cut stream looks whole")
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("cut after %v", d)
	}
	if _, err := io.ReadFull(without, make([]byte, 27)); err != nil {
		t.Errorf("a stream without credential was cut: %v", err)
	}
	resp, body := get(t, r.client(), "https://api.test/", bearer(placeholder))
	if resp.StatusCode != 403 || resp.Header.Get("Bulkhead-Denied") != "revoked" {
		t.Errorf("after revocation: %s %s", resp.Status, body)
	}
}

func TestSOCKS(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("NOT PROVEN: SOCKS with a real client (no curl on this host)")
	}
	up := serve(t, http.HandlerFunc(echo), "other.test")
	r := startRelay(t, nil, up)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	os.WriteFile(ca, r.ca.pem(), 0o600)
	run := func(args ...string) (string, error) {
		b, err := exec.Command(curl, append([]string{"-sS", "--max-time", "10", "--cacert", ca}, args...)...).CombinedOutput()
		return string(b), err
	}
	if out, err := run("--proxy", "socks5h://"+r.proxy, "https://other.test/s"); err != nil || !strings.HasPrefix(out, "GET /s") {
		t.Errorf("socks5h: %v %s", err, out)
	}
	if out, err := run("--proxy", "socks5://"+r.proxy, "--resolve", "other.test:443:93.184.216.34", "https://other.test/"); err == nil {
		t.Errorf("socks5 by address passed: %s", out)
	}
	r.rec.wait(t, "ip-literal")
	if out, err := run("--proxy", "http://"+r.proxy, "https://other.test/p"); err != nil || !strings.HasPrefix(out, "GET /p") {
		t.Errorf("http proxy: %v %s", err, out)
	}
}

// A response that has no Content-Type, Date or body keeps having none.
func TestAnswersPassUnchanged(t *testing.T) {
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = nil
		w.Header().Set("X-Other", "a=b")
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.Header().Set("Etag", `"x"`)
			w.WriteHeader(304)
		default:
			w.Header().Set("Content-Length", "6")
			io.WriteString(w, "<html>")
		}
	}), "other.test")
	r := startRelay(t, nil, up)
	for path, want := range map[string]int{"/204": 204, "/304": 304, "/": 200} {
		resp, body := get(t, r.client(), "https://other.test"+path)
		if resp.StatusCode != want || resp.Header["Content-Type"] != nil || resp.Header.Get("X-Other") != "a=b" || (body != "") != (want == 200) {
			t.Errorf("%s: %s %v %q", path, resp.Status, resp.Header, body)
		}
	}
	resp, _ := get(t, r.client(), "https://other.test/", func(r *http.Request) { r.Method = "HEAD" })
	if resp.ContentLength != 6 {
		t.Errorf("HEAD: %v", resp.Header)
	}
}

func TestEventFloodIsCounted(t *testing.T) {
	r := startRelay(t, nil)
	const n = 1500
	for i := range n / 100 {
		c, err := net.Dial("tcp", r.proxy)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		for range 100 {
			fmt.Fprintf(c, "GET http://flood%d.test/ HTTP/1.1\r\nHost: x\r\n\r\n", i)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				break
			}
			resp.Body.Close()
			c.Close()
			if c, err = net.Dial("tcp", r.proxy); err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(20 * time.Second))
		}
		c.Close()
	}
	r.gw.Close()
	total, lines := 0, 0
	for _, e := range r.rec.with("no-grant") {
		lines++
		k := 1
		if s := e.Attrs["count"]; s != "" {
			fmt.Sscan(s, &k)
		}
		total += k
		if e.Verdict != vocabulary.Deny {
			t.Errorf("verdict %v", e.Verdict)
		}
	}
	if total != n || lines > n/2 {
		t.Errorf("%d refusals were recorded as %d in %d lines", n, total, lines)
	}
}

// Two sessions that go to one upstream at the same time, each as itself, share
// no connection of it.
func TestSessionsShareNoConnection(t *testing.T) {
	var mu sync.Mutex
	who := map[string]map[string]bool{}
	up := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if who[req.RemoteAddr] == nil {
			who[req.RemoteAddr] = map[string]bool{}
		}
		who[req.RemoteAddr][req.Header.Get("Authorization")] = true
	}), "api.test")
	rigs := []*rig{startRelay(t, nil, up), startRelay(t, nil, up)}
	rigs[1].rec.secret = "sk-real-of-the-other-session"
	for range 20 {
		for _, r := range rigs {
			for _, h2 := range []bool{true, false} {
				c := r.client()
				c.Transport.(*http.Transport).ForceAttemptHTTP2 = h2
				if resp, body := get(t, c, "https://api.test/", bearer(placeholder)); resp.StatusCode != 200 {
					t.Fatal(resp.Status, body)
				}
				c.CloseIdleConnections()
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for conn, keys := range who {
		if len(keys) != 1 {
			t.Errorf("the connection from %s carried %v", conn, keys)
		}
	}
	if len(who) < 2 || len(who) > 20 {
		t.Errorf("%d connections for 80 requests: kept ones are to be used again, and by one session only", len(who))
	}
}
