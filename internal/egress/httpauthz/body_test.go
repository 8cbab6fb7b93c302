package httpauthz

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// needing is a decider with one need and nothing else.
type needing struct{ need catalog.Need }

func (n needing) Body(catalog.Request) catalog.Need { return n.need }
func (n needing) EscapedSlash(r catalog.Request) bool {
	return strings.HasPrefix(r.Path, "/projects/a%2Fb/")
}
func (n needing) Decide(catalog.Request, capability.Identity) capability.Decision {
	return capability.Decision{}
}

func bodyOf(t *testing.T, need catalog.Need, src io.Reader, length int64, header http.Header) (*request, io.Reader, int64, error) {
	t.Helper()
	r := httptest.NewRequest("POST", "https://a.example/x", io.NopCloser(src))
	r.ContentLength = length
	if header == nil {
		header = http.Header{}
	}
	h := &Handler{Decider: needing{need}}
	h.limits = h.Limits.filled()
	q := &request{h: h, w: httptest.NewRecorder(), r: r.WithContext(context.Background()), c: &canonical{header: header}}
	q.c.Header = header
	body, n, err := q.body()
	return q, body, n, err
}

func zip(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write([]byte(s))
	z.Close()
	return b.String()
}

func TestBodyNeeds(t *testing.T) {
	untilDot := func(soFar []byte) (bool, error) {
		if bytes.ContainsRune(soFar, '!') {
			return false, errors.New("no")
		}
		return bytes.ContainsRune(soFar, '.'), nil
	}
	head := catalog.Need{Head: untilDot, HeadMax: 8, Stream: 10}
	gz := http.Header{"Content-Encoding": {"gzip"}}
	for _, c := range []struct {
		name   string
		need   catalog.Need
		body   string
		header http.Header
		judged string // what the catalogue sees
		want   string // what is forwarded, or an error
		fails  bool
	}{
		{"zero need", catalog.Need{}, "x", nil, "", "longer than", true},
		{"none", catalog.Need{None: true}, "x", nil, "", "takes no body", true},
		{"unread", catalog.Need{Stream: 5}, "12345", nil, "", "12345", false},
		{"unread and too long", catalog.Need{Stream: 4}, "12345", nil, "", "longer than", true},
		{"unlimited", catalog.Need{Stream: catalog.Unlimited}, "12345", gz, "", "12345", false},
		{"whole", catalog.Need{Whole: 5}, "12345", nil, "12345", "12345", false},
		{"whole and too long", catalog.Need{Whole: 4}, "12345", nil, "", "longer than", true},
		{"whole and encoded", catalog.Need{Whole: 100}, zip("12345"), gz, "", "encoded", true},
		{"head", head, "ab.cdef", nil, "ab.", "ab.cdef", false},
		{"head and much more", head, "ab." + strings.Repeat("x", 10), nil, "ab.", "ab.xxxxxxxxxx", false},
		{"head and too much", head, "ab." + strings.Repeat("x", 30), nil, "", "longer than", true},
		{"no head", head, "abcd", nil, "", "ends before", true},
		{"no head but an end", catalog.Need{Head: untilDot, HeadMax: 8, Stream: 10, End: true}, "abcd", nil, "abcd", "abcd", false},
		{"long head", head, "abcdefghijk.", nil, "", "longer than 8", true},
		{"bad head", head, "a!", nil, "", "not well-formed", true},
		{"gzip", catalog.Need{Head: untilDot, HeadMax: 8, Stream: 10, Gzip: true}, zip("ab.cdef"), gz, "ab.", "ab.cdef", false},
		{"gzip that is none", catalog.Need{Head: untilDot, HeadMax: 8, Stream: 10, Gzip: true}, "ab.cdef", gz, "", "not gzip", true},
		{"two gzip streams", catalog.Need{Head: untilDot, HeadMax: 8, Stream: 10, Gzip: true}, zip("ab.") + zip("SECRET"), gz, "", "follows the body's gzip", true},
		{"gzip bomb", catalog.Need{Head: untilDot, HeadMax: 8, Stream: 10, Gzip: true}, zip("ab." + strings.Repeat("x", 1<<20)), gz, "", "longer than", true},
		{"gzip that nobody reads", head, zip("ab."), gz, "", "encoded", true},
	} {
		for _, length := range []int64{int64(len(c.body)), -1} {
			for _, slow := range []bool{false, true} {
				var src io.Reader = strings.NewReader(c.body)
				if slow {
					src = &oneByte{src}
				}
				header := http.Header{}
				for k, v := range c.header {
					header[k] = v
				}
				q, body, n, err := bodyOf(t, c.need, src, length, header)
				var data []byte
				if err == nil {
					data, err = io.ReadAll(body)
				}
				switch {
				case c.fails && (err == nil || !strings.Contains(err.Error(), c.want)):
					t.Errorf("%s: %q, %v, want %s", c.name, data, err, c.want)
				case c.fails && (body != nil && length >= 0 && c.header == nil || int64(len(data)) > c.need.Stream+int64(c.need.HeadMax+min(c.need.HeadMax, 1))):
					t.Errorf("%s: %d bytes went on, of a body of %d", c.name, len(data), length)
				case !c.fails && (err != nil || string(data) != c.want || n >= 0 && n != int64(len(data)) || !q.c.HasBody):
					t.Errorf("%s: %q (%d), %v", c.name, data, n, err)
				case !c.fails && (!strings.HasPrefix(c.want, string(q.c.Body)) || len(q.c.Body) < len(c.judged)):
					t.Errorf("%s: judged %q", c.name, q.c.Body)
				case q.whole && string(q.c.Body) != string(data):
					t.Errorf("%s: only %q would be sent again", c.name, q.c.Body)
				case !c.fails && c.header != nil && c.need.Gzip && len(header["Content-Encoding"]) > 0:
					t.Errorf("%s: decoded, and goes on as encoded", c.name)
				}
				if !c.fails {
					q.dst, _ = hostport.Parse("a.example:443")
					if out, err := q.rebuild(context.Background(), body, n); err != nil || (out.GetBody != nil) != (string(q.c.Body) == c.want && q.whole) {
						t.Errorf("%s: sent again: %v, %v", c.name, out != nil && out.GetBody != nil, err)
					}
				}
				for _, o := range q.held {
					o.free()
				}
			}
		}
	}
}

type oneByte struct{ src io.Reader }

func (o *oneByte) Read(p []byte) (int, error) { return o.src.Read(p[:min(len(p), 1)]) }

// TestHeadIsAskedSeldom: a body that comes byte by byte is not parsed as often
// as it has bytes.
func TestHeadIsAskedSeldom(t *testing.T) {
	asked := 0
	need := catalog.Need{Head: func([]byte) (bool, error) { asked++; return false, nil }, HeadMax: 1 << 20, End: true}
	_, _, _, err := bodyOf(t, need, &oneByte{strings.NewReader(strings.Repeat("x", 100000))}, -1, nil)
	if err != nil || asked > 30 {
		t.Errorf("asked %d times, %v", asked, err)
	}
}

func TestEscapedSlashOnlyWhereWanted(t *testing.T) {
	dst, _ := hostport.Parse("a.example:443")
	for target, want := range map[string]string{
		"/projects/a%2Fb/x": "/projects/a%2Fb/x", "/projects/a%2fb/x": "/projects/a%2Fb/x", "/other/a%2Fb": "", "/projects/a%2F..%2Fb/": "",
		"/projects/a%2F%2Fb/": "", "/projects/a%252Fb/": "", "/@scope%2Fname": "/@scope/name", "/projects/a/b": "/projects/a/b", "/projects/a%2Fb/%2e%2e/": "",
	} {
		r := httptest.NewRequest("GET", "https://a.example/", nil)
		r.RequestURI, r.Host = target, "a.example"
		c, err := canonicaliseFor(r, dst, true, needing{})
		got := ""
		if err == nil {
			got = c.Path
			q := &request{h: &Handler{}, r: r, dst: dst, secure: true, c: c}
			out, err := q.rebuild(context.Background(), nil, 0)
			if err != nil || out.URL.EscapedPath() != target {
				t.Errorf("%s is sent as %v, %v", target, out, err)
			}
		}
		if got != want {
			t.Errorf("%s: got %q, %v, want %q", target, got, err, want)
		}
		if _, err := canonicalise(r, dst, true); (err == nil) && strings.Contains(want, "%2F") {
			t.Errorf("%s has a form that nobody wants", target)
		}
	}
}

// filtering allows everything, with a filter that lets three bytes pass.
type filtering struct{ needing }

func (filtering) Decide(catalog.Request, capability.Identity) capability.Decision {
	return capability.Decision{Verdict: vocabulary.Allow, Permit: &capability.Permit{}, Filter: func(body io.Reader) io.Reader {
		return io.MultiReader(io.LimitReader(body, 3), failing{})
	}}
}

type failing struct{}

func (failing) Read([]byte) (int, error) {
	return 0, &capability.Refusal{Reason: vocabulary.Reason{Code: "operation-not-granted", Message: "m"}}
}

type recording struct{}

func (recording) Authorize(context.Context, v1.Event, *wire.CredentialUse) (secret.Value, error) {
	return secret.Value{}, nil
}

// swallowing is an upstream that reads the body and answers with its error.
type swallowing struct{ got []byte }

func (s *swallowing) RoundTrip(_ *capability.Permit, r *http.Request) (*http.Response, error) {
	var err error
	s.got, err = io.ReadAll(r.Body)
	if err == nil {
		err = errors.New("whole")
	}
	return nil, err
}

// TestFilterBreaksOff: what the decision's filter refuses is not sent, and the
// client hears why.
func TestFilterBreaksOff(t *testing.T) {
	up := &swallowing{}
	h := &Handler{Decider: filtering{needing{catalog.Need{Stream: 100}}}, Controller: recording{}, Upstream: up}
	dst, _ := hostport.Parse("a.example:443")
	r := httptest.NewRequest("POST", "https://a.example/x", strings.NewReader("abcdefgh"))
	r.RequestURI, r.Host = "/x", "a.example"
	w := httptest.NewRecorder()
	h.Serve(w, r, dst, true)
	if string(up.got) != "abc" || w.Code != http.StatusForbidden || w.Header().Get(DeniedHeader) != "operation-not-granted" {
		t.Errorf("sent %q, answered %d %s", up.got, w.Code, w.Body)
	}
}
