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
	"reflect"
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

func pipe(t testing.TB) [2]*os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return [2]*os.File{r, w}
}

func ends(t testing.TB, ctrl Controller, gateway Handler) (controllerEnd, gatewayEnd *Conn) {
	a, b := pair(t)
	controllerEnd, gatewayEnd = NewConn(a, ControllerLimits, ServeController(ctrl, nil)), NewConn(b, GatewayLimits, gateway)
	forth, back := pipe(t), pipe(t)
	controllerEnd.TakeRecords(Pipes{forth[0], back[1]}, ctrl)
	gatewayEnd.SendRecords(Pipes{back[0], forth[1]})
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
	if err := client.Record(v1.Event{}); !HasCode(err, CodeNoRecord) {
		t.Errorf("no record, and no credential needed: %v", err)
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
		case <-time.After(15 * time.Second):
			t.Errorf("%s: the connection stays", name)
		}
	}
}

// Nor can it with what it records, whichever end it plays.
func TestRecordsEndWithWhatIsNone(t *testing.T) {
	good := appendRecord(nil, 7, v1.Event{}, nil)
	for name, attack := range map[string]string{
		"torn": "\x07\x05abc", "and more": string(good) + "x", "no id": string(appendRecord(nil, 0, v1.Event{}, nil)),
		"endless attributes": string(good[:len(good)-2]) + "\xff\xff\xff\xff\x0f\x00", "a verdict of its own": strings.Replace(string(good), string(good[8:9]), "\x09", 1),
		"no length": "\x07\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "huge": strings.Repeat("x", MaxToController+1),
	} {
		for _, ctrl := range []Controller{&controller{}, nil} {
			a, b := pair(t)
			forth, back := pipe(t), pipe(t)
			c := NewConn(a, ControllerLimits, nil)
			c.records = newRecords(Pipes{forth[0], back[1]}, ctrl)
			done := make(chan error, 1)
			go func() { done <- c.Serve(context.Background()) }()
			go send(forth[1], attack)
			select {
			case err := <-done:
				if !errors.Is(err, ErrProtocol) {
					t.Errorf("%s: %v", name, err)
				}
			case <-time.After(15 * time.Second):
				t.Errorf("%s: the connection stays", name)
			}
			b.Close()
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

func FuzzRecords(f *testing.F) {
	for _, use := range []*CredentialUse{nil, {Name: "key", Action: "a", Resource: "r"}} {
		r := appendRecord(make([]byte, 4), 1, v1.Event{Actor: "x", Action: "a", Resource: "r", Verdict: vocabulary.Allow, Attrs: map[string]string{"k": "v"}}, use)
		binary.BigEndian.PutUint32(r, uint32(len(r)-4))
		f.Add(append(r, r...))
	}
	f.Add(appendReceipt(nil, 1, receipt{"code", "message", []byte("s")}))
	f.Fuzz(func(t *testing.T, in []byte) {
		ctrl := &controller{}
		out := &stream{}
		r := newRecords(Pipes{&stream{in: bytes.NewReader(in)}, out}, ctrl)
		r.read(context.Background())
		ctrl.mu.Lock()
		defer ctrl.mu.Unlock()
		for _, e := range ctrl.events {
			if e.Actor != "gateway" && e.Actor != "sandbox" || len(e.Attrs) > maxAttrs || e.Verdict > vocabulary.Allow {
				t.Fatalf("%+v", e)
			}
		}
		// The other end trusts its controller, but does not fall over it.
		newRecords(Pipes{&stream{in: bytes.NewReader(in)}, out}, nil).read(context.Background())
	})
}

// What is recorded is what was sent, whatever it holds.
func TestRecordTravels(t *testing.T) {
	want := v1.Event{
		Actor: "sandbox", Action: "http.request", Resource: "https://x/", Verdict: vocabulary.Ask,
		Reason: vocabulary.Reason{Code: "granted", Message: "m", Remedy: "do", Rule: vocabulary.Position{File: "p.yaml", Line: 300, Column: 7}},
		Attrs:  map[string]string{"method": "GET", "empty": "", strings.Repeat("k", 60): strings.Repeat("v", 500)},
	}
	use := &CredentialUse{Name: "key", Action: "a", Resource: "r"}
	id, got, gotUse, err := parseRecord(appendRecord(nil, 1<<40, want, use))
	if err != nil || id != 1<<40 || !reflect.DeepEqual(got, want) || !reflect.DeepEqual(gotUse, use) {
		t.Errorf("%d %+v %+v %v", id, got, gotUse, err)
	}
}

// Receipts that were written together are told apart, and a credential that
// takes its time delays no record.
func TestRecordsAreAnsweredEach(t *testing.T) {
	ctrl := &controller{}
	_, g := ends(t, ctrl, nil)
	client := Client{g}
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var use *CredentialUse
			if i%2 == 0 {
				use = &CredentialUse{Name: "key"}
			}
			v, err := client.Authorize(context.Background(), v1.Event{Attrs: map[string]string{"i": "x"}}, use)
			if err != nil || v.Empty() == (use != nil) {
				t.Errorf("%d: %v, %v", i, err, v.Empty())
			}
		}()
	}
	wg.Wait()
	if len(ctrl.events) != 200 {
		t.Errorf("%d events", len(ctrl.events))
	}
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
