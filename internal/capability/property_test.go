package capability

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// pool holds rules that can stand in one set together.
func pool() []Rule {
	rules := []Rule{
		{Service: "anthropic", Operations: []string{"messages"}, Credential: "claude"},
		{Service: "anthropic", Operations: []string{"messages", "messages.mcp"}},
		{Service: "anthropic", Operations: []string{"files", "models"}, Credential: "claude"},
		{Service: "github", Operations: []string{"fetch", "api-read"}, Resources: []string{"acme/widgets"}, Credential: "gh"},
		{Service: "github", Operations: []string{"fetch"}, Resources: []string{"acme/*"}},
		{Service: "github", Operations: []string{"fetch"}},
		{Service: "github", Operations: []string{"push"}, Resources: []string{"acme/widgets"}, Credential: "gh"},
		{HTTP: "https://docs.example.com/3/**", Methods: []string{"GET"}},
		{HTTP: "https://docs.example.com/3/x", Methods: []string{"GET", "POST"}, Credential: "docs"},
		{HTTP: "https://docs.example.com/**", Methods: []string{"POST"}, Credential: "odd", Header: "x-odd"},
		{HTTP: "https://*.example.com/3/*"},
		{HTTP: "https://api.github.com/repos/acme/**", Methods: []string{"GET", "POST"}, Credential: "gh"},
		{HTTP: "https://api.anthropic.com/v1/models"},
		{TCP: "db.example.com:5432"},
	}
	for i := range rules {
		rules[i].Pos = vocabulary.Position{File: "pool.yaml", Line: i + 1}
	}
	return rules
}

func choose[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// anyRequest is near to what the pool grants, so that both verdicts occur.
func anyRequest(r *rand.Rand) catalog.Request {
	q := catalog.Request{Scheme: choose(r, []string{"https", "https", "https", "http"}), Port: choose(r, []hostport.Port{443, 443, 443, 80, 5432}), Method: choose(r, []string{"GET", "POST", "PUT"}), Header: http.Header{}, Query: url.Values{}}
	q.Host, _ = hostport.ParseHost(choose(r, []string{"api.anthropic.com", "github.com", "api.github.com", "docs.example.com", "www.example.com", "example.com", "db.example.com"}))
	q.Path = choose(r, []string{"/v1/messages", "/v1/models", "/v1/files", "/acme/widgets/info/refs", "/acme/other/git-upload-pack", "/acme/widgets/git-receive-pack", "/repos/acme/widgets", "/repos/acme/widgets/issues", "/3/x", "/3/", "/3", "/3/x/y", "/", "/3/../x"})
	if near := map[string][]string{
		"api.anthropic.com": {"/v1/messages", "/v1/models"}, "github.com": {"/acme/widgets/info/refs", "/acme/widgets/git-receive-pack"},
		"api.github.com": {"/repos/acme/widgets"}, "docs.example.com": {"/3/x"},
	}[q.Host.String()]; near != nil && r.IntN(3) > 0 {
		q.Path = choose(r, near)
	}
	if strings.HasSuffix(q.Path, "refs") {
		q.Query.Set("service", choose(r, []string{"git-upload-pack", "git-receive-pack", "x"}))
	}
	if q.Path == "/v1/messages" {
		q.Header.Set("Content-Type", "application/json")
		q.Body = []byte(choose(r, []string{hello, `{"model":"c","mcp_servers":[{}]}`, `{"zzz":1}`, "x"}))
	}
	for range r.IntN(3) {
		value := choose(r, []string{claudePlaceholder, githubPlaceholder, docsPlaceholder, identity.Placeholders["odd"], foreignKey})
		header := choose(r, []string{"X-Api-Key", "Authorization", "X-Odd", "User-Agent"})
		if header == "Authorization" {
			value = "Bearer " + value
		}
		q.Header.Add(header, value)
	}
	return q
}

// TestMonotone: a rule that is added never takes an allow away, and one that
// is removed never gives one, for names, connections and requests. So there is
// no order of rules and no combination that means more than its parts.
func TestMonotone(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	all := pool()
	allows := 0
	for range 300 {
		var rules []Rule
		for _, rule := range all {
			if r.IntN(2) == 0 {
				rules = append(rules, rule)
			}
		}
		r.Shuffle(len(rules), func(i, j int) { rules[i], rules[j] = rules[j], rules[i] })
		whole := compile(t, Spec{Rules: rules})
		kept := map[int]bool{}
		part := whole.Attenuate(func(rule Rule) bool {
			kept[rule.Pos.Line] = r.IntN(2) == 0
			return kept[rule.Pos.Line]
		})
		var again []Rule
		for _, rule := range rules {
			if kept[rule.Pos.Line] {
				again = append(again, rule)
			}
		}
		fresh := compile(t, Spec{Rules: again})
		for range 60 {
			q := anyRequest(r)
			a, b, c := part.Decide(q, identity), whole.Decide(q, identity), fresh.Decide(q, identity)
			if a.Verdict == vocabulary.Allow {
				allows++
				if b.Verdict != vocabulary.Allow {
					t.Fatalf("adding a rule denied %s %s%s: %+v", q.Method, q.Host, q.Path, b.Reason)
				}
				if (a.Swap == nil) != (b.Swap == nil) || a.Swap != nil && *a.Swap != *b.Swap {
					t.Fatalf("adding a rule changed the credential: %+v, %+v", a.Swap, b.Swap)
				}
			}
			if a.Verdict != c.Verdict || a.Reason != c.Reason {
				t.Fatalf("attenuated and compiled differ: %+v, %+v", a.Reason, c.Reason)
			}
			if part.ResolveName(q.Host).Verdict == vocabulary.Allow && whole.ResolveName(q.Host).Verdict != vocabulary.Allow {
				t.Fatal("adding a rule took a name away")
			}
			hp := hostport.HostPort{Host: q.Host, Port: q.Port}
			ta, _ := part.Connect(hp)
			tb, _ := whole.Connect(hp)
			if ta != TreatRefuse && ta != tb {
				t.Fatal("adding a rule changed a connection")
			}
		}
	}
	if allows < 100 {
		t.Fatalf("only %d of the questions were allowed: the test proves little", allows)
	}
}

// TestOnlyTheSessionsCredential is the rule of the boundary as one property:
// whatever is allowed carries nothing that looks like a credential, but the
// placeholder that the decision swaps.
func TestOnlyTheSessionsCredential(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	s := compile(t, Spec{Rules: pool()})
	swaps := 0
	for range 60000 {
		q := anyRequest(r)
		d := s.Decide(q, identity)
		if d.Verdict != vocabulary.Allow {
			continue
		}
		if d.Swap != nil {
			swaps++
			values := q.Header.Values(d.Swap.Slot.Header)
			if len(values) != 1 || !strings.HasSuffix(values[0], identity.Placeholders[d.Swap.Credential]) {
				t.Fatalf("swap %+v of %q", d.Swap, values)
			}
			q.Header.Del(d.Swap.Slot.Header)
		}
		if found := catalog.Credentials(q); len(found) > 0 {
			t.Fatalf("allowed with %v", found[0].Slot)
		}
		for _, p := range identity.Placeholders {
			if p != "" && strings.Contains(fmt.Sprint(q.Header, q.Query, q.Path), p) {
				t.Fatalf("allowed with a placeholder besides the slot: %v", q.Header)
			}
		}
	}
	if swaps < 90 {
		t.Fatalf("only %d swaps: the test proves little", swaps)
	}
}

// TestExplainAgrees: the words of Explain come from comparing in Go, the
// verdict from Cedar. Some rule matches exactly when the verdict is allow.
func TestExplainAgrees(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	s := compile(t, Spec{Rules: pool()})
	allows := 0
	for range 3000 {
		q := anyRequest(r)
		raw := fmt.Sprintf("%s://%s:%d%s?%s", q.Scheme, q.Host, q.Port, q.Path, q.Query.Encode())
		x, err := s.Explain(q.Method, raw)
		if err != nil {
			t.Fatal(err)
		}
		matches := false
		for _, e := range x.Rules {
			matches = matches || e.Matches
		}
		if matches != (x.Decision.Verdict == vocabulary.Allow) {
			t.Fatalf("%s %s\n%s", q.Method, raw, x)
		}
		if matches {
			allows++
		}
	}
	if allows < 50 {
		t.Fatalf("only %d allowed", allows)
	}
}

func TestExplain(t *testing.T) {
	s := compile(t, parse(t, testPolicy))
	x, err := s.Explain("POST", "https://docs.example.com/3/x")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"deny  http.request  https://docs.example.com/3/x\n", "(method-not-granted, policy.yaml:12:5)", "to allow it: add POST",
		"rule policy.yaml:3:5: another host\n", "rule policy.yaml:12:5: host and path match, method not granted\n", "rule policy.yaml:14:5: host matches, path not granted\n",
	} {
		if !strings.Contains(x.String(), want) {
			t.Errorf("no %q in\n%s", want, x)
		}
	}
	x, _ = s.Explain("POST", "https://api.anthropic.com/v1/messages")
	if x.Decision.Verdict != vocabulary.Allow || len(x.Notes) != 1 || !strings.Contains(x.String(), "rule policy.yaml:3:5: matches: messages\n") {
		t.Errorf("%s", x)
	}
	x, _ = s.Explain("CONNECT", "tcp://db.corp.example:5432")
	if x.Decision.Verdict != vocabulary.Allow || !strings.Contains(x.String(), "rule policy.yaml:18:5: matches, as opaque tcp") {
		t.Errorf("%s", x)
	}
	for _, bad := range []string{"", "x", "ftp://a.example/", "https://u:p@a.example/", "https:///x", "https://a.example:0/", "tcp://a.example", "https://a.example/?%zz", "https://a_b.example/\x00"} {
		if _, err := s.Explain("GET", bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}
