package capability

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const demoPlaceholder = "demo_placeholderplaceholderplaceholder12345"

var demoIdentity = Identity{Placeholders: map[string]string{"demo": demoPlaceholder, "other": "placeholder-other-other-other-other-other"}}

// forge has a git server besides what the demo service has.
const forge = `service: forge
description: d
hosts: [git.example.net]
bodies:
  push: {kind: git-receive-pack, limit: 1MiB, features: [{at: delete, present: push-delete}]}
operations:
  push:
    allows: A.
    does-not: B.
    resource: "{owner}/{repo}"
    fold-case: true
    needs-resources: true
    match:
      - GET git.example.net/{owner}/{repo}/info/refs?service=git-receive-pack
      - POST git.example.net/{owner}/{repo}/git-receive-pack
    body: push
  push-delete:
    feature-of: [push]
    allows: A.
    does-not: B.
  read:
    allows: A.
    does-not: B.
    resource: "{owner}/{repo}"
    fold-case: true
    match: ["GET git.example.net/{owner}/{repo}/raw/**"]
`

func demoCatalog(t testing.TB) *catalog.Catalog {
	t.Helper()
	data, err := os.ReadFile("../catalog/testdata/engine/demo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := catalog.Load(fstest.MapFS{"demo.yaml": {Data: data}, "forge.yaml": {Data: []byte(forge)}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func demoSet(t testing.TB, rules ...Rule) *Set {
	t.Helper()
	for i := range rules {
		rules[i].Pos = vocabulary.Position{File: "p.yaml", Line: i + 1}
	}
	s, err := Compile(Spec{Rules: rules}, demoCatalog(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func grant(ops string, resources ...string) Rule {
	return Rule{Service: "demo", Operations: strings.Fields(ops), Resources: resources, Credential: "demo"}
}

// outcome is the verdict and what matters of it in one line.
func outcome(d Decision) string {
	if d.Verdict != vocabulary.Allow {
		return fmt.Sprintf("deny %d %s", d.Reason.Rule.Line, d.Reason.Code)
	}
	s := fmt.Sprintf("allow %d %s", d.Reason.Rule.Line, d.Action)
	if d.Swap != nil {
		s += " swap"
	}
	if len(d.Dropped) > 0 {
		s += " -" + strings.Join(d.Dropped, ",-")
	}
	return s
}

func TestDemo(t *testing.T) {
	const key = "X-Api-Key: " + demoPlaceholder
	s := demoSet(t,
		grant("write form live batch"),                                               // 1
		grant("bucket-read", "eu-1/logs", "us-1/*"),                                  // 2
		grant("project", "team/one", "team/sub/*"),                                   // 3
		grant("act.read", "a/b"),                                                     // 4
		grant("act.write", "a/b", "c/*"),                                             // 5
		grant("live-page remove"),                                                    // 6
		grant("item.share"),                                                          // 7
		Rule{HTTP: "https://api.example.com/**", Methods: []string{"GET"}},           // 8
		Rule{HTTP: "https://raw.example.org/**", Methods: []string{"WEBSOCKET"}},     // 9
		grant("post", "general"),                                                     // 10
		Rule{HTTP: "https://raw.example.org/p*/**", Methods: []string{"GET"}},        // 11
		Rule{Service: "demo", Operations: []string{"run"}, Resources: []string{"n"}}, // 12
	)
	for _, c := range []struct {
		want  string
		lines []string
	}{
		{"allow 1 demo.write swap", []string{"POST https://api.example.com/items", key, `{"title":"t"}`}},
		{"deny 1 credential-missing", []string{"POST https://api.example.com/items", `{"title":"t"}`}},
		{"deny 1 operation-not-granted", []string{"POST https://api.example.com/items", key, `{"url":"u"}`}},
		{"allow 1 demo.write swap", []string{"POST https://api.example.com/items", key, `{"deep":{"x":{"type":"share-it"}}}`}},
		// Headers.
		{"allow 1 demo.write swap -X-Other", []string{"POST https://api.example.com/items", key, "X-Other: 1", "X-Demo-A: 1", "Accept: */*", `{}`}},
		{"deny 1 foreign-credential", []string{"POST https://api.example.com/items", key, "X-Other-Token: 1", `{}`}},
		{"deny 1 foreign-credential", []string{"POST https://api.example.com/items", key, "X-Other: ghp_" + strings.Repeat("x", 36), `{}`}},
		{"deny 1 placeholder-misplaced", []string{"POST https://api.example.com/items", "X-Other: " + demoPlaceholder, `{}`}},
		// Query.
		{"deny 1 unknown-operation", []string{"POST https://api.example.com/items?fields=x", key, `{}`}},
		{"deny 1 foreign-credential", []string{"POST https://api.example.com/items?api_key=x", key, `{}`}},
		// Bodies that an operation does not take.
		{"deny 6 bad-request", []string{"DELETE https://api.example.com/items/1", key, `{}`}},
		{"allow 6 demo.remove swap", []string{"DELETE https://api.example.com/items/1", key}},
		{"deny 1 bad-request", []string{"POST https://api.example.com/items", key, `{"title":1,"title":2}`}},
		// Credentials in bodies.
		{"deny 1 foreign-credential", []string{"POST https://api.example.com/items", key, `{"deep":{"x":{"apiKey":"k"}}}`}},
		{"deny 1 placeholder-misplaced", []string{"POST https://api.example.com/items", key, `{"deep":{"x":{"apiKey":"` + demoPlaceholder + `"}}}`}},
		{"allow 1 demo.write swap", []string{"POST https://api.example.com/items", key, `{"text":"` + demoPlaceholder + `"}`}},
		{"allow 1 demo.write", []string{"POST https://api.example.com/items", `{"refresh_token":"` + demoPlaceholder + `"}`}},
		{"deny 1 foreign-credential", []string{"POST https://api.example.com/items", key, `{"refresh_token":"mine"}`}},
		{"deny 1 placeholder-misplaced", []string{"POST https://api.example.com/items", key, `{"refresh_token":"placeholder-other-other-other-other-other"}`}},
		// Host captures.
		{"allow 2 demo.bucket-read swap", []string{"GET https://logs.s3.eu-1.example.com/k", key}},
		{"allow 2 demo.bucket-read swap", []string{"GET https://any.s3.us-1.example.com/k", key}},
		{"deny 2 resource-not-granted", []string{"GET https://other.s3.eu-1.example.com/k", key}},
		{"deny 0 no-grant", []string{"GET https://a.logs.s3.eu-1.example.com/k", key}},
		{"deny 0 no-grant", []string{"GET https://logs.s3.eu-1.example.com:8443/k", key}},
		{"deny 12 credential-missing", []string{"GET https://eu-1-run.example.com/n"}},
		{"deny 0 no-grant", []string{"GET https://eu-9-run.example.com/n"}},
		// Escaped slashes: only for who wants them, never raw.
		{"allow 3 demo.project swap", []string{"GET https://api.example.com/projects/team%2Fone/files/x", key}},
		{"allow 3 demo.project swap", []string{"GET https://api.example.com/projects/team%2Fsub%2Fdeep/files/x", key}},
		{"deny 3 resource-not-granted", []string{"GET https://api.example.com/projects/team%2Fevil/files/x", key}},
		{"deny 0 bad-request", []string{"GET https://api.example.com/projects/team%2Fone/other"}},
		{"deny 0 bad-request", []string{"GET https://raw.example.org/p%2Fx/y"}},
		{"deny 0 bad-request", []string{"GET https://api.example.com/projects/team%2F..%2Fone/files/x", key}},
		{"allow 8 http.request", []string{"GET https://api.example.com/anything/else"}},
		// via: granting a feature grants what carries it, for it alone.
		{"allow 4 demo.act swap", []string{"POST https://api.example.com/act", key, `{"do":"read","repo":"a/b"}`}},
		{"deny 4 resource-not-granted", []string{"POST https://api.example.com/act", key, `{"do":"read","repo":"a/c"}`}},
		{"allow 4 demo.act swap", []string{"POST https://api.example.com/act", key, `{"do":["read","write"],"repo":"a/b"}`}},
		{"deny 4 resource-not-granted", []string{"POST https://api.example.com/act", key, `{"do":["read","write"],"repo":"c/d"}`}},
		{"deny 5 resource-not-granted", []string{"POST https://api.example.com/act", key, `{"do":["write"],"repo":["a/b","d/e"]}`}},
		{"deny 1 operation-not-granted", []string{"POST https://api.example.com/act", key, `{"do":"else","repo":"a/b"}`}},
		{"deny 1 operation-not-granted", []string{"POST https://api.example.com/act", key, `{"repo":"a/b"}`}},
		// The resource in the body.
		{"allow 10 demo.post swap", []string{"POST https://api.example.com/post", key, `{"channel":"General"}`}},
		{"deny 10 resource-not-granted", []string{"POST https://api.example.com/post", key, `{"channel":"random"}`}},
		{"deny 10 resource-not-granted", []string{"POST https://api.example.com/post", key, `{"channel":["general","random"]}`}},
		{"deny 10 resource-not-granted", []string{"POST https://api.example.com/post", key, `{"title":"t"}`}},
		// WebSocket.
		{"allow 1 demo.live swap", []string{"WEBSOCKET https://api.example.com/live", key}},
		{"allow 1 demo.live swap", []string{"WEBSOCKET https://api.example.com/live", "Sec-Websocket-Protocol: demo, demo-key." + demoPlaceholder}},
		{"deny 1 foreign-credential", []string{"WEBSOCKET https://api.example.com/live", "Sec-Websocket-Protocol: demo, demo-key.mine"}},
		{"deny 1 placeholder-misplaced", []string{"WEBSOCKET https://api.example.com/live", "Sec-Websocket-Protocol: demo-key." + demoPlaceholder + ", demo-key." + demoPlaceholder}},
		{"allow 6 demo.live-page", []string{"GET https://api.example.com/live"}},
		{"allow 9 http.request", []string{"WEBSOCKET https://raw.example.org/x"}},
		{"deny 9 method-not-granted", []string{"GET https://raw.example.org/x"}},
		{"deny 11 method-not-granted", []string{"POST https://raw.example.org/p/x"}},
	} {
		r := newRequest(t, c.lines...)
		if _, raw, _ := strings.Cut(c.lines[0], ".com/"); strings.Contains(raw, "%2F") {
			r.Path = "/" + raw
		} else if _, raw, _ := strings.Cut(c.lines[0], ".org/"); strings.Contains(raw, "%2F") {
			r.Path = "/" + raw
		}
		d := s.Decide(r, demoIdentity)
		if c.want == "deny 11 method-not-granted" {
			c.want = "deny 9 method-not-granted" // the first that covers the path
		}
		if got := outcome(d); got != c.want {
			t.Errorf("%q\n got %s: %s\nwant %s", c.lines, got, d.Reason.Message, c.want)
		}
		if need := s.Body(r); need.None && d.Verdict == vocabulary.Allow && r.HasBody {
			t.Errorf("%q: allowed with a body that it does not take", c.lines)
		}
	}
	// The user that goes with a password.
	r := newRequest(t, "POST https://api.example.com/items", basic("evil:"+demoPlaceholder), "{}")
	if d := s.Decide(r, demoIdentity); d.Swap == nil || d.Swap.Slot.User != "demo" || d.Swap.Slot.Scheme != "Basic" {
		t.Errorf("%+v %+v", d.Swap, d.Reason)
	}
}

func TestCapturedNamesReach(t *testing.T) {
	s := demoSet(t, grant("bucket-read", "eu-1/logs"), Rule{Service: "demo", Operations: []string{"run"}})
	for name, want := range map[string]bool{
		"a.s3.eu.example.com": true, "a.b.s3.eu.example.com": false, "s3.eu.example.com": false, "eu-1-run.example.com": true,
		"eu-9-run.example.com": false, "run.example.com": false, "a.s3.eu.example.com.evil.example": false,
	} {
		h, err := hostport.ParseHost(name)
		if err != nil {
			t.Fatal(err)
		}
		treat, d := s.Connect(hostport.HostPort{Host: h, Port: 443})
		if (s.ResolveName(h).Verdict == vocabulary.Allow) != want || (treat == TreatTLS) != want {
			t.Errorf("%s: %v %s", name, treat, d.Reason.Message)
		}
		if treat, _ := s.Connect(hostport.HostPort{Host: h, Port: 80}); treat != TreatRefuse {
			t.Errorf("%s: port 80 is %v", name, treat)
		}
	}
	// Cedar says the same of all rules, whatever the index leaves out.
	for name, want := range map[string]bool{"a.s3.eu.example.com": true, "a.b.s3.eu.example.com": false, "a.s3.eu.x.example.com": false, "a.s3.eu.example.com.evil.example": false, "eu-9-run.example.com": false} {
		h, _ := hostport.ParseHost(name)
		if got := len(ask(slice{rules: s.rules, reach: true}, actResolve, name, reachContext(h, 0))) > 0; got != want {
			t.Errorf("%s: Cedar says %v", name, got)
		}
	}
	empty := demoSet(t)
	h, _ := hostport.ParseHost("a.s3.eu.example.com")
	if d := empty.ResolveName(h); !strings.Contains(d.Reason.Remedy, "service: demo") {
		t.Errorf("no typed remedy: %+v", d.Reason)
	}
}

// push is a git-receive-pack body of "old new ref" lines, with o and n for ids.
func push(lines ...string) []byte {
	ids := strings.NewReplacer("o ", strings.Repeat("0", 40)+" ", "n ", strings.Repeat("1", 40)+" ", "m ", strings.Repeat("2", 40)+" ")
	var b strings.Builder
	for i, l := range lines {
		l = ids.Replace(l)
		if i == 0 {
			l += "\x00report-status delete-refs atomic"
		}
		b.WriteString(pkt(l))
	}
	return []byte(b.String() + "0000PACK")
}

func TestPushRefs(t *testing.T) {
	rule := func(ops string, resources ...string) Rule {
		return Rule{Service: "forge", Operations: strings.Fields(ops), Resources: resources}
	}
	for _, c := range []struct {
		rules []Rule
		lines []string
		want  string
		ref   string // that the message names
	}{
		{[]Rule{rule("push", "a/b@agent/*")}, []string{"o n refs/heads/agent/x"}, "allow 1 forge.push", ""},
		{[]Rule{rule("push", "a/b@agent/*")}, []string{"n m refs/heads/agent/x/y"}, "allow 1 forge.push", ""},
		{[]Rule{rule("push", "a/b@agent/*")}, []string{"o n refs/heads/main"}, "deny 1 resource-not-granted", "refs/heads/main"},
		{[]Rule{rule("push", "a/b@agent/*")}, []string{"o n refs/heads/agent/x", "o n refs/heads/main"}, "deny 1 resource-not-granted", "refs/heads/main"},
		{[]Rule{rule("push", "a/b@agent/*")}, []string{"o n refs/tags/v1"}, "deny 1 resource-not-granted", "refs/tags/v1"},
		{[]Rule{rule("push", "a/b@agent/*", "a/b@refs/tags/v*")}, []string{"o n refs/heads/agent/x", "o n refs/tags/v1"}, "allow 1 forge.push", ""},
		{[]Rule{rule("push", "a/b@agent/*"), rule("push", "a/b@refs/tags/v*")}, []string{"o n refs/heads/agent/x", "o n refs/tags/v1"}, "allow 1 forge.push", ""},
		{[]Rule{rule("push", "A/B")}, []string{"o n refs/heads/main", "o n refs/tags/v1"}, "allow 1 forge.push", ""},
		{[]Rule{rule("push", "a/b")}, []string{"o n refs/notes/x"}, "deny 1 resource-not-granted", "refs/notes/x"},
		{[]Rule{rule("push", "a/*")}, []string{"o n refs/pull/1/head"}, "deny 1 resource-not-granted", "refs/pull/1/head"},
		{[]Rule{rule("push", "a/*@main")}, []string{"o n refs/heads/main"}, "allow 1 forge.push", ""},
		{[]Rule{rule("push", "a/b@MAIN")}, []string{"o n refs/heads/main"}, "deny 1 resource-not-granted", "refs/heads/main"},
		{[]Rule{rule("push", "c/b")}, []string{"o n refs/heads/main"}, "deny 1 resource-not-granted", ""},
		{[]Rule{rule("push", "a/b")}, []string{"n o refs/heads/main"}, "deny 1 operation-not-granted", "push-delete"},
		{[]Rule{rule("push push-delete", "a/b@agent/*")}, []string{"n o refs/heads/agent/x"}, "allow 1 forge.push", ""},
		{[]Rule{rule("push push-delete", "a/b@agent/*")}, []string{"n o refs/heads/main"}, "deny 1 resource-not-granted", "refs/heads/main"},
		{[]Rule{rule("push", "a/b"), rule("push-delete", "a/b@agent/*")}, []string{"n o refs/heads/agent/x"}, "allow 1 forge.push", ""},
		{[]Rule{rule("push-delete", "a/b@agent/*")}, []string{"n o refs/heads/agent/x"}, "deny 1 operation-not-granted", ""},
	} {
		s := demoSet(t, c.rules...)
		r := newRequest(t, "POST https://git.example.net/A/b/git-receive-pack")
		r.Body = push(c.lines...)
		d := s.Decide(r, Identity{})
		if got := outcome(d); got != c.want || !strings.Contains(d.Reason.Message, c.ref) {
			t.Errorf("%v %v: got %s: %s, want %s %s", c.rules[0].Resources, c.lines, got, d.Reason.Message, c.want, c.ref)
		}
		// What git asks first names no ref.
		refs := newRequest(t, "GET https://git.example.net/a/b/info/refs?service=git-receive-pack")
		if got := outcome(s.Decide(refs, Identity{})); (got == "allow 1 forge.push") != (c.rules[0].Resources[0] != "c/b" && slices.Contains(c.rules[0].Operations, "push")) {
			t.Errorf("%v: refs: %s", c.rules[0].Resources, got)
		}
	}
	// Refs belong to operations that know them.
	_, err := Compile(Spec{Rules: []Rule{rule("push read", "a/b@main")}}, demoCatalog(t))
	if err == nil || !strings.Contains(err.Error(), "knows no refs") {
		t.Errorf("%v", err)
	}
	for _, have := range []string{"refs/heads/a*b*c", "refs/heads/*", "refs/heads/x"} {
		for _, ref := range []string{"refs/heads/abc", "refs/heads/abxbc", "refs/heads/ac", "refs/heads/", "refs/heads/x", "refs/heads/abcd", "refs/heads/aXcXbXc"} {
			parts := strings.Split(have, "*")
			want := slowGlobAny(have, ref)
			if got := matchStar(have, ref); got != want {
				t.Errorf("%s on %s (%d): %v", have, ref, len(parts), got)
			}
		}
	}
}

// slowGlobAny is the reference of matchStar, by recursion.
func slowGlobAny(pattern, s string) bool {
	if pattern == "" {
		return s == ""
	}
	if pattern[0] == '*' {
		return slowGlobAny(pattern[1:], s) || s != "" && slowGlobAny(pattern, s[1:])
	}
	return s != "" && s[0] == pattern[0] && slowGlobAny(pattern[1:], s[1:])
}

// TestManyRules: what the index leaves out of many rules would not have
// permitted.
func TestManyRules(t *testing.T) {
	var rules []Rule
	for i := range 40 {
		rules = append(rules,
			Rule{Service: "forge", Operations: []string{"push"}, Resources: []string{fmt.Sprintf("o%d/r@agent/*", i), fmt.Sprintf("P%d/*", i)}},
			Rule{Service: "forge", Operations: []string{"read"}, Resources: []string{fmt.Sprintf("o%d/r", i)}},
			Rule{HTTP: fmt.Sprintf("https://docs.example.com/p%d/**", i)}, Rule{HTTP: fmt.Sprintf("https://docs.example.com/x/p%d/*", i)},
			Rule{HTTP: fmt.Sprintf("https://docs.example.com/*/q%d", i)})
	}
	s := demoSet(t, rules...)
	all := demoSet(t, append(rules, Rule{Service: "forge", Operations: []string{"read"}})...)
	check := func(s *Set, want string, lines ...string) {
		t.Helper()
		r := newRequest(t, lines...)
		if got := outcome(s.Decide(r, Identity{})); got != want {
			t.Errorf("%v: got %s, want %s", lines, got, want)
		}
	}
	for _, i := range []int{0, 7, 39} {
		at := func(n int) string { return fmt.Sprintf("allow %d ", 5*i+n) }
		check(s, at(3)+"http.request", fmt.Sprintf("GET https://docs.example.com/p%d/x/y", i))
		check(s, at(4)+"http.request", fmt.Sprintf("GET https://docs.example.com/x/p%d/y", i))
		check(s, at(5)+"http.request", fmt.Sprintf("GET https://docs.example.com/any/q%d", i))
		check(s, at(2)+"forge.read", fmt.Sprintf("GET https://git.example.net/o%d/R/raw/x", i))
		check(s, at(1)+"forge.push", fmt.Sprintf("POST https://git.example.net/o%d/r/git-receive-pack", i))
		check(s, at(1)+"forge.push", fmt.Sprintf("POST https://git.example.net/p%d/any/git-receive-pack", i))
		check(s, at(1)+"forge.push", fmt.Sprintf("GET https://git.example.net/o%d/r/info/refs?service=git-receive-pack", i))
		check(all, at(2)+"forge.read", fmt.Sprintf("GET https://git.example.net/o%d/r/raw/x", i))
	}
	check(s, "deny 3 no-grant", "GET https://docs.example.com/p40/x")
	check(s, "deny 2 resource-not-granted", "GET https://git.example.net/o40/r/raw/x")
	check(s, "deny 1 resource-not-granted", "POST https://git.example.net/o1/other/git-receive-pack")
	check(all, "allow 201 forge.read", "GET https://git.example.net/o40/r/raw/x")
}

// TestMessages: a WebSocket's messages are judged like bodies, each by itself.
func TestMessages(t *testing.T) {
	r := newRequest(t, "WEBSOCKET https://api.example.com/live", "X-Api-Key: "+demoPlaceholder)
	d := demoSet(t, grant("live")).Decide(r, demoIdentity)
	if d.WebSocket == nil || d.WebSocket.Message == nil || d.WebSocket.MessageLimit != 1<<10 {
		t.Fatalf("%+v", d)
	}
	for msg, code := range map[string]string{
		`{"type":"say","text":"hi"}`:                       "",
		`{"type":"tools"}`:                                 CodeOperationNotGranted,
		`{"type":"new"}`:                                   CodeOperationNotGranted,
		`{"type":"say","api_key":"x"}`:                     CodeForeignCredential,
		`{"type":"say","token":"` + demoPlaceholder + `"}`: CodePlaceholderMisplaced,
		`{"type":"say","text":"` + demoPlaceholder + `"}`:  "",
		`{"type":"say","type":"tools"}`:                    CodeBadRequest,
		"\x00\x01":                                         CodeBadRequest,
		`{"text":"` + strings.Repeat("x", 1<<10) + `"}`:    CodeBadRequest,
	} {
		err := d.WebSocket.Message([]byte(msg))
		var refusal *Refusal
		if got := errors.As(err, &refusal); got != (code != "") || got && (refusal.Reason.Code != code || refusal.Reason.Rule.Line != 1) {
			t.Errorf("%.40q: %v, want %q", msg, err, code)
		}
	}
	if d.WebSocket.Subprotocol("evil") || !d.WebSocket.Subprotocol("demo-v2") {
		t.Error("subprotocols")
	}
	with := demoSet(t, grant("live"), grant("live.tools")).Decide(r, demoIdentity)
	if err := with.WebSocket.Message([]byte(`{"type":"tools"}`)); err != nil {
		t.Error(err)
	}
	// Granted to somebody without the credential: not with it.
	without := demoSet(t, grant("live"), Rule{Service: "demo", Operations: []string{"live.tools"}}).Decide(r, demoIdentity)
	if err := without.WebSocket.Message([]byte(`{"type":"tools"}`)); err == nil {
		t.Error("a feature granted without the credential was used with it")
	}
	raw := demoSet(t, Rule{HTTP: "https://raw.example.org/**", Methods: []string{"WEBSOCKET"}}).Decide(newRequest(t, "WEBSOCKET https://raw.example.org/"), demoIdentity)
	if raw.WebSocket == nil || raw.WebSocket.Message != nil {
		t.Errorf("%+v", raw)
	}
	if d := demoSet(t, Rule{HTTP: "https://raw.example.org/**"}).Decide(newRequest(t, "GET https://raw.example.org/"), demoIdentity); d.WebSocket != nil {
		t.Error("a plain request became a WebSocket")
	}
}

// TestBodyOnItsWay: what stands behind a long file is judged before it passes.
func TestBodyOnItsWay(t *testing.T) {
	part := func(head, value string) string {
		return "--bb\r\nContent-Disposition: form-data; " + head + "\r\n\r\n" + value + "\r\n"
	}
	body := part(`name="purpose"`, "p") + part(`name="file"; filename="f"`, strings.Repeat("x", 5000))
	r := newRequest(t, "POST https://api.example.com/upload", "X-Api-Key: "+demoPlaceholder, "Content-Type: multipart/form-data; boundary=bb")
	r.HasBody = true
	for tail, code := range map[string]string{
		"--bb--": "", part(`name="url"`, "https://evil.example") + "--bb--": CodeOperationNotGranted,
		part(`name="tags[]"`, "ghp_"+strings.Repeat("x", 36)) + "--bb--": CodeForeignCredential,
	} {
		s := demoSet(t, grant("upload"))
		need := s.Body(r)
		if need.Head == nil || !need.End || need.Stream != 1<<20 {
			t.Fatalf("%+v", need)
		}
		r.Body = []byte((body + tail)[:need.HeadMax])
		d := s.Decide(r, demoIdentity)
		if d.Verdict != vocabulary.Allow || d.Filter == nil {
			t.Fatalf("%+v", d)
		}
		out, err := io.ReadAll(d.Filter(strings.NewReader(body + tail)))
		var refusal *Refusal
		if got := errors.As(err, &refusal); got != (code != "") || got && refusal.Reason.Code != code || !got && string(out) != body+tail {
			t.Errorf("%q: %v, %d bytes", tail, err, len(out))
		}
		if strings.Contains(string(out), "evil.example") || strings.Contains(string(out), "ghp_") {
			t.Error("passed before it was judged")
		}
	}
}

// TestMoreIsNeverMore: a request that is denied stays denied, or loses nothing
// of what it says, when headers, query keys or fields are added; and what is
// allowed with them needs no power that it did not need without them.
func TestMoreIsNeverMore(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	all := []string{"write", "item.fetch", "item.share", "item.unlisted", "act", "act.read", "act.write", "act.unlisted", "live-page", "form"}
	parts := []string{`"title":"t"`, `"url":"u"`, `"new":1`, `"deep":{"x":{"type":"share-1"}}`, `"meta":{"a":1}`, `"do":"read"`, `"repo":"a/b"`, `"token":"x"`}
	headers := []string{"X-Other: 1", "X-Demo-A: 1", "Accept: */*", "X-Some-Token: x", "Cookie: a=b", "Authorization: Bearer x", "If-None-Match: x"}
	queries := []string{"page=1", "dry=1", "token=x", "other=1"}
	pick := func(from []string) (out []string) {
		for _, s := range from {
			if rnd.IntN(3) == 0 {
				out = append(out, s)
			}
		}
		return out
	}
	denied := 0
	var s *Set
	for i := range 4000 {
		var rules []Rule
		for _, op := range pick(all) {
			rules = append(rules, grant(op))
			if op == "act.write" {
				rules[len(rules)-1].Resources = []string{"a/b"}
			}
		}
		if i%20 == 0 {
			s = demoSet(t, rules...)
		}
		path := choose(rnd, []string{"items", "act"})
		base := func(q, h, b []string) Decision {
			lines := append([]string{"POST https://api.example.com/" + path + "?" + strings.Join(q, "&"), "X-Api-Key: " + demoPlaceholder}, h...)
			return s.Decide(newRequest(t, append(lines, "{"+strings.Join(b, ",")+"}")...), demoIdentity)
		}
		q, h, b := pick(queries), pick(headers), pick(parts)
		if base(q, h, b).Verdict == vocabulary.Allow {
			continue
		}
		denied++
		for _, more := range headers {
			if !slices.Contains(h, more) && base(q, append(slices.Clone(h), more), b).Verdict == vocabulary.Allow {
				t.Fatalf("%s turned a deny into an allow: %v %v %v", more, q, h, b)
			}
		}
		for _, more := range queries {
			if !slices.Contains(q, more) && base(append(slices.Clone(q), more), h, b).Verdict == vocabulary.Allow {
				t.Fatalf("%s turned a deny into an allow: %v %v %v", more, q, h, b)
			}
		}
		for _, more := range parts {
			// What a request is about, and what it asks to do, it may have to say.
			if strings.HasPrefix(more, `"do"`) || strings.HasPrefix(more, `"repo"`) {
				continue
			}
			if !slices.Contains(b, more) && base(q, h, append(slices.Clone(b), more)).Verdict == vocabulary.Allow {
				t.Fatalf("%s turned a deny into an allow: %v %v %v", more, q, h, b)
			}
		}
	}
	if denied < 500 {
		t.Fatalf("only %d denials: the test proves little", denied)
	}
}
