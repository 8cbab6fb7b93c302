package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	cws "github.com/coder/websocket"
	"github.com/gobwas/ws"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
)

// sockets grants WebSockets on api.test (with the credential) and other.test.
func sockets(c *Config) {
	for i := range c.Spec.Rules[:2] {
		c.Spec.Rules[i].Methods = append([]string{"WEBSOCKET"}, c.Spec.Rules[i].Methods...)
	}
}

// socketServer answers with what it gets, and with its request's headers to
// "headers".
func socketServer(w http.ResponseWriter, r *http.Request) {
	c, err := cws.Accept(w, r, &cws.AcceptOptions{Subprotocols: []string{"chat.v2", "realtime"}, CompressionMode: cws.CompressionContextTakeover})
	if err != nil {
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(64 << 20)
	for {
		kind, b, err := c.Read(r.Context())
		if err != nil {
			return
		}
		switch string(b) {
		case "headers":
			b = fmt.Appendf(nil, "%v", r.Header)
		case "close":
			c.Close(4001, "as you wish")
			return
		case "die":
			return
		case "echo":
			b = []byte("your key is " + strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		}
		if c.Write(r.Context(), kind, b) != nil {
			return
		}
	}
}

func (r *rig) socket(t testing.TB, url string, edit ...func(*cws.DialOptions)) (*cws.Conn, *http.Response, error) {
	t.Helper()
	o := &cws.DialOptions{HTTPClient: r.client(), HTTPHeader: http.Header{}, CompressionMode: cws.CompressionContextTakeover}
	o.HTTPClient.Timeout = 0
	for _, e := range edit {
		e(o)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, resp, err := cws.Dial(ctx, url, o)
	if c != nil {
		c.SetReadLimit(64 << 20)
		t.Cleanup(func() { c.CloseNow() })
	}
	return c, resp, err
}

func withKey(o *cws.DialOptions) { o.HTTPHeader.Set("Authorization", "Bearer "+placeholder) }

func say(t testing.TB, c *cws.Conn, kind cws.MessageType, msg string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.Write(ctx, kind, []byte(msg)); err != nil {
		return "", err
	}
	_, b, err := c.Read(ctx)
	return string(b), err
}

func TestWebSocket(t *testing.T) {
	up := serve(t, http.HandlerFunc(socketServer), "api.test", "other.test")
	r := startRelay(t, sockets, up)
	c, resp, err := r.socket(t, "wss://api.test/ws?a=1", withKey, func(o *cws.DialOptions) {
		o.Subprotocols = []string{"unknown.v1", "chat.v2", "aLongNameThatIsPerhapsNoName"}
		o.HTTPHeader.Set("Range", "bytes=0-3")
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Subprotocol() != "chat.v2" || resp.Header.Get("Sec-Websocket-Extensions") != "" {
		t.Errorf("subprotocol %q, %v", c.Subprotocol(), resp.Header)
	}
	got, err := say(t, c, cws.MessageText, "headers")
	if err != nil || strings.Contains(got, "Extensions") || strings.Contains(got, "aLongName") || strings.Contains(got, "bytes=0") || !strings.Contains(got, "chat.v2") {
		t.Errorf("the upstream's view: %s %v", got, err)
	}
	if _, resp, err := r.socket(t, "wss://api.test/ws", withKey, func(o *cws.DialOptions) { o.Subprotocols = []string{"bearer.token.abcdefabcdefabcdef"} }); err == nil || resp.StatusCode != 403 {
		t.Errorf("a credential as a subprotocol: %v", err)
	}
	for _, size := range []int{0, 1, 125, 126, 65535, 65536, 300 << 10, 5 << 20} {
		msg := strings.Repeat("é", size/2)
		if got, err := say(t, c, cws.MessageText, msg); err != nil || got != msg {
			t.Fatalf("%d bytes of text: %d, %v", size, len(got), err)
		}
		b := make([]byte, size)
		rand.Read(b)
		if got, err := say(t, c, cws.MessageBinary, string(b)); err != nil || got != string(b) {
			t.Fatalf("%d bytes: %d, %v", size, len(got), err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	go c.Read(ctx) // pongs are read by it
	if err := c.Ping(ctx); err != nil {
		t.Errorf("ping: %v", err)
	}
	c2, _, err := r.socket(t, "wss://other.test/")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := say(t, c2, cws.MessageText, "close"); cws.CloseStatus(err) != 4001 || !strings.Contains(err.Error(), "as you wish") {
		t.Errorf("close: %v", err)
	}
	c3, _, err := r.socket(t, "wss://other.test/")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := say(t, c3, cws.MessageText, "die"); err == nil || cws.CloseStatus(err) != -1 {
		t.Errorf("an upstream that died looks as if it had closed: %v", err)
	}
	if a := r.rec.allowed(); len(a) != 3 || a[0].Attrs["credential"] != "key" {
		t.Errorf("events: %v", a)
	}
}

// Without a grant for it, a handshake is a 403 in every form; a grant for GET is
// none.
func TestWebSocketNeedsItsGrant(t *testing.T) {
	up := &arrivals{}
	r := startRelay(t, nil, serve(t, up, "other.test"), servePlain(t, up, "plain.test"))
	if _, resp, err := r.socket(t, "wss://other.test/"); err == nil || resp == nil || resp.StatusCode != 403 || resp.Header.Get("Bulkhead-Denied") != "method-not-granted" {
		t.Errorf("%v %v", resp, err)
	}
	e := r.rec.wait(t, "method-not-granted")
	if !strings.Contains(e.Reason.Remedy, "WEBSOCKET") {
		t.Errorf("remedy: %s", e.Reason.Remedy)
	}
	if got := up.take(); len(got) != 0 {
		t.Errorf("the upstream saw %q", got)
	}
}

const handshake = "GET /ws HTTP/1.1\r\nHost: other.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

// Only the strict form of the handshake is one, and a grant for WebSockets is
// none for other requests.
func TestWebSocketHandshake(t *testing.T) {
	var mu sync.Mutex
	n := 0
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n++
		mu.Unlock()
		socketServer(w, r)
	}), "other.test")
	r := startRelay(t, func(c *Config) { c.Spec.Rules[1].Methods = []string{"WEBSOCKET"} }, up)
	for what, edit := range map[string]func(string) string{
		"": func(s string) string { return s },
		"odd case": func(s string) string {
			return strings.NewReplacer("Upgrade: websocket", "upgrade: WebSocket", "Connection: Upgrade", "connection: keep-alive, upgrade").Replace(s)
		},
		"no key": func(s string) string {
			return strings.Replace(s, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 1)
		},
		"a short key":        func(s string) string { return strings.Replace(s, "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ==", 1) },
		"two keys":           func(s string) string { return s + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" },
		"version 8":          func(s string) string { return strings.Replace(s, ": 13", ": 8", 1) },
		"two versions":       func(s string) string { return strings.Replace(s, ": 13", ": 13, 8", 1) },
		"two upgrades":       func(s string) string { return strings.Replace(s, "Upgrade: websocket", "Upgrade: websocket, h2c", 1) },
		"h2c and websocket":  func(s string) string { return s + "Upgrade: h2c\r\n" },
		"another upgrade":    func(s string) string { return strings.Replace(s, "Upgrade: websocket", "Upgrade: tls/1.3", 1) },
		"no connection":      func(s string) string { return strings.Replace(s, "Connection: Upgrade\r\n", "", 1) },
		"POST":               func(s string) string { return strings.Replace(s, "GET", "POST", 1) },
		"HTTP/1.0":           func(s string) string { return strings.Replace(s, "HTTP/1.1", "HTTP/1.0", 1) },
		"a body":             func(s string) string { return s + "Content-Length: 2\r\n" },
		"a chunked body":     func(s string) string { return s + "Transfer-Encoding: chunked\r\n" },
		"an odd subprotocol": func(s string) string { return s + "Sec-WebSocket-Protocol: a b\r\n" },
		"subprotocols twice": func(s string) string { return s + "Sec-WebSocket-Protocol: a, a\r\n" },
		"a foreign subprotocol": func(s string) string {
			return s + "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-proj-AAAAAAAAAAAAAAAAAAAAAAAA\r\n"
		},
		"a plain GET":            func(string) string { return "GET /ws HTTP/1.1\r\nHost: other.test\r\n" },
		"the method's own name":  func(s string) string { return strings.Replace(s, "GET", "WEBSOCKET", 1) },
		"the method's name only": func(string) string { return "WEBSOCKET /ws HTTP/1.1\r\nHost: other.test\r\n" },
	} {
		n = 0
		body := ""
		if strings.HasPrefix(what, "a body") {
			body = "xx"
		}
		answer := r.raw("other.test", edit(handshake)+"\r\n"+body)
		ok := what == "" || what == "odd case"
		if strings.HasPrefix(answer, "HTTP/1.1 101 ") != ok || n > 0 != ok {
			t.Errorf("%s: the upstream was asked %d times, %.100q", what, n, answer)
		}
		if ok && !strings.Contains(answer, "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n") {
			t.Errorf("accept: %q", answer)
		}
	}
	// What comes before the answer is not passed on.
	if answer := r.raw("other.test", handshake+"\r\n"+string(frame(ws.OpText, true, []byte("early")))); strings.HasPrefix(answer, "HTTP/1.1 101 ") {
		t.Errorf("early data: %.60q", answer)
	}
}

// frame is a client's.
func frame(op ws.OpCode, fin bool, payload []byte) []byte {
	f := ws.NewFrame(op, fin, bytes.Clone(payload))
	return ws.MustCompileFrame(ws.MaskFrameInPlace(f))
}

// A switch of the upstream's that is not the answer to this handshake is 502.
func TestWebSocketUpstreamsAnswer(t *testing.T) {
	var mu sync.Mutex
	var reply string
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		mu.Lock()
		s := strings.ReplaceAll(reply, "KEY", acceptOf(r.Header.Get("Sec-Websocket-Key")))
		mu.Unlock()
		rw.WriteString(s)
		rw.Flush()
		io.Copy(io.Discard, rw)
	}), "other.test")
	r := startRelay(t, sockets, up)
	const good = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: KEY\r\n"
	for i, s := range []string{
		good + "Set-Cookie: session=1\r\n\r\n",
		good + "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n", good + "Sec-WebSocket-Protocol: never-offered\r\n\r\n", strings.Replace(good, "KEY", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", 1) + "\r\n", good + "Sec-WebSocket-Accept: KEY\r\n\r\n",
		strings.Replace(good, "websocket", "h2c", 1) + "\r\n", strings.Replace(good, "Connection: Upgrade\r\n", "", 1) + "\r\n", strings.Replace(good, "Sec-WebSocket-Accept: KEY\r\n", "", 1) + "\r\n",
		"HTTP/1.1 426 Upgrade Required\r\nConnection: close\r\nUpgrade: foo\r\nContent-Length: 2\r\n\r\nno", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno",
	} {
		mu.Lock()
		reply = s
		mu.Unlock()
		answer := r.raw("other.test", handshake+"\r\n")
		want := "HTTP/1.1 502 "
		switch {
		case i == 0:
			want = "HTTP/1.1 101 "
		case i >= 8:
			want = strings.Split(s, "\r\n")[0]
		}
		if !strings.HasPrefix(answer, want) || strings.Contains(answer, "session=1") || strings.Contains(answer, "Upgrade: foo") {
			t.Errorf("%.120q became %.200q", s, answer)
		}
	}
}

func acceptOf(key string) string { return base64.StdEncoding.EncodeToString(sha1Sum(key)) }

// The relay's rules for frames: whatever a client sends against RFC 6455 ends
// the connection with the right code, and nothing of it arrives.
func TestWebSocketFrames(t *testing.T) {
	got := make(chan string, 64)
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := cws.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			_, b, err := c.Read(r.Context())
			if err != nil {
				got <- fmt.Sprintf("end %d", cws.CloseStatus(err))
				return
			}
			got <- string(b)
		}
	}), "other.test")
	r := startRelay(t, sockets, up)
	unmasked := ws.MustCompileFrame(ws.NewTextFrame([]byte("secret")))
	rsv := frame(ws.OpText, true, []byte("secret"))
	rsv[0] |= 0x40
	long := frame(ws.OpPing, true, make([]byte, 10))
	long[1] = 0x80 | 126
	for what, c := range map[string]struct {
		in   []byte
		code int
	}{
		"unmasked": {unmasked, 1002}, "compressed": {rsv, 1002}, "reserved opcode": {frame(3, true, []byte("secret")), 1002}, "reserved control": {frame(11, true, nil), 1002},
		"long ping": {append(long[:2], bytes.Repeat([]byte{0}, 200)...), 1002}, "fragmented ping": {frame(ws.OpPing, false, nil), 1002},
		"continuation of nothing": {frame(ws.OpContinuation, true, []byte("secret")), 1002}, "two texts": {append(frame(ws.OpText, false, []byte("a")), frame(ws.OpText, true, []byte("secret"))...), 1002},
		"bad text": {frame(ws.OpText, true, []byte{0xff, 's'}), 1007}, "cut text": {frame(ws.OpText, true, []byte{'a', 0xe2, 0x82}), 1007}, "surrogate": {frame(ws.OpText, true, []byte{0xed, 0xa0, 0x80}), 1007},
		"half a close": {frame(ws.OpClose, true, []byte{3}), 1002}, "close 1005": {frame(ws.OpClose, true, []byte{3, 0xed}), 1002}, "close 999": {frame(ws.OpClose, true, []byte{3, 0xe7}), 1002}, "bad reason": {frame(ws.OpClose, true, []byte{3, 0xe8, 0xff}), 1002},
		"negative length": {[]byte{0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4}, 1002}, "endless": {[]byte{0x82, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4}, 1009},
		"close": {frame(ws.OpClose, true, ws.NewCloseFrameBody(1000, "bye")), 1000},
	} {
		c1, err := r.secured("other.test:443", "other.test", "http/1.1")
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c1, handshake+"\r\n")
		br := bufio.NewReader(c1)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 101 {
			t.Fatal(resp, err)
		}
		c1.Write(append(frame(ws.OpText, true, []byte("hello")), c.in...))
		f, err := readFrame(br)
		code := 0
		if len(f.Payload) >= 2 {
			code = int(f.Payload[0])<<8 | int(f.Payload[1])
		}
		if err != nil || f.Header.OpCode != ws.OpClose || code != c.code {
			t.Errorf("%s: %v, opcode %v, code %d %q", what, err, f.Header.OpCode, code, f.Payload)
		}
		c1.Close()
		for end := ""; !strings.HasPrefix(end, "end"); {
			select {
			case end = <-got:
			case <-time.After(8 * time.Second):
				t.Fatalf("%s: the upstream's side was left open", what)
			}
			if strings.Contains(end, "secret") {
				t.Errorf("%s: it arrived", what)
			}
		}
	}
	r.rec.wait(t, "protocol-refused")
}

// An upstream's echo of the credential is removed from messages, across
// fragments, and from control frames.
func TestWebSocketEcho(t *testing.T) {
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(rw, "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", acceptOf(r.Header.Get("Sec-Websocket-Key")))
		text := "<" + strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ") + ">"
		ws.WriteFrame(rw, ws.NewFrame(ws.OpText, false, []byte("whole "+text)))
		for i := 0; i < len(text); i += 3 { // cut
			ws.WriteFrame(rw, ws.NewFrame(ws.OpContinuation, false, []byte(text[i:min(i+3, len(text))])))
			if i == 6 {
				ws.WriteFrame(rw, ws.NewPingFrame([]byte(text)))
			}
		}
		ws.WriteFrame(rw, ws.NewFrame(ws.OpContinuation, true, nil))
		ws.WriteFrame(rw, ws.NewBinaryFrame([]byte(base64.StdEncoding.EncodeToString([]byte(text)))))
		ws.WriteFrame(rw, ws.NewCloseFrame(ws.NewCloseFrameBody(1000, text)))
		rw.Flush()
		io.Copy(io.Discard, rw)
	}), "api.test")
	r := startRelay(t, sockets, up)
	answer := r.raw("api.test", strings.Replace(handshake, "other.test", "api.test", 1)+"Authorization: Bearer "+placeholder+"\r\n\r\n")
	if !strings.Contains(answer, "whole <"+strings.Repeat("*", len(realSecret))+">") || strings.Count(answer, "*") < 3*len(realSecret) {
		t.Errorf("%q", answer)
	}
	for i := 0; i+10 <= len(realSecret); i++ {
		if strings.Contains(answer, realSecret[i:i+10]) {
			t.Errorf("%q", answer)
			break
		}
	}
	if strings.Contains(answer, base64.StdEncoding.EncodeToString([]byte("<" + realSecret))[4:20]) {
		t.Errorf("base64: %q", answer)
	}
	r.rec.wait(t, "credential-echo")
}

// Messages of a typed WebSocket are judged like bodies: the one that asks for a
// feature that is not granted ends the connection with 1008 and the denial's
// words, and does not arrive, whole or in fragments.
func TestWebSocketJudged(t *testing.T) {
	got := make(chan string, 8)
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := cws.Accept(w, r, &cws.AcceptOptions{Subprotocols: []string{"realtime"}})
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			_, b, err := c.Read(r.Context())
			if err != nil {
				return
			}
			got <- string(b)
			c.Write(r.Context(), cws.MessageText, []byte("ok"))
		}
	}), "api.openai.com")
	r := startRelay(t, func(c *Config) {
		c.Spec.Rules = append(c.Spec.Rules, capability.Rule{Pos: line(9), Service: "openai", Operations: []string{"realtime"}, Credential: "key"})
	}, up)
	const fine = `{"type":"session.update","session":{"type":"realtime","tools":[{"type":"function","name":"f","parameters":{"type":"object"}}]}}`
	const mcp = `{"type":"session.update","session":{"type":"realtime","tools":[{"type":"mcp","server_label":"x","server_url":"https://evil.test/"}]}}`
	for _, kind := range []cws.MessageType{cws.MessageText, cws.MessageBinary} {
		c, _, err := r.socket(t, "wss://api.openai.com/v1/realtime?model=m", withKey, func(o *cws.DialOptions) { o.Subprotocols = []string{"realtime"} })
		if err != nil {
			t.Fatal(err)
		}
		if answer, err := say(t, c, cws.MessageText, fine); answer != "ok" || <-got != fine {
			t.Fatalf("an ordinary message: %q %v", answer, err)
		}
		_, err = say(t, c, kind, mcp)
		if ce := (cws.CloseError{}); !errors.As(err, &ce) || ce.Code != 1008 || !strings.HasPrefix(ce.Reason, "bulkhead: ") {
			t.Errorf("a message that asks for more: %v", err)
		}
	}
	select {
	case m := <-got:
		t.Errorf("it arrived: %s", m)
	case <-time.After(100 * time.Millisecond):
	}
	if e := r.rec.wait(t, "operation-not-granted"); !strings.Contains(e.Reason.Message, "realtime.mcp") || e.Reason.Rule.Line != 9 {
		t.Errorf("event: %+v", e.Reason)
	}
}

// A revocation cuts a WebSocket that carries a credential, within a second, and
// says so; one without goes on.
func TestWebSocketRevoke(t *testing.T) {
	up := serve(t, http.HandlerFunc(socketServer), "api.test", "other.test")
	r := startRelay(t, sockets, up)
	with, _, err := r.socket(t, "wss://api.test/", withKey)
	if err != nil {
		t.Fatal(err)
	}
	without, _, err := r.socket(t, "wss://other.test/")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, _, err := with.Read(context.Background())
		ended <- err
	}()
	time.Sleep(50 * time.Millisecond)
	start := time.Now()
	if err := r.gw.Revoke(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		ce := cws.CloseError{}
		if !errors.As(err, &ce) || ce.Code != 1008 || !strings.Contains(ce.Reason, "revoked") || time.Since(start) > 5*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	case <-time.After(15 * time.Second):
		t.Error("not cut")
	}
	if got, err := say(t, without, cws.MessageText, "still"); got != "still" {
		t.Errorf("without a credential: %v", err)
	}
	if _, resp, err := r.socket(t, "wss://api.test/", withKey); err == nil || resp.StatusCode != 403 {
		t.Errorf("afterwards: %v", err)
	}
}

// A message without end, and a client that does not read, take no memory.
func TestWebSocketTakesNoMemory(t *testing.T) {
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := cws.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		_, body, err := c.Reader(r.Context())
		if err != nil {
			return
		}
		n, _ := io.Copy(io.Discard, body)
		out, err := c.Writer(r.Context(), cws.MessageBinary)
		if err != nil {
			return
		}
		io.Copy(out, io.LimitReader(neverending('x'), n))
		out.Close()
	}), "other.test")
	r := startRelay(t, sockets, up)
	c, _, err := r.socket(t, "wss://other.test/")
	if err != nil {
		t.Fatal(err)
	}
	const size = 200 << 20
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := c.Writer(ctx, cws.MessageBinary)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, io.LimitReader(neverending('x'), size)); err != nil {
		t.Fatal(err)
	}
	out.Close()
	c.SetReadLimit(-1)
	_, in, err := c.Reader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // not reading
	n, err := io.Copy(io.Discard, in)
	if n != size || err != nil {
		t.Errorf("%d bytes came back: %v", n, err)
	}
	if kb := memory(t, r.gw.PID()); kb > 96<<10 {
		t.Errorf("the gateway took %d MiB for a message of %d MiB", kb>>10, size>>20)
	} else {
		t.Logf("the gateway's peak: %d MiB", kb>>10)
	}
}

func sha1Sum(key string) []byte {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return sum[:]
}

func readFrame(r io.Reader) (f ws.Frame, err error) {
	if f.Header, err = ws.ReadHeader(r); err != nil {
		return f, err
	}
	if f.Header.Length > 1<<20 {
		return f, fmt.Errorf("a frame of %d bytes", f.Header.Length)
	}
	f.Payload = make([]byte, f.Header.Length)
	_, err = io.ReadFull(r, f.Payload)
	return f, err
}
