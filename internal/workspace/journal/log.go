package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/url"
	"strconv"

	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

// entry is one line of the log.
type entry struct {
	Type string `json:"t"`
	At   int64  `json:"at,omitempty"` // ns since 1970

	Path    name   `json:"path,omitempty"`
	Number  int    `json:"v,omitempty"`       // keep: which; step, left: which version this is
	Is      *State `json:"is,omitempty"`      // keep: before the change; step, left: after it
	Was     *State `json:"was,omitempty"`     // step: before it
	Target  name   `json:"target,omitempty"`  // keep, of a link
	Content int64  `json:"content,omitempty"` // keep, of a file: the content file's number
	Pack    int64  `json:"pack,omitempty"`    // keep, of a small file: 1 + where it is in the pack
	Spool   int64  `json:"spool,omitempty"`   // keep, of one from the spool: 1 + where it is there
	Sum     uint32 `json:"sum,omitempty"`
	Stored  int64  `json:"stored,omitempty"`
	Lost    bool   `json:"lost,omitempty"` // keep, of a file: without content
	Foreign bool   `json:"foreign,omitempty"`

	Commit int    `json:"commit,omitempty"` // of prepare, step, begin, done, back
	Slot   int    `json:"slot,omitempty"`   // of a step, from 1
	What   string `json:"what,omitempty"`   // of prepare
}

// The types of entries. A commit is prepare, steps, begin, and done or back; one
// that did not come to begin has changed nothing.
const (
	typeKeep    = "keep"
	typeLeft    = "left"
	typePrepare = "prepare"
	typeStep    = "step"
	typeBegin   = "begin"
	typeDone    = "done"
	typeBack    = "back"
)

// name is raw bytes, written with percent escapes.
type name string

func (n name) MarshalText() ([]byte, error) {
	return []byte((&url.URL{Path: string(n)}).EscapedPath()), nil
}

func (n *name) UnmarshalText(b []byte) error {
	s, err := url.PathUnescape(string(b))
	*n = name(s)
	return err
}

// smallest is up to which size contents go into the pack: making a file costs more
// than writing it.
const smallest = 64 << 10

const maxLine = 64 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendEntry writes a line: the checksum of the rest, a space, JSON.
func appendEntry(b []byte, e *entry) ([]byte, error) {
	data, err := json.Marshal(e)
	if err != nil {
		return b, err
	}
	if len(data) > maxLine-16 {
		return b, errors.New("journal: a line is too long")
	}
	b = fmt.Appendf(b, "%08x ", crc32.Checksum(data, castagnoli))
	return append(append(b, data...), '\n'), nil
}

// parseLog calls f with each entry and returns how many bytes hold entries. What
// is torn at the end, as a crash leaves it, is not an error; a damaged line
// before the last one is.
func parseLog(data []byte, f func(entry) error) (used int, err error) {
	for line := 1; used < len(data); line++ {
		i := bytes.IndexByte(data[used:], '\n')
		if i < 0 {
			return used, nil
		}
		e, err := parseEntry(data[used : used+i])
		if err == nil {
			err = f(e)
		} else if used+i+1 == len(data) {
			return used, nil
		}
		if err != nil {
			return used, fmt.Errorf("line %d: %w", line, err)
		}
		used += i + 1
	}
	return used, nil
}

func parseEntry(line []byte) (entry, error) {
	var e entry
	if len(line) < 10 || len(line) > maxLine || line[8] != ' ' {
		return e, errors.New("not a line of a journal")
	}
	sum, err := strconv.ParseUint(string(line[:8]), 16, 32)
	if err != nil || uint32(sum) != crc32.Checksum(line[9:], castagnoli) {
		return e, errors.New("its checksum is wrong")
	}
	dec := json.NewDecoder(bytes.NewReader(line[9:]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return e, err
	}
	return e, e.check()
}

// check accepts what the rest may rely on.
func (e *entry) check() error {
	bad := func(what string) error { return fmt.Errorf("%s: %s", e.Type, what) }
	state := func(s *State) bool {
		if s == nil || s.Mode&^0o7777 != 0 || s.Size < 0 {
			return false
		}
		switch s.Kind {
		case Absent, File, Dir, Link, Other:
			return true
		}
		return false
	}
	switch e.Type {
	case typeKeep, typeLeft, typeStep:
		if err := tree.Check(string(e.Path)); err != nil {
			return bad(err.Error())
		}
		if !state(e.Is) || e.Type == typeStep && !state(e.Was) {
			return bad("no state")
		}
		if e.Number < 0 || e.Type == typeKeep && e.Number == 0 {
			return bad("no version")
		}
	case typePrepare, typeBegin, typeDone, typeBack:
	default:
		return fmt.Errorf("unknown type %q", e.Type)
	}
	switch e.Type {
	case typeKeep:
		places := 0
		for _, there := range []bool{e.Content != 0, e.Pack != 0, e.Spool != 0, e.Lost} {
			if there {
				places++
			}
		}
		if e.Content < 0 || e.Pack < 0 || e.Spool < 0 || e.Stored < 0 || e.Content == 0 && e.Stored > smallest || e.Pack > 1<<50 || e.Spool > 1<<50 {
			return bad("no place for a content")
		}
		if (places == 1) != (e.Is.Kind == File) || places > 1 || (e.Target != "") != (e.Is.Kind == Link) {
			return bad("content and kind differ")
		}
		if len(e.Target) > tree.MaxPath {
			return bad("its target is too long")
		}
	case typeLeft:
	default:
		if e.Commit < 1 || e.Type == typeStep && e.Slot < 1 {
			return bad("no number")
		}
	}
	return nil
}
