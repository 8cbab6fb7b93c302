package websocket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
)

// script is a side that says what it has been given and then waits; what it is
// told is kept.
type script struct {
	in   *bytes.Reader
	open chan struct{}
	out  bytes.Buffer
}

func newScript(b []byte) *script { return &script{in: bytes.NewReader(b), open: make(chan struct{})} }

func (s *script) Read(p []byte) (int, error) {
	if n, err := s.in.Read(p); err == nil {
		return n, nil
	}
	return 0, io.EOF
}

func (s *script) Write(p []byte) (int, error) { return s.out.Write(p) }

func (s *script) Close() error { return nil }

func client(op ws.OpCode, fin bool, payload string) []byte {
	f := ws.NewFrame(op, fin, []byte(payload))
	return ws.MustCompileFrame(ws.MaskFrameInPlaceWith(f, [4]byte{1, 2, 3, 4}))
}

// Whatever the client's bytes are, the upstream gets frames that a strict reader
// accepts, text that is text, and no byte of a message that was refused.
func FuzzRelay(f *testing.F) {
	f.Add(client(ws.OpText, true, "hello"), false)
	f.Add(append(client(ws.OpText, false, "hé"), client(ws.OpContinuation, true, "llo")...), true)
	f.Add(append(client(ws.OpPing, true, "x"), client(ws.OpClose, true, "\x03\xe8bye")...), true)
	f.Add(append(client(ws.OpBinary, false, strings.Repeat("b", 70000)), client(ws.OpText, true, "refuse me")...), true)
	f.Add([]byte{0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, false)
	f.Fuzz(func(t *testing.T, in []byte, judge bool) {
		from, to := newScript(in), newScript(nil)
		o := &Options{MaxMessage: 1 << 20, Stall: time.Second, Idle: time.Minute}
		if judge {
			o.Judge = func(m io.Reader) ([]byte, func(), error) {
				b, err := io.ReadAll(m)
				if err == nil && bytes.Contains(b, []byte("refuse")) {
					err = &Violation{Code: ws.StatusPolicyViolation, Reason: "refused"}
				}
				return b, func() {}, err
			}
		}
		p := &pump{from: newSide(from, false, time.Second, func() {}), to: newSide(to, true, time.Second, func() {}), o: o}
		p.run()
		var state = ws.StateServerSide
		text, size, isText := []byte(nil), 0, false
		for {
			h, err := ws.ReadHeader(&to.out)
			if err != nil {
				if to.out.Len() > 0 || !errors.Is(err, io.EOF) {
					t.Fatalf("what was sent is no frame: %v", err)
				}
				return
			}
			if err := ws.CheckHeader(h, state); err != nil {
				t.Fatalf("what was sent breaks a rule: %v", err)
			}
			payload := make([]byte, min(h.Length, 1<<20))
			if n, err := io.ReadFull(&to.out, payload); err != nil || int64(n) != h.Length {
				t.Fatalf("%d of %d bytes", n, h.Length)
			}
			ws.Cipher(payload, h.Mask, 0)
			if h.OpCode.IsControl() {
				continue
			}
			if state = state.Clear(ws.StateFragmented); !h.Fin {
				state = state.Set(ws.StateFragmented)
			}
			if h.OpCode != ws.OpContinuation {
				text, size, isText = nil, 0, h.OpCode == ws.OpText
			}
			if size += len(payload); size > 1<<20 {
				t.Fatal("longer than allowed")
			}
			if text = append(text, payload...); h.Fin && isText && !utf8.Valid(text) {
				t.Fatalf("text %q", text)
			}
			if judge && bytes.Contains(text, []byte("refuse")) {
				t.Fatalf("%q was passed on", text)
			}
		}
	})
}

func FuzzHandshake(f *testing.F) {
	f.Add("websocket", "Upgrade", "13", "dGhlIHNhbXBsZSBub25jZQ==", "chat, superchat")
	f.Fuzz(func(t *testing.T, upgrade, connection, version, key, protocols string) {
		h := http.Header{"Upgrade": {upgrade}, "Connection": {connection}, "Sec-Websocket-Version": {version}, "Sec-Websocket-Key": {key}, "Sec-Websocket-Protocol": {protocols}, "Sec-Websocket-Extensions": {"x"}}
		own := h.Clone()
		k, err := Read(&http.Request{Method: "GET", ProtoMajor: 1, ProtoMinor: 1, Header: h}, own)
		if err != nil {
			return
		}
		if !strings.EqualFold(upgrade, "websocket") || version != "13" || len(key) != 24 || len(own["Sec-Websocket-Extensions"]) > 0 || len(own["Sec-Websocket-Key"]) > 0 {
			t.Fatalf("accepted %q %q %q; left %v", upgrade, version, key, own)
		}
		k.Offer(own)
		if own.Get("Sec-Websocket-Key") == key || strings.ContainsAny(own.Get("Sec-Websocket-Protocol"), "\r\n\x00") {
			t.Fatalf("offered %v", own)
		}
	})
}

// A message that the judge refuses ends the connection with 1008 and its words,
// the next ones are not looked at, and the upstream is told that nobody is there.
func TestJudge(t *testing.T) {
	us, client := net.Pipe()
	them, upstream := net.Pipe()
	var judged []string
	ended := make(chan error, 1)
	go func() {
		ended <- Relay(context.Background(), us, them, Options{MaxMessage: 1 << 20, Stall: 5 * time.Second, Idle: time.Minute, Judge: func(m io.Reader) ([]byte, func(), error) {
			b, err := io.ReadAll(m)
			judged = append(judged, string(b))
			if err == nil && strings.Contains(string(b), "remote_mcp") {
				err = &Violation{Code: ws.StatusPolicyViolation, Reason: "bulkhead: tools are not granted (policy.yaml:3)"}
			}
			return b, func() {}, err
		}})
	}()
	got := make(chan string, 8)
	go func() {
		for {
			b, op, err := wsutil.ReadClientData(upstream)
			if err != nil {
				got <- "end " + err.Error()
				return
			}
			got <- string(rune('0'+op)) + string(b)
		}
	}()
	go func() {
		wsutil.WriteClientText(client, []byte(`{"a":1}`))
		ws.WriteFrame(client, ws.MaskFrame(ws.NewFrame(ws.OpText, false, []byte(`{"remote`))))
		ws.WriteFrame(client, ws.MaskFrame(ws.NewFrame(ws.OpContinuation, true, []byte(`_mcp":1}`))))
		wsutil.WriteClientText(client, []byte("never"))
	}()
	f, err := readFrame(client)
	if err != nil || f.Header.OpCode != ws.OpClose || string(f.Payload[2:]) != "bulkhead: tools are not granted (policy.yaml:3)" || f.Payload[0] != 3 || f.Payload[1] != 0xf0 {
		t.Errorf("%+v %v", f, err)
	}
	if first := <-got; first != `1{"a":1}` {
		t.Errorf("the upstream got %q", first)
	}
	if second := <-got; !strings.Contains(second, "1001") {
		t.Errorf("then %q", second)
	}
	client.Close()
	if v := (*Violation)(nil); !errors.As(<-ended, &v) || len(judged) != 2 {
		t.Errorf("judged %q", judged)
	}
}

// Two sides that fall silent are not kept for ever, and neither is one that does
// not read.
func TestIdleAndStall(t *testing.T) {
	us, client := net.Pipe()
	them, upstream := net.Pipe()
	defer client.Close()
	defer upstream.Close()
	start := time.Now()
	go io.Copy(io.Discard, client)
	err := Relay(context.Background(), us, them, Options{MaxMessage: 1, Stall: time.Second, Idle: 200 * time.Millisecond})
	if !errors.Is(err, errIdle) || time.Since(start) > 6*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	us, client = net.Pipe()
	them, upstream = net.Pipe()
	defer client.Close()
	defer upstream.Close()
	start = time.Now()
	go wsutil.WriteServerText(upstream, bytes.Repeat([]byte("x"), 1000))
	Relay(context.Background(), us, them, Options{MaxMessage: 1 << 20, Stall: 200 * time.Millisecond, Idle: time.Minute})
	if d := time.Since(start); d > 6*time.Second {
		t.Errorf("a client that does not read was kept for %v", d)
	}
	if err := Relay(context.Background(), us, them, Options{}); err == nil {
		t.Error("no limits are no limit")
	}
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
