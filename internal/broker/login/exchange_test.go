package login

import (
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const claudeEndpoint = "https://platform.claude.com/v1/oauth/token"

func post(t testing.TB, l *Login, to string, fields map[string]string) (int, map[string]any, Outcome) {
	t.Helper()
	b, _ := json.Marshal(fields)
	r, o := l.Exchange(t.Context(), Request{URL: to, ContentType: "application/json; charset=utf-8", Body: b})
	return decodeReply(t, r, o)
}

func postForm(t testing.TB, l *Login, to string, fields map[string]string) (int, map[string]any, Outcome) {
	t.Helper()
	v := url.Values{}
	for k, s := range fields {
		v.Set(k, s)
	}
	r, o := l.Exchange(t.Context(), Request{URL: to, ContentType: "application/x-www-form-urlencoded", Body: []byte(v.Encode())})
	return decodeReply(t, r, o)
}

func decodeReply(t testing.TB, r Reply, o Outcome) (int, map[string]any, Outcome) {
	t.Helper()
	if s := string(r.Body) + fmt.Sprintf("%+v", o); strings.Contains(s, "REALTOKEN") || strings.Contains(s, "device-real") || strings.Contains(s, "secret-in-the-description") {
		t.Errorf("a real secret is in the answer or the event: %s", s)
	}
	var m map[string]any
	if err := json.Unmarshal(r.Body, &m); err != nil {
		t.Fatalf("%s: %v", r.Body, err)
	}
	return r.Status, m, o
}

// The sandbox's own refresh is answered with its placeholders; the real one is
// made newer on the host, at most once a minute.
func TestSandboxRefreshes(t *testing.T) {
	e := newEndpoint(t)
	h := home(t, "old-REALTOKEN", "refresh-0", time.Now().Add(time.Hour))
	var c clock
	l := open(t, spec(t, "claude-code"), h, Options{Network: e.network(claudeHost), Now: c.now})
	ask := map[string]string{"grant_type": "refresh_token", "refresh_token": l.refreshPH, "client_id": "9d1c250a-e61b-44d9-88ed-5944d1962f5e", "scope": "user:inference"}
	for range 5 {
		status, m, o := post(t, l, claudeEndpoint, ask)
		if status != 200 || m["access_token"] != l.accessPH || m["refresh_token"] != l.refreshPH || m["scope"] == "" || m["expires_in"].(float64) < 3600 || !o.Allowed {
			t.Fatalf("%d %v %+v", status, m, o)
		}
	}
	if e.count() != 1 || token(t, l) != "access-erin-1-REALTOKEN" {
		t.Errorf("%d refreshes", e.count())
	}
	c.advance(2 * time.Minute)
	post(t, l, claudeEndpoint, ask)
	if e.count() != 2 {
		t.Errorf("%d refreshes after two minutes", e.count())
	}
	// The endpoint refuses: so is the sandbox told, in OAuth's words.
	e.mu.Lock()
	e.refresh = "x"
	e.mu.Unlock()
	c.advance(2 * time.Hour)
	status, m, o := post(t, l, claudeEndpoint, ask)
	if status != 400 || m["error"] != "invalid_grant" || o.Allowed || !strings.Contains(m["error_description"].(string), "log in again on the host") {
		t.Errorf("%d %v %+v", status, m, o)
	}
}

// Nothing of the sandbox's reaches an endpoint unless it is allowed.
func TestSandboxMayNot(t *testing.T) {
	e := newEndpoint(t)
	e.codes["evil-code"] = "mallory"
	l := open(t, spec(t, "claude-code"), home(t, "old-REALTOKEN", "refresh-0", time.Now().Add(time.Hour)), Options{Network: e.network(claudeHost)})
	for name, fields := range map[string]map[string]string{
		"another refresh token": {"grant_type": "refresh_token", "refresh_token": "sk-ant-ort01-attackers"},
		"no refresh token":      {"grant_type": "refresh_token"},
		"access placeholder":    {"grant_type": "refresh_token", "refresh_token": l.accessPH},
		"a login":               {"grant_type": "authorization_code", "code": "evil-code", "code_verifier": "v", "redirect_uri": "http://localhost:1/callback"},
		"a device login":        {"grant_type": deviceCode, "device_code": "evil-code"},
		"another client":        {"grant_type": "refresh_token", "refresh_token": l.refreshPH, "client_id": "59637612-477b-4836-a601-b0589eda7704"},
		"token exchange":        {"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token": "x"},
		"password":              {"grant_type": "password", "username": "a", "password": "b"},
		"client credentials":    {"grant_type": "client_credentials"},
		"nothing":               {},
	} {
		status, m, o := post(t, l, claudeEndpoint, fields)
		if status < 400 || o.Allowed || m["access_token"] != nil || o.Action == "" {
			t.Errorf("%s: %d %v %+v", name, status, m, o)
		}
	}
	for name, req := range map[string]Request{
		"field twice":     {ContentType: "application/json", Body: []byte(`{"grant_type":"refresh_token","grant_type":"authorization_code"}`)},
		"form twice":      {ContentType: "application/x-www-form-urlencoded", Body: []byte("grant_type=refresh_token&grant_type=x")},
		"two objects":     {ContentType: "application/json", Body: []byte(`{} {}`)},
		"nested":          {ContentType: "application/json", Body: []byte(`{"grant_type":{"a":"b"}}`)},
		"list":            {ContentType: "application/json", Body: []byte(`[]`)},
		"wrong type":      {ContentType: "text/plain", Body: []byte(`grant_type=refresh_token`)},
		"no type":         {Body: []byte(`{}`)},
		"too long":        {ContentType: "application/json", Body: []byte(`{"x":"` + strings.Repeat("y", 40<<10) + `"}`)},
		"too many fields": {ContentType: "application/x-www-form-urlencoded", Body: []byte(manyFields())},
	} {
		req.URL = claudeEndpoint
		r, o := l.Exchange(t.Context(), req)
		if r.Status != 400 || o.Allowed {
			t.Errorf("%s: %d %+v", name, r.Status, o)
		}
	}
	if len(e.raw) != 0 {
		t.Errorf("the endpoint was asked: %q", e.raw)
	}
	if token(t, l) != "old-REALTOKEN" {
		t.Error("the login was replaced")
	}
}

func manyFields() string {
	var b strings.Builder
	for i := range 100 {
		fmt.Fprintf(&b, "f%d=x&", i)
	}
	return b.String()
}

func codeFor(code string) map[string]string {
	return map[string]string{"grant_type": "authorization_code", "code": code, "code_verifier": "verifier", "redirect_uri": "http://localhost:5/callback", "state": "s", "client_id": "9d1c250a-e61b-44d9-88ed-5944d1962f5e", "smuggled": "x"}
}

// A login begun inside counts only for the account that is known; an
// attacker's own code does not log the sandbox in to the attacker's account.
func TestLoginInside(t *testing.T) {
	e := newEndpoint(t)
	h := home(t, "old-REALTOKEN", "refresh-0", time.Now().Add(time.Hour))
	l := open(t, spec(t, "claude-code"), h, Options{Network: e.network(claudeHost), AllowLogin: true})
	e.codes["evil"], e.codes["good"], e.codes["colleague"] = "mallory", "erin", "mallory"

	status, m, o := post(t, l, claudeEndpoint, codeFor("evil"))
	if status != 403 || o.Allowed || o.Code != "account-mismatch" || o.Attrs["account"] != "mallory@example.com" || o.Attrs["known"] != "erin@example.com" || m["access_token"] != nil {
		t.Fatalf("%d %v %+v", status, m, o)
	}
	if token(t, l) != "old-REALTOKEN" || strings.Contains(read(t, filepath.Join(h.Home, ".claude", ".credentials.json")), "mallory") {
		t.Fatal("the sandbox was logged in to the attacker's account")
	}
	status, m, o = post(t, l, claudeEndpoint, codeFor("good"))
	if status != 200 || !o.Allowed || o.Action != "credential.login" || m["access_token"] != l.accessPH || m["refresh_token"] != l.refreshPH || o.Attrs["account"] != "erin@example.com" {
		t.Fatalf("%d %v %+v", status, m, o)
	}
	if token(t, l) != "access-erin-2-REALTOKEN" || !strings.Contains(read(t, filepath.Join(h.Home, ".claude", ".credentials.json")), "refresh-erin-2-REALTOKEN") {
		t.Error("the login is not the host's")
	}
	sent := e.requests[len(e.requests)-1]
	if sent.Get("code_verifier") != "verifier" || sent.Get("state") != "s" || sent.Get("smuggled") != "" {
		t.Errorf("sent %v", sent)
	}
	// A code that the endpoint refuses.
	if status, m, o = post(t, l, claudeEndpoint, codeFor("good")); status != 400 || m["error"] != "invalid_grant" || o.Allowed {
		t.Errorf("%d %v %+v", status, m, o)
	}
	// Another organisation is another account.
	e.broken = nil
	if (Account{ID: []string{"uuid-erin", "org-erin"}}).same(Account{ID: []string{"uuid-erin", "org-mallory"}}) {
		t.Error("the attacker's organisation counts as the user's")
	}
	for _, code := range []string{"", "a b", "a\nb", strings.Repeat("x", 5000)} {
		n := e.count()
		if status, _, _ = post(t, l, claudeEndpoint, codeFor(code)); status != 400 || e.count() != n {
			t.Errorf("code %.10q: %d", code, status)
		}
	}
}

// Without any login on the host the policy has to name the account; nothing is
// taken on first use.
func TestFirstLoginInside(t *testing.T) {
	e := newEndpoint(t)
	e.codes["evil"], e.codes["good"] = "mallory", "erin"
	dir := t.TempDir()
	if _, err := Open(t.Context(), spec(t, "claude-code"), hostAt(dir), Options{AllowLogin: true}, zeros{}); err == nil {
		t.Fatal("a first login without a named account was prepared")
	}
	l := open(t, spec(t, "claude-code"), hostAt(dir), Options{Network: e.network(claudeHost), AllowLogin: true, Account: "erin@example.com"})
	if len(l.Files()) != 0 || l.State().LoggedIn {
		t.Error("the program would think that it is logged in")
	}
	if _, err := l.Token(t.Context()); err == nil {
		t.Error("a token from nowhere")
	}
	if status, _, o := post(t, l, claudeEndpoint, codeFor("evil")); status != 403 || o.Code != "account-mismatch" {
		t.Errorf("%d %+v", status, o)
	}
	if status, _, o := post(t, l, claudeEndpoint, codeFor("good")); status != 200 || !o.Allowed {
		t.Fatalf("%d %+v", status, o)
	}
	if token(t, l) != "access-erin-2-REALTOKEN" {
		t.Error(token(t, l))
	}
	if got := read(t, filepath.Join(dir, ".claude", ".credentials.json")); !strings.Contains(got, `"refreshToken":"refresh-erin-2-REALTOKEN"`) || !strings.Contains(got, `"scopes":["user:profile","user:inference"]`) {
		t.Error(got)
	}
}

// GitHub's device flow: the device code stays on the host, because it is as
// good as the token.
func TestDeviceFlow(t *testing.T) {
	e := newEndpoint(t)
	e.lifetime, e.rotate, e.pending = 0, false, 2
	dir := t.TempDir()
	hosts := filepath.Join(dir, ".config", "gh", "hosts.yml")
	write(t, hosts, "github.com:\n    git_protocol: ssh\n    users:\n        erin:\n            oauth_token: gho_old-REALTOKEN\n    oauth_token: gho_old-REALTOKEN\n    user: erin\nghe.corp.example:\n    oauth_token: other\n")
	l := open(t, spec(t, "gh"), hostAt(dir), Options{Network: e.network("github.com", "api.github.com"), AllowLogin: true})
	if token(t, l) != "gho_old-REALTOKEN" {
		t.Error("the token of hosts.yml is not used")
	}
	client := map[string]string{"client_id": "178c6fc778ccc68e1d6a", "scope": "admin:org delete_repo"}
	status, m, o := postForm(t, l, "https://github.com/login/device/code", client)
	if status != 200 || m["user_code"] != "ABCD-1234" || m["device_code"] != l.devicePH || !o.Allowed {
		t.Fatalf("%d %v %+v", status, m, o)
	}
	if got := e.requests[0].Get("scope"); got != "repo read:org gist" {
		t.Errorf("asked for %q", got)
	}
	poll := map[string]string{"client_id": "178c6fc778ccc68e1d6a", "device_code": l.devicePH, "grant_type": deviceCode}
	for range 2 {
		if status, m, o = postForm(t, l, "https://github.com/login/oauth/access_token", poll); status != 200 || m["error"] != "authorization_pending" || o.Action != "" {
			t.Fatalf("%d %v %+v", status, m, o)
		}
	}
	if status, _, _ := postForm(t, l, "https://github.com/login/oauth/access_token", map[string]string{"device_code": "device-real", "grant_type": deviceCode}); status != 400 {
		t.Errorf("a device code that was not handed out: %d", status)
	}
	status, m, o = postForm(t, l, "https://github.com/login/oauth/access_token", poll)
	if status != 200 || m["access_token"] != l.accessPH || o.Attrs["account"] != "erin" || !o.Allowed {
		t.Fatalf("%d %v %+v", status, m, o)
	}
	got := read(t, hosts)
	if strings.Contains(got, "gho_old") || strings.Count(got, "access-erin-1-REALTOKEN") != 2 || !strings.Contains(got, "git_protocol: ssh") || !strings.Contains(got, "ghe.corp.example") {
		t.Error(got)
	}
	// The attacker agrees to the code with his own account.
	e.mu.Lock()
	e.account = "mallory"
	e.mu.Unlock()
	postForm(t, l, "https://github.com/login/device/code", client)
	if status, _, o := postForm(t, l, "https://github.com/login/oauth/access_token", poll); status != 403 || o.Code != "account-mismatch" || o.Attrs["account"] != "mallory" {
		t.Errorf("%d %+v", status, o)
	}
	if token(t, l) != "access-erin-1-REALTOKEN" {
		t.Error("the identity was replaced")
	}
}

func FuzzParseFields(f *testing.F) {
	f.Add("application/json", []byte(`{"grant_type":"refresh_token","refresh_token":"x","expires_in":3}`))
	f.Add("application/json", []byte(`{"a":"b","a":"c"}`))
	f.Add("application/json", []byte(`{"a":[1,{"b":null}]} x`))
	f.Add("application/x-www-form-urlencoded", []byte("grant_type=refresh_token&a=%zz"))
	f.Add("application/x-www-form-urlencoded", []byte("a=1;b=2&c"))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		m, err := parseFields(contentType, body)
		if err != nil {
			return
		}
		if len(m) > maxFields || len(body) > maxRequest {
			t.Fatal("not bounded")
		}
		// Whoever reads the same bytes sees the same fields.
		if strings.HasPrefix(contentType, "application/json") {
			var again map[string]any
			if json.Unmarshal(body, &again) != nil || len(again) != len(m) {
				t.Fatalf("%q: %v", body, m)
			}
			for k, v := range again {
				if s, ok := v.(string); ok && m[k] != s {
					t.Fatalf("%q: %q is %q and %q", body, k, m[k], s)
				}
			}
		}
	})
}
