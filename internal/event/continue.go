package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// lineBegin is how each line begins.
const lineBegin = `{"v":1,`

// Continue opens the log of a session that has ended, or makes one, so that what a
// person does afterwards with what it left stands in the same record: numbers go
// on, and so does the mark of a degraded session. A last line that a killed
// controller tore is taken back. A file that is no event log is an error.
func Continue(path string, session vocabulary.SessionID) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|noFollow, 0o600)
	if err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	l := &Log{session: session, f: f}
	if err := l.catchUp(); err != nil {
		f.Close()
		return nil, fmt.Errorf("event log %s can't be continued: %w", path, err)
	}
	return l, nil
}

// catchUp reads what is there.
func (l *Log) catchUp() error {
	st, err := l.f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errors.New("it is not a regular file")
	}
	own := fmt.Appendf(nil, `%q,`, l.session)
	var pending, last []byte
	chunk := make([]byte, 256<<10)
	for {
		n, rerr := l.f.Read(chunk)
		pending = append(pending, chunk[:n]...)
		for {
			i := bytes.IndexByte(pending, '\n')
			if i < 0 {
				break
			}
			line := pending[:i]
			pending = pending[i+1:]
			l.size += int64(i) + 1
			if !bytes.HasPrefix(line, []byte(lineBegin)) {
				return errors.New("it holds something else")
			}
			// Several sessions may share a file. The first of these keys is the event's
			// own: only times and numbers stand before it.
			if _, rest, _ := bytes.Cut(line, []byte(`"session":`)); bytes.HasPrefix(rest, own) {
				last = append(last[:0], line...)
			}
		}
		if len(pending) > maxLine {
			return errors.New("it holds something else")
		}
		if errors.Is(rerr, io.EOF) {
			break
		}
		if rerr != nil {
			return rerr
		}
	}
	if len(last) > 0 {
		var e v1.Event
		if err := json.Unmarshal(last, &e); err != nil {
			return err
		}
		l.seq, l.degraded = e.Seq, e.Degraded
	}
	if len(pending) == 0 {
		return nil
	}
	if !bytes.HasPrefix(pending, []byte(lineBegin)[:min(len(pending), len(lineBegin))]) {
		return errors.New("it holds something else")
	}
	return l.f.Truncate(l.size)
}

// maxLine bounds a line.
const maxLine = 16 << 20
