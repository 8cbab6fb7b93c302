package agents

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/redteam"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/modelstub"
)

// provider stands in for the services of one vendor: its token endpoint, which
// rotates refresh tokens, and its API, which takes nothing but the real token.
type provider struct {
	*httptest.Server
	api func(w http.ResponseWriter, r *http.Request, body []byte)

	mu      sync.Mutex
	seen    []string
	refresh string
	access  string // what a refresh gives
	id      string
}

func startProvider(t *testing.T, access, id string, hosts []string, api func(http.ResponseWriter, *http.Request, []byte)) (*provider, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, DNSNames: hosts}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{api: api, access: access, id: id, refresh: "REALTOKEN-refresh-0"}
	p.Server = httptest.NewUnstartedServer(p)
	p.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	p.StartTLS()
	t.Cleanup(p.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	return p, ca
}

func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 8<<20))
	p.mu.Lock()
	p.seen = append(p.seen, r.Method+" "+r.Host+r.URL.Path)
	p.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if strings.HasSuffix(r.URL.Path, "/token") && r.Method == http.MethodPost {
		f := map[string]string{}
		if json.Unmarshal(body, &f) != nil {
			v, _ := url.ParseQuery(string(body))
			for k := range v {
				f[k] = v.Get(k)
			}
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if f["grant_type"] != "refresh_token" || f["refresh_token"] != p.refresh {
			w.WriteHeader(400)
			io.WriteString(w, `{"error":"invalid_grant"}`)
			return
		}
		p.refresh += "+"
		m := map[string]any{"access_token": p.access, "refresh_token": p.refresh, "expires_in": 3600, "token_type": "Bearer"}
		if p.id != "" {
			m["id_token"] = p.id
		}
		json.NewEncoder(w).Encode(m)
		return
	}
	if r.Header.Get("Authorization") != "Bearer "+p.access {
		w.WriteHeader(401)
		io.WriteString(w, `{"error":{"message":"the real token was not sent"}}`)
		return
	}
	p.api(w, r, body)
}

func (p *provider) saw(what string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.seen {
		if strings.Contains(s, what) {
			return true
		}
	}
	return false
}

// withLogin runs an agent in a home that has nothing but its login.
func withLogin(t *testing.T, preset, program string, argv []string, files map[string]string, upstreams string) (output, home string) {
	t.Helper()
	home = t.TempDir()
	repo := filepath.Join(home, "src")
	if err := os.MkdirAll(repo, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		at := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	git(t, repo, "init", "-q", "-b", "main")
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(policy, fmt.Appendf(nil, "version: 1\nmounts:\n  - {path: %q, mode: ro}\n%s", program, upstreams), 0o600); err != nil {
		t.Fatal(err)
	}
	events := filepath.Join(dir, "events.jsonl")
	res, err := runner(t, true)(t.Context(), redteam.SessionSpec{
		Contained: true, Presets: []string{preset, "node", "git"}, Policy: policy, Events: events, Dir: repo,
		Env:  []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "TERM=dumb", "SHELL=/bin/bash", "USER=erin"},
		Argv: argv,
	})
	log, _ := os.ReadFile(events)
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, res.Output, log)
	}
	if strings.Contains(res.Output, "REALTOKEN") || strings.Contains(string(log), "REALTOKEN") {
		t.Errorf("a real token came out:\n%s\n%s", res.Output, log)
	}
	if !strings.Contains(string(log), `"credential.refresh"`) {
		t.Errorf("nothing was refreshed:\n%s", log)
	}
	if t.Failed() || os.Getenv("BULKHEAD_E2E_VERBOSE") != "" {
		t.Logf("%s\n%s", res.Output, log)
	}
	if res.ExitCode != 0 {
		t.Fatalf("exit %d\n%s\n%s", res.ExitCode, res.Output, log)
	}
	return res.Output, home
}

// other agents are not pinned: a path in the environment names an installation
// (npm install) to prove this with.
func installed(t *testing.T, variable string) string {
	t.Helper()
	dir := os.Getenv(variable)
	if dir == "" {
		t.Skipf("%s names no installation; not proven in this run: that this agent works with its login", variable)
	}
	return dir
}

// Claude Code works with nothing but its login, whose token has ended: it is
// refreshed on the host.
func TestClaudeLogin(t *testing.T) {
	const access = "sk-ant-oat01-REALTOKEN-1"
	stub, err := modelstub.Start(modelstub.Config{Key: access, Script: modelstub.Steps("Logged in and working.", bash("cat ~/.claude/.credentials.json"))})
	if err != nil {
		t.Fatal(err)
	}
	defer stub.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, stub.CAPEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	p, pca := startProvider(t, access, "", []string{"platform.claude.com"}, nil)
	out, home := withLogin(t, "claude", claudeHome, append(theAgent().Argv, "Are you there?"), map[string]string{
		".claude/.credentials.json": fmt.Sprintf(`{"claudeAiOauth":{"accessToken":"sk-ant-oat01-REALTOKEN-0","refreshToken":"REALTOKEN-refresh-0","expiresAt":%d,"scopes":["user:inference","user:profile"],"subscriptionType":"max"}}`, time.Now().Add(-time.Hour).UnixMilli()),
	}, fmt.Sprintf("upstreams:\n  api.anthropic.com: {connect: %q, ca: %q}\n  platform.claude.com: {connect: %q, ca: %q}\n", stub.Addr(), ca, p.Listener.Addr(), pca))
	if !strings.Contains(out, "Logged in and working") {
		t.Errorf("%s", out)
	}
	kept, _ := os.ReadFile(filepath.Join(home, ".claude", ".credentials.json"))
	if !strings.Contains(string(kept), access) {
		t.Errorf("not kept on the host: %s", kept)
	}
	shown := ""
	for _, r := range stub.Records() {
		for _, x := range r.Results {
			shown += x.Text
		}
	}
	if !strings.Contains(shown, "accessToken") || strings.Contains(shown, "REALTOKEN") {
		t.Errorf("inside stood: %s", shown)
	}
}

func unsignedJWT(claims map[string]any) string {
	b, _ := json.Marshal(claims)
	return "eyJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString(b) + ".REALTOKEN-" + fmt.Sprint(len(b))
}

func TestCodexLogin(t *testing.T) {
	dir := installed(t, "BULKHEAD_E2E_CODEX")
	auth := map[string]any{"chatgpt_account_id": "acct-erin", "chatgpt_user_id": "user-erin", "chatgpt_plan_type": "pro"}
	claims := func(exp time.Time) string {
		return unsignedJWT(map[string]any{"exp": exp.Unix(), "https://api.openai.com/auth": auth, "email": "erin@example.com"})
	}
	access := claims(time.Now().Add(time.Hour))
	p, ca := startProvider(t, access, claims(time.Now().Add(2*time.Hour)), []string{"chatgpt.com", "auth.openai.com"}, func(w http.ResponseWriter, r *http.Request, body []byte) {
		switch {
		case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/models"):
			io.WriteString(w, `{"models":[]}`)
		case strings.HasSuffix(r.URL.Path, "/accounts/check"):
			io.WriteString(w, `{"accounts":[{"id":"acct-erin","account_user_id":"user-erin","structure":"personal","plan_type":"pro","is_default":true,"workspace_backend_origin":"https://chatgpt.com","account_routing_override":"NO_CONSTRAINT"}],"account_ordering":["acct-erin"]}`)
		case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/codex/responses"):
			w.Header().Set("Content-Type", "text/event-stream")
			for _, e := range []string{
				`{"type":"response.created","response":{"id":"resp_1"}}`,
				`{"type":"response.output_item.done","output_index":0,"item":{"type":"message","role":"assistant","id":"msg_1","content":[{"type":"output_text","text":"Logged in and working."}]}}`,
				`{"type":"response.completed","response":{"id":"resp_1","usage":{"input_tokens":1,"input_tokens_details":null,"output_tokens":1,"output_tokens_details":null,"total_tokens":2}}}`,
			} {
				var k struct{ Type string }
				json.Unmarshal([]byte(e), &k)
				fmt.Fprintf(w, "event: %s\ndata: %s\n\n", k.Type, e)
			}
		default:
			w.WriteHeader(404)
			io.WriteString(w, `{}`)
		}
	})
	at := p.Listener.Addr()
	out, home := withLogin(t, "codex", dir, []string{filepath.Join(dir, "node_modules", ".bin", "codex"), "exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", "-c", "web_search=disabled", "Are you there?"}, map[string]string{
		".codex/auth.json": fmt.Sprintf(`{"OPENAI_API_KEY":null,"tokens":{"id_token":%q,"access_token":%q,"refresh_token":"REALTOKEN-refresh-0","account_id":"acct-erin"},"last_refresh":"2026-01-01T00:00:00Z"}`, claims(time.Now()), claims(time.Now().Add(-time.Hour))),
	}, fmt.Sprintf("upstreams:\n  chatgpt.com: {connect: %q, ca: %q}\n  auth.openai.com: {connect: %q, ca: %q}\n", at, ca, at, ca))
	if !strings.Contains(out, "Logged in and working") || !p.saw("POST chatgpt.com/backend-api/codex/responses") {
		t.Errorf("%s", out)
	}
	kept, _ := os.ReadFile(filepath.Join(home, ".codex", "auth.json"))
	if !strings.Contains(string(kept), access) {
		t.Errorf("not kept on the host: %s", kept)
	}
}

func TestGeminiLogin(t *testing.T) {
	dir := installed(t, "BULKHEAD_E2E_GEMINI")
	const access = "ya29.REALTOKEN-1"
	hosts := []string{"oauth2.googleapis.com", "cloudcode-pa.googleapis.com", "www.googleapis.com"}
	p, ca := startProvider(t, access, "", hosts, func(w http.ResponseWriter, r *http.Request, body []byte) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/tokeninfo"):
			io.WriteString(w, `{"aud":"x","scope":"https://www.googleapis.com/auth/cloud-platform","expires_in":3000,"email":"erin@example.com"}`)
		case strings.HasSuffix(r.URL.Path, "/userinfo"):
			io.WriteString(w, `{"email":"erin@example.com"}`)
		case strings.HasSuffix(r.URL.Path, ":loadCodeAssist"):
			io.WriteString(w, `{"currentTier":{"id":"standard-tier","name":"Standard"},"cloudaicompanionProject":"project-1","allowedTiers":[{"id":"standard-tier","isDefault":true}]}`)
		case strings.HasSuffix(r.URL.Path, "enerateContent"):
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, `data: {"response":{"candidates":[{"content":{"role":"model","parts":[{"text":"Logged in and working."}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":1,"candidatesTokenCount":1,"totalTokenCount":2}}}`+"\n\n")
		default:
			io.WriteString(w, `{}`)
		}
	})
	at := p.Listener.Addr()
	up := "upstreams:\n"
	for _, h := range hosts {
		up += fmt.Sprintf("  %s: {connect: %q, ca: %q}\n", h, at, ca)
	}
	out, home := withLogin(t, "gemini", dir, []string{filepath.Join(dir, "node_modules", ".bin", "gemini"), "--skip-trust", "-p", "Are you there?"}, map[string]string{
		".gemini/oauth_creds.json": fmt.Sprintf(`{"access_token":"ya29.REALTOKEN-0","refresh_token":"REALTOKEN-refresh-0","scope":"https://www.googleapis.com/auth/cloud-platform","token_type":"Bearer","expiry_date":%d}`, time.Now().Add(-time.Hour).UnixMilli()),
	}, up)
	if !strings.Contains(out, "Logged in and working") {
		t.Errorf("%s", out)
	}
	kept, _ := os.ReadFile(filepath.Join(home, ".gemini", "oauth_creds.json"))
	if !strings.Contains(string(kept), access) {
		t.Errorf("not kept on the host: %s", kept)
	}
}
