package capability

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// limited is a user's policy within the grants of others.
func limited(t testing.TB, user string, limits ...string) *Set {
	t.Helper()
	p, err := policy.Parse("user.yaml", []byte(user))
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range limits {
		read, file := policy.ParseProject, "project.yaml"
		if i > 0 {
			read, file = policy.ParseAdministrator, "admin.yaml"
		}
		b, err := read(file, []byte("version: 1\n"+text))
		if err != nil {
			t.Fatal(err)
		}
		p.Within = append(p.Within, b)
	}
	return compile(t, FromPolicy(p))
}

// TestWithin has a line for each way in which a request that the user's policy
// allows can be inside or outside of what a limit grants.
func TestWithin(t *testing.T) {
	const user = testPolicy
	for _, c := range []struct {
		name, limit string
		request     []string
		want        string // "" is allowed, otherwise part of the message
	}{
		{"no list of grants", "", []string{"GET https://docs.example.com/3/x"}, ""},
		{"an empty list", "grants: []\n", []string{"GET https://docs.example.com/3/x"}, "no grant covers"},
		{"the same", "grants: [{http: 'https://docs.example.com/3/**'}]\n", []string{"GET https://docs.example.com/3/x"}, ""},
		{"fewer paths", "grants: [{http: 'https://docs.example.com/3/a/**'}]\n", []string{"GET https://docs.example.com/3/x"}, "no grant covers https://docs.example.com/3/x"},
		{"fewer paths, inside", "grants: [{http: 'https://docs.example.com/3/a/**'}]\n", []string{"GET https://docs.example.com/3/a/x"}, ""},
		{"fewer methods", "grants: [{http: 'https://docs.example.com/3/**', methods: [HEAD]}]\n", []string{"GET https://docs.example.com/3/x"}, "GET is not granted there"},
		{"a wider host", "grants: [{http: 'https://*.example.com/**'}]\n", []string{"GET https://docs.example.com/3/x"}, ""},
		{"another host", "grants: [{http: 'https://other.example.com/**'}]\n", []string{"GET https://docs.example.com/3/x"}, "no grant covers docs.example.com:443"},
		{"opaque covers all", "grants: [{tcp: 'docs.example.com:443'}]\n", []string{"GET https://docs.example.com/3/x"}, ""},
		{"opaque, another port", "grants: [{tcp: 'docs.example.com:444'}]\n", []string{"GET https://docs.example.com/3/x"}, "does not cover port 443"},

		{"a service as a whole", "grants: [{service: github}]\n", []string{"GET https://github.com/acme/widgets/info/refs?service=git-upload-pack"}, ""},
		{"an operation", "grants: [{service: github, operations: [fetch]}]\n", []string{"GET https://github.com/acme/widgets/info/refs?service=git-upload-pack"}, ""},
		{"another operation", "grants: [{service: github, operations: [push]}]\n", []string{"GET https://github.com/acme/widgets/info/refs?service=git-upload-pack"}, "github.fetch is not granted"},
		{"another resource", "grants: [{service: github, operations: [fetch], resources: [acme/other]}]\n", []string{"GET https://github.com/acme/widgets/info/refs?service=git-upload-pack"}, "not granted on acme/widgets"},
		{"a resource by pattern", "grants: [{service: github, operations: [fetch], resources: [acme/*]}]\n", []string{"GET https://github.com/acme/widgets/info/refs?service=git-upload-pack"}, ""},
		{"a push to a granted branch", "grants: [{service: github, operations: [push], resources: [acme/widgets@agent/*]}]\n", []string{"POST https://github.com/acme/widgets.git/git-receive-pack", basic("x:" + githubPlaceholder)}, ""},
		{"a push to another branch", "grants: [{service: github, operations: [push], resources: [acme/widgets@other/*]}]\n", []string{"POST https://github.com/acme/widgets.git/git-receive-pack", basic("x:" + githubPlaceholder)}, "not granted on"},
		{"another service", "grants: [{service: npm}]\n", []string{"GET https://github.com/acme/widgets/info/refs?service=git-upload-pack"}, "no grant covers github.com:443"},
		{"typed within raw", "grants: [{http: 'https://github.com/acme/**'}]\n", []string{"GET https://github.com/acme/widgets/info/refs?service=git-upload-pack"}, ""},

		{"a credential travels", "grants: [{service: anthropic, operations: [messages]}]\n", []string{"POST https://api.anthropic.com/v1/messages", "X-Api-Key: " + claudePlaceholder, hello}, ""},
		{"plain http", "grants: [{service: debian, operations: [read]}]\n", []string{"GET http://deb.debian.org/debian/dists/stable/InRelease"}, ""},
		{"only https", "grants: [{http: 'https://deb.debian.org/**'}]\n", []string{"GET http://deb.debian.org/debian/dists/stable/InRelease"}, "does not cover port 80"},
	} {
		s := limited(t, user, c.limit)
		r := newRequest(t, c.request...)
		if own := compile(t, parse(t, user)).Decide(r, identity); own.Verdict != vocabulary.Allow {
			t.Errorf("%s: control: %+v", c.name, own.Reason)
		}
		d := s.Decide(r, identity)
		if c.want == "" {
			if d.Verdict != vocabulary.Allow || d.Permit == nil || d.Reason.Rule.File != "user.yaml" || (d.Swap != nil) != (len(c.request) > 1) {
				t.Errorf("%s: %+v", c.name, d)
			}
			continue
		}
		if d.Verdict != vocabulary.Deny || d.Permit != nil || d.Swap != nil || d.Reason.Code != CodeNarrowed || d.Reason.Rule.File != "project.yaml" || d.Reason.Rule.Line == 0 ||
			!strings.Contains(d.Reason.Message, c.want) || !strings.Contains(d.Reason.Message, "user.yaml:") || !strings.Contains(d.Reason.Message, "the project's policy") {
			t.Errorf("%s: %s (%s %s)\nwant %s", c.name, d.Reason.Message, d.Reason.Code, d.Reason.Rule, c.want)
		}
	}
}

// TestWithinReadsBodies: a limit judges what is in a body also where the user's
// own grant would not look.
func TestWithinReadsBodies(t *testing.T) {
	const raw = "version: 1\ngrants: [{http: 'https://api.anthropic.com/**', methods: [GET, POST]}]\n"
	const limit = "grants: [{service: anthropic, operations: [messages]}]\n"
	const web = `{"model":"c","max_tokens":1,"messages":[],"tools":[{"type":"web_fetch_20250910","name":"web_fetch"}]}`
	s := limited(t, raw, limit)
	at := "POST https://api.anthropic.com/v1/messages"
	if n := s.Body(newRequest(t, at)); n.Whole != 32<<20 {
		t.Errorf("the body is not asked for: %+v", n)
	}
	if d := s.Decide(newRequest(t, at, hello), identity); d.Verdict != vocabulary.Allow {
		t.Errorf("control: %+v", d)
	}
	if d := s.Decide(newRequest(t, at, web), identity); d.Verdict != vocabulary.Deny || d.Reason.Code != CodeNarrowed || !strings.Contains(d.Reason.Message, "messages.web-fetch") {
		t.Errorf("%+v", d)
	}
	if d := s.Decide(newRequest(t, "GET https://api.anthropic.com/v1/files"), identity); d.Verdict != vocabulary.Deny {
		t.Errorf("%+v", d)
	}
	d := s.Decide(newRequest(t, at, "Anthropic-Beta: claude-code-20250219,mcp-client-2025-11-20", hello), identity)
	if d.Verdict != vocabulary.Allow || d.Rewrite["Anthropic-Beta"] != "claude-code-20250219" {
		t.Errorf("headers are not judged: %+v", d)
	}
	// Both judge the header, and what is left is what both grant.
	both := limited(t, "version: 1\ngrants: [{service: anthropic, operations: [messages, messages.mcp]}]\n", limit)
	d = both.Decide(newRequest(t, at, "Anthropic-Beta: claude-code-20250219,mcp-client-2025-11-20", hello), identity)
	if d.Verdict == vocabulary.Allow && d.Rewrite["Anthropic-Beta"] != "claude-code-20250219" {
		t.Errorf("headers are not judged twice: %+v", d)
	}
}

// TestWithinSeveral: all limits have to agree, and the one that does not is named.
func TestWithinSeveral(t *testing.T) {
	const project, admin = "grants: [{http: 'https://docs.example.com/3/a/**'}]\n", "grants: [{http: 'https://docs.example.com/3/**', methods: [GET]}]\n"
	s := limited(t, testPolicy, project, admin)
	for line, file := range map[string]string{
		"GET https://docs.example.com/3/a/x":  "",
		"GET https://docs.example.com/3/b":    "project.yaml",
		"HEAD https://docs.example.com/3/a/x": "admin.yaml",
		"HEAD https://docs.example.com/3/b":   "project.yaml",
		"GET https://docs.example.com/4":      "user.yaml",
	} {
		d := s.Decide(newRequest(t, line), identity)
		if (d.Verdict == vocabulary.Allow) != (file == "") || file != "" && d.Reason.Rule.File != file {
			t.Errorf("%s: %+v", line, d.Reason)
		}
	}
	x, err := s.Explain("HEAD", "https://docs.example.com/3/a/x")
	if err != nil || x.Decision.Verdict != vocabulary.Deny || x.Decision.Reason.Rule.File != "admin.yaml" {
		t.Errorf("%+v %v", x.Decision, err)
	}
	if n := slices.IndexFunc(x.Rules, func(e Evaluated) bool { return e.Rule.File == "admin.yaml" && !e.Matches }); n < 0 {
		t.Errorf("the limit's rules are not explained: %+v", x.Rules)
	}
	// What was attenuated stays within.
	if d := s.Attenuate(func(Rule) bool { return true }).Decide(newRequest(t, "GET https://docs.example.com/3/b"), identity); d.Verdict != vocabulary.Deny {
		t.Error("attenuating took the limits away")
	}
	if got := s.Spec(); len(got.Within) != 2 {
		t.Errorf("%+v", got.Within)
	}
}

func TestWithinNamesAndConnections(t *testing.T) {
	const user = "version: 1\ngrants: [{tcp: 'db.corp.example:5432'}, {http: 'https://docs.example.com/**'}, {http: 'http://plain.example.com/**'}]\n"
	for _, c := range []struct {
		limit, name string
		port        uint16
		name2       bool
		treat       Treatment
	}{
		{"grants: [{tcp: 'db.corp.example:5432'}]\n", "db.corp.example", 5432, true, TreatOpaque},
		{"grants: [{tcp: 'db.corp.example:5433'}]\n", "db.corp.example", 5432, true, TreatRefuse},
		{"grants: [{http: 'https://db.corp.example:5432/**'}]\n", "db.corp.example", 5432, true, TreatRefuse}, // would pass unread
		{"grants: []\n", "db.corp.example", 5432, false, TreatRefuse},
		{"grants: [{tcp: 'docs.example.com:443'}]\n", "docs.example.com", 443, true, TreatTLS}, // still judged
		{"grants: [{http: 'http://docs.example.com:443/**'}]\n", "docs.example.com", 443, true, TreatRefuse},
		{"grants: [{http: 'http://plain.example.com/**'}]\n", "plain.example.com", 80, true, TreatHTTP},
		{"isolation: process\n", "plain.example.com", 80, true, TreatHTTP},
	} {
		s := limited(t, user, c.limit)
		h, err := hostport.ParseHost(c.name)
		if err != nil {
			t.Fatal(err)
		}
		if d := s.ResolveName(h); (d.Verdict == vocabulary.Allow) != c.name2 || d.Verdict != vocabulary.Allow && d.Reason.Rule.File != "project.yaml" {
			t.Errorf("%s %s: %+v", c.limit, c.name, d)
		}
		treat, d := s.Connect(hostport.HostPort{Host: h, Port: hostport.Port(c.port)})
		if treat != c.treat || (treat == TreatRefuse) != (d.Verdict == vocabulary.Deny) || (d.Permit != nil) != (treat == TreatOpaque) || treat == TreatRefuse && d.Reason.Rule.File != "project.yaml" {
			t.Errorf("%s %s: %v %+v", c.limit, c.name, treat, d)
		}
	}
}

func TestWithinSSH(t *testing.T) {
	const user = `version: 1
credentials: {key: {from: {ssh: agent}}}
grants:
  - {service: github, operations: [fetch, push], resources: [acme/widgets], credential: key}
  - {ssh: git@git.corp.example, operations: [fetch, push], resources: [team/repo], credential: key}
`
	for _, c := range []struct {
		limit, at, program, path string
		refs                     []string
		ok                       bool
	}{
		{"grants: [{service: github}]\n", "git@github.com", "upload-pack", "acme/widgets", nil, true},
		{"grants: [{service: github, operations: [fetch]}]\n", "git@github.com", "upload-pack", "acme/widgets", nil, true},
		{"grants: [{service: github, operations: [fetch]}]\n", "git@github.com", "receive-pack", "acme/widgets", nil, false},
		{"grants: [{service: github, operations: [push], resources: [acme/widgets@agent/*]}]\n", "git@github.com", "receive-pack", "acme/widgets", []string{"refs/heads/agent/x"}, true},
		{"grants: [{service: github, operations: [push], resources: [acme/widgets@agent/*]}]\n", "git@github.com", "receive-pack", "acme/widgets", []string{"refs/heads/main"}, false},
		{"grants: [{service: github, operations: [fetch], resources: [acme/other]}]\n", "git@github.com", "upload-pack", "acme/widgets", nil, false},
		{"grants: [{service: gitlab}]\n", "git@github.com", "upload-pack", "acme/widgets", nil, false},
		{"grants: [{ssh: git@git.corp.example, operations: [fetch], resources: [team/*]}]\n", "git@git.corp.example", "upload-pack", "team/repo", nil, true},
		{"grants: [{ssh: git@git.corp.example, operations: [fetch], resources: [team/*]}]\n", "git@git.corp.example", "receive-pack", "team/repo", nil, false},
		{"grants: [{ssh: other@git.corp.example, operations: [fetch], resources: [team/*]}]\n", "git@git.corp.example", "upload-pack", "team/repo", nil, false},
		{"grants: [{tcp: 'git.corp.example:22'}]\n", "git@git.corp.example", "receive-pack", "team/repo", nil, true},
		{"grants: []\n", "git@git.corp.example", "upload-pack", "team/repo", nil, false},
	} {
		s := limited(t, user, c.limit)
		cmd := sshCommand(t, c.at, c.program, c.path, c.refs...)
		d := s.DecideSSH(cmd)
		if (d.Verdict == vocabulary.Allow) != c.ok || c.ok && (d.Swap == nil || d.Swap.Credential != "key") || !c.ok && (d.Reason.Rule.File != "project.yaml" || d.Permit != nil) {
			t.Errorf("%s %s %s %v: %+v", c.limit, c.program, c.path, c.refs, d)
		}
	}
}

// TestWithinLogins: a login's token requests are answered on the host, so no
// limit is about them; the rest of that host stays limited.
func TestWithinLogins(t *testing.T) {
	s := limited(t, testPolicy, "grants: [{service: github}]\n")
	spec := s.Spec()
	spec.Rules = append(spec.Rules, Rule{Pos: vocabulary.Position{File: "user.yaml", Line: 30}, Exchange: "https://login.example.com/oauth/token", Credential: "claude"})
	s = compile(t, spec)
	if d := s.Decide(newRequest(t, "POST https://login.example.com/oauth/token", "{}"), identity); d.Verdict != vocabulary.Allow || d.Exchange != "claude" || d.Permit != nil {
		t.Errorf("%+v", d)
	}
	if d := s.Decide(newRequest(t, "POST https://login.example.com/other", "{}"), identity); d.Verdict != vocabulary.Deny {
		t.Errorf("%+v", d)
	}
}

// TestWithinEscapedSlash: a path that one server splits and another does not has
// to be granted in both readings.
func TestWithinEscapedSlash(t *testing.T) {
	const user = "version: 1\ngrants: [{service: gitlab, operations: [api-read]}]\n"
	r := newRequest(t, "GET https://gitlab.com/x")
	r.Path = "/api/v4/projects/team%2Frepo/issues"
	for limit, ok := range map[string]bool{
		"grants: [{http: 'https://gitlab.com/**'}]\n":                                    true,
		"grants: [{http: 'https://gitlab.com/api/v4/projects/*/issues'}]\n":              false,
		"grants: [{http: 'https://gitlab.com/api/v4/projects/*/*/issues'}]\n":            false,
		"grants: [{service: gitlab}]\n":                                                  true,
		"grants: [{service: gitlab, operations: [api-read], resources: [team/repo]}]\n":  true,
		"grants: [{service: gitlab, operations: [api-read], resources: [team/other]}]\n": false,
	} {
		s := limited(t, user, limit)
		if d := s.Decide(r, identity); (d.Verdict == vocabulary.Allow) != ok {
			t.Errorf("%s: %+v", limit, d)
		}
	}
}

func TestWithinCompileErrors(t *testing.T) {
	for text, want := range map[string]string{
		"grants: [{service: githup}]\n":                                              "project.yaml:2:10: unknown service",
		"grants: [{service: github, operations: [fly]}]\n":                           "project.yaml:2:10: github has no operation",
		"grants: [{http: 'https://*.co.uk/**'}]\n":                                   "anybody can register",
		"grants: [{tcp: 'a.example.com:443'}, {http: 'https://a.example.com/**'}]\n": "either opaque or judged",
	} {
		b, err := policy.ParseProject("project.yaml", []byte("version: 1\n"+text))
		if err != nil {
			t.Fatal(err)
		}
		_, err = Compile(FromPolicy(&policy.Policy{Within: []*policy.Bounds{b}}), catalog.Default())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestOutsideAndIdle(t *testing.T) {
	s := limited(t, testPolicy, "grants:\n  - {service: anthropic}\n  - {service: github, operations: [push]}\n  - {http: 'https://docs.example.com/**'}\n  - {service: openai}\n")
	var lines []int
	for _, o := range s.Outside() {
		lines = append(lines, o.Rule.Line)
		if o.By.File != "project.yaml" || o.By.Line != 2 {
			t.Errorf("%+v", o)
		}
	}
	// The CDN, the database, debian, pypi, odd, and the two rules of github without push.
	if want := []int{6, 10, 17, 18, 19, 21, 23}; !slices.Equal(lines, want) {
		t.Errorf("outside: %v, want %v", lines, want)
	}
	if idle := s.Idle(); len(idle) != 1 || idle[0].Rule.Line != 6 {
		t.Errorf("idle: %+v", idle)
	}
}

func TestBothNeeds(t *testing.T) {
	head := func(n int) catalog.HeadFunc {
		return func(b []byte) (bool, error) {
			if bytes.HasPrefix(b, []byte("bad")) {
				return false, errors.New("bad")
			}
			return len(b) >= n, nil
		}
	}
	open := catalog.Need{Stream: catalog.Unlimited}
	if n := bothNeeds(open, catalog.Need{None: true}); !n.None {
		t.Error("a refused body passes")
	}
	if n := bothNeeds(catalog.Need{Whole: 10}, catalog.Need{Whole: 5, Gzip: true}); n.Whole != 5 || !n.Gzip {
		t.Errorf("%+v", n)
	}
	for _, n := range []catalog.Need{bothNeeds(open, catalog.Need{Whole: 10}), bothNeeds(catalog.Need{Whole: 10}, open)} {
		if n.Whole != 10 {
			t.Errorf("%+v", n)
		}
	}
	if n := bothNeeds(catalog.Need{Whole: 10}, catalog.Need{Stream: 3}); n.Whole != 3 {
		t.Errorf("%+v", n)
	}
	if n := bothNeeds(catalog.Need{}, open); n.Reads() || n.Stream != 0 {
		t.Errorf("%+v", n)
	}
	for _, n := range []catalog.Need{bothNeeds(catalog.Need{Head: head(3), HeadMax: 9, Stream: 7}, open), bothNeeds(open, catalog.Need{Head: head(3), HeadMax: 9, Stream: 7})} {
		if n.Head == nil || n.HeadMax != 9 || n.Stream != 7 {
			t.Errorf("%+v", n)
		}
	}
	n := bothNeeds(catalog.Need{Head: head(3), HeadMax: 9, Stream: 7}, catalog.Need{Head: head(5), HeadMax: 6, Stream: 8})
	if done, err := n.Head([]byte("1234")); done || err != nil {
		t.Error("one is not done")
	}
	if done, err := n.Head([]byte("12345")); !done || err != nil {
		t.Error("both are done")
	}
	if _, err := n.Head([]byte("bad")); err == nil {
		t.Error("an error is lost")
	}
}

// TestWithinJudgesLater: parts that come after the decision are put before both.
func TestWithinJudgesLater(t *testing.T) {
	denied := &Refusal{vocabulary.Reason{Code: CodeOperationNotGranted, Message: "no", Rule: vocabulary.Position{File: "project.yaml", Line: 3}}}
	fails := func(bad string) func(io.Reader) io.Reader {
		return func(r io.Reader) io.Reader {
			b, err := io.ReadAll(r)
			if err != nil {
				return errReader{err}
			}
			if strings.Contains(string(b), bad) {
				return errReader{denied}
			}
			return bytes.NewReader(b)
		}
	}
	l := &limit{&Set{limits: true}, "the project's policy", "do"}
	d := Decision{Verdict: vocabulary.Allow, Filter: fails("own"), WebSocket: &WebSocket{MessageLimit: 9, Message: func(b []byte) error {
		if string(b) == "own" {
			return denied
		}
		return nil
	}}}
	d.join(Decision{Filter: fails("limit"), WebSocket: &WebSocket{MessageLimit: 5, Subprotocol: func(n string) bool { return n == "a" }, Message: func(b []byte) error {
		if string(b) == "limit" {
			return denied
		}
		return nil
	}}}, l)
	for text, code := range map[string]string{"fine": "", "own": CodeOperationNotGranted, "limit": CodeNarrowed} {
		_, err := io.ReadAll(d.Filter(strings.NewReader(text)))
		var r *Refusal
		if (err == nil) != (code == "") || err != nil && (!errors.As(err, &r) || r.Reason.Code != code) {
			t.Errorf("filter, %s: %v", text, err)
		}
		err = d.WebSocket.Message([]byte(text))
		if (err == nil) != (code == "") || err != nil && (!errors.As(err, &r) || r.Reason.Code != code) {
			t.Errorf("message, %s: %v", text, err)
		}
	}
	if d.WebSocket.MessageLimit != 5 || !d.WebSocket.Subprotocol("a") || d.WebSocket.Subprotocol("b") {
		t.Errorf("%+v", d.WebSocket)
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// FuzzWithin: what passes within limits passes without them, as the same act.
func FuzzWithin(f *testing.F) {
	for _, limit := range []string{"grants: []\n", "grants: [{service: github}, {service: anthropic, operations: [messages]}]\n", "grants: [{http: 'https://*.example.com/3/**'}, {tcp: 'docs.example.com:443'}]\n"} {
		f.Add(limit, "https", "github.com", uint16(443), "GET", "/acme/widgets/info/refs", []byte(nil))
		f.Add(limit, "https", "docs.example.com", uint16(443), "GET", "/3/a%2Fb", []byte(nil))
		f.Add(limit, "https", "api.anthropic.com", uint16(443), "POST", "/v1/messages", []byte(hello))
	}
	alone := compile(f, parse(f, testPolicy))
	f.Fuzz(func(t *testing.T, limit, scheme, host string, port uint16, method, path string, body []byte) {
		b, err := policy.ParseProject("project.yaml", []byte("version: 1\n"+limit))
		if err != nil || !b.Grants.Given() {
			return
		}
		spec := alone.Spec()
		spec.Within = []Within{fromBounds(b)}
		s, err := Compile(spec, catalog.Default())
		if err != nil {
			return
		}
		h, _ := hostport.ParseHost(host)
		r := catalog.Request{Scheme: scheme, Host: h, Port: hostport.Port(port), Method: method, Path: path, Header: map[string][]string{"Content-Type": {"application/json"}}, Body: body, HasBody: len(body) > 0}
		s.Body(r)
		own, d := alone.Decide(r, identity), s.Decide(r, identity)
		if d.Verdict == vocabulary.Allow && (own.Verdict != vocabulary.Allow || d.Action != own.Action || d.Resource != own.Resource || *d.Permit != *own.Permit || len(b.Grants.Items) == 0) {
			t.Fatalf("%+v\nalone %+v", d, own)
		}
		if d.Verdict != vocabulary.Allow && (d.Permit != nil || d.Swap != nil || d.Reason.Code == "" || d.Reason.Rule.File == "") {
			t.Fatalf("%+v", d)
		}
	})
}
