package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// serveForTest starts a control server of which every operation is counted.
func serveForTest(t testing.TB) (*Remote, *atomic.Int64) {
	t.Helper()
	var acts atomic.Int64
	id := vocabulary.NewSessionID()
	s, err := listenControl(id, controlOps{
		info:   func() Info { return Info{ID: id, UID: os.Getuid()} },
		stop:   func() { acts.Add(1) },
		revoke: func() error { acts.Add(1); return nil },
		exec: func(context.Context, []string, string, sandbox.Command) (sandbox.Process, error) {
			acts.Add(1)
			return nil, errors.New("no sandbox in this test")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &Remote{os.Getuid(), id}, &acts
}

func descriptors(t testing.TB) int {
	t.Helper()
	l, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(l)
}

// sendRaw sends one packet as it is and reports what came back.
func sendRaw(t testing.TB, r *Remote, packet []byte, files ...*os.File) (rep reply, err error) {
	t.Helper()
	c, err := r.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	if err := c.raw(func(fd int) error { return unix.Sendmsg(fd, packet, oob, nil, unix.MSG_NOSIGNAL) }, true); err != nil {
		return rep, err
	}
	began := time.Now()
	c.f.SetReadDeadline(began.Add(4 * time.Second))
	got, err := c.receive(&rep)
	closeAll(got)
	if err != nil && time.Since(began) > 4*time.Second {
		t.Fatalf("%.80q was neither answered nor refused", packet)
	}
	return rep, err
}

// Garbage on the control socket acts on nothing, leaves no descriptor behind,
// and the server goes on answering.
func TestControlSurvivesGarbage(t *testing.T) {
	r, acts := serveForTest(t)
	before := descriptors(t)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	many := []*os.File{null, null, null, null, null, null, null, null}
	for _, packet := range [][]byte{
		[]byte("x"), []byte("{"), []byte("null"), []byte(`[]`), []byte(`{"op":7}`), []byte(`{"op":"nonsense"}`), []byte(`{}`),
		[]byte(`{"op":"exec","stdio":[true,true,true]}`), make([]byte, maxPacket), []byte("\xff\xfe{\"op\":\"stop\"}"),
	} {
		for _, files := range [][]*os.File{nil, many[:1], many[:4], many} {
			if rep, err := sendRaw(t, r, packet, files...); err == nil && rep.Kind != "error" {
				t.Errorf("%.60q with %d descriptors: answered %+v", packet, len(files), rep)
			}
		}
	}
	if n := acts.Load(); n > 1 { // exec with all three descriptors is well formed
		t.Errorf("garbage led to %d acts", n)
	}
	if _, err := r.Info(); err != nil {
		t.Fatalf("afterwards: %v", err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for descriptors(t) > before+1 {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors, %d before", descriptors(t), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Many clients at once, and clients that connect and say nothing, do not keep
// others from being answered.
func TestControlServesManyClients(t *testing.T) {
	r, _ := serveForTest(t)
	for range 100 {
		c, err := r.dial()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() // silent until the end of the test
	}
	var wg sync.WaitGroup
	failed := make(chan error, 100)
	for range 100 {
		wg.Go(func() {
			info, err := r.Info()
			if err == nil && info.ID != r.id {
				err = fmt.Errorf("answer of session %s", info.ID)
			}
			if err != nil {
				failed <- err
			}
		})
	}
	wg.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
}

func FuzzControlPacket(f *testing.F) {
	for _, s := range []string{`{"op":"info"}`, `{"op":"exec","argv":["sh"],"stdio":[true,false,true],"Rows":24}`, `{"op":"signal","signal":-1}`, "\x00", `{"op":"exec","stdio":[true,true,true,true]}`} {
		f.Add([]byte(s))
	}
	r, _ := serveForTest(f)
	f.Fuzz(func(t *testing.T, packet []byte) {
		if len(packet) == 0 || len(packet) > maxPacket {
			return // not a packet that can be sent
		}
		sendRaw(t, r, packet)
		if _, err := r.Info(); err != nil {
			t.Fatal(err)
		}
	})
}
