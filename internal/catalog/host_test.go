package catalog

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/publicsuffix"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

func host(t testing.TB, s string) hostport.Host {
	t.Helper()
	h, err := hostport.ParseHost(s)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestHostPatterns(t *testing.T) {
	sets := map[string][]string{"regions": {"eu-1", "us-1"}}
	for _, c := range []struct{ pattern, matches, not string }{
		{"api.example.com", "api.example.com", "www.example.com x.api.example.com"},
		{"{b}.s3.{r}.example.com", "a.s3.eu.example.com", "s3.eu.example.com a.b.s3.eu.example.com a.s3.example.com a.s3.eu.x.example.com a.s3.eu.example.com.evil.com"},
		{"{r:regions}-run.example.com", "eu-1-run.example.com us-1-run.example.com", "eu-2-run.example.com -run.example.com eu-1-run.x.example.com"},
		{"x-{r}-y.example.com", "x-1-y.example.com x-a-b-y.example.com", "x-y.example.com x--y.example.com.evil.com"},
	} {
		p, err := parseHost(c.pattern, sets)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
			continue
		}
		for _, m := range strings.Fields(c.matches) {
			if !p.Match(host(t, m)) {
				t.Errorf("%s does not match %s", c.pattern, m)
			}
		}
		for _, m := range strings.Fields(c.not) {
			if h, err := hostport.ParseHost(m); err == nil && p.Match(h) {
				t.Errorf("%s matches %s", c.pattern, m)
			}
		}
	}
	for pattern, want := range map[string]string{
		"{x}": "anybody can register", "{x}.com": "anybody can register", "{x}.co.uk": "anybody can register", "a.{x}.com": "anybody can register",
		"example.{tld}": "anybody can register", "{a}.{b}": "anybody can register", "{x}.local": "anybody can register",
		"*.example.com": "literal labels", "{x:path}.example.com": "literal labels", "{x:segments}.example.com": "literal labels",
		"{x}.{x}.example.com": "twice", "{x:nothing}.example.com": "no set", "{}.example.com": "no name", "A.{x}.example.com": "lower case",
		"{x}_.example.com": "not a host name", "10.0.0.{x}": "", "{x}..example.com": "not a host name", "": "host name",
	} {
		if _, err := parseHost(pattern, sets); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", pattern, err, want)
		}
	}
	if (HostPattern{}).Match(hostport.Host{}) || (HostPattern{}).Match(host(t, "a.example.com")) {
		t.Error("the zero pattern matches")
	}
}

// FuzzHostPattern: a pattern never covers what a registrar sells to others,
// matches only names of as many labels, and says when two overlap.
func FuzzHostPattern(f *testing.F) {
	f.Add("{b}.s3.{r}.example.com", "{a}.s3.eu.example.com", "a.s3.eu.example.com")
	f.Add("{x}-run.example.com", "a{x}.example.com", "a-run.example.com")
	f.Add("{x}.github.io", "me.github.io", "me.github.io")
	f.Add("{x}.com", "{x}.co.uk", "a.co.uk")
	f.Fuzz(func(t *testing.T, one, two, name string) {
		p, err := parseHost(one, nil)
		h, herr := hostport.ParseHost(name)
		if err != nil || herr != nil {
			return
		}
		if p.labels != nil {
			tail := strings.TrimPrefix(p.Tail(), ".")
			if suffix, icann := publicsuffix.PublicSuffix(tail); icann && suffix == tail || !strings.Contains(tail, ".") && suffix == tail {
				t.Fatalf("%q covers all of %s", one, tail)
			}
			if p.Match(h) && (strings.Count(name, ".")-strings.Count(strings.TrimSuffix(name, "."), ".") > 1 || strings.Count(h.String(), ".") != len(p.labels)-1 || !strings.HasSuffix(h.String(), p.Tail())) {
				t.Fatalf("%q matches %q", one, name)
			}
		}
		if q, err := parseHost(two, nil); err == nil && p.Match(h) && q.Match(h) && (!p.Overlaps(q) || !q.Overlaps(p)) {
			t.Fatalf("%q and %q both match %q and don't overlap", one, two, name)
		}
	})
}

// FuzzRouteOverlap: what Load would let stand side by side is never one request.
func FuzzRouteOverlap(f *testing.F) {
	for _, s := range [][3]string{
		{"GET a.example.com/{p:segments}.git/info/refs", "GET a.example.com/api/**", "/api/x.git/info/refs"},
		{"GET a.example.com/{p:segments}/x", "GET a.example.com/{o}/{r}/x", "/a/b/x"},
		{"GET a.example.com/{p:path}/x", "GET a.example.com/*/x", "/a%2Fb/x"},
		{"GET a.example.com/p/{x}.json", "GET a.example.com/p/{y}.xml", "/p/a.json"},
		{"GET a.example.com/{p:segments}", "GET a.example.com/{p:segments}.git", "/a/b.git"},
		{"GET {h}.example.com/x?a=1", "GET a.example.com/x?a=2", "/x"},
		{"GET a.example.com/{a:segments}/b/c", "GET a.example.com/b/{a:segments}/c", "/b/b/c"},
	} {
		f.Add(s[0], s[1], s[2], "1")
	}
	f.Fuzz(func(t *testing.T, one, two, path, value string) {
		a, err := parseRoute(one, nil)
		if err != nil {
			return
		}
		b, err := parseRoute(two, nil)
		if err != nil || a.overlaps(&b) != b.overlaps(&a) {
			if err == nil {
				t.Fatalf("%q and %q overlap one way only", one, two)
			}
			return
		}
		if checkPath(path) != nil {
			return
		}
		svc := &Service{Operations: make([]Operation, 1)}
		r := Request{Scheme: "https", Host: host(t, "a.example.com"), Port: 443, Method: "GET", Path: path, Query: url.Values{"a": {value}}, Header: http.Header{}}
		segs := strings.Split(path[1:], "/")
		_, inA := a.match(svc, &r, segs)
		_, inB := b.match(svc, &r, segs)
		if inA && inB && !a.overlaps(&b) {
			t.Fatalf("%q and %q both match %q", one, two, path)
		}
		for _, rt := range []route{a, b} {
			if rt.pathName() == "" && strings.Contains(path, escapedSlash) {
				if _, ok := rt.match(svc, &r, segs); ok {
					t.Fatalf("an escaped slash in %q passed", path)
				}
			}
		}
	})
}

func TestFoldRefs(t *testing.T) {
	op := Operation{ResourceTemplate: "{owner}/{repo}", template: []string{"owner", "repo"}, Refs: true, fold: true}
	for in, want := range map[string]string{
		"A/B": "a/b", "A/B@Main": "a/b@refs/heads/Main", "a/b@agent/*": "a/b@refs/heads/agent/*", "a/b@refs/tags/v*": "a/b@refs/tags/v*", "a/*@x": "a/*@refs/heads/x",
		"a/b@*": "a/b@refs/heads/*", "a/b@": "", "a/b@refs/": "", "a/b@x..y": "", "a/b@x y": "", "a/b@a//b": "", "a/b@x.lock": "", "a/b@.x": "", "a/b@x@{1}": "", "@x": "", "a@x": "", "a/b@x:y": "", "a/b@refs/*": "a/b@refs/*",
	} {
		if got, err := op.FoldResource(in); got != want && err == nil || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "refs", "refs/", "refs/x", "heads/x", "refs/heads/a\\b", "refs/heads/a\x7f", "refs/heads/\xff", "refs/heads/a?"} {
		if IsRef(bad) {
			t.Errorf("%q is a ref", bad)
		}
	}
}

// TestNothingMoreMeansMore: whatever is added to a request that stays the same
// operation adds uses and credentials, and takes none away. So no header, query
// key or part of a body turns a deny into an allow.
func TestNothingMoreMeansMore(t *testing.T) {
	svc := demo(t)
	fields := []string{`"title":"t"`, `"url":"u"`, `"new":1`, `"deep":{"x":{"type":"share-1"}}`, `"deep2":{"apiKey":"k"}`, `"refresh_token":"r"`, `"text":"` + token + `"`, `"title2":"` + token + `"`, `"meta":{"url":1}`}
	names := func(op Operation) (out []string) {
		for _, u := range op.Uses {
			out = append(out, "+"+u.Operation)
		}
		for _, f := range op.Credentials {
			out = append(out, f.Slot.String())
		}
		return out
	}
	for mask := range 1 << len(fields) {
		var some []string
		for i, f := range fields {
			if mask>>i&1 == 1 {
				some = append(some, f)
			}
		}
		judge := func(fields []string) (Operation, error) {
			op, _, err := svc.Identify(request(t, "POST https://api.example.com/items", http.Header{"Content-Type": {"application/json"}}, []byte("{"+strings.Join(fields, ",")+"}")))
			return op, err
		}
		whole, err := judge(some)
		if err != nil {
			t.Fatal(err)
		}
		for i := range some {
			less, err := judge(slices.Delete(slices.Clone(some), i, i+1))
			if err != nil {
				t.Fatal(err)
			}
			have := names(whole)
			for _, n := range names(less) {
				if !slices.Contains(have, n) {
					t.Fatalf("%s took %s away from %v", some[i], n, some)
				}
			}
		}
	}
}
