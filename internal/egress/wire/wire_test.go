//go:build unix

package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

type controller struct {
	mu     sync.Mutex
	events []v1.Event
	fail   error
	asked  int
}

func (c *controller) Record(e v1.Event) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		return c.fail
	}
	c.events = append(c.events, e)
	return nil
}

func (c *controller) Credential(name string, _ vocabulary.Action, _ vocabulary.Resource) (secret.Value, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if name != "key" {
		return secret.Value{}, errors.New("revoked")
	}
	return secret.New([]byte("s3cret")), nil
}

func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		out[i] = c.(*net.UnixConn)
	}
	return out[0], out[1]
}

func ends(t testing.TB, ctrl Controller, gateway Handler) (controllerEnd, gatewayEnd *Conn) {
	a, b := pair(t)
	controllerEnd, gatewayEnd = NewConn(a, ControllerLimits, ServeController(ctrl, nil)), NewConn(b, GatewayLimits, gateway)
	go controllerEnd.Serve(context.Background())
	go gatewayEnd.Serve(context.Background())
	return controllerEnd, gatewayEnd
}

func TestAuthorize(t *testing.T) {
	ctrl := &controller{}
	_, g := ends(t, ctrl, nil)
	client := Client{g}
	v, err := client.Authorize(context.Background(), v1.Event{Actor: "controller", Action: "a", Resource: "r\n\x1b[31m"}, &CredentialUse{Name: "key"})
	if err != nil || string(v.Reveal()) != "s3cret" {
		t.Fatalf("%v, %v", v, err)
	}
	if e := ctrl.events[0]; e.Actor != "gateway" || strings.ContainsAny(string(e.Resource), "\n\x1b") {
		t.Errorf("event was not cleaned: %+v", e)
	}
	if _, err := client.Authorize(context.Background(), v1.Event{}, &CredentialUse{Name: "other"}); !HasCode(err, CodeNoCredential) {
		t.Errorf("missing credential: %v", err)
	}
	ctrl.fail = errors.New("disk full")
	asked := ctrl.asked
	if _, err := client.Authorize(context.Background(), v1.Event{}, &CredentialUse{Name: "key"}); !HasCode(err, CodeNoRecord) || ctrl.asked != asked {
		t.Errorf("no record: %v, %d credentials given", err, ctrl.asked-asked)
	}
}

func TestConcurrentCalls(t *testing.T) {
	c, _ := ends(t, &controller{}, func(_ context.Context, kind string, body json.RawMessage, _ *os.File) (any, error) {
		time.Sleep(time.Millisecond)
		return body, nil
	})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var got int
			if err := c.Call(context.Background(), "echo", i, &got, nil); err != nil || got != i {
				t.Errorf("%d became %d: %v", i, got, err)
			}
		}()
	}
	wg.Wait()
}

func TestDescriptorTravels(t *testing.T) {
	got := make(chan string, 1)
	c, _ := ends(t, &controller{}, func(_ context.Context, kind string, _ json.RawMessage, f *os.File) (any, error) {
		b, err := io.ReadAll(f)
		got <- string(b)
		return nil, err
	})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "through the pipe")
	w.Close()
	if err := c.Call(context.Background(), Attach, nil, nil, r); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != "through the pipe" {
		t.Errorf("%q", s)
	}
}

func send(w io.Writer, body string) {
	w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
}

// A hostile gateway can only end its own connection.
func TestControllerEndsWhatIsNoProtocol(t *testing.T) {
	for name, attack := range map[string]func(io.Writer){
		"huge frame":       func(w io.Writer) { w.Write([]byte{0xff, 0xff, 0xff, 0xff}) },
		"over the limit":   func(w io.Writer) { w.Write(binary.BigEndian.AppendUint32(nil, MaxToController+1)) },
		"empty frame":      func(w io.Writer) { w.Write([]byte{0, 0, 0, 0}) },
		"no JSON":          func(w io.Writer) { send(w, "hello!") },
		"no id":            func(w io.Writer) { send(w, `{"kind":"authorize"}`) },
		"unasked answer":   func(w io.Writer) { send(w, `{"id":7,"reply":true}`) },
		"unknown request":  func(w io.Writer) { send(w, `{"id":7,"kind":"give-me-everything"}`) },
		"a descriptor":     func(w io.Writer) { send(w, `{"id":7,"kind":"authorize","file":true}`) },
		"answer with kind": func(w io.Writer) { send(w, `{"id":7,"reply":true,"kind":"authorize"}`) },
	} {
		a, b := pair(t)
		c := NewConn(a, ControllerLimits, ServeController(&controller{}, nil))
		done := make(chan error, 1)
		go func() { done <- c.Serve(context.Background()) }()
		attack(b)
		select {
		case err := <-done:
			if name != "unknown request" && !errors.Is(err, ErrProtocol) {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(2 * time.Second):
			t.Errorf("%s: the connection stays", name)
		}
	}
}

// Requests beyond the limit wait in the socket; memory stays bounded and
// answers to a gateway that doesn't read block nobody else.
func TestControllerIsBounded(t *testing.T) {
	a, b := pair(t)
	running, peak := 0, 0
	var mu sync.Mutex
	c := NewConn(a, ControllerLimits, func(ctx context.Context, _ string, _ json.RawMessage, _ *os.File) (any, error) {
		mu.Lock()
		running++
		peak = max(peak, running)
		mu.Unlock()
		time.Sleep(time.Millisecond)
		mu.Lock()
		running--
		mu.Unlock()
		return nil, nil
	})
	go c.Serve(context.Background())
	b.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	for {
		if _, err := b.Write(append([]byte{0, 0, 0, 20}, `{"id":7,"kind":"aa"}`...)); err != nil {
			break
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if peak > ControllerLimits.Concurrent {
		t.Errorf("%d requests at a time", peak)
	}
}

func TestCallsEndWithTheConnection(t *testing.T) {
	c, g := ends(t, &controller{}, func(ctx context.Context, _ string, _ json.RawMessage, _ *os.File) (any, error) {
		<-ctx.Done()
		return nil, nil
	})
	time.AfterFunc(20*time.Millisecond, func() { g.Close() })
	if err := c.Call(context.Background(), "wait", nil, nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
	if err := c.Call(context.Background(), "late", nil, nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestCleanIsBounded(t *testing.T) {
	e := v1.Event{Resource: vocabulary.Resource(strings.Repeat("é", 9000)), Attrs: map[string]string{}}
	for i := range 100 {
		e.Attrs[strings.Repeat("k", i+1)] = strings.Repeat("v", 9000)
	}
	e = Clean(e)
	b, err := json.Marshal(e)
	if err != nil || len(b) > 32<<10 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func FuzzController(f *testing.F) {
	for _, s := range []string{`{"id":1,"kind":"authorize","body":{"event":{"actor":"x"},"credential":{"name":"key"}}}`, `{"id":1,"reply":true}`, `{}`, `[`, `{"id":1,"kind":"authorize","body":null}`} {
		f.Add(append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		ctrl := &controller{}
		c := NewConn(&stream{in: bytes.NewReader(in)}, ControllerLimits, ServeController(ctrl, nil))
		c.Serve(context.Background())
		ctrl.mu.Lock()
		defer ctrl.mu.Unlock()
		for _, e := range ctrl.events {
			if e.Actor != "gateway" && e.Actor != "sandbox" {
				t.Fatalf("actor %q", e.Actor)
			}
		}
	})
}

func FuzzGateway(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x1c{\"id\":1,\"kind\":\"configure\"}"))
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := NewConn(&stream{in: bytes.NewReader(in)}, GatewayLimits, func(_ context.Context, kind string, _ json.RawMessage, f *os.File) (any, error) {
			if kind == "" || f != nil {
				t.Errorf("kind %q, file %v", kind, f)
			}
			return nil, nil
		})
		c.Serve(context.Background())
	})
}

type stream struct{ in io.Reader }

func (s *stream) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s *stream) Write(p []byte) (int, error) { return len(p), nil }
func (s *stream) Close() error                { return nil }
