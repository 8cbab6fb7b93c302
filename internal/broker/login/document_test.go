package login

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
)

func TestEveryDescription(t *testing.T) {
	names := Names(catalogdata.Logins)
	if len(names) != 4 {
		t.Errorf("%q", names)
	}
	for _, n := range names {
		spec(t, n)
	}
	for _, n := range []string{"", "x", "../secrets", "README"} {
		if _, err := Load(catalogdata.Logins, n); err == nil {
			t.Errorf("%q was loaded", n)
		}
	}
}

func TestSplice(t *testing.T) {
	for _, c := range []struct{ doc, place, want string }{
		{`{"a":1,"b":2}`, "a", `{"a":"X","b":2}`},
		{"{\n  \"b\": {\n    \"c\": [1, 2]\n  },\n  \"z\": null\n}\n", "b.d", "{\n  \"b\": {\"d\":\"X\",\n    \"c\": [1, 2]\n  },\n  \"z\": null\n}\n"},
		{`{}`, "a.b", `{"a":{"b":"X"}}`},
		{`{ }`, "a", `{"a":"X" }`},
		{`{"a":null}`, "a.b", `{"a":{"b":"X"}}`},
		{`{"a":1,"a":2}`, "a", `{"a":1,"a":"X"}`},
		{`{"a":12345678901234567890.5,"b":"\u00e9"}`, "b", `{"a":12345678901234567890.5,"b":"X"}`},
	} {
		got, err := splice([]byte(c.doc), strings.Split(c.place, "."), "X")
		if err != nil || string(got) != c.want {
			t.Errorf("%s at %s: %s, %v; want %s", c.doc, c.place, got, err, c.want)
		}
	}
	for _, bad := range []string{``, `[]`, `{`, `{"a":}`, `"x"`, `{"a" 1}`} {
		if got, err := splice([]byte(bad), Place{"a"}, 1); err == nil {
			t.Errorf("%s became %s", bad, got)
		}
	}
}

func FuzzSplice(f *testing.F) {
	for _, s := range []string{`{"a":{"b":1},"c":[{"a":2}]}`, "{\"a\" : 1 }", `{"a":1,"a":{"b":2}}`, `{"\u0061":1}`, `{} x`, `{"a":"\ud800"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		old, err := object(in)
		if err != nil {
			return
		}
		out, err := splice(in, Place{"a", "b"}, "X")
		if err != nil {
			return
		}
		now, err := object(out)
		if err != nil {
			t.Fatalf("%q became %q: %v", in, out, err)
		}
		if text(now, Place{"a", "b"}) != "X" {
			t.Fatalf("%q became %q", in, out)
		}
		delete(old, "a")
		delete(now, "a")
		if !reflect.DeepEqual(old, now) {
			t.Fatalf("%q became %q", in, out)
		}
	})
}

// FuzzStores: whatever the host's files hold, reading them ends, and no token is
// half a token.
func FuzzStores(f *testing.F) {
	f.Add([]byte(`{"claudeAiOauth":{"accessToken":"a","refreshToken":"b","expiresAt":1e12,"scopes":["x"]}}`))
	f.Add([]byte(`{"claudeAiOauth":{"accessToken":"a\nb"}}`))
	f.Add([]byte("github.com:\n  oauth_token: x\n  user: y\n"))
	f.Add([]byte(`{"tokens":{"access_token":"eyJhbGciOiJub25lIn0.eyJleHAiOjF9.x","id_token":"a.b.c"}}`))
	var logins []*Login
	for _, name := range Names(catalogdata.Logins) {
		logins = append(logins, &Login{spec: spec(f, name), host: hostAt("/nonexistent")})
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, l := range logins {
			for _, p := range l.spec.places(l.host) {
				got, err := l.decode(p, in)
				if err == nil && checkToken("token", string(got.access.Reveal())) != nil {
					t.Fatalf("%s: %q", l.spec.Name, in)
				}
			}
		}
	})
}

const (
	openAI = "https://api.openai.com/auth"
)

func codexClaims(account string) map[string]any {
	return map[string]any{"email": account + "@example.com", "sub": "auth0|x", openAI: map[string]any{
		"chatgpt_account_id": "acct-" + account, "chatgpt_user_id": "user-" + account, "chatgpt_plan_type": "pro", "secret_claim": "SECRETCLAIM",
	}}
}

func codexHome(t *testing.T, exp time.Time) Host {
	dir := t.TempDir()
	access := testJWT(map[string]any{"exp": exp.Unix(), openAI: map[string]any{"chatgpt_account_id": "acct-erin"}})
	write(t, filepath.Join(dir, ".codex", "auth.json"), fmt.Sprintf("{\n  \"OPENAI_API_KEY\": null,\n  \"tokens\": {\n    \"id_token\": %q,\n    \"access_token\": %q,\n    \"refresh_token\": \"refresh-0\",\n    \"account_id\": \"acct-erin\"\n  },\n  \"last_refresh\": \"2026-01-01T00:00:00Z\"\n}", testJWT(codexClaims("erin")), access))
	return hostAt(dir)
}

// Codex: the end of a token stands in the token; what is inside decodes like
// the real ones and tells no more than account and plan.
func TestCodex(t *testing.T) {
	e := newEndpoint(t)
	e.claims, e.lifetime = codexClaims, 0
	h := codexHome(t, time.Now().Add(-time.Minute))
	l := open(t, spec(t, "codex"), h, Options{Network: e.network("auth.openai.com")})
	if s := l.State(); s.Account != "erin@example.com" || !s.LoggedIn || !s.Refresh {
		t.Errorf("%+v", s)
	}
	files := l.Files()
	if len(files) != 2 || files[0].Path != "~/.codex/auth.json" || files[1].Path != "~/.codex/config.toml" {
		t.Fatalf("%+v", files)
	}
	inside := string(files[0].Data)
	for _, never := range []string{"REALTOKEN", "refresh-0", "SECRETCLAIM", "erin@example.com", "auth0"} {
		if strings.Contains(inside, never) {
			t.Errorf("%s is inside: %s", never, inside)
		}
	}
	var doc struct {
		Key    any    `json:"OPENAI_API_KEY"`
		Mode   string `json:"auth_mode"`
		Tokens struct {
			ID, Access, Refresh, Account string
		} `json:"-"`
		Raw  map[string]string `json:"tokens"`
		Last time.Time         `json:"last_refresh"`
	}
	if err := json.Unmarshal(files[0].Data, &doc); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"id_token", "access_token"} {
		c := claims(doc.Raw[name])
		auth, _ := c[openAI].(map[string]any)
		if auth["chatgpt_account_id"] != "acct-erin" || auth["chatgpt_plan_type"] != "pro" || auth["secret_claim"] != nil || c["email"] != nil {
			t.Errorf("%s: %v", name, c)
		}
		if time.Until(expiryOf(doc.Raw[name])) < 300*24*time.Hour {
			t.Errorf("%s ends at %v", name, expiryOf(doc.Raw[name]))
		}
	}
	if doc.Raw["account_id"] != "acct-erin" || doc.Raw["access_token"] != l.Placeholder() || time.Since(doc.Last) > time.Minute {
		t.Errorf("%+v", doc)
	}
	if got := token(t, l); got != "access-erin-1-REALTOKEN" {
		t.Error(got)
	}
	after := read(t, filepath.Join(h.Home, ".codex", "auth.json"))
	if !strings.Contains(after, "refresh-erin-1-REALTOKEN") || !strings.Contains(after, `"account_id": "acct-erin"`) || strings.Contains(after, "2026-01-01") {
		t.Error(after)
	}
	// auth.openai.com says it in its own way.
	e.broken = refusedByOpenAI
	l2 := open(t, spec(t, "codex"), codexHome(t, time.Now().Add(-time.Minute)), Options{Network: e.network("auth.openai.com")})
	if _, err := l2.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "refresh_token_reused") || !strings.Contains(err.Error(), "codex login") {
		t.Errorf("%v", err)
	}
}

// Gemini CLI: a form with the program's public client secret, no rotation.
func TestGemini(t *testing.T) {
	e := newEndpoint(t)
	e.rotate = false
	e.claims = func(a string) map[string]any { return map[string]any{"sub": "1" + a, "email": a + "@example.com"} }
	dir := t.TempDir()
	write(t, filepath.Join(dir, ".gemini", "oauth_creds.json"), fmt.Sprintf(`{"access_token":"ya29.old-REALTOKEN","refresh_token":"refresh-0","scope":"openid https://www.googleapis.com/auth/cloud-platform","token_type":"Bearer","id_token":%q,"expiry_date":%d}`,
		testJWT(e.claims("erin")), time.Now().Add(-time.Hour).UnixMilli()))
	l := open(t, spec(t, "gemini"), hostAt(dir), Options{Network: e.network("oauth2.googleapis.com")})
	if got := token(t, l); got != "access-erin-1-REALTOKEN" {
		t.Error(got)
	}
	if r := e.requests[0]; r.Get("client_secret") == "" || r.Get("refresh_token") != "refresh-0" || !strings.Contains(e.raw[0], "x-www-form-urlencoded") {
		t.Errorf("%v", e.raw)
	}
	after := read(t, filepath.Join(dir, ".gemini", "oauth_creds.json"))
	if !strings.Contains(after, `"refresh_token":"refresh-0"`) || !strings.Contains(after, "access-erin-1-REALTOKEN") {
		t.Error(after)
	}
	inside := string(l.Files()[0].Data)
	if strings.Contains(inside, "REALTOKEN") || !strings.Contains(inside, `"token_type": "Bearer"`) || !strings.Contains(inside, "cloud-platform") {
		t.Error(inside)
	}
	if l.Env()["GOOGLE_GENAI_USE_GCA"] != "true" {
		t.Errorf("%v", l.Env())
	}
}

// The keyring holds GitHub CLI's token and Codex's file.
func TestKeyring(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, ".config", "gh", "hosts.yml"), "github.com:\n    users:\n        erin:\n    user: erin\n")
	ring := map[string]string{"gh:github.com/": "gho_keyring-REALTOKEN"}
	h := hostAt(dir)
	h.Keyring = func(_ ctx, service, user string) (string, error) { return ring[service+"/"+user], nil }
	h.Store = func(_ ctx, service, user, v string) error { ring[service+"/"+user] = v; return nil }
	l := open(t, spec(t, "gh"), h, Options{})
	if token(t, l) != "gho_keyring-REALTOKEN" || l.State().Account != "erin" || l.Env()["GH_TOKEN"] != l.Placeholder() || !strings.HasPrefix(l.Placeholder(), "gho_") {
		t.Errorf("%+v %v", l.State(), l.Env())
	}
	e := newEndpoint(t)
	e.claims, e.lifetime = codexClaims, 0
	ch := codexHome(t, time.Now().Add(-time.Hour))
	file := filepath.Join(ch.Home, ".codex", "auth.json")
	key := ""
	for _, p := range spec(t, "codex").places(ch) {
		if p.Keyring != "" {
			key = p.Keyring + "/" + p.User
		}
	}
	if !strings.HasPrefix(key, "Codex Auth/cli|") || len(key) != len("Codex Auth/cli|")+16 {
		t.Fatal(key)
	}
	ring[key] = read(t, file)
	write(t, file, "{}")
	ch.Keyring, ch.Store = h.Keyring, h.Store
	c := open(t, spec(t, "codex"), ch, Options{Network: e.network("auth.openai.com")})
	if token(t, c) != "access-erin-1-REALTOKEN" || !strings.Contains(ring[key], "refresh-erin-1-REALTOKEN") {
		t.Errorf("%s", ring[key])
	}
}

func TestPlaceholdersAreUnique(t *testing.T) {
	h := home(t, "a-REALTOKEN", "b-REALTOKEN", time.Now().Add(time.Hour))
	seen := map[string]bool{}
	for range 3 {
		l, err := Open(t.Context(), spec(t, "claude-code"), h, Options{}, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		for what, p := range l.Placeholders() {
			if seen[p] || len(p) < 60 {
				t.Errorf("%s %s", what, p)
			}
			seen[p] = true
		}
		data := string(l.Files()[0].Data)
		if strings.Contains(data, "REALTOKEN") || !strings.Contains(data, `"subscriptionType": "max"`) || strings.Contains(data, "mcpOAuth") {
			t.Error(data)
		}
	}
}
