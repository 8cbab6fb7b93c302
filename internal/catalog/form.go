package catalog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// A form or a multipart body is walked like a flat JSON object of strings.

func (b *bodySpec) flat() error {
	if len(b.keys) == 0 && len(b.closed) == 0 {
		return errors.New("a body section needs limit: and keys:, once")
	}
	return nil
}

func newForm(b *bodySpec) (bodyReader, error) {
	if len(b.files) > 0 {
		return nil, errors.New("files: belongs to kind: multipart")
	}
	return formBody{b}, b.flat()
}

// formBody is application/x-www-form-urlencoded.
type formBody struct{ *bodySpec }

func (b formBody) need() Need { return Need{Whole: b.limit} }

func (b formBody) features(op *Operation, _ string, r Request) (Contents, error) {
	if err := b.checkForm(r, "application/x-www-form-urlencoded"); err != nil {
		return Contents{}, err
	}
	w := newFlatWalk(b.bodySpec)
	if len(r.Body) > 0 {
		for pair := range bytes.SplitSeq(r.Body, []byte("&")) {
			k, v, ok := bytes.Cut(pair, []byte("="))
			if !ok || len(k) == 0 {
				return Contents{}, fmt.Errorf("%w: it is not key=value&key=value", ErrBadBody)
			}
			key, err := unescapeForm(k)
			if err != nil {
				return Contents{}, err
			}
			value, err := unescapeForm(v)
			if err != nil {
				return Contents{}, err
			}
			if err := w.field(key, value); err != nil {
				return Contents{}, err
			}
		}
	}
	return w.contents(op), nil
}

// unescapeForm accepts the one form that encoders write: letters, digits, a few
// marks, + for a space, and percent escapes of UTF-8.
func unescapeForm(s []byte) (string, error) {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '+':
			b.WriteByte(' ')
		case c == '%':
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return "", fmt.Errorf("%w: it has a broken percent escape", ErrBadBody)
			}
			b.WriteByte(unhex(s[i+1])<<4 | unhex(s[i+2]))
			i += 2
		case c <= ' ' || c >= 0x7f || c == ';' || c == '=':
			// A ; separates pairs for some, and a second = ends a key for others.
			return "", fmt.Errorf("%w: it has a character that has to be escaped", ErrBadBody)
		default:
			b.WriteByte(c)
		}
	}
	if !isFormText(b.String()) {
		return "", fmt.Errorf("%w: a field is not text in UTF-8", ErrBadBody)
	}
	return b.String(), nil
}

func isFormText(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}

// flatWalk judges fields one by one.
type flatWalk struct{ bodyWalk }

func newFlatWalk(b *bodySpec) *flatWalk {
	w := &flatWalk{bodyWalk{spec: b, anywhere: true}}
	w.stack = append(w.stack, frame{object: true, wantKey: true})
	return w
}

// field judges one field. The same one may come again only where servers read a
// list: of two values of one field they take the first, the last or both else.
func (w *flatWalk) field(key, value string) error {
	top := &w.stack[0]
	if key == "_charset_" {
		return fmt.Errorf("%w: the field _charset_ changes how the others are read", ErrBadBody)
	}
	var err error
	if strings.HasSuffix(key, "[]") || slices.Contains(w.spec.repeat, key) {
		err = w.judgeKey(top, key)
	} else {
		err = w.key(top, key)
	}
	if err == nil {
		w.value(value, true)
		err = w.scalar(top, value)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadBody, err)
	}
	return nil
}

func newNDJSON(b *bodySpec) (bodyReader, error) {
	if len(b.files) > 0 {
		return nil, errors.New("files: belongs to kind: multipart")
	}
	return linesBody{b}, b.flat()
}

// linesBody is one JSON object a line, each judged like a body.
type linesBody struct{ *bodySpec }

func (b linesBody) need() Need { return Need{Whole: b.limit} }

func (b linesBody) features(op *Operation, _ string, r Request) (Contents, error) {
	if err := b.checkForm(r, "application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines", "application/json-lines"); err != nil {
		return Contents{}, err
	}
	w := bodyWalk{spec: b.bodySpec}
	rest := r.Body
	for first := true; first || len(rest) > 0; first = false {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\n"))
		if bytes.IndexByte(bytes.TrimSuffix(line, []byte("\r")), '\r') >= 0 || !json.Valid(line) {
			return Contents{}, fmt.Errorf("%w: a line is not one JSON value", ErrBadBody)
		}
		if err := w.object(line); err != nil {
			return Contents{}, err
		}
	}
	return w.contents(op), nil
}
