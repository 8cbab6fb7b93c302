// Package event writes and follows a session's event log.
//
// The controller owns the log; the gateway reaches it only through the
// controller. Record returns after the line has reached the file: no record,
// no act.
package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Recorder accepts events. Record fills Version, Time, Seq, Session and
// Degraded. An error means that the event is not recorded, and then the act it
// describes must not happen. Safe for concurrent use.
type Recorder interface {
	Record(v1.Event) error
}

// Log is the append-only JSONL file of one session.
type Log struct {
	session  vocabulary.SessionID
	degraded bool

	mu   sync.Mutex
	seq  uint64
	f    *os.File
	err  error // a torn write that could not be undone: sticky
	size int64
	line []byte // of the last event; its room is used again
}

// Create opens path for appending; it must be absent or a regular file. The
// file gets mode 0600.
func Create(path string, session vocabulary.SessionID, degraded bool) (*Log, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|noFollow, 0o600)
	if err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("event log: %w", err)
	}
	return &Log{session: session, degraded: degraded, f: f, size: st.Size()}, nil
}

// Path names the file.
func (l *Log) Path() string { return l.f.Name() }

// Record appends one line.
func (l *Log) Record(e v1.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	e.Version, e.Time, e.Session, e.Degraded = 1, time.Now().UTC(), l.session, l.degraded
	e.Seq = l.seq + 1
	l.line = append(appendLine(l.line[:0], e), '\n')
	n, err := l.f.Write(l.line)
	if err != nil {
		// A torn line (disk full) is taken back, so that the log stays readable
		// and recording can go on once there is space again.
		if n > 0 {
			if terr := l.f.Truncate(l.size); terr != nil {
				l.err = fmt.Errorf("event log: %w", errors.Join(err, terr))
			}
		}
		return fmt.Errorf("event log: %w", err)
	}
	l.size += int64(n)
	l.seq++
	return nil
}

// Count is how many events were recorded.
func (l *Log) Count() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq
}

// Close closes the file.
func (l *Log) Close() error { return l.f.Close() }

// Decode reads the complete lines of data and returns the events and how many
// bytes they took; a torn last line is left for the next call. A complete line
// that is not an event is an error naming its offset.
func Decode(data []byte) (events []v1.Event, used int, err error) {
	for {
		i := bytes.IndexByte(data[used:], '\n')
		if i < 0 {
			return events, used, nil
		}
		line := data[used : used+i]
		var e v1.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return events, used, fmt.Errorf("event at byte %d: %w", used, err)
		}
		events = append(events, e)
		used += i + 1
	}
}
