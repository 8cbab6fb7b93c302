package direct

import (
	"bytes"
	"errors"
	"io"
	"os"
	"runtime"
	"testing"
	"time"
)

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("NOT PROVEN: nothing; this system has the ordinary calls")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func TestPipe(t *testing.T) {
	r, w := pipe(t)
	in, out := New(r), New(w)
	b := make([]byte, 300<<10)
	if n, err := in.ReadNow(b); n != 0 || !errors.Is(err, ErrWait) {
		t.Errorf("nothing there: %d, %v", n, err)
	}
	want := bytes.Repeat([]byte("0123456789"), 30<<10) // more than a pipe holds
	done := make(chan error, 1)
	go func() {
		_, err := out.Write(want)
		w.Close()
		done <- err
	}()
	got, err := io.ReadAll(in)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes, %v", len(got), len(want), err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := in.ReadNow(b); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestWaitingEnds(t *testing.T) {
	r, w := pipe(t)
	in, out := New(r), New(w)
	r.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := in.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}
	r.SetReadDeadline(time.Time{})
	closed := make(chan struct{})
	time.AfterFunc(20*time.Millisecond, func() { r.Close(); close(closed) })
	if _, err := in.Read(make([]byte, 1)); err == nil || errors.Is(err, ErrWait) || err == io.EOF {
		t.Errorf("closed meanwhile: %v", err)
	}
	<-closed
	if _, err := out.Write([]byte("x")); err == nil {
		t.Error("nobody reads, and writing succeeds")
	}
}

// A descriptor that blocks would hold up the whole process.
func TestBlockingDescriptor(t *testing.T) {
	r, _ := pipe(t)
	r.Fd() // makes it one
	if New(r) != nil {
		t.Error("taken")
	}
	if New(&bytes.Buffer{}) != nil {
		t.Error("no descriptor, and taken")
	}
}
