package httpauthz

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// What a short range is answered with, cut from an answer to the wider one, is
// what the server would have answered to it; and of whatever a server says of its
// part, no more and no other bytes come than were asked for.
func FuzzRanges(f *testing.F) {
	for _, s := range []string{"bytes=0-0", "bytes=5-9", "bytes=-3", "BYTES=7-7", "bytes= 1-2", "bytes=9-3", "bytes=1-", "bytes=1-2,4-5", "bytes=-0", "items=1-2", "bytes=99-200", "bytes=4611686018427387904-4611686018427387905"} {
		f.Add(s, uint32(100), "bytes 0-99/100")
	}
	f.Add("bytes=70000-70001", uint32(200_000), "bytes 5-4/3")
	f.Add("bytes=0-0", uint32(0), "bytes 0-0/*")
	f.Fuzz(func(t *testing.T, spec string, size uint32, said string) {
		page := make([]byte, size%300_000)
		for i := range page {
			page[i] = byte(i) ^ byte(i>>8)
		}
		serve := func(spec string) *http.Response {
			w := httptest.NewRecorder()
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Range", spec)
			http.ServeContent(w, r, "x.bin", time.Unix(1e9, 0), bytes.NewReader(page))
			return w.Result()
		}
		s := shortRange([]string{spec})
		if s == nil || searchable([]string{spec}) {
			return
		}
		plain := fmt.Sprintf("bytes=%d-%d", s.first, s.last)
		if s.first < 0 {
			plain = fmt.Sprintf("bytes=-%d", s.last)
		}
		want := serve(plain)
		got := serve(s.wider(&scrubber{}))
		if want.StatusCode == http.StatusPartialContent && got.StatusCode == http.StatusPartialContent && want.ContentLength > 0 {
			body, err := s.of(got, got.Body, false)
			if err != nil {
				t.Fatalf("%q of %d bytes: %v", spec, len(page), err)
			}
			a, _ := io.ReadAll(want.Body)
			b, _ := io.ReadAll(body)
			if !bytes.Equal(a, b) || want.Header.Get("Content-Range") != got.Header.Get("Content-Range") || want.Header.Get("Content-Length") != got.Header.Get("Content-Length") {
				t.Fatalf("%q of %d bytes: %v and %d bytes, and not %v and %d", spec, len(page), got.Header, len(b), want.Header, len(a))
			}
		}
		lie := &http.Response{StatusCode: http.StatusPartialContent, Header: http.Header{"Content-Range": {said}}}
		body, err := s.of(lie, bytes.NewReader(page), false)
		if err != nil {
			return
		}
		b, _ := io.ReadAll(body)
		if longest := s.last - max(s.first, 0) + 1; int64(len(b)) > lie.ContentLength || lie.ContentLength > longest {
			t.Fatalf("%q, said to be %q: %d bytes, and %d", spec, said, len(b), lie.ContentLength)
		}
	})
}
