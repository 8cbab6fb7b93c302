package httpauthz

import (
	"io"
	"net/url"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/switches"
)

// Some servers take the method of a POST from a parameter, in the query or in a
// form, after it was judged. Nothing with such a parameter is forwarded, whatever
// its value.

// PHP reads dots, blanks and opening brackets as underscores.
var asUnderscores = strings.NewReplacer(".", "_", " ", "_", "[", "_", "-", "_")

// overridesMethod reports whether a key of a query or a form does.
func overridesMethod(key string) bool {
	key = asUnderscores.Replace(strings.ToLower(strings.TrimLeft(key, " \t")))
	switch key {
	case "_method", "__method", "_httpmethod", "_http_method", "$httpmethod", "x_http_method", "x_http_method_override", "x_method_override", "http_method_override":
		return true
	}
	return false
}

func overriddenBy(key string) error {
	return bad("the body overrides the method (%s); send the method itself", clip(key))
}

const (
	// maxParameter is more than the name of any such parameter has, escaped.
	maxParameter = 128
	maxPartLine  = 2 << 10
)

// watch returns a body that breaks off, before the bytes that hold it, at a
// parameter which overrides the method, and its length. Other kinds of bodies
// are not looked at. One that is compressed goes on as it was read.
func (q *request) watch(body io.Reader, length int64) (io.Reader, int64, error) {
	if q.r.Method != "POST" || switches.Off("bodies") {
		return body, length, nil
	}
	types := q.c.header["Content-Type"]
	if len(types) > 1 {
		return nil, 0, bad("the request has two content types")
	}
	kind, _, _ := strings.Cut(strings.ToLower(strings.Join(types, "")), ";")
	var see watcher
	switch {
	case strings.Contains(kind, "form-urlencoded"):
		see = &formKeys{}
	case strings.Contains(kind, "multipart/"):
		see = &partNames{}
	case strings.Contains(kind, "json"):
		see = &jsonKeys{}
	default:
		return body, length, nil
	}
	switch e := q.c.header["Content-Encoding"]; {
	case len(e) == 0 || len(e) == 1 && strings.EqualFold(strings.TrimSpace(e[0]), "identity"):
	case q.gzipped():
		var err error
		if body, length, err = unzip(body); err != nil {
			return nil, 0, err
		}
		delete(q.c.header, "Content-Encoding")
	default:
		return nil, 0, bad("a body of this type has to be read, and it is encoded (%s); send it plain or as gzip", clip(strings.Join(e, ", ")))
	}
	return &watched{body, see}, length, nil
}

// watcher reads a body on its way; end says that no more follows.
type watcher interface {
	see(p []byte, end bool) error
}

type watched struct {
	io.Reader
	watcher
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if seen := w.see(p[:n], err == io.EOF); seen != nil {
		return 0, seen
	}
	return n, err
}

// formKeys reads the keys of a form on its way.
type formKeys struct {
	key   []byte
	value bool // behind the =
}

func (f *formKeys) see(p []byte, end bool) error {
	for _, c := range p {
		switch {
		case c == '&' || c == ';' || c == '=' && !f.value:
			if err := f.judge(); err != nil {
				return err
			}
			f.key, f.value = f.key[:0], c == '='
		case !f.value && len(f.key) < maxParameter:
			f.key = append(f.key, c)
			if blank, err := url.QueryUnescape(string(f.key)); err == nil && len(f.key) <= 3 && strings.TrimSpace(blank) == "" {
				f.key = f.key[:0] // in front of a name it is nothing to some
			}
		}
	}
	if end {
		return f.judge()
	}
	return nil
}

func (f *formKeys) judge() error {
	if f.value {
		return nil
	}
	key, err := url.QueryUnescape(string(f.key))
	if err != nil {
		key = string(f.key)
	}
	if overridesMethod(strings.TrimSpace(key)) {
		return overriddenBy(key)
	}
	return nil
}

// partNames reads the names of a multipart body's parts on its way: every line
// that could be a part's Content-Disposition, with what is folded behind it.
type partNames struct {
	line []byte
	over bool // the line is too long to be one that matters
	done bool // it has ended, and may be folded
}

func (m *partNames) see(p []byte, end bool) error {
	for _, c := range p {
		if m.done && (c != ' ' && c != '\t' || !m.disposition()) {
			if err := m.judge(); err != nil {
				return err
			}
			m.line, m.over = m.line[:0], false
		}
		if m.done = c == '\n'; m.done {
			continue
		}
		if m.over = m.over || len(m.line) >= maxPartLine; !m.over {
			m.line = append(m.line, c)
		}
	}
	if end {
		return m.judge()
	}
	return nil
}

func (m *partNames) disposition() bool {
	name, _, ok := strings.Cut(string(m.line), ":")
	return ok && strings.EqualFold(strings.TrimSpace(name), "Content-Disposition")
}

func (m *partNames) judge() error {
	if !m.disposition() {
		return nil
	}
	if m.over {
		return bad("the Content-Disposition of a part is longer than %d bytes", maxPartLine)
	}
	for param := range strings.SplitSeq(string(m.line), ";") {
		k, v, ok := strings.Cut(param, "=")
		if k = strings.ToLower(strings.TrimSpace(k)); !ok || k != "name" && k != "name*" {
			continue
		}
		v = strings.Trim(strings.TrimSpace(v), `"'\`)
		if at := strings.LastIndex(v, "''"); k == "name*" && at >= 0 {
			v = v[at+2:]
		}
		if plain, err := url.QueryUnescape(v); err == nil {
			v = plain
		}
		if overridesMethod(v) {
			return overriddenBy(v)
		}
	}
	return nil
}
