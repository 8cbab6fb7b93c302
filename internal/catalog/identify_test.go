package catalog

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// embedded is the catalogue as it ships, without the services that don't load:
// TestCatalogueLoads names those.
func embedded(t testing.TB) *Catalog {
	t.Helper()
	c, err := open(catalogdata.Services)
	if err != nil {
		t.Fatal(err)
	}
	c.names = slices.DeleteFunc(c.names, func(name string) bool { _, ok := c.Service(name); return !ok })
	return c
}

func TestCatalogueLoads(t *testing.T) {
	if _, err := Load(catalogdata.Services); err != nil {
		t.Error(err)
	}
}

// request makes a Request of "METHOD URL", headers and a body.
func request(t testing.TB, line string, header http.Header, body []byte) Request {
	t.Helper()
	method, raw, _ := strings.Cut(line, " ")
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	port := map[string]string{"https": "443", "http": "80", "ssh": "22"}[u.Scheme]
	if u.Port() != "" {
		port = u.Port()
	}
	hp, err := hostport.Parse(u.Hostname() + ":" + port)
	if err != nil {
		t.Fatal(err)
	}
	if header == nil {
		header = http.Header{}
	}
	path := u.Path
	if strings.Contains(u.EscapedPath(), escapedSlash) && !strings.HasPrefix(path, "/@") {
		var parts []string
		for part := range strings.SplitSeq(u.EscapedPath(), escapedSlash) {
			part, err := url.PathUnescape(part)
			if err != nil {
				t.Fatal(err)
			}
			parts = append(parts, part)
		}
		path = strings.Join(parts, escapedSlash)
	}
	return Request{Scheme: u.Scheme, Host: hp.Host, Port: hp.Port, Method: method, Path: path, Query: u.Query(), Header: header, Body: body}
}

// TestIdentify runs the tables of testdata/identify.
func TestIdentify(t *testing.T) {
	cat := embedded(t)
	covered := map[string]bool{}
	files, _ := filepath.Glob("testdata/identify/*.txt")
	for _, file := range files {
		svc, ok := cat.Service(strings.TrimSuffix(filepath.Base(file), ".txt"))
		if !ok {
			t.Errorf("%s: no such service, or it doesn't load", file)
			continue
		}
		runGolden(t, svc, file, func(op string) { covered[svc.Name+" "+op] = true })
	}
	for _, name := range cat.Names() {
		svc, _ := cat.Service(name)
		for _, op := range svc.Operations {
			if !covered[name+" "+op.Name] {
				t.Errorf("no line of testdata/identify/%s.txt is %s", name, op.Name)
			}
		}
	}
}

// TestIdentifyIsUnique asks every route of every service with a path made from
// it: what Load finds by comparing patterns must be true of requests.
func TestIdentifyIsUnique(t *testing.T) {
	cat := embedded(t)
	for _, name := range cat.Names() {
		svc, _ := cat.Service(name)
		for _, rt := range svc.routes {
			path := ""
			for _, g := range rt.segs {
				switch {
				case g.rest:
					path += "/a/b"
				case g.oneOf != nil:
					path += "/" + g.prefix + g.oneOf[0] + g.suffix
				case g.name != "" || g.any:
					path += "/" + g.prefix + "x" + g.suffix
				default:
					path += "/" + g.prefix
				}
			}
			for _, e := range svc.Endpoints {
				host, exact := e.Host.Exact()
				if !exact || e.Host.text != rt.host.text || strings.HasPrefix(rt.methods[0], "GIT-") != (e.Scheme == "ssh") {
					continue
				}
				r := Request{Scheme: e.Scheme, Host: host, Port: e.Port, Method: rt.methods[0], Path: path, Query: url.Values{}}
				for _, q := range rt.query {
					r.Query.Add(q[0], q[1])
				}
				for _, a := range rt.asks {
					r.Query.Add(a.key, a.value.prefix+"x"+a.value.suffix)
				}
				r.Header = http.Header{}
				for _, c := range rt.when {
					if v := strings.ReplaceAll(c.globs[0], "*", ""); c.query {
						r.Query.Set(c.name, v)
					} else {
						r.Header.Set(c.name, v)
					}
				}
				op, _, err := svc.Route(r)
				if err != nil || op.Name != svc.Operations[rt.op].Name {
					t.Errorf("%s %s %s: got %q, %v", name, r.Method, path, op.Name, err)
				}
			}
		}
	}
}

func TestCheckPath(t *testing.T) {
	for _, good := range []string{"/", "/a", "/a/", "/a.b/..c/d..", "/100%", "/50%25x"[:4], "/a;b=c", "/ü/…", "/@types/node"} {
		if err := CheckPath(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "a", "//", "/a//b", "/.", "/a/../b", "/a/..", "/a/..;x=1/b", "/a/.;/b", `/a\b`, "/a\x00", "/a\n", "/a\x7f", "/\xff", "/%2e", "/a%2Fb", "/" + strings.Repeat("a", MaxPath), strings.Repeat("/a", MaxSegments+1)} {
		if CheckPath(bad) == nil {
			t.Errorf("%q accepted", clip(bad, 40))
		}
	}
}

func TestRewriteHeaders(t *testing.T) {
	svc, _ := embedded(t).Service("anthropic")
	for _, c := range []struct {
		in      []string
		granted string
		want    string // "-" unchanged
	}{
		{nil, "", "-"},
		{[]string{"claude-code-20250219,interleaved-thinking-2025-05-14"}, "", "-"},
		{[]string{"claude-code-20250219, mcp-client-2025-11-20 ,interleaved-thinking-2025-05-14"}, "", "claude-code-20250219,interleaved-thinking-2025-05-14"},
		{[]string{"mcp-client-2025-11-20"}, "", ""},
		{[]string{"MCP-Client-2025-11-20"}, "messages.mcp", ""},
		{[]string{"mcp-client-2025-11-20"}, "messages.mcp", "-"},
		{[]string{"files-api-2025-04-14"}, "messages.file-source", "-"},
		{[]string{"files-api-2025-04-14"}, "files", "-"},
		{[]string{"files-api-2025-04-14"}, "messages", ""},
		{[]string{"brand-new-2027-01-01"}, "", ""},
		{[]string{"brand-new-2027-01-01"}, "messages.unlisted", "-"},
		{[]string{"claude-code-20250219", "mcp-client-2025-04-04"}, "", "claude-code-20250219"},
	} {
		r := Request{Header: http.Header{}}
		for _, v := range c.in {
			r.Header.Add("Anthropic-Beta", v)
		}
		rewrite, dropped := svc.RewriteHeaders(r, func(op string) bool { return op == c.granted })
		got, changed := rewrite["Anthropic-Beta"]
		if !changed {
			got = "-"
		}
		if got != c.want || changed != (len(dropped) > 0) {
			t.Errorf("%q with %q granted: got %q, dropped %q, want %q", c.in, c.granted, got, dropped, c.want)
		}
	}
}

func TestFoldResource(t *testing.T) {
	svc, _ := embedded(t).Service("github")
	op, _ := svc.Operation("clone")
	if op.Name != "fetch" {
		t.Fatalf("clone is %s", op.Name)
	}
	for in, want := range map[string]string{"Acme/Widgets": "acme/widgets", "acme/*": "acme/*", "*": "", "*/*": "", "*/widgets": "", "acme": "", "acme/wid*": "", "a/b/c": "", "": "", "acme/..": "", "acme/": ""} {
		if got, err := op.FoldResource(in); got != want && err == nil || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", in, got, err, want)
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	for _, name := range Default().Names() {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				c, err := open(catalogdata.Services)
				if err == nil {
					_, err = c.load(name)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkIdentify(b *testing.B) {
	svc, _ := Default().Service("anthropic")
	turn := `{"role":"user","content":[{"type":"text","text":"` + strings.Repeat("x", 1000) + `"},{"type":"tool_use","id":"1","name":"n","input":{"a":{"b":[1,2,3]}}}]}`
	for _, n := range []int{1, 100, 1000} {
		body := []byte(`{"model":"c","max_tokens":1,"messages":[` + turn + strings.Repeat(","+turn, n-1) + `]}`)
		r := request(b, "POST https://api.anthropic.com/v1/messages", http.Header{"Content-Type": {"application/json"}}, body)
		b.Run(fmt.Sprintf("%dKiB", len(body)>>10), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				if _, _, err := svc.Identify(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// runGolden asks what each request of the file is.
func runGolden(t *testing.T, svc *Service, file string, covered func(op string)) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	x, err := svc.Examples(file, data)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range x.Answers {
		if !a.OK() {
			t.Errorf("%s:%d: %s\n got %s\nwant %s", file, a.Line, a.Request, a.Got, a.Want)
		}
	}
	for _, o := range svc.Operations {
		if !slices.Contains(x.Uncovered, o.Name) {
			covered(o.Name)
		}
	}
}

// TestEngine runs the same on a service that uses everything.
func TestEngine(t *testing.T) {
	covered := map[string]bool{}
	svc := demo(t)
	runGolden(t, svc, "testdata/engine/demo.txt", func(op string) { covered[op] = true })
	for _, op := range svc.Operations {
		if !covered[op.Name] {
			t.Errorf("no line is %s", op.Name)
		}
	}
}

func demo(t testing.TB) *Service {
	t.Helper()
	data, err := os.ReadFile("testdata/engine/demo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	svc, err := parseService("demo.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	return svc
}
