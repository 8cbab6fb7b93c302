package spool

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
)

func record(r Record) []byte {
	b := append(Begin(nil, &r), r.Content...)
	End(b, len(r.Content))
	return b
}

var sample = Record{Path: "d/\xff\n", Mode: 0o4755, UID: 1000, GID: 100, Mtime: -1, Inode: 1 << 63, Time: 7, Content: []byte("was")}

func TestRecord(t *testing.T) {
	for _, r := range []Record{sample, {Path: "e", Content: []byte{}}, {Path: strings.Repeat("p", MaxPath), Content: make([]byte, MaxContent)}} {
		b := record(r)
		if len(b) > MaxRecord {
			t.Errorf("%d bytes", len(b))
		}
		got, n, err := Parse(append(bytes.Clone(b), "next"...))
		if err != nil || n != len(b) || !reflect.DeepEqual(got, r) {
			t.Errorf("%v, %d, %v", got, n, err)
		}
		for cut := range min(len(b), 100) {
			if _, _, err := Parse(b[:cut]); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("cut at %d: %v", cut, err)
			}
		}
	}
}

// What was torn or altered is not taken for a version.
func TestDamage(t *testing.T) {
	whole := record(sample)
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1
		if r, _, err := Parse(b); err == nil {
			t.Errorf("byte %d altered: %v", i, r)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(record(sample))
	f.Add(append(record(sample), record(Record{Path: "b"})...))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, n, err := Parse(b)
		if err != nil {
			return
		}
		if n > len(b) || n > MaxRecord || len(r.Content) > MaxContent || r.Path == "" {
			t.Fatalf("%d bytes of %d: %v", n, len(b), r)
		}
		if again := record(r); !bytes.Equal(again, b[:n]) {
			t.Fatalf("another record: %q, %q", again, b[:n])
		}
	})
}
