package capability

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// slowGlob is the reference: a regular expression of the words of the
// documentation.
func slowGlob(pattern string) *regexp.Regexp {
	rest := strings.HasSuffix(pattern, "/**")
	p := regexp.QuoteMeta(strings.TrimSuffix(pattern, "/**"))
	p = strings.ReplaceAll(p, `\*`, `[^/]*`)
	if rest {
		p += `(/[^/]*)+`
	}
	return regexp.MustCompile(`(?s)^` + p + `$`)
}

// FuzzGlob compares Cedar's answer, the pattern's own and the reference's.
func FuzzGlob(f *testing.F) {
	for _, s := range [][2]string{
		{"/**", "/"}, {"/3/**", "/3"}, {"/3/**", "/3/"}, {"/a*c/b", "/abc/b"}, {"/*", "/a/b"}, {"/", "/"}, {"/a/", "/a"},
		{"/*a*b*/x", "/aabb/x"}, {"/v*/items", "/v/items"}, {"/a.b", "/axb"}, {"/é*/**", "/éa/b/c"}, {"/*/**", "//x"}, {"/\x99", "/"},
	} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, path string) {
		if len(pattern) > 200 || len(path) > 400 {
			return
		}
		spec := Spec{Rules: []Rule{{Pos: vocabulary.Position{File: "f", Line: 1}, HTTP: "https://a.example" + pattern, Methods: []string{"GET"}}}}
		s, err := Compile(spec, catalog.Default())
		if err != nil {
			return
		}
		h, _ := hostport.ParseHost("a.example")
		got := s.Decide(catalog.Request{Scheme: "https", Host: h, Port: 443, Method: "GET", Path: path}, Identity{}).Verdict == vocabulary.Allow
		if catalog.CheckPath(path) != nil {
			if got {
				t.Fatalf("%q is not canonical and was allowed", path)
			}
			return
		}
		if len(catalog.Credentials(catalog.Request{Path: path})) > 0 {
			return
		}
		u, err := policy.ParseURLPattern("https://a.example" + pattern)
		if err != nil {
			t.Fatalf("compiled, but not a pattern: %v", err)
		}
		// An authority may swallow the beginning: what remains is the pattern.
		if u.Host().String() != "a.example" || u.Port() != 443 {
			return
		}
		if want := slowGlob(u.Path()).MatchString(path); got != want {
			t.Fatalf("%q on %q: Cedar %v, reference %v", u.Path(), path, got, want)
		}
		if own := u.Match("https", h, 443, path); own != got {
			t.Fatalf("%q on %q: Cedar %v, the pattern's own %v", u.Path(), path, got, own)
		}
	})
}

// FuzzDecide: no panic; what is allowed is canonical, permitted for exactly
// its destination, has a position, and holds no credential but the swapped
// placeholder.
func FuzzDecide(f *testing.F) {
	f.Add("https", "api.anthropic.com", uint16(443), "POST", "/v1/messages", "beta=true", "X-Api-Key", claudePlaceholder, []byte(hello))
	f.Add("https", "github.com", uint16(443), "GET", "/acme/widgets/info/refs", "service=git-upload-pack", "Authorization", "Bearer "+githubPlaceholder, []byte(nil))
	f.Add("https", "docs.example.com", uint16(443), "GET", "/3/../x", "a=b", "Cookie", "a=1", []byte("x"))
	f.Add("http", "deb.debian.org", uint16(80), "GET", "/debian/x", "", "authorization", "Basic eDp5", []byte(nil))
	f.Add("https", "x.cdn.example.com", uint16(8443), "HEAD", "/pub/%2e", "", "", "", []byte(nil))
	f.Add("https", "github.com", uint16(443), "GET", "/", "%1b[31m=ghp_000000000000000000000000000000000000", "\x00", "ghp_000000000000000000000000000000", []byte(nil))
	s, err := Compile(parse(f, testPolicy), catalog.Default())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, scheme, host string, port uint16, method, path, query, name, value string, body []byte) {
		h, _ := hostport.ParseHost(host)
		q, _ := url.ParseQuery(query)
		r := catalog.Request{Scheme: scheme, Host: h, Port: hostport.Port(port), Method: method, Path: path, Query: q, Header: http.Header{name: {value}, "Content-Type": {"application/json"}}, Body: body}
		s.Body(r)
		s.ResolveName(h)
		s.Connect(hostport.HostPort{Host: h, Port: r.Port})
		d := s.Decide(r, identity)
		if (d.Permit != nil) != (d.Verdict == vocabulary.Allow) || d.Reason.Code == "" || d.Reason.Message == "" || d.Reason.Rule.File != "policy.yaml" {
			t.Fatalf("%+v", d)
		}
		for _, text := range []string{d.Reason.Message, d.Reason.Remedy, string(d.Resource), string(d.Action)} {
			if strings.ContainsAny(text, "\x00\n\r\x1b\x7f") {
				t.Fatalf("a control character in %q", text)
			}
		}
		if d.Verdict != vocabulary.Allow {
			return
		}
		if err := catalog.CheckPath(path); err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		if d.Permit.Host() != h || uint16(d.Permit.Port()) != port || d.Permit.TLS() != (scheme == "https") || d.Permit.Opaque() {
			t.Fatalf("%+v", d.Permit)
		}
		if d.Swap != nil {
			r.Header.Del(d.Swap.Slot.Header)
			delete(r.Header, name)
		}
		for _, found := range catalog.Credentials(r) {
			if found.Kind != catalog.Signed {
				t.Fatalf("allowed with %v", found.Slot)
			}
		}
	})
}

// FuzzExplain takes what a person types.
func FuzzExplain(f *testing.F) {
	f.Add("GET", "https://docs.example.com/3/x")
	f.Add("CONNECT", "tcp://db.corp.example:5432")
	f.Add("", "https://[::1]:x/%zz?%zz#")
	f.Add("PUSH", "ssh://git@github.com/acme/widgets@agent/x")
	f.Add("PUSH-DELETE", "git@git.corp.example:team/repo.git@refs/tags/v1")
	f.Add("GET", "wss://docs.example.com/3/%2f%3b")
	f.Add("RESOLVE", "dns://localhost")
	s, err := Compile(parse(f, testPolicy), catalog.Default())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, method, raw string) {
		x, err := s.Explain(method, raw)
		if err == nil && len(x.Rules) != len(s.rules) {
			t.Fatalf("%d rules", len(x.Rules))
		}
	})
}
