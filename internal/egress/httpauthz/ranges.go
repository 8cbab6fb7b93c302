package httpauthz

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// minRange is the least length of a range under a credential: both of its edges
// cannot lie within one echo.
const minRange = 64 << 10

// searchable reports whether an echo can still be found in an answer to this
// Range header: one range that is open or long.
func searchable(lines []string) bool {
	if len(lines) == 0 {
		return true
	}
	first, last, ok := oneRange(lines)
	switch {
	case !ok:
		return false
	case last < 0:
		return true
	case first < 0:
		return last >= minRange
	}
	return last-first+1 >= minRange
}

// oneRange reads a header of one range; what is not there is -1.
func oneRange(lines []string) (first, last int64, ok bool) {
	if len(lines) != 1 {
		return 0, 0, false
	}
	spec, ok := cutPrefixFold(strings.TrimSpace(lines[0]), "bytes=")
	from, to, both := strings.Cut(spec, "-")
	if !ok || !both {
		return 0, 0, false
	}
	first, err := number(from)
	if err != nil {
		return 0, 0, false
	}
	last, err = number(to)
	return first, last, err == nil && (first >= 0 || last >= 0)
}

// number reads a plain number; nothing is -1.
func number(s string) (int64, error) {
	if s == "" {
		return -1, nil
	}
	if strings.Trim(s, "0123456789") != "" {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseInt(s, 10, 64)
}

// span is a range that is asked for as it is, since some servers take Range for
// something else than a part of their answer. If a part is the answer, a wider
// one is asked for, searched, and cut to what was asked.
type span struct{ first, last int64 } // first is -1: the last so many bytes

func shortRange(lines []string) *span {
	first, last, ok := oneRange(lines)
	if !ok || last < first || last > math.MaxInt64/2 {
		return nil
	}
	return &span{first, last}
}

// wider is a range around s in which all of an echo lies that touches s.
func (s *span) wider(scrub *scrubber) string {
	more := int64(max(minRange/2, scrub.longest))
	if s.first < 0 {
		return fmt.Sprintf("bytes=-%d", s.last+more)
	}
	return fmt.Sprintf("bytes=%d-%d", max(0, s.first-more), s.last+more)
}

// of cuts an answer to the wider range.
func (s *span) of(resp *http.Response, body io.Reader, head bool) (io.Reader, error) {
	text, _ := cutPrefixFold(strings.TrimSpace(resp.Header.Get("Content-Range")), "bytes ")
	where, size, _ := strings.Cut(text, "/")
	from, to, ok := oneRange([]string{"bytes=" + where})
	total, err := number(size)
	if !ok || err != nil || from < 0 || to < from || total <= to {
		return nil, errors.New("the upstream sent a part of its answer and does not say which")
	}
	first, last := s.first, min(s.last, total-1)
	if first < 0 {
		first, last = max(0, total-s.last), total-1
	}
	if first > last {
		resp.StatusCode = http.StatusRequestedRangeNotSatisfiable
		resp.Header.Set("Content-Range", fmt.Sprintf("bytes */%d", total))
		return s.sized(resp, 0, bytes.NewReader(nil)), nil
	}
	if first < from || last > to {
		return nil, errors.New("the upstream sent another part of its answer than it was asked for")
	}
	if !head {
		if _, err := io.CopyN(io.Discard, body, first-from); err != nil {
			return nil, errors.New("the upstream's answer broke off")
		}
	}
	resp.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, total))
	n := last - first + 1
	return s.sized(resp, n, io.LimitReader(body, n)), nil
}

func (s *span) sized(resp *http.Response, n int64, body io.Reader) io.Reader {
	resp.ContentLength = n
	resp.Header["Content-Length"] = []string{strconv.FormatInt(n, 10)}
	resp.Trailer = nil
	return body
}
