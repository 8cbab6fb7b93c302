package differential

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
)

// differences says where what the gateway decided and what the others read are
// not the same. ordered: the client sent one request after the other.
func (r *result) differences(ordered bool) (out []string) {
	var allowed []*judged
	for _, j := range r.judged {
		switch len(j.records) {
		case 0:
		case 1:
			allowed = append(allowed, j)
		default:
			out = append(out, fmt.Sprintf("one request was recorded %d times: %v", len(j.records), j.records))
		}
	}
	for _, rest := range r.rest {
		out = append(out, "net/http: "+rest)
	}
	for who, rep := range map[string]report{"net/http": r.wire, "nginx": r.nginx, "node": r.node} {
		// Whole requests first: one that broke off may be any that begins like it.
		readings := slices.Clone(rep.readings)
		slices.SortStableFunc(readings, func(a, b reading) int { return bits(b.whole) - bits(a.whole) })
		open := slices.Clone(allowed)
		for _, got := range readings {
			if d := got.outside(); d != "" {
				out = append(out, fmt.Sprintf("%s reads what no grant covers (%s): %v", who, d, got))
			}
			if i := match(open, got); i >= 0 {
				open = slices.Delete(open, i, i+1)
				continue
			}
			var why []string
			for _, j := range open {
				why = append(why, j.differs(got))
			}
			out = append(out, fmt.Sprintf("%s reads a request that was not recorded as allowed %q: %v", who, why, got))
		}
		for _, j := range open {
			if j.answered {
				out = append(out, fmt.Sprintf("%s did not read %s %s, which the other server answered; it refused %q and read %v", who, j.request.Method, j.request.Path, rep.refused, rep.readings))
			}
		}
		if ordered {
			out = append(out, rep.disorder(who, allowed)...)
		}
	}
	return out
}

func bits(b bool) int {
	if b {
		return 1
	}
	return 0
}

// match finds the recorded request that was read.
func match(open []*judged, got reading) int {
	return slices.IndexFunc(open, func(j *judged) bool { return j.differs(got) == "" })
}

// disorder says which connections bring requests in another order than that in
// which they were decided. Which connection takes one is the pool's affair.
func (r report) disorder(who string, allowed []*judged) (out []string) {
	left := map[int][]*judged{}
	for _, got := range r.readings {
		open, begun := left[got.conn]
		if !begun {
			open = allowed
		}
		i := match(open, got)
		if i < 0 {
			if match(allowed, got) >= 0 {
				out = append(out, fmt.Sprintf("%s reads a request before another that was decided earlier: %v", who, got))
			}
			continue
		}
		left[got.conn] = open[i+1:]
	}
	return out
}

// differs compares one decided request with one that was read.
func (j *judged) differs(got reading) string {
	judgedPath := strings.ReplaceAll(j.request.Path, "%2F", "/")
	target, rawQuery, _ := strings.Cut(got.target, "?")
	decoded, err := url.PathUnescape(target)
	readPath, err2 := got.path, error(nil)
	if got.origin != "" {
		readPath, err2 = url.PathUnescape(got.path) // Node's is not decoded
	}
	query, err3 := url.ParseQuery(rawQuery)
	switch {
	case got.method != j.request.Method:
		return fmt.Sprintf("method %q, judged %q", got.method, j.request.Method)
	case got.host != name:
		return fmt.Sprintf("host %q", got.host)
	case err != nil || decoded != judgedPath:
		return fmt.Sprintf("target %q decodes to %q (%v), judged %q", target, decoded, err, judgedPath)
	case !sameSegments(target, j.request.Path):
		return fmt.Sprintf("target %q has other segments than the judged %q", target, j.request.Path)
	case j.records[0].Attrs["path"] != target && !catalog.LooksLikeCredential(target) && !catalog.LooksLikeCredential(j.request.Path):
		return fmt.Sprintf("target %q, recorded %q", target, j.records[0].Attrs["path"])
	case got.path != "" && (err2 != nil || readPath != judgedPath):
		return fmt.Sprintf("path %q, judged %q", readPath, judgedPath)
	case got.origin != "" && got.origin != name:
		return fmt.Sprintf("origin %q", got.origin)
	case err3 != nil || !maps.EqualFunc(query, j.request.Query, slices.Equal):
		return fmt.Sprintf("query %q (%v), judged %q", query, err3, j.request.Query)
	case got.query != nil && !sameQuery(got.query, j.request.Query):
		return fmt.Sprintf("query %q, judged %q", got.query, j.request.Query)
	case len(got.trailers) > 0:
		return fmt.Sprintf("trailers %q", got.trailers)
	}
	if d := sameHeader(got, j.header); d != "" {
		return d
	}
	switch whole := j.bodyEnd != nil && j.bodyEnd.Error() == "EOF" || j.declared == int64(j.length); {
	case !got.whole && got.length <= j.length:
		return ""
	case got.whole && !whole:
		return fmt.Sprintf("a whole body of %d bytes, where the gateway did not see the end (%v)", got.length, j.bodyEnd)
	case got.length != j.length || got.hash != j.bodyHash():
		return fmt.Sprintf("a body of %d bytes (%s), judged %d (%s)", got.length, got.hash, j.length, j.bodyHash())
	}
	return ""
}

// sameSegments compares with a server that splits a path before it decodes it:
// an escaped slash is none.
func sameSegments(target, judged string) bool {
	return slices.EqualFunc(strings.Split(target, "/"), strings.Split(judged, "/"), func(raw, want string) bool {
		got, err := url.PathUnescape(raw)
		return err == nil && got == strings.ReplaceAll(want, "%2F", "/")
	})
}

// sameQuery compares with what a browser's parser read. What is no UTF-8 it
// replaces, each in its own way.
func sameQuery(read [][2]string, judged url.Values) bool {
	got := url.Values{}
	for _, p := range read {
		got[p[0]] = append(got[p[0]], p[1])
	}
	for k, values := range judged {
		if !utf8.ValidString(k) || !utf8.ValidString(strings.Join(values, "")) {
			return len(read) == count(judged)
		}
	}
	return maps.EqualFunc(got, judged, slices.Equal)
}

func count(v url.Values) (n int) {
	for _, values := range v {
		n += len(values)
	}
	return n
}

// ours are headers that a connection needs, and no request.
var ours = []string{"host", "content-length", "transfer-encoding", "connection"}

func sameHeader(got reading, judged http.Header) string {
	want, have := map[string][]string{}, map[string][]string{}
	for n, values := range judged {
		n = strings.ToLower(n)
		for _, v := range values {
			want[n] = append(want[n], clean(v))
		}
		if n == "user-agent" && len(values) > 0 && values[0] == "" {
			delete(want, n)
		}
	}
	for _, h := range got.header {
		n := strings.ReplaceAll(strings.ToLower(h[0]), "_", "-")
		if !slices.Contains(ours, n) {
			have[n] = append(have[n], clean(strings.ReplaceAll(h[1], realSecret, placeholder)))
		}
	}
	for _, m := range []map[string][]string{want, have} {
		for n, values := range m {
			sep := ", "
			if n == "cookie" {
				sep = "; " // HTTP/2 sends it in crumbs
			}
			m[n] = []string{strings.Join(values, sep)}
		}
	}
	if len(want["authorization"]) > 0 && len(have["range"]) == 0 {
		// Under a credential short ranges are left out: an echo could hide in them.
		delete(want, "range")
		delete(want, "if-range")
	}
	if !maps.EqualFunc(want, have, slices.Equal) {
		return fmt.Sprintf("headers %q, judged %q", have, want)
	}
	return ""
}

func clean(s string) string { return strings.Trim(s, " \t") }

// outside is the grants of grants in other words, about what a server read: it
// says why none of them covers it.
func (r reading) outside() string {
	p := r.path
	if r.origin != "" || p == "" {
		raw := r.path
		if raw == "" {
			raw, _, _ = strings.Cut(r.target, "?")
		}
		var err error
		if p, err = url.PathUnescape(raw); err != nil {
			return "a path that does not decode"
		}
	}
	if clean := path.Clean(p); clean != p && clean+"/" != p {
		return "a path that normalises to another"
	}
	reads := r.method == "GET" || r.method == "HEAD"
	below, items := strings.HasPrefix(p, "/docs/"), strings.HasPrefix(p, "/items/") && strings.Count(p, "/") == 2
	switch {
	case reads && below:
	case items && slices.Contains([]string{"GET", "POST", "PUT", "DELETE"}, r.method):
	case r.method == "POST" && p == "/v1/messages":
	case reads && slices.Contains([]string{"/projects/acme/widgets", "/projects/acme/widgets/issues", "/tree/acme/widgets/list"}, p):
	case r.method == "POST" && p == "/projects/acme/widgets/issues":
	case strings.HasPrefix(p, "/keyed/") && (r.method == "GET" || r.method == "POST"):
	default:
		return "no grant"
	}
	return ""
}
