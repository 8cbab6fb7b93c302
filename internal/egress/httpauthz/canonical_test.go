package httpauthz

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

func destination(t testing.TB, s string) hostport.HostPort {
	t.Helper()
	hp, err := hostport.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return hp
}

// What has a canonical form is forwarded as it came and decodes to what was
// judged, by the decoder that servers use.
func FuzzCanonicalise(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n",
		"POST /v1/messages?beta=true HTTP/1.1\r\nHost: api.test:443\r\nContent-Length: 2\r\n\r\n{}",
		"GET /@scope%2fname HTTP/1.1\r\nHost: api.test\r\n\r\n", "GET /a/%2e%2e/b HTTP/1.1\r\nHost: api.test\r\n\r\n", "GET https://api.test/x HTTP/1.1\r\nHost: evil.test\r\n\r\n",
		"GET /%C3%A9?a=b&_method=x HTTP/1.1\r\nHost: api.test\r\nConnection: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	dst := destination(f, "api.test:443")
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in)))
		if err != nil {
			return
		}
		c, err := canonicalise(r, dst, true)
		if err != nil {
			return
		}
		if err := catalog.CheckPath(c.Path); err != nil {
			t.Fatalf("path %q: %v", c.Path, err)
		}
		decoded, err := url.PathUnescape(c.rawPath)
		if err != nil || decoded != c.Path {
			t.Fatalf("%q decodes to %q, judged as %q", c.rawPath, decoded, c.Path)
		}
		q := &request{r: r, c: c, dst: dst, secure: true}
		out, err := q.rebuild(t.Context(), nil, 0)
		if err != nil {
			return
		}
		var wire bytes.Buffer
		if err := out.Write(&wire); err != nil {
			return
		}
		again, err := http.ReadRequest(bufio.NewReader(&wire))
		if err != nil {
			t.Fatalf("what we send does not parse: %v", err)
		}
		if again.Method != c.Method || again.Host != "api.test" || again.URL.EscapedPath() != c.rawPath || again.URL.RawQuery != c.rawQuery {
			t.Fatalf("sent %s %s %s, judged %s %s?%s", again.Method, again.Host, again.RequestURI, c.Method, c.rawPath, c.rawQuery)
		}
		for name := range again.Header {
			if strings.Contains(name, "_") || name == "Connection" || name == "Upgrade" || name == "Expect" {
				t.Fatalf("header %q is sent", name)
			}
		}
		if wire.Len() != 0 {
			t.Fatalf("%q is left over", wire.Bytes())
		}
	})
}

// HTTP/2 lets blanks stand around a value; some servers leave out such a header
// altogether (nghttp2), others read it, so it goes on without them, as it is
// judged.
func TestBlanksAroundValues(t *testing.T) {
	r := &http.Request{Method: "GET", RequestURI: "/", Host: "api.test", Proto: "HTTP/2.0", ProtoMajor: 2, Header: http.Header{"X-A": {" a b\t", "c"}}}
	c, err := canonicalise(r, destination(t, "api.test:443"), true)
	if err != nil || len(c.Header["X-A"]) != 2 || c.Header["X-A"][0] != "a b" || r.Header["X-A"][0] != " a b\t" {
		t.Errorf("%q, %v", c.Header, err)
	}
}

// net/http takes a length that is no number for 0, which another server may not.
func TestLengthsOfHTTP2(t *testing.T) {
	for _, lengths := range [][]string{{"-1"}, {"+5"}, {"5 "}, {"0x5"}, {""}, {"5, 5"}, {"9999999999999999999"}, {"5", "5"}} {
		r := &http.Request{Method: "POST", RequestURI: "/", Host: "api.test", Proto: "HTTP/2.0", ProtoMajor: 2, Header: http.Header{"Content-Length": lengths}}
		if _, err := canonicalise(r, destination(t, "api.test:443"), true); err == nil {
			t.Errorf("%q passes", lengths)
		}
	}
	r := &http.Request{Method: "POST", RequestURI: "/", Host: "api.test", Proto: "HTTP/2.0", ProtoMajor: 2, Header: http.Header{"Content-Length": {"5"}}}
	if _, err := canonicalise(r, destination(t, "api.test:443"), true); err != nil {
		t.Error(err)
	}
}

func TestScrubAcrossChunks(t *testing.T) {
	secret := []byte("sk-real-5fJ29xPqLm0ZsWc7")
	s := newScrubber(secret)
	text := "before " + string(secret) + " middle " + base64.StdEncoding.EncodeToString(append([]byte("ab"), secret...)) + " after sk-rea"
	for name, src := range map[string]io.Reader{
		"whole": strings.NewReader(text), "by bytes": iotest.OneByteReader(strings.NewReader(text)), "by halves": iotest.HalfReader(strings.NewReader(text)), "with error": iotest.DataErrReader(strings.NewReader(text)),
	} {
		found := false
		out, err := io.ReadAll(s.reader(src, func() { found = true }))
		if err != nil || !found || len(out) != len(text) || !strings.HasPrefix(string(out[10:]), "****") || !strings.HasSuffix(string(out), " after sk-rea") {
			t.Errorf("%s: %q, %v", name, out, err)
		}
		if strings.Contains(string(out), "5fJ29") || strings.Contains(string(out), base64.RawStdEncoding.EncodeToString(secret)[4:20]) {
			t.Errorf("%s: %q", name, out)
		}
	}
}

// An event is passed on at once although its end could have been the beginning
// of something longer elsewhere.
func TestScrubHoldsNothingBack(t *testing.T) {
	s := newScrubber([]byte("sk-real-5fJ29xPqLm0ZsWc7"))
	pr, pw := io.Pipe()
	r := s.reader(pr, nil)
	go pw.Write([]byte("data: hello\n\n"))
	buf := make([]byte, 64)
	if n, err := r.Read(buf); err != nil || string(buf[:n]) != "data: hello\n\n" {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

func TestUpstreamErrorsPass(t *testing.T) {
	r := newScrubber([]byte("long-enough-secret")).reader(iotest.TimeoutReader(strings.NewReader("abc")), nil)
	if _, err := io.ReadAll(r); err != iotest.ErrTimeout {
		t.Errorf("%v", err)
	}
}

func FuzzScrub(f *testing.F) {
	f.Add([]byte("xx sk-real-secret yy"), 3)
	f.Fuzz(func(t *testing.T, in []byte, cut int) {
		secret := []byte("sk-real-secret")
		if cut < 0 || cut > len(in) {
			return
		}
		src := io.MultiReader(bytes.NewReader(in[:cut]), bytes.NewReader(in[cut:]))
		out, err := io.ReadAll(newScrubber(secret).reader(src, nil))
		if err != nil || len(out) != len(in) || bytes.Contains(out, secret) {
			t.Fatalf("%q became %q: %v", in, out, err)
		}
	})
}

func FuzzQueryEdit(f *testing.F) {
	f.Add("key=a&x=b", "new value&x")
	f.Fuzz(func(t *testing.T, raw, value string) {
		before, err := decodeQuery(raw)
		if err != nil {
			return
		}
		after, err := url.ParseQuery(editQuery(raw, "key", &value))
		if err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		for k, v := range before {
			for i := range v {
				want := v[i]
				if k == "key" {
					want = value
				}
				if after[k][i] != want {
					t.Fatalf("%s: %q became %q", k, v, after[k])
				}
			}
		}
	})
}
