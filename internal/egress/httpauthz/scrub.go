package httpauthz

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// minScrub is the length from which a form of a secret can be told from chance.
const minScrub = 6

// scrubber removes a secret that an upstream sends back: as it is, in hex, in
// base64 (at any of the three alignments, so also inside something longer),
// escaped for URLs and for JSON. It overwrites with asterisks of the same
// length, so that framing, lengths and offsets stay true.
type scrubber struct {
	forms   [][]byte
	longest int
}

func newScrubber(secrets ...[]byte) *scrubber {
	s := &scrubber{}
	seen := map[string]bool{}
	add := func(b []byte) {
		if len(b) >= minScrub && !seen[string(b)] {
			seen[string(b)] = true
			s.forms = append(s.forms, append([]byte(nil), b...))
			s.longest = max(s.longest, len(b))
		}
	}
	for _, secret := range secrets {
		if len(secret) < minScrub {
			continue
		}
		add(secret)
		add([]byte(hex.EncodeToString(secret)))
		add([]byte(strings.ToUpper(hex.EncodeToString(secret))))
		add([]byte(url.QueryEscape(string(secret))))
		add([]byte(url.PathEscape(string(secret))))
		if j, err := json.Marshal(string(secret)); err == nil {
			add(j[1 : len(j)-1])
		}
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			for shift := range 3 {
				add(aligned(enc, secret, shift))
			}
		}
	}
	return s
}

// aligned returns the characters of base64 that depend on the secret alone when
// shift bytes stand in front of it.
func aligned(enc *base64.Encoding, secret []byte, shift int) []byte {
	padded := append(make([]byte, shift), secret...)
	out := []byte(enc.EncodeToString(padded))
	first := (shift*8 + 5) / 6
	last := len(padded) * 8 / 6
	if first >= last {
		return nil
	}
	return out[first:last]
}

// bytes overwrites every whole form in b and reports whether there was one.
func (s *scrubber) bytes(b []byte) bool {
	found := false
	for _, f := range s.forms {
		for from := 0; ; {
			i := bytes.Index(b[from:], f)
			if i < 0 {
				break
			}
			found = true
			stars(b[from+i : from+i+len(f)])
			from += i + len(f)
		}
	}
	return found
}

func stars(b []byte) {
	for i := range b {
		b[i] = '*'
	}
}

// header cleans all values, and removes a header whose name holds the secret.
func (s *scrubber) header(h http.Header) bool {
	found := false
	for name, values := range h {
		if n := []byte(name); s.fold(n) {
			found = true
			delete(h, name)
			continue
		}
		for i, v := range values {
			if b := []byte(v); s.bytes(b) {
				found = true
				values[i] = string(b)
			}
		}
	}
	return found
}

// fold compares without case: header names lose theirs.
func (s *scrubber) fold(b []byte) bool {
	b = bytes.ToLower(b)
	for _, f := range s.forms {
		if bytes.Contains(b, bytes.ToLower(f)) {
			return true
		}
	}
	return false
}

// held returns how many of b's last bytes could be the beginning of a form.
func (s *scrubber) held(b []byte) int {
	for n := min(len(b), s.longest-1); n > 0; n-- {
		tail := b[len(b)-n:]
		for _, f := range s.forms {
			if len(f) > n && bytes.HasPrefix(f, tail) {
				return n
			}
		}
	}
	return 0
}

// reader cleans a stream. It holds back only bytes that could be the beginning
// of the secret, so that events arrive as they are sent.
type reader struct {
	src   io.Reader
	s     *scrubber
	found func()
	buf   []byte // [0:ready] is clean, the rest is held back
	ready int
	err   error
}

const scrubBuffer = 32 << 10

func (s *scrubber) reader(src io.Reader, found func()) *reader {
	return &reader{src: src, s: s, found: found, buf: make([]byte, 0, scrubBuffer+s.longest)}
}

func (r *reader) Read(p []byte) (int, error) {
	for r.ready == 0 {
		if r.err != nil {
			return 0, r.err
		}
		held := len(r.buf)
		n, err := r.src.Read(r.buf[held:min(cap(r.buf), held+scrubBuffer)])
		r.buf = r.buf[:held+n]
		if r.s.bytes(r.buf) && r.found != nil {
			r.found()
		}
		r.ready = len(r.buf)
		if r.err = err; err == nil {
			r.ready -= r.s.held(r.buf)
		}
	}
	n := copy(p, r.buf[:r.ready])
	r.ready -= n
	r.buf = r.buf[:copy(r.buf, r.buf[n:])]
	return n, nil
}
