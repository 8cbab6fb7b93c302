package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"
	"unicode/utf8"
)

// multipartBody is multipart/form-data (RFC 7578) in the one form that clients
// write: no preamble, no epilogue, no folded or unknown part headers, nothing
// encoded, nothing nested, and the boundary nowhere but in delimiters. Fields
// are judged, files (files:) pass unread. As many bytes as limit: are judged
// before the request is; behind a file that is longer, the rest is judged on
// its way, and the request breaks off where it needs something that was not
// granted.
type multipartBody struct{ *bodySpec }

func newMultipart(b *bodySpec) (bodyReader, error) { return multipartBody{b}, b.flat() }

func (b multipartBody) need() Need {
	return Need{
		HeadMax: b.limit,
		Stream:  int64(b.filesLimit),
		// Framing errors are features' to report: it knows the boundary.
		Head: func(soFar []byte) (bool, error) { return len(soFar) >= b.limit, nil },
		End:  true,
	}
}

func (b multipartBody) features(op *Operation, _ string, r Request) (Contents, error) {
	boundary, err := b.boundary(r)
	if err != nil {
		return Contents{}, err
	}
	s := newPartScan(b.bodySpec, boundary, nil)
	if err := s.feed(r.Body); err != nil {
		return Contents{}, err
	}
	c := s.walk.contents(op)
	switch {
	case len(r.Body) < b.limit && s.end() == nil:
	case s.state == partDone && len(r.Body) >= b.limit:
	case s.state == partFile && len(r.Body) >= b.limit:
	case len(r.Body) >= b.limit:
		return Contents{}, fmt.Errorf("%w: its fields have more than %d bytes", ErrBadBody, b.limit)
	default:
		return Contents{}, fmt.Errorf("%w: it ends before its last boundary", ErrBadBody)
	}
	c.Filter = func(src io.Reader, check func(Contents) error) io.Reader {
		scan := newPartScan(b.bodySpec, boundary, func(w *flatWalk) error { return check(w.contents(op)) })
		return &partReader{src: src, scan: scan}
	}
	return c, nil
}

// boundary reads the Content-Type. Parameters in pieces or with a character set
// (RFC 2231) are read in different ways, so they are refused.
func (b multipartBody) boundary(r Request) (string, error) {
	for _, v := range r.Header.Values("Content-Encoding") {
		if v != "" && !strings.EqualFold(v, "identity") {
			return "", fmt.Errorf("%w: it is compressed, so it can't be judged; send it without Content-Encoding", ErrBadBody)
		}
	}
	values := r.Header.Values("Content-Type")
	if len(values) != 1 {
		return "", fmt.Errorf("%w: it needs one Content-Type: multipart/form-data", ErrBadBody)
	}
	mt, params, err := mime.ParseMediaType(values[0])
	if err != nil || mt != "multipart/form-data" || len(params) != 1 || strings.ContainsAny(values[0], "*\\(,") || strings.Count(strings.ToLower(values[0]), "boundary") < 1 {
		return "", fmt.Errorf("%w: its Content-Type is not multipart/form-data with a boundary and nothing else", ErrBadBody)
	}
	s := params["boundary"]
	if len(s) == 0 || len(s) > 70 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'+_-./:=?") != "" {
		return "", fmt.Errorf("%w: its boundary is not one to 70 plain characters", ErrBadBody)
	}
	return s, nil
}

type partState uint8

const (
	partStart     partState = iota // before the first delimiter
	partDelimited                  // behind a boundary: CRLF or --
	partHead                       // in the headers of a part
	partText                       // in a field
	partFile                       // in a file
	partDone                       // behind the last delimiter
)

const (
	maxPartHead = 4 << 10
	maxParts    = 1000
)

// partScan reads a multipart body as it comes. What may be forwarded is in
// clean; a field waits until all of it is judged.
type partScan struct {
	spec  *bodySpec
	dash  []byte // "--" + boundary
	state partState
	name  string
	parts int
	buf   []byte // not yet judged
	// held is where the empty line behind the headers of a field begins in buf;
	// inside says that a file has begun; seen bytes of buf hold no boundary.
	held, seen int
	inside     bool
	clean      []byte // judged, only kept if judged is set
	walk       *flatWalk
	// judged is asked after each field.
	judged func(*flatWalk) error
}

func newPartScan(b *bodySpec, boundary string, judged func(*flatWalk) error) *partScan {
	return &partScan{spec: b, dash: []byte("--" + boundary), walk: newFlatWalk(b), judged: judged}
}

func badPart(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrBadBody}, args...)...)
}

// feed takes the next bytes and judges what is complete.
func (s *partScan) feed(p []byte) error {
	s.buf = append(s.buf, p...)
	for {
		more, err := s.step()
		if err != nil || !more {
			return err
		}
	}
}

// pass releases n judged bytes.
func (s *partScan) pass(n int) {
	if s.judged != nil {
		s.clean = append(s.clean, s.buf[:n]...)
	}
	s.buf = s.buf[:copy(s.buf, s.buf[n:])]
	s.seen = 0
}

// step goes on as far as the bytes allow; more says that it got on.
func (s *partScan) step() (more bool, err error) {
	switch s.state {
	case partStart:
		if n := min(len(s.buf), len(s.dash)); !bytes.Equal(s.buf[:n], s.dash[:n]) {
			return false, badPart("it does not begin with its boundary")
		} else if n < len(s.dash) {
			return false, nil
		}
		s.pass(len(s.dash))
		s.state = partDelimited
		return true, nil
	case partDelimited:
		return s.delimited()
	case partHead:
		return s.head()
	case partText, partFile:
		return s.content()
	}
	// Behind the last delimiter one line may end, and nothing else comes.
	if !bytes.HasPrefix([]byte("--\r\n"), s.buf) {
		return false, badPart("something follows its last boundary")
	}
	return false, nil
}

func (s *partScan) delimited() (bool, error) {
	if len(s.buf) < 2 {
		return false, nil
	}
	switch string(s.buf[:2]) {
	case "\r\n":
		s.state = partHead
	case "--":
		if s.parts == 0 {
			return false, badPart("it has no parts")
		}
		s.state = partDone
	default:
		return false, badPart("something stands behind a boundary")
	}
	if s.parts++; s.parts > maxParts {
		return false, badPart("it has more than %d parts", maxParts)
	}
	if s.state == partDone {
		return true, nil // the end passes when all has come
	}
	s.pass(2)
	return true, nil
}

func (s *partScan) head() (bool, error) {
	end := bytes.Index(s.buf, []byte("\r\n\r\n"))
	if end < 0 {
		if len(s.buf) > maxPartHead {
			return false, badPart("the headers of a part are longer than %d bytes", maxPartHead)
		}
		return false, nil
	}
	if end > maxPartHead {
		return false, badPart("the headers of a part are longer than %d bytes", maxPartHead)
	}
	if bytes.Contains(s.buf[:end], s.dash) {
		return false, badPart("its boundary stands in the headers of a part")
	}
	name, file, err := s.partHeader(string(s.buf[:end]))
	if err != nil {
		return false, err
	}
	s.name = name
	if file {
		s.state = partFile
		s.pass(end + 2) // the empty line may begin a delimiter
		return true, nil
	}
	s.state = partText
	// The headers wait with the value.
	s.held = end + 2
	return true, nil
}

func (s *partScan) content() (bool, error) {
	from := s.held
	if s.state == partFile {
		from = 0
	}
	// From the end of the headers on: CRLF, content, CRLF, boundary.
	search := max(from, s.seen-len(s.dash))
	at := bytes.Index(s.buf[search:], s.dash)
	if at < 0 {
		s.seen = len(s.buf)
		if s.state == partText && len(s.buf)-from-len(s.dash)-4 > s.spec.limit {
			return false, s.tooLong()
		}
		if keep := len(s.dash) + 4; s.state == partFile && len(s.buf) > keep {
			// The two bytes of the empty line stay in front until content follows.
			s.pass(len(s.buf) - keep)
			s.inside = true
		}
		return false, nil
	}
	at += search
	if at < from+2 || string(s.buf[at-2:at]) != "\r\n" || !s.inside && s.state == partFile && at < 4 || s.state == partText && at < from+4 {
		return false, badPart("its boundary stands inside of a part")
	}
	if s.state == partText {
		value := string(s.buf[from+2 : at-2])
		if len(value) > s.spec.limit {
			return false, s.tooLong()
		}
		if !isFormText(value) {
			return false, badPart("the field %s is not text in UTF-8", safeKey(s.name))
		}
		if err := s.walk.field(s.name, value); err != nil {
			return false, err
		}
		if s.judged != nil {
			if err := s.judged(s.walk); err != nil {
				return false, err
			}
		}
	}
	s.pass(at + len(s.dash))
	s.state, s.held, s.inside = partDelimited, 0, false
	return true, nil
}

func (s *partScan) tooLong() error {
	return badPart("the field %s is longer than %d bytes", safeKey(s.name), s.spec.limit)
}

// partHeader reads Content-Disposition and Content-Type, and accepts no others.
func (s *partScan) partHeader(head string) (name string, file bool, err error) {
	disposition, contentType := "", ""
	for line := range strings.SplitSeq(head, "\r\n") {
		key, value, ok := strings.Cut(line, ": ")
		if !ok || strings.ContainsAny(line, "\r\n\x00") || !utf8.ValidString(line) {
			return "", false, badPart("a part has a header that is not Name: value")
		}
		to := &disposition
		switch strings.ToLower(key) {
		case "content-disposition":
		case "content-type":
			to = &contentType
		default:
			return "", false, badPart("a part has the header %s", safeKey(key))
		}
		if *to != "" || value == "" {
			return "", false, badPart("a part has a header twice, or empty")
		}
		*to = value
	}
	rest, ok := strings.CutPrefix(disposition, "form-data; name=")
	if !ok {
		return "", false, badPart(`a part's Content-Disposition is not form-data; name="…"`)
	}
	name, rest, err = quoted(rest)
	if err == nil && rest != "" {
		rest, ok = strings.CutPrefix(rest, "; filename=")
		if !ok {
			return "", false, badPart("a part's Content-Disposition has more than name and filename")
		}
		var filename string
		filename, rest, err = quoted(rest)
		file = true
		if err == nil && (rest != "" || hasTokenShape(filename)) {
			err = errors.New("a part's filename is not plain")
		}
	}
	if err != nil || name == "" {
		return "", false, badPart(`a part's names are not plain text in quotes`)
	}
	switch {
	case file && !s.spec.isFile(name):
		return "", false, badPart("the field %s may not be a file", safeKey(name))
	case file:
		mt, _, err := mime.ParseMediaType(contentType)
		if contentType != "" && (err != nil || strings.HasPrefix(mt, "multipart/") || strings.HasPrefix(mt, "message/")) {
			return "", false, badPart("a part holds other parts, or its Content-Type is not well-formed")
		}
	case contentType != "" && !isPlainText(contentType):
		return "", false, badPart("the field %s has a Content-Type that is not text/plain in UTF-8", safeKey(name))
	}
	return name, file, nil
}

func isPlainText(contentType string) bool {
	mt, params, err := mime.ParseMediaType(contentType)
	charset, has := params["charset"]
	return err == nil && mt == "text/plain" && (len(params) == 0 || len(params) == 1 && has && strings.EqualFold(charset, "utf-8"))
}

// quoted reads a text in quotes without escapes.
func quoted(s string) (text, rest string, err error) {
	rest, ok := strings.CutPrefix(s, `"`)
	text, rest, ok2 := strings.Cut(rest, `"`)
	if !ok || !ok2 || strings.Contains(text, `\`) {
		return "", "", errors.New("not in quotes")
	}
	return text, rest, nil
}

func (b *bodySpec) isFile(name string) bool {
	for _, f := range b.files {
		if f == name {
			return true
		}
	}
	return false
}

// end says whether the body may end here.
func (s *partScan) end() error {
	if s.state != partDone || len(s.buf)%2 != 0 {
		return badPart("it ends before its last boundary")
	}
	s.pass(len(s.buf))
	return nil
}

// partReader forwards what is judged.
type partReader struct {
	src  io.Reader
	scan *partScan
	out  []byte
	in   []byte
	err  error
}

func (r *partReader) Read(p []byte) (int, error) {
	if r.in == nil {
		r.in = make([]byte, 32<<10)
	}
	for len(r.out) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		n, err := r.src.Read(r.in)
		r.scan.clean = r.scan.clean[:0]
		if ferr := r.scan.feed(r.in[:n]); ferr != nil {
			err = ferr
			r.scan.clean = nil
		} else if err == io.EOF {
			if eerr := r.scan.end(); eerr != nil {
				err = eerr
			}
		}
		r.err, r.out = err, r.scan.clean
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}
