package capability

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const (
	claudePlaceholder = "sk-ant-api03-placeholderplaceholder-claude"
	githubPlaceholder = "ghp_placeholderplaceholderplaceholder12"
	docsPlaceholder   = "placeholder-docs-docs-docs-docs-docs-docs"
	foreignKey        = "sk-ant-api03-foreignforeignforeignforeign"
)

var identity = Identity{Placeholders: map[string]string{
	"claude": claudePlaceholder, "gh": githubPlaceholder, "docs": docsPlaceholder, "odd": "placeholder-odd-odd-odd-odd-odd-odd", "empty": "",
}}

const testPolicy = `version: 1
grants:
  - service: anthropic
    operations: [messages, models]
    credential: claude
  - service: github
    operations: [clone, api-read]
    resources: [Acme/Widgets, umbrella/*]
    credential: gh
  - service: github
    operations: [fetch, download-storage]
  - http: https://docs.example.com/3/**
    methods: [GET, HEAD]
  - http: https://docs.example.com/api/*/v*/items
    methods: [POST]
    credential: docs
  - http: https://*.cdn.example.com:8443/pub/**
  - tcp: db.corp.example:5432
  - service: debian
    operations: [read]
  - service: pypi
    operations: [read]
  - http: https://odd.example.com/**
    methods: [GET]
    credential: odd
    header: X-Odd-Name
  - service: github
    operations: [push]
    resources: [acme/widgets]
    credential: gh
credentials:
  claude: {from: {env: ANTHROPIC_API_KEY}}
  gh: {from: {env: GITHUB_TOKEN}}
  docs: {from: {env: DOCS_TOKEN}}
  odd: {from: {env: ODD_TOKEN}}
`

func parse(t testing.TB, text string) Spec {
	t.Helper()
	p, err := policy.Parse("policy.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return FromPolicy(p)
}

func compile(t testing.TB, spec Spec) *Set {
	t.Helper()
	// As it travels.
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	var again Spec
	if err := json.Unmarshal(data, &again); err != nil {
		t.Fatal(err)
	}
	s, err := Compile(again, catalog.Default())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newRequest is "METHOD URL" with headers "Name: value" and a body that starts with {.
func newRequest(t testing.TB, lines ...string) catalog.Request {
	t.Helper()
	method, raw, _ := strings.Cut(lines[0], " ")
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	port := map[string]string{"https": "443", "http": "80"}[u.Scheme]
	if u.Port() != "" {
		port = u.Port()
	}
	hp, err := hostport.Parse(u.Hostname() + ":" + port)
	if err != nil {
		t.Fatal(err)
	}
	r := catalog.Request{Scheme: u.Scheme, Host: hp.Host, Port: hp.Port, Method: method, Path: u.Path, Query: u.Query(), Header: http.Header{}}
	for _, l := range lines[1:] {
		if strings.HasPrefix(l, "{") {
			r.Body = []byte(l)
			r.Header.Set("Content-Type", "application/json")
			continue
		}
		k, v, _ := strings.Cut(l, ": ")
		r.Header.Add(k, v)
	}
	if _, program, ok := strings.Cut(u.Path, "/git-"); ok && method == "POST" && r.Body == nil {
		r.Header.Set("Content-Type", "application/x-git-"+program+"-request")
		r.Body = []byte(gitBodies[program])
	}
	r.HasBody = r.Body != nil
	return r
}

func pkt(line string) string { return fmt.Sprintf("%04x%s", len(line)+4, line) }

// gitBodies are a fetch and a push of one branch.
var gitBodies = map[string]string{
	"upload-pack":  pkt("command=ls-refs\n") + "0000",
	"receive-pack": pkt(strings.Repeat("0", 40)+" "+strings.Repeat("1", 40)+" refs/heads/agent/x\x00report-status") + "0000PACK",
}

func basic(s string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(s))
}

const hello = `{"model":"c","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}`

// TestDecide has a line for every way in which a request can be inside or
// outside of testPolicy. The number is the line of the rule in the reason.
func TestDecide(t *testing.T) {
	s := compile(t, parse(t, testPolicy))
	for _, c := range []struct {
		want  string
		lines []string
	}{
		// Typed operations.
		{"allow 3 anthropic.messages swap claude", []string{"POST https://api.anthropic.com/v1/messages?beta=true", "X-Api-Key: " + claudePlaceholder, hello}},
		{"allow 3 anthropic.messages swap claude", []string{"POST https://api.anthropic.com/v1/messages", "Authorization: Bearer " + claudePlaceholder, hello}},
		{"deny 3 credential-missing", []string{"POST https://api.anthropic.com/v1/messages", hello}},
		{"allow 3 anthropic.models swap claude", []string{"GET https://api.anthropic.com/v1/models", "X-Api-Key: " + claudePlaceholder}},
		{"deny 3 operation-not-granted", []string{"POST https://api.anthropic.com/v1/files", "X-Api-Key: " + claudePlaceholder}},
		{"deny 3 foreign-credential", []string{"POST https://api.anthropic.com/v1/files", "X-Api-Key: " + foreignKey}},
		{"deny 3 operation-not-granted", []string{"POST https://api.anthropic.com/v1/messages/count_tokens", hello}},
		{"deny 3 unknown-operation", []string{"GET https://api.anthropic.com/v1/organizations/me", "X-Api-Key: " + claudePlaceholder}},
		{"deny 3 operation-not-granted", []string{"POST https://api.anthropic.com/v1/messages", `{"model":"c","messages":[],"mcp_servers":[{"url":"https://evil.example"}]}`}},
		{"deny 3 operation-not-granted", []string{"POST https://api.anthropic.com/v1/messages", `{"model":"c","messages":[],"new_field":1}`}},
		{"deny 3 bad-request", []string{"POST https://api.anthropic.com/v1/messages", `{"model":"c","model":"d"}`}},
		{"deny 3 bad-request", []string{"POST https://api.anthropic.com/v1/messages", "Content-Encoding: gzip", hello}},
		{"deny 3 bad-request", []string{"POST https://api.anthropic.com/v1/messages"}},
		// Resources.
		{"allow 6 github.fetch swap gh", []string{"POST https://github.com/acme/widgets.git/git-upload-pack", basic("x-access-token:" + githubPlaceholder)}},
		{"allow 6 github.fetch swap gh", []string{"POST https://github.com/ACME/widgets/git-upload-pack", basic("jane:" + githubPlaceholder)}},
		{"allow 6 github.fetch swap gh", []string{"POST https://github.com/umbrella/any/git-upload-pack", basic(githubPlaceholder + ":x-oauth-basic")}},
		{"allow 6 github.fetch", []string{"GET https://github.com/acme/widgets/info/refs?service=git-upload-pack"}},
		{"allow 10 github.fetch", []string{"GET https://github.com/torvalds/linux/info/refs?service=git-upload-pack"}},
		{"deny 10 foreign-credential", []string{"GET https://github.com/torvalds/linux/info/refs?service=git-upload-pack", basic("x:" + githubPlaceholder)}},
		{"allow 6 github.api-read swap gh", []string{"GET https://api.github.com/repos/acme/widgets/issues", "Authorization: token " + githubPlaceholder}},
		{"deny 6 resource-not-granted", []string{"GET https://api.github.com/repos/evil/widgets/issues", "Authorization: Bearer " + githubPlaceholder}},
		{"deny 6 resource-not-granted", []string{"GET https://api.github.com/user", "Authorization: Bearer " + githubPlaceholder}},
		{"deny 6 unknown-operation", []string{"POST https://api.github.com/nothing", "Authorization: Bearer " + githubPlaceholder}},
		{"allow 27 github.push swap gh", []string{"POST https://github.com/acme/widgets/git-receive-pack", basic("x:" + githubPlaceholder)}},
		{"deny 27 resource-not-granted", []string{"POST https://github.com/evil/widgets/git-receive-pack", basic("x:" + githubPlaceholder)}},
		{"deny 27 resource-not-granted", []string{"POST https://github.com/umbrella/any/git-receive-pack", basic("x:" + githubPlaceholder)}},
		{"allow 10 github.download-storage", []string{"GET https://release-assets.githubusercontent.com/a/b?sig=1&jwt=x&X-Amz-Signature=1"}},
		{"deny 10 foreign-credential", []string{"GET https://release-assets.githubusercontent.com/a/b?sig=1&token=x"}},
		// Raw.
		{"allow 12 http.request", []string{"GET https://docs.example.com/3/x/y?a=b"}},
		{"allow 12 http.request", []string{"HEAD https://docs.example.com/3/"}},
		{"deny 12 method-not-granted", []string{"POST https://docs.example.com/3/x"}},
		{"deny 12 no-grant", []string{"GET https://docs.example.com/3"}},
		{"deny 12 no-grant", []string{"GET https://docs.example.com/30/x"}},
		{"allow 14 http.request swap docs", []string{"POST https://docs.example.com/api/x/v1/items", "Authorization: Bearer " + docsPlaceholder}},
		{"deny 12 no-grant", []string{"POST https://docs.example.com/api/x/y/v1/items"}},
		{"deny 12 no-grant", []string{"POST https://docs.example.com/api/x/1/items"}},
		{"deny 12 foreign-credential", []string{"GET https://docs.example.com/3/x", "Authorization: Bearer " + docsPlaceholder}},
		{"allow 17 http.request", []string{"GET https://a.b.cdn.example.com:8443/pub/x"}},
		{"deny 0 no-grant", []string{"GET https://cdn.example.com:8443/pub/x"}},
		{"deny 0 no-grant", []string{"GET https://a.cdn.example.com/pub/x"}},
		{"deny 0 no-grant", []string{"GET https://a-cdn.example.com:8443/pub/x"}},
		{"allow 23 http.request swap odd", []string{"GET https://odd.example.com/", "X-Odd-Name: placeholder-odd-odd-odd-odd-odd-odd"}},
		{"deny 23 foreign-credential", []string{"GET https://odd.example.com/", "X-Odd-Name: x"}},
		{"deny 23 placeholder-misplaced", []string{"GET https://odd.example.com/", "Authorization: Bearer placeholder-odd-odd-odd-odd-odd-odd"}},
		// Schemes, ports, opaque grants.
		{"allow 19 debian.read", []string{"GET http://deb.debian.org/debian/pool/x"}},
		{"allow 19 debian.read", []string{"GET https://deb.debian.org/debian/pool/x"}},
		{"deny 0 no-grant", []string{"GET http://deb.debian.org:8080/debian/x"}},
		{"deny 0 no-grant", []string{"GET http://api.anthropic.com/v1/models"}},
		{"deny 0 no-grant", []string{"GET https://db.corp.example:5432/"}},
		{"deny 0 no-grant", []string{"GET https://evil.example/"}},
		// Credentials: only the session's, once, in its slot.
		{"deny 3 foreign-credential", []string{"POST https://api.anthropic.com/v1/messages", "X-Api-Key: " + foreignKey, hello}},
		{"deny 3 foreign-credential", []string{"POST https://api.anthropic.com/v1/messages", "X-Api-Key: ", hello}},
		{"deny 3 foreign-credential", []string{"POST https://api.anthropic.com/v1/messages", "X-Api-Key: " + claudePlaceholder, "Authorization: Bearer " + foreignKey, hello}},
		{"deny 3 foreign-credential", []string{"POST https://api.anthropic.com/v1/messages", "X-Api-Key: " + claudePlaceholder, "X-Api-Key: " + foreignKey, hello}},
		{"deny 3 foreign-credential", []string{"POST https://api.anthropic.com/v1/messages", "X-Api-Key: " + claudePlaceholder, "Cookie: sessionKey=1", hello}},
		{"deny 3 foreign-credential", []string{"POST https://api.anthropic.com/v1/messages?api_key=x", "X-Api-Key: " + claudePlaceholder, hello}},
		{"deny 3 foreign-credential", []string{"POST https://api.anthropic.com/v1/messages", "X-Api-Key: " + claudePlaceholder, "X-Forwarded-Note: " + foreignKey, hello}},
		{"deny 3 placeholder-misplaced", []string{"POST https://api.anthropic.com/v1/messages", "X-Api-Key: " + claudePlaceholder, "Authorization: Bearer " + claudePlaceholder, hello}},
		{"deny 3 placeholder-misplaced", []string{"POST https://api.anthropic.com/v1/messages", "X-Api-Key: " + claudePlaceholder, "X-Api-Key: " + claudePlaceholder, hello}},
		{"deny 3 placeholder-misplaced", []string{"POST https://api.anthropic.com/v1/messages", "X-Api-Key:  " + claudePlaceholder + " x", hello}},
		{"deny 3 placeholder-misplaced", []string{"POST https://api.anthropic.com/v1/messages", "X-Api-Key: " + githubPlaceholder, hello}},
		{"deny 3 placeholder-misplaced", []string{"POST https://api.anthropic.com/v1/messages?q=" + claudePlaceholder, hello}},
		{"deny 3 placeholder-misplaced", []string{"POST https://api.anthropic.com/v1/messages", "User-Agent: x/" + claudePlaceholder, hello}},
		{"deny 12 placeholder-misplaced", []string{"GET https://docs.example.com/3/" + claudePlaceholder}},
		{"deny 12 placeholder-misplaced", []string{"GET https://docs.example.com/3/x?q=a" + docsPlaceholder + "b"}},
		{"deny 21 foreign-credential", []string{"GET https://pypi.org/simple/x/", basic("a:b")}},
		{"deny 21 placeholder-misplaced", []string{"GET https://pypi.org/simple/x/", basic("a:" + githubPlaceholder)}},
		{"deny 6 foreign-credential", []string{"POST https://github.com/acme/widgets/git-upload-pack", basic("ghp_" + strings.Repeat("x", 36) + ":" + githubPlaceholder)}},
		{"deny 3 placeholder-misplaced", []string{"POST https://api.anthropic.com/v1/messages", basic("x:" + claudePlaceholder), hello}},
		// A placeholder in a body is text like any other: nothing replaces it.
		{"allow 3 anthropic.messages swap claude", []string{"POST https://api.anthropic.com/v1/messages", "X-Api-Key: " + claudePlaceholder, `{"model":"c","messages":[{"role":"user","content":"` + claudePlaceholder + `"}]}`}},
		// Also a cookie of a content delivery network may be somebody's.
		{"deny 3 foreign-credential", []string{"POST https://api.anthropic.com/v1/messages", "X-Api-Key: " + claudePlaceholder, "Cookie: __cf_bm=x", hello}},
		// Not canonical.
		{"deny 0 bad-request", []string{"GET https://docs.example.com/3/../x"}},
		{"deny 0 bad-request", []string{"GET https://docs.example.com/3//x"}},
		{"deny 0 bad-request", []string{"get https://docs.example.com/3/x"}},
		{"deny 0 bad-request", []string{"TRACE https://docs.example.com/3/x"}},
		{"deny 0 bad-request", []string{"CONNECT https://docs.example.com/3/x"}},
	} {
		r := newRequest(t, c.lines...)
		d := s.Decide(r, identity)
		got := fmt.Sprintf("%s %d ", d.Verdict, d.Reason.Rule.Line)
		if d.Verdict == vocabulary.Allow {
			got += string(d.Action)
		} else {
			got += d.Reason.Code
		}
		if d.Swap != nil {
			got += " swap " + d.Swap.Credential
		}
		if got != c.want {
			t.Errorf("%q\n got %s: %s\nwant %s", c.lines, got, d.Reason.Message, c.want)
		}
		if (d.Permit != nil) != (d.Verdict == vocabulary.Allow) {
			t.Errorf("%q: permit %v", c.lines, d.Permit)
		}
		if p := d.Permit; p != nil && (p.Host() != r.Host || p.Port() != r.Port || p.TLS() != (r.Scheme == "https") || p.Opaque() || p.Rule() != d.Reason.Rule) {
			t.Errorf("%q: permit %+v", c.lines, p)
		}
		if d.Reason.Rule.File != "policy.yaml" || d.Reason.Message == "" {
			t.Errorf("%q: reason %+v", c.lines, d.Reason)
		}
		text, _ := json.Marshal(d)
		for _, secret := range []string{foreignKey, claudePlaceholder, githubPlaceholder, docsPlaceholder} {
			if bytes.Contains(text, []byte(secret)) {
				t.Errorf("%q: the decision shows a credential: %s", c.lines, text)
			}
		}
	}
}

func TestConnectAndResolve(t *testing.T) {
	s := compile(t, parse(t, testPolicy))
	for in, want := range map[string]string{
		"api.anthropic.com:443": "https 3", "api.anthropic.com:80": "nothing 3", "docs.example.com:443": "https 12",
		"db.corp.example:5432": "opaque tcp 18", "db.corp.example:443": "nothing 18",
		"deb.debian.org:80": "plain http 19", "deb.debian.org:443": "https 19",
		"x.cdn.example.com:8443": "https 17", "cdn.example.com:8443": "nothing 0", "evil.example:443": "nothing 0",
	} {
		hp, _ := hostport.Parse(in)
		treat, d := s.Connect(hp)
		if got := fmt.Sprint(treat.word(), " ", d.Reason.Rule.Line); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
		if (treat == TreatRefuse) != (d.Verdict == vocabulary.Deny) || (d.Permit != nil) != (treat == TreatOpaque) {
			t.Errorf("%s: %+v", in, d)
		}
		name := s.ResolveName(hp.Host)
		if (name.Verdict == vocabulary.Allow) == strings.HasSuffix(want, " 0") || name.Permit != nil {
			t.Errorf("%s: resolve %+v", in, name)
		}
	}
}

func TestNothingIsAllowedByAccident(t *testing.T) {
	r := newRequest(t, "GET https://docs.example.com/3/x")
	hp, _ := hostport.Parse("docs.example.com:443")
	empty := compile(t, Spec{})
	for _, s := range []*Set{nil, empty, {}} {
		if d := s.Decide(r, identity); d.Verdict != vocabulary.Deny || d.Permit != nil {
			t.Errorf("%+v", d)
		}
		if treat, d := s.Connect(hp); treat != TreatRefuse || d.Verdict != vocabulary.Deny {
			t.Errorf("%v %+v", treat, d)
		}
		if d := s.ResolveName(hp.Host); d.Verdict != vocabulary.Deny {
			t.Errorf("%+v", d)
		}
		if s.Body(r).Reads() || len(s.Spec().Rules) != 0 || s.Attenuate(func(Rule) bool { return true }).Decide(r, identity).Verdict != vocabulary.Deny {
			t.Error("an empty set has something")
		}
	}
	if (Decision{}).Verdict != vocabulary.Deny || Treatment(0) != TreatRefuse {
		t.Error("a zero value allows")
	}
	full := compile(t, parse(t, testPolicy))
	for _, broken := range []catalog.Request{{}, {Scheme: "https", Method: "GET", Path: "/3/x"}, {Scheme: "https", Host: r.Host, Method: "GET", Path: "/3/x"}, {Host: r.Host, Port: 443, Method: "GET", Path: "/3/x"}} {
		if d := full.Decide(broken, identity); d.Verdict != vocabulary.Deny {
			t.Errorf("%+v", broken)
		}
	}
}

func TestBody(t *testing.T) {
	s := compile(t, parse(t, testPolicy))
	for line, want := range map[string]int{
		"POST https://api.anthropic.com/v1/messages":              32 << 20,
		"POST https://api.anthropic.com/v1/messages/count_tokens": 0, // not granted: nothing to read
		"GET https://api.anthropic.com/v1/models":                 0,
		"POST https://docs.example.com/api/x/v1/items":            0,
		"POST https://evil.example/v1/messages":                   0,
	} {
		if got := s.Body(newRequest(t, line)); got.Whole != want {
			t.Errorf("%s: %d", line, got.Whole)
		}
	}
}

func TestBetas(t *testing.T) {
	spec := parse(t, testPolicy)
	r := newRequest(t, "POST https://api.anthropic.com/v1/messages", "Anthropic-Beta: claude-code-20250219,mcp-client-2025-11-20,later-2027-01-01", "X-Api-Key: "+claudePlaceholder, hello)
	d := compile(t, spec).Decide(r, identity)
	if d.Verdict != vocabulary.Allow || d.Rewrite["Anthropic-Beta"] != "claude-code-20250219" || len(d.Dropped) != 2 {
		t.Errorf("%+v", d)
	}
	spec.Rules = append(spec.Rules, Rule{Pos: vocabulary.Position{File: "policy.yaml", Line: 99}, Service: "anthropic", Operations: []string{"messages.mcp"}})
	s := compile(t, spec)
	if d := s.Decide(r, identity); d.Rewrite["Anthropic-Beta"] != "claude-code-20250219,mcp-client-2025-11-20" {
		t.Errorf("%+v", d)
	}
	r.Body = []byte(`{"model":"c","messages":[],"mcp_servers":[{"url":"https://x.example"}]}`)
	d = s.Decide(r, identity)
	if d.Verdict != vocabulary.Deny || d.Reason.Code != CodeForeignCredential {
		t.Errorf("a feature granted without the credential was used with it: %+v", d)
	}
	spec.Rules[len(spec.Rules)-1].Credential = "claude"
	if d := compile(t, spec).Decide(r, identity); d.Verdict != vocabulary.Allow || d.Swap == nil {
		t.Errorf("%+v", d)
	}
}

func TestRemedies(t *testing.T) {
	s := compile(t, parse(t, testPolicy))
	for line, want := range map[string]string{
		"POST https://github.com/evil/x/git-receive-pack":         "add under grants: - {service: github, operations: [push], resources: [evil/x], credential: gh}",
		"GET https://api.github.com/repos/a/b":                    "add under grants: - {service: github, operations: [api-read], resources: [a/b], credential: gh}",
		"POST https://api.anthropic.com/v1/files":                 "add under grants: - {service: anthropic, operations: [files], credential: claude}",
		"GET https://registry.npmjs.org/left-pad":                 "add under grants: - {service: npm, operations: [read]}",
		"PUT https://registry.npmjs.org/@a/b":                     `add under grants: - {service: npm, operations: [publish-scoped], resources: ["@a/b"]}`,
		"POST https://evil.example/a/b":                           "add under grants: - {http: https://evil.example/a/b, methods: [POST]}",
		"GET https://evil.example:8443/a/%7Bx%7D/c":               "add under grants: - {http: https://evil.example:8443/a/**, methods: [GET]}",
		"POST https://docs.example.com/3/x":                       "add POST to methods of the grant at policy.yaml:12:5",
		"GET https://api.anthropic.com/v1/x, y: [z]}":             "add under grants: - {http: https://api.anthropic.com/v1/**, methods: [GET]}",
		"GET https://evil.example/ghp_" + strings.Repeat("x", 36): "",
	} {
		d := s.Decide(newRequest(t, line), identity)
		if d.Reason.Remedy != want {
			t.Errorf("%s:\n got %s\nwant %s", line, d.Reason.Remedy, want)
		}
		// What a remedy says to add must be a grant that allows the request.
		if yaml, ok := strings.CutPrefix(d.Reason.Remedy, "add under grants: "); ok {
			p, err := policy.Parse("p.yaml", []byte("version: 1\ngrants:\n  "+yaml+"\ncredentials:\n  gh: {from: {env: A}}\n  claude: {from: {env: B}}\n"))
			if err != nil {
				t.Errorf("%s: %v", line, err)
				continue
			}
			r := newRequest(t, line)
			if d := compile(t, FromPolicy(p)).decide(r, Identity{}, true); d.Verdict != vocabulary.Allow {
				t.Errorf("%s: still denied: %s", line, d.Reason.Message)
			}
		}
	}
}

func TestCompileErrors(t *testing.T) {
	pos := func(n int) vocabulary.Position { return vocabulary.Position{File: "p.yaml", Line: n} }
	for want, r := range map[string]Rule{
		`p.yaml:1: unknown service "githb" (did you mean github?)`:                                  {Service: "githb", Operations: []string{"fetch"}},
		`p.yaml:1: github has no operation "pusch" (did you mean push?)`:                            {Service: "github", Operations: []string{"pusch"}},
		`p.yaml:1: github has no operation "clon" (did you mean clone?)`:                            {Service: "github", Operations: []string{"clon"}},
		"p.yaml:1: the grant for github names no operations":                                        {Service: "github"},
		"p.yaml:1: github push is only granted for named resources (add resources: [acme/widgets])": {Service: "github", Operations: []string{"push"}},
		`p.yaml:1: "acme" is not of the form {owner}/{repo} (as in resources: [acme/widgets])`:      {Service: "github", Operations: []string{"fetch"}, Resources: []string{"acme"}},
		`p.yaml:1: "*/widgets" is not of the form`:                                                  {Service: "github", Operations: []string{"fetch"}, Resources: []string{"*/widgets"}},
		"p.yaml:1: anthropic messages has no resources":                                             {Service: "anthropic", Operations: []string{"messages"}, Resources: []string{"x"}},
		"p.yaml:1: go-modules takes no credential":                                                  {Service: "go-modules", Operations: []string{"read"}, Credential: "c"},
		"p.yaml:1: methods do not belong to a grant with service":                                   {Service: "pypi", Operations: []string{"read"}, Methods: []string{"GET"}},
		"p.yaml:1: a grant has one of service, http and tcp":                                        {},
		"p.yaml:1: a grant has one of service, http and tcp (":                                      {HTTP: "https://a.example/", TCP: "a.example:1"},
		`p.yaml:1: "TRACE" is not a method that can be granted`:                                     {HTTP: "https://a.example/", Methods: []string{"TRACE"}},
		`p.yaml:1: "get" is not a method`:                                                           {HTTP: "https://a.example/", Methods: []string{"get"}},
		"p.yaml:1: a credential over plain http":                                                    {HTTP: "http://a.example/", Credential: "c"},
		"p.yaml:1: *.co.uk covers names that anybody can register":                                  {HTTP: "https://*.co.uk/**"},
		"p.yaml:1: a credential for all names below a domain":                                       {HTTP: "https://*.a.example/", Credential: "c"},
		"p.yaml:1: header and scheme say where":                                                     {HTTP: "https://a.example/", Header: "X-Key"},
		"p.yaml:1: operations and resources belong to a grant with service":                         {HTTP: "https://a.example/", Operations: []string{"x"}},
		"is an IP address":                            {HTTP: "https://10.0.0.1/"},
		"p.yaml:1: \"10.0.0.1\" is an IP address":     {TCP: "10.0.0.1:5432"},
		"p.yaml:1: a grant with tcp has nothing else": {TCP: "a.example:1", Credential: "c"},
	} {
		r.Pos = pos(1)
		_, err := Compile(Spec{Rules: []Rule{r}}, catalog.Default())
		var list policy.ErrorList
		if !errors.As(err, &list) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v:\n got %v\nwant %s", r, err, want)
		}
	}
	// All at once, and in order.
	_, err := Compile(Spec{Rules: []Rule{{Pos: pos(3), Service: "x"}, {Pos: pos(2), TCP: "y"}, {Pos: pos(1), Service: "github", Operations: []string{"a", "b"}}}}, catalog.Default())
	var list policy.ErrorList
	if !errors.As(err, &list) || len(list) != 4 || list[0].Pos.Line != 1 || list[3].Pos.Line != 3 {
		t.Errorf("%v", err)
	}
}

func TestCompileConflicts(t *testing.T) {
	for _, c := range []struct {
		a, b Rule
		ok   bool
	}{
		{Rule{TCP: "a.example:443"}, Rule{HTTP: "https://a.example/**"}, false},
		{Rule{TCP: "a.example:443"}, Rule{HTTP: "https://a.example:8443/**"}, true},
		{Rule{TCP: "x.a.example:443"}, Rule{HTTP: "https://*.a.example/**"}, false},
		{Rule{TCP: "a.example:443"}, Rule{HTTP: "https://*.a.example/**"}, true},
		{Rule{TCP: "github.com:443"}, Rule{Service: "github", Operations: []string{"fetch"}}, false},
		{Rule{TCP: "github.com:22"}, Rule{Service: "github", Operations: []string{"fetch"}}, true},
		{Rule{TCP: "deb.debian.org:80"}, Rule{Service: "debian", Operations: []string{"read"}}, false},
		{Rule{HTTP: "http://a.example:8000/**"}, Rule{HTTP: "https://a.example:8000/**"}, false},
		{Rule{HTTP: "http://*.a.example:8000/**"}, Rule{HTTP: "https://*.b.a.example:8000/**"}, false},
		{Rule{HTTP: "http://*.a.example:8000/**"}, Rule{HTTP: "https://*.b.example:8000/**"}, true},
		{Rule{HTTP: "https://api.anthropic.com/**"}, Rule{Service: "anthropic", Operations: []string{"messages"}}, true},
	} {
		c.a.Pos, c.b.Pos = vocabulary.Position{File: "p.yaml", Line: 4}, vocabulary.Position{File: "p.yaml", Line: 9}
		for _, rules := range [][]Rule{{c.a, c.b}, {c.b, c.a}} {
			_, err := Compile(Spec{Rules: rules}, catalog.Default())
			if (err == nil) != c.ok {
				t.Errorf("%+v: %v", rules, err)
			}
			if err != nil && (!strings.Contains(err.Error(), "p.yaml:4") || !strings.Contains(err.Error(), "p.yaml:9")) {
				t.Errorf("not both positions: %v", err)
			}
		}
	}
}

// TestPresetsCompile holds the embedded presets to the catalogue.
func TestPresetsCompile(t *testing.T) {
	files, err := catalogdata.Presets.ReadDir("presets")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".yaml")
		if !ok {
			continue
		}
		data, _ := catalogdata.Presets.ReadFile("presets/" + f.Name())
		p, err := policy.ParsePreset(name, data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := Compile(FromPolicy(&policy.Policy{Grants: p.Grants}), catalog.Default()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
