package httpauthz

import (
	"bytes"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"html"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/switches"
)

const (
	// minScrub is the length from which a form of a secret can be told from chance.
	minScrub = 6
	// minCut is the same for a part of a form: at the edge of a range, and at the
	// end of what has come so far, which is held back from this length on. (A
	// shorter one is passed on, or a stream in which two sides wait for each other
	// would stand still at every byte that some form begins with.)
	minCut = 4
)

// scrubber removes a secret that an upstream sends back: as it is, in hex, in
// base64 and base32 (at any alignment, so also inside something longer), escaped
// for URLs, HTML and JSON, and the encodings escaped once more where servers do
// that. It overwrites with asterisks of the same length, so that framing, lengths
// and offsets stay true.
type scrubber struct {
	forms   [][]byte
	longest int

	// Wu and Manber's search: how far a window of the shortest form's length may
	// move if it ends with this pair of bytes.
	window int
	skip   [pairs]uint8
	ending [pairs]uint8 // 1 + the first form whose window ends with the pair, longest first
	next   [256]uint8   // 1 + the next such form
	first  [256]bool    // bytes that a form begins with
}

const (
	pairs    = 1 << 10
	maxForms = 250
)

func pair(a, b byte) int { return (int(a)<<3 ^ int(b)*5) & (pairs - 1) }

func newScrubber(secrets ...[]byte) *scrubber {
	if switches.Off("echoes") {
		secrets = nil
	}
	s := &scrubber{}
	seen := map[string]bool{}
	add := func(forms ...string) {
		for _, f := range forms {
			if len(f) >= minScrub && len(s.forms) < maxForms && !seen[f] {
				seen[f] = true
				s.forms = append(s.forms, []byte(f))
				s.longest = max(s.longest, len(f))
			}
		}
	}
	for _, secret := range secrets {
		if len(secret) < minScrub {
			continue
		}
		plain := string(secret)
		add(plain, hex.EncodeToString(secret), strings.ToUpper(hex.EncodeToString(secret)))
		add(textForms(plain)...)
		for _, hex := range []string{"0123456789abcdef", "0123456789ABCDEF"} {
			add(spelled(secret, `\u00`, hex, ""), spelled(secret, `\x`, hex, ""), spelled(secret, "%", hex, ""), spelled(secret, "&#x", hex, ";"))
		}
		add(spelled(secret, "&#", "", ";"))
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			for shift := range 3 {
				add(textForms(aligned(enc.EncodeToString, 6, secret, shift))...)
			}
		}
		for shift := range 5 {
			b32 := aligned(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString, 5, secret, shift)
			add(b32, strings.ToLower(b32))
		}
	}
	s.prepare()
	return s
}

// textForms are how servers write a text into URLs, JSON and HTML.
func textForms(t string) []string {
	if strings.Trim(t, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~") == "" {
		return []string{t} // nobody escapes these
	}
	forms := []string{
		t, url.QueryEscape(t), url.PathEscape(t), lowerEscapes(url.QueryEscape(t)), lowerEscapes(url.PathEscape(t)), url.QueryEscape(url.QueryEscape(t)),
		strings.ReplaceAll(t, "/", `\/`), html.EscapeString(t), strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#039;").Replace(t),
		strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#x27;", "/", "&#x2F;", "`", "&#x60;", "=", "&#x3D;").Replace(t),
	}
	if j, err := json.Marshal(t); err == nil {
		once := string(j[1 : len(j)-1])
		forms = append(forms, once, strings.ReplaceAll(once, "/", `\/`))
		if j, err := json.Marshal(once); err == nil {
			forms = append(forms, string(j[1:len(j)-1]))
		}
	}
	var plain bytes.Buffer
	enc := json.NewEncoder(&plain)
	enc.SetEscapeHTML(false)
	if enc.Encode(t) == nil {
		forms = append(forms, strings.Trim(plain.String(), "\"\n"))
	}
	return forms
}

func lowerEscapes(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
}

// spelled writes every byte by itself, in hex with these digits or in decimal.
func spelled(secret []byte, before, digits, after string) string {
	b := make([]byte, 0, len(secret)*(len(before)+3+len(after)))
	for _, c := range secret {
		b = append(b, before...)
		if digits == "" {
			b = strconv.AppendUint(b, uint64(c), 10)
		} else {
			b = append(b, digits[c>>4], digits[c&15])
		}
		b = append(b, after...)
	}
	return string(b)
}

// aligned returns the characters of an encoding of so many bits for each that
// depend on the secret alone when shift bytes stand in front of it.
func aligned(encode func([]byte) string, bits int, secret []byte, shift int) string {
	padded := append(make([]byte, shift), secret...)
	out := encode(padded)
	first := (shift*8 + bits - 1) / bits
	last := len(padded) * 8 / bits
	if first >= last {
		return ""
	}
	return out[first:last]
}

func (s *scrubber) prepare() {
	slices.SortFunc(s.forms, func(a, b []byte) int { return len(b) - len(a) })
	if len(s.forms) == 0 {
		return
	}
	s.window = min(len(s.forms[len(s.forms)-1]), 255)
	for i := range s.skip {
		s.skip[i] = uint8(s.window - 1)
	}
	for n := len(s.forms) - 1; n >= 0; n-- {
		f := s.forms[n]
		s.first[f[0]] = true
		for i := 1; i < s.window; i++ {
			p := pair(f[i-1], f[i])
			s.skip[p] = min(s.skip[p], uint8(s.window-1-i))
		}
		last := pair(f[s.window-2], f[s.window-1])
		s.next[n], s.ending[last] = s.ending[last], uint8(n+1)
	}
}

// bytes overwrites every whole form in b and reports whether there was one.
func (s *scrubber) bytes(b []byte) bool {
	found := false
	if s.window == 0 {
		return false
	}
next:
	for i := s.window - 1; i < len(b); {
		p := pair(b[i-1], b[i])
		if k := s.skip[p]; k > 0 {
			i += int(k)
			continue
		}
		start := i - s.window + 1
		for n := s.ending[p]; n > 0; n = s.next[n-1] {
			if f := s.forms[n-1]; bytes.HasPrefix(b[start:], f) {
				stars(b[start : start+len(f)])
				found = true
				i = start + len(f) + s.window - 1
				continue next
			}
		}
		i++
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
	if len(b) < s.window {
		return false
	}
	b = bytes.ToLower(b)
	for _, f := range s.forms {
		if len(f) <= len(b) && bytes.Contains(b, bytes.ToLower(f)) {
			return true
		}
	}
	return false
}

// held returns how many of b's last bytes could be the beginning of a form.
func (s *scrubber) held(b []byte) int {
	for n := min(len(b), s.longest-1); n >= minCut; n-- {
		tail := b[len(b)-n:]
		if !s.first[tail[0]] {
			continue
		}
		for _, f := range s.forms {
			if len(f) <= n {
				break // the forms are sorted, longest first
			}
			if bytes.HasPrefix(f, tail) {
				return n
			}
		}
	}
	return 0
}

// cut returns how many of b's first bytes could be the end of a form.
func (s *scrubber) cut(b []byte) int {
	for n := min(len(b), s.longest-1); n >= minCut; n-- {
		for _, f := range s.forms {
			if len(f) <= n {
				break
			}
			if bytes.HasSuffix(f, b[:n]) {
				return n
			}
		}
	}
	return 0
}

// reader cleans a stream. It holds back only what could well be the beginning of
// the secret, so that events arrive as they are sent.
type reader struct {
	src   io.Reader
	s     *scrubber
	found func()
	part  bool   // a range: forms may be cut at either edge
	begun bool   // the first edge has been seen to
	buf   []byte // [:at] has been delivered, [at:ready] is clean, the rest is held back
	at    int
	ready int
	err   error
}

const scrubBuffer = 32 << 10

func (s *scrubber) reader(src io.Reader, found func()) *reader {
	return &reader{src: src, s: s, found: found, buf: make([]byte, 0, scrubBuffer+s.longest+minCut)}
}

func (r *reader) Read(p []byte) (int, error) {
	for r.at == r.ready {
		if r.err != nil {
			return 0, r.err
		}
		r.fill()
	}
	n := copy(p, r.buf[r.at:r.ready])
	r.at += n
	if r.err == io.EOF && r.at == len(r.buf) {
		return n, io.EOF
	}
	return n, nil
}

func (r *reader) fill() {
	// The last bytes delivered may be the beginning of what comes.
	context := min(r.at, minCut-1)
	r.buf = r.buf[:copy(r.buf, r.buf[r.at-context:])]
	r.at = context
	held := len(r.buf)
	var n int
	if room := r.buf[held:min(cap(r.buf), held+scrubBuffer)]; r.part && !r.begun {
		if n, r.err = io.ReadAtLeast(r.src, room, r.s.longest); r.err == io.ErrUnexpectedEOF {
			r.err = io.EOF
		}
	} else {
		n, r.err = r.src.Read(room)
	}
	r.buf = r.buf[:held+n]
	found := r.s.bytes(r.buf)
	if r.part && !r.begun {
		r.begun = true
		if n := r.s.cut(r.buf); n > 0 {
			stars(r.buf[:n])
			found = true
		}
	}
	open := r.s.held(r.buf)
	if r.ready = len(r.buf); r.err == nil {
		r.ready = max(r.at, r.ready-open)
	} else if r.part && open > 0 {
		stars(r.buf[r.ready-open:])
		found = true
	}
	if found && r.found != nil {
		r.found()
	}
}
