//go:build linux

package frame

import (
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

type message struct {
	Text string `json:"text"`
}

func pair(t *testing.T) (*Conn, *Conn) {
	t.Helper()
	a, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestRoundTrip(t *testing.T) {
	a, b := pair(t)
	r, w, _ := os.Pipe()
	defer r.Close()
	long := strings.Repeat("x", 3<<20) // more than a socket buffer
	go func() {
		a.Send(time.Time{}, message{"with a pipe"}, w)
		a.Send(time.Time{}, message{long})
		w.Close()
		a.Close()
	}()
	var m message
	files, err := b.Receive(&m, MaxPayload, 1)
	if err != nil || m.Text != "with a pipe" || len(files) != 1 {
		t.Fatalf("%v %v %v", m, files, err)
	}
	io.WriteString(files[0], "hello")
	files[0].Close()
	if _, err := b.Receive(&m, MaxPayload, 0); err != nil || m.Text != long {
		t.Fatalf("long message: %d bytes, %v", len(m.Text), err)
	}
	if _, err := b.Receive(&m, MaxPayload, 0); err != io.EOF {
		t.Fatalf("after close: %v, want EOF", err)
	}
	if got, _ := io.ReadAll(r); string(got) != "hello" {
		t.Fatalf("through the pipe: %q", got)
	}
}

func TestHostileSenders(t *testing.T) {
	r, w, _ := os.Pipe()
	defer r.Close()
	defer w.Close()
	for name, send := range map[string]func(c *Conn){
		"too long":              func(c *Conn) { c.c.Write([]byte{0, 1, 0, 0, 0}) },
		"torn header":           func(c *Conn) { c.c.Write([]byte{0, 0}); c.Close() },
		"torn payload":          func(c *Conn) { c.c.Write([]byte{0, 0, 0, 9, 0, '{'}); c.Close() },
		"unknown field":         func(c *Conn) { c.Send(time.Time{}, map[string]string{"other": ""}) },
		"two objects":           func(c *Conn) { c.c.Write([]byte("\x00\x00\x00\x04\x00{}{}")) },
		"not JSON":              func(c *Conn) { c.c.Write([]byte("\x00\x00\x00\x02\x00hi")) },
		"announced, not sent":   func(c *Conn) { c.c.Write([]byte("\x00\x00\x00\x02\x01{}")) },
		"sent, not announced":   func(c *Conn) { c.c.WriteMsgUnix([]byte("\x00\x00\x00\x02\x00{}"), unix.UnixRights(int(w.Fd())), nil) },
		"too many descriptors":  func(c *Conn) { c.Send(time.Time{}, message{}, w, w, w, w) },
		"descriptors, no bytes": func(c *Conn) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			before := openFiles(t)
			send(a)
			var m message
			files, err := b.Receive(&m, 1024, 2)
			if err == nil || len(files) != 0 {
				t.Fatalf("accepted: %v, %d descriptors", m, len(files))
			}
			a.Close()
			if after := openFiles(t); after > before {
				t.Errorf("%d descriptors leaked", after-before)
			}
		})
	}
}

func TestSendToOneWhoDoesNotRead(t *testing.T) {
	a, _ := pair(t)
	start := time.Now()
	err := a.Send(start.Add(100*time.Millisecond), message{strings.Repeat("x", 8<<20)})
	if err == nil || time.Since(start) > 2*time.Second {
		t.Fatalf("err %v after %v", err, time.Since(start))
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 0})
	f.Add([]byte{255, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerSize {
			return
		}
		n, k, err := parseHeader([headerSize]byte(b), 4096, 1)
		if err == nil && (n < 0 || n > 4096 || k < 0 || k > 1) {
			t.Fatalf("accepted %d bytes, %d descriptors", n, k)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"text":"a"}`))
	f.Add([]byte(`{"text":"a"}{`))
	f.Add([]byte(`{"text":"a","x":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m message
		if Decode(b, &m) == nil {
			if again, err := json.Marshal(m); err != nil || Decode(again, &m) != nil {
				t.Fatalf("accepted %q, but not its own form %q (%v)", b, again, err)
			}
		}
	})
}
