package capability

import (
	"net/http"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func tokenRequest(method, host, path string) catalog.Request {
	h, err := hostport.ParseHost(host)
	if err != nil {
		panic(err)
	}
	return catalog.Request{Scheme: "https", Host: h, Port: 443, Method: method, Path: path, Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte(`{"grant_type":"authorization_code","code":"attackers"}`)}
}

// A token endpoint is reachable, is asked for its whole body, and never gets a
// permit: the gateway can't dial it.
func TestExchange(t *testing.T) {
	s := compile(t, Spec{Rules: []Rule{
		{Service: "anthropic", Operations: []string{"messages"}, Credential: "claude"},
		{Exchange: "https://platform.claude.com/v1/oauth/token", Credential: "claude", Pos: vocabulary.Position{File: "policy.yaml", Line: 7}},
	}})
	r := tokenRequest("POST", "platform.claude.com", "/v1/oauth/token")
	if d := s.ResolveName(r.Host); d.Verdict != vocabulary.Allow {
		t.Errorf("the name: %+v", d)
	}
	if how, d := s.Connect(hostport.HostPort{Host: r.Host, Port: 443}); how != TreatTLS || d.Permit != nil {
		t.Errorf("the connection: %v %+v", how, d)
	}
	if n := s.Body(r); n.Whole != exchangeBody {
		t.Errorf("%+v", n)
	}
	d := s.Decide(r, identity)
	if d.Verdict != vocabulary.Allow || d.Exchange != "claude" || d.Permit != nil || d.Swap != nil || d.Action != ActionExchange || d.Reason.Rule.Line != 7 {
		t.Errorf("%+v", d)
	}
	for name, other := range map[string]catalog.Request{
		"GET": tokenRequest("GET", "platform.claude.com", "/v1/oauth/token"), "path below": tokenRequest("POST", "platform.claude.com", "/v1/oauth/token/revoke"),
		"other path": tokenRequest("POST", "platform.claude.com", "/"), "other endpoint": tokenRequest("POST", "auth.openai.com", "/oauth/token"),
	} {
		if d := s.Decide(other, identity); d.Exchange != "" || d.Verdict == vocabulary.Allow {
			t.Errorf("%s: %+v", name, d)
		}
	}
	query := r
	query.Query = map[string][]string{"x": {"y"}}
	if d := s.Decide(query, identity); d.Verdict == vocabulary.Allow {
		t.Errorf("with a query: %+v", d)
	}
}

// What a service's operations would allow at a token endpoint is not forwarded:
// the answer would be a real token, inside.
func TestTokensAreNeverForwarded(t *testing.T) {
	s := compile(t, Spec{Rules: []Rule{{Service: "github", Operations: []string{"login", "api-read"}}, {Service: "anthropic", Operations: []string{"token", "login"}}}})
	for _, r := range []catalog.Request{tokenRequest("POST", "github.com", "/login/oauth/access_token"), tokenRequest("POST", "github.com", "/login/device/code"), tokenRequest("POST", "platform.claude.com", "/v1/oauth/token"), tokenRequest("POST", "console.anthropic.com", "/v1/oauth/token")} {
		r.Body = []byte("client_id=178c6fc778ccc68e1d6a&device_code=x&grant_type=urn:ietf:params:oauth:grant-type:device_code")
		r.Header = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
		d := s.Decide(r, identity)
		if d.Verdict == vocabulary.Allow || d.Permit != nil || !strings.Contains(d.Reason.Remedy, "from: {login:") {
			t.Errorf("%s: %+v", r.Host, d)
		}
	}
}

func TestExchangeRulesAreChecked(t *testing.T) {
	for _, r := range []Rule{
		{Exchange: "https://*.claude.com/v1/oauth/token", Credential: "c"}, {Exchange: "http://platform.claude.com/x", Credential: "c"},
		{Exchange: "https://platform.claude.com/**", Credential: "c"}, {Exchange: "https://platform.claude.com/x"}, {Exchange: "https://platform.claude.com/x", HTTP: "https://a.example/**", Credential: "c"},
	} {
		if _, err := Compile(Spec{Rules: []Rule{r}}, catalog.Default()); err == nil {
			t.Errorf("%+v compiles", r)
		}
	}
}
