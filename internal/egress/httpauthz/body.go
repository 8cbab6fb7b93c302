package httpauthz

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
)

// body returns what is to be forwarded, after buffering what the catalogue has
// to see, and the length of all of it (-1: unknown). What is not buffered
// streams, and breaks off beyond what the need allows.
func (q *request) body() (io.Reader, int64, error) {
	if q.r.Body == nil || q.r.Body == http.NoBody || q.r.ContentLength == 0 {
		return nil, 0, nil
	}
	if m := q.r.Method; m == http.MethodGet || m == http.MethodHead {
		// RFC 9110 section 9.3.1: it has no meaning, and an upstream that does not
		// read it would take it for the next request.
		return nil, 0, bad("a %s request has a body", m)
	}
	q.c.HasBody = true
	src, length := q.patient(), q.r.ContentLength
	need := q.h.Decider.Body(q.c.Request)
	switch {
	case need.None:
		return nil, 0, bad("this operation takes no body")
	case need.Gzip && q.gzipped():
		var err error
		if src, length, err = unzip(src); err != nil {
			return nil, 0, err
		}
		delete(q.c.header, "Content-Encoding")
	case need.Reads():
		for _, e := range q.c.header["Content-Encoding"] {
			if !strings.EqualFold(strings.TrimSpace(e), "identity") {
				return nil, 0, bad("the body has to be read to decide, and it is encoded (%s)", clip(e))
			}
		}
	}
	switch {
	case !need.Reads():
		var err error
		if src, length, err = q.watch(src, length); err != nil {
			return nil, 0, err
		}
	case need.Whole > 0:
		return q.wholeBody(src, need.Whole)
	case need.Head != nil:
		return q.bodyHead(src, length, need)
	}
	return q.streamed(src, length, need.Stream)
}

// gzipped reports whether the body has this one coding.
func (q *request) gzipped() bool {
	e := q.c.header["Content-Encoding"]
	return len(e) == 1 && (e[0] == "gzip" || e[0] == "x-gzip")
}

// unzippedAtOnce is how much of a decoded body is collected to say its length:
// some servers take no body without one. git compresses from 1 KiB on, and what
// it asks in a common fetch has 10 to 100 KiB.
const unzippedAtOnce = 256 << 10

// unzip returns the decoded body and its length, -1 if that is not known yet.
func unzip(src io.Reader) (io.Reader, int64, error) {
	u := &unzipped{src: src}
	start, err := io.ReadAll(io.LimitReader(u, unzippedAtOnce+1))
	switch r := (*refusal)(nil); {
	case errors.As(err, &r):
		return nil, 0, err
	case err != nil:
		return nil, 0, bad("the body did not arrive whole")
	case len(start) > unzippedAtOnce:
		return io.MultiReader(bytes.NewReader(start), u), -1, nil
	}
	return bytes.NewReader(start), int64(len(start)), nil
}

// unzipped decodes one gzip stream, behind which nothing may stand.
type unzipped struct {
	src io.Reader
	z   *gzip.Reader
	in  *bufio.Reader
}

func (u *unzipped) Read(p []byte) (int, error) {
	if u.z == nil {
		u.in = bufio.NewReader(u.src)
		z, err := gzip.NewReader(u.in)
		if err != nil {
			return 0, bad("the body is not gzip, as its Content-Encoding says")
		}
		z.Multistream(false)
		u.z = z
	}
	n, err := u.z.Read(p)
	if err == io.EOF {
		if _, more := u.in.ReadByte(); more != io.EOF {
			return n, bad("something follows the body's gzip stream")
		}
	} else if errors.Is(err, gzip.ErrChecksum) || errors.Is(err, gzip.ErrHeader) {
		err = bad("the body is not gzip, as its Content-Encoding says")
	}
	return n, err
}

func (q *request) wholeBody(src io.Reader, limit int) (io.Reader, int64, error) {
	if q.r.ContentLength > int64(limit) {
		return nil, 0, bad("the body has to be read to decide, and is longer than %d bytes", limit)
	}
	held := q.hold()
	switch err := held.fill(src, int64(limit), nil); {
	case errors.Is(err, errLong):
		return nil, 0, bad("the body has to be read to decide, and is longer than %d bytes", limit)
	case err != nil:
		return nil, 0, q.unread(err)
	}
	q.c.Body, q.whole = held.buf, true
	return bytes.NewReader(held.buf), int64(len(held.buf)), nil
}

// bodyHead buffers until the catalogue has seen enough, and streams the rest.
func (q *request) bodyHead(src io.Reader, length int64, need catalog.Need) (io.Reader, int64, error) {
	held, done := q.hold(), false
	ask := func(soFar []byte) (bool, error) {
		var err error
		if done, err = need.Head(soFar); err != nil {
			err = bad("the beginning of the body is not well-formed: %v", err)
		}
		return done, err
	}
	// Head begins at the start each time, so it is asked when twice as much is
	// there, and at the end: a body that comes byte by byte costs no more.
	next := 1
	err := held.fill(src, int64(need.HeadMax), func(soFar []byte) (bool, error) {
		if len(soFar) < min(next, need.HeadMax) {
			return false, nil
		}
		next = 2 * len(soFar)
		return ask(soFar)
	})
	ended := err == nil && !done
	if ended {
		_, err = ask(held.buf)
	}
	switch {
	case errors.Is(err, errLong):
		return nil, 0, bad("the beginning of the body has to be read to decide, and is longer than %d bytes", need.HeadMax)
	case err != nil:
		return nil, 0, q.unread(err)
	case !done && !need.End:
		return nil, 0, bad("the body ends before what has to be read to decide")
	}
	buf := held.buf
	q.c.Body = buf
	if ended {
		q.whole = true
		return bytes.NewReader(buf), int64(len(buf)), nil
	}
	rest, length, err := q.streamed(src, length, saturating(need.Stream, int64(len(buf))))
	if err != nil {
		return nil, 0, err
	}
	if b, ok := rest.(*bounded); ok {
		b.left -= int64(len(buf))
	}
	return io.MultiReader(bytes.NewReader(buf), rest), length, nil
}

func saturating(a, b int64) int64 {
	if a > catalog.Unlimited-b {
		return catalog.Unlimited
	}
	return a + b
}

// streamed passes a body on unread, at most limit bytes of it.
func (q *request) streamed(src io.Reader, length, limit int64) (io.Reader, int64, error) {
	if length > limit {
		return nil, 0, bad("the body is longer than the %d bytes that this operation takes", limit)
	}
	if limit == catalog.Unlimited {
		return src, length, nil
	}
	return &bounded{src: src, left: limit}, length, nil
}

// errTooLong breaks the request off: the upstream sees it end before its end.
var errTooLong = errors.New("the body is longer than this operation takes")

// bounded fails once more than left bytes came.
type bounded struct {
	src  io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errTooLong
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.src.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return n - 1, errTooLong
	}
	return n, err
}
