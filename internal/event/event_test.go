//go:build unix

package event

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func TestRecordIsOneLineInOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "e.jsonl")
	id := vocabulary.NewSessionID()
	l, err := Create(path, id, true)
	if err != nil {
		t.Fatal(err)
	}
	const n = 200
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			// Hostile text must not make a second line or a field of its own.
			if err := l.Record(v1.Event{Action: "x", Resource: "a\n{\"seq\":99}\x00", Verdict: vocabulary.Allow}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	l.Close()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	events, used, err := Decode(data)
	if err != nil || used != len(data) || len(events) != n {
		t.Fatalf("%d events, %d of %d bytes, %v", len(events), used, len(data), err)
	}
	for i, e := range events {
		if e.Seq != uint64(i+1) || e.Session != id || !e.Degraded || e.Version != 1 || e.Time.IsZero() {
			t.Fatalf("event %d: %+v", i, e)
		}
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
}

func TestCreateRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	link, fifo := filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	target := filepath.Join(dir, "target")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, fifo, dir, filepath.Join(dir, "no", "such")} {
		if _, err := Create(path, vocabulary.NewSessionID(), false); err == nil {
			t.Errorf("%s was accepted", path)
		}
	}
	if _, err := os.Lstat(target); err == nil {
		t.Error("the link's target was created")
	}
}

// On a full disk the act is refused, the log stays readable, and recording goes
// on when there is space again. RLIMIT_FSIZE stands in for the full disk: the
// kernel takes a part of the write in the same way.
func TestFullDiskLosesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "e.jsonl")
	l, err := Create(path, vocabulary.NewSessionID(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	long := v1.Event{Action: "x", Resource: vocabulary.Resource(strings.Repeat("r", 500))}
	if err := l.Record(long); err != nil {
		t.Fatal(err)
	}
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	small := old
	small.Cur = 1000
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small); err != nil {
		t.Fatal(err)
	}
	err = l.Record(long)
	if rerr := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); rerr != nil {
		t.Fatal(rerr)
	}
	if err == nil {
		t.Fatal("the event counts as recorded")
	}
	if err := l.Record(long); err != nil {
		t.Fatalf("with space again: %v", err)
	}
	data, _ := os.ReadFile(path)
	events, used, err := Decode(data)
	if err != nil || len(events) != 2 || used != len(data) || events[1].Seq != 2 {
		t.Fatalf("%d events, %d of %d bytes, %v", len(events), used, len(data), err)
	}
}

// What is done after a session's end stands in its log with the next numbers,
// whoever else writes to that file, and after a line that was torn.
func TestContinue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "e.jsonl")
	id, other := vocabulary.NewSessionID(), vocabulary.NewSessionID()
	for _, of := range []struct {
		id    vocabulary.SessionID
		count int
	}{{id, 3}, {other, 5}} {
		l, err := Create(path, of.id, of.id == id)
		if err != nil {
			t.Fatal(err)
		}
		for range of.count {
			// Hostile: attributes that look like another session's line.
			if err := l.Record(v1.Event{Action: "x", Attrs: map[string]string{"session": string(id), "seq": "77"}}); err != nil {
				t.Fatal(err)
			}
		}
		l.Close()
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(`{"v":1,"time":"20`)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l, err := Continue(path, id)
		if err == nil {
			err = l.Record(v1.Event{Action: "workspace.apply"})
			l.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	data, _ := os.ReadFile(path)
	events, used, err := Decode(data)
	if err != nil || used != len(data) || len(events) != 10 {
		t.Fatalf("%d events, %d of %d bytes, %v", len(events), used, len(data), err)
	}
	for i, e := range events[8:] {
		if e.Seq != uint64(4+i) || e.Session != id || !e.Degraded {
			t.Errorf("%+v", e)
		}
	}

	for name, content := range map[string]string{"text": "a diary\n", "rest": "a diary", "json": "{\"v\":2}\n"} {
		p := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Continue(p, id); err == nil {
			t.Errorf("%s was continued", name)
		}
		if now, _ := os.ReadFile(p); string(now) != content {
			t.Errorf("%s was changed: %q", name, now)
		}
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Continue(fifo, id); err == nil {
		t.Error("a pipe was continued")
	}
}

func TestVerdictZeroValueDenies(t *testing.T) {
	events, _, err := Decode([]byte(`{"v":1}` + "\n"))
	if err != nil || events[0].Verdict != vocabulary.Deny {
		t.Fatal(events, err)
	}
	if _, _, err := Decode([]byte(`{"v":1,"verdict":"yes"}` + "\n")); err == nil {
		t.Error("an unknown verdict was read")
	}
}

// The log is JSON as the library writes it, whatever an event holds.
func FuzzAppendLine(f *testing.F) {
	f.Add("sandbox", "http.request", "https://x/?a=1&b=<2>", "key", "value\u2028", 3, 0, true, int64(1700000000))
	f.Add("", "\x00\x1f\"\\", "\xff\xfe", "", "\U0001f600", -1, 7, false, int64(0))
	f.Fuzz(func(t *testing.T, actor, action, resource, key, value string, line, column int, degraded bool, when int64) {
		e := v1.Event{
			Version: 1, Time: time.Unix(when%(1<<37), when%1e9).UTC(), Seq: uint64(when), Session: "s", Actor: actor,
			Action: vocabulary.Action(action), Resource: vocabulary.Resource(resource), Verdict: vocabulary.Verdict(uint8(line) % 3),
			Reason:   vocabulary.Reason{Code: key, Message: value, Remedy: actor, Rule: vocabulary.Position{File: key, Line: line, Column: column}},
			Degraded: degraded, Attrs: map[string]string{key: value, value: key, "fixed": actor},
		}
		if column == 0 {
			e.Attrs = nil
		}
		want, err := json.Marshal(e)
		if err != nil {
			return // a year that JSON has no form for
		}
		// Keys that differ only in bytes that are no text have no order.
		if got := appendLine(nil, e); string(got) != string(want) && utf8.ValidString(key+value) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if !json.Valid(appendLine(nil, e)) {
			t.Errorf("no JSON: %q", appendLine(nil, e))
		}
	})
}
