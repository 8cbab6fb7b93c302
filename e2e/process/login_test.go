package process

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func init() {
	commands["loginserver"] = cmdLoginServer
	commands["hostlogin"] = cmdHostLogin
	commands["codexlogin"] = cmdCodexLogin
}

// loginserver NAME HOST…: a stand-in for Anthropic's, OpenAI's and GitHub's
// sign-ins and APIs on loopback. Refresh tokens rotate: a used one is refused.
// The APIs take nothing but the latest real access token. It records every
// request in $WORK/NAME.log. The folder $WORK/NAME steers it: a file "slow"
// delays token answers by two seconds, "down" makes them 503, "refuse" makes them
// invalid_grant. Codes are "code-ACCOUNT". A device code (RFC 8628) is pending
// until a file "agreed-ACCOUNT" is there, or "declined".
func cmdLoginServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: loginserver NAME HOST…")
	}
	work := ts.Getenv("WORK")
	log, err := os.OpenFile(filepath.Join(work, args[0]+".log"), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	ts.Check(err)
	ts.Defer(func() { log.Close() })
	dir := filepath.Join(work, args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	serveTLS(ts, args[0], args[1:], false, &loginServer{log: log, dir: dir, refresh: "sk-ant-ort01-REALTOKEN-refresh-0", access: "sk-ant-oat01-REALTOKEN-access-0"})
}

// hostlogin SECONDS: writes the host's login of Claude Code, whose token ends in
// so many seconds.
func cmdHostLogin(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hostlogin SECONDS")
	}
	d, err := time.ParseDuration(args[0] + "s")
	ts.Check(err)
	home := ts.Getenv("HOME")
	ts.Check(os.MkdirAll(filepath.Join(home, ".claude"), 0o700))
	ts.Check(os.WriteFile(filepath.Join(home, ".claude", ".credentials.json"), fmt.Appendf(nil,
		`{"claudeAiOauth":{"accessToken":"sk-ant-oat01-REALTOKEN-access-0","refreshToken":"sk-ant-ort01-REALTOKEN-refresh-0","expiresAt":%d,"scopes":["user:inference","user:profile"],"subscriptionType":"max"}}`,
		time.Now().Add(d).UnixMilli()), 0o600))
	ts.Check(os.WriteFile(filepath.Join(home, ".claude.json"), []byte(`{"oauthAccount":{"accountUuid":"uuid-erin","emailAddress":"erin@example.com","organizationUuid":"org-erin"}}`), 0o600))
}

// codexlogin SECONDS FILE: writes a login of Codex, whose token ends in so many
// seconds, as its file or its keyring entry has it, and sets CODEX_USER to the
// entry's user for ~/.codex, which must exist.
func cmdCodexLogin(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: codexlogin SECONDS FILE")
	}
	d, err := time.ParseDuration(args[0] + "s")
	ts.Check(err)
	token := func(claims map[string]any) string {
		b, err := json.Marshal(claims)
		ts.Check(err)
		e := base64.RawURLEncoding.EncodeToString
		return e([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + e(b) + "." + e([]byte("signature-REALTOKEN"))
	}
	auth := map[string]any{"chatgpt_account_id": "acct-erin", "chatgpt_user_id": "user-erin", "chatgpt_plan_type": "pro"}
	doc, err := json.Marshal(map[string]any{"OPENAI_API_KEY": nil, "last_refresh": "2026-01-01T00:00:00Z", "tokens": map[string]any{
		"id_token":     token(map[string]any{"email": "erin@example.com", "https://api.openai.com/auth": auth}),
		"access_token": token(map[string]any{"exp": time.Now().Add(d).Unix(), "https://api.openai.com/auth": auth}), "refresh_token": "sk-ant-ort01-REALTOKEN-refresh-0", "account_id": "acct-erin",
	}})
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), doc, 0o600))
	folder, err := filepath.EvalSymlinks(filepath.Join(ts.Getenv("HOME"), ".codex"))
	ts.Check(err)
	ts.Setenv("CODEX_USER", fmt.Sprintf("cli|%x", sha256.Sum256([]byte(folder)))[:4+16])
}

type loginServer struct {
	mu              sync.Mutex
	log             *os.File
	dir             string
	access, refresh string
	n               int
	polls           int
}

// github answers as GitHub's device flow and API do: errors of the token endpoint
// come with status 200, and a token has no end and no refresh token.
func (s *loginServer) github(w http.ResponseWriter, r *http.Request, f map[string]string) bool {
	answer := func(v any) bool {
		json.NewEncoder(w).Encode(v)
		return true
	}
	switch {
	case r.URL.Path == "/login/device/code":
		s.polls = 0
		return answer(map[string]any{"device_code": "REALTOKEN-device", "user_code": "BULK-1234", "verification_uri": "https://github.com/login/device", "expires_in": 900, "interval": 1})
	case r.URL.Path != "/login/oauth/access_token":
		return false
	case f["device_code"] != "REALTOKEN-device" || f["client_id"] == "":
		return answer(map[string]any{"error": "incorrect_device_code"})
	case s.is("declined"):
		return answer(map[string]any{"error": "access_denied", "error_description": "The authorization request was denied."})
	}
	s.polls++
	for _, who := range []string{"erin", "mallory"} {
		if s.is("agreed-"+who) && s.polls > 1 {
			token := "gho_REALTOKEN" + who + "0000000000000000000"
			if who == "erin" {
				s.access = token
			}
			return answer(map[string]any{"access_token": token, "token_type": "bearer", "scope": "repo,read:org,gist"})
		}
	}
	return answer(map[string]any{"error": "authorization_pending", "error_description": "The authorization request is still pending."})
}

// whose tells by a GitHub token who asks.
func whose(authorization string) (who string, ok bool) {
	_, token, _ := strings.Cut(authorization, " ")
	rest, ok := strings.CutPrefix(token, "gho_REALTOKEN")
	return strings.TrimRight(rest, "01"), ok
}

func (s *loginServer) is(name string) bool {
	_, err := os.Stat(filepath.Join(s.dir, name))
	return err == nil
}

func (s *loginServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	token := strings.HasSuffix(r.URL.Path, "/oauth/token") || strings.HasSuffix(r.URL.Path, "/access_token")
	if token && s.is("slow") {
		time.Sleep(2 * time.Second)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	line, _ := json.Marshal(seen{Proto: r.Proto, Method: r.Method, Host: r.Host, URI: r.RequestURI, Header: r.Header, Body: string(body)})
	s.log.Write(append(line, '\n'))
	w.Header().Set("Content-Type", "application/json")
	fail := func(status int, code string) {
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]string{"error": code})
	}
	f := map[string]string{}
	if json.Unmarshal(body, &f) != nil {
		v, _ := url.ParseQuery(string(body))
		for k := range v {
			f[k] = v.Get(k)
		}
	}
	if s.github(w, r, f) {
		return
	}
	if who, ok := whose(r.Header.Get("Authorization")); ok && !token {
		w.Header().Set("X-Oauth-Scopes", "repo, read:org, gist")
		switch r.URL.Path {
		case "/graphql", "/api/graphql":
			json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"viewer": map[string]any{"login": who}}})
		default:
			json.NewEncoder(w).Encode(map[string]any{"login": who, "echo": r.Header.Get("Authorization")})
		}
		return
	}
	if !token {
		if r.Header.Get("Authorization") != "Bearer "+s.access {
			fail(http.StatusUnauthorized, "authentication_error")
			return
		}
		// An API that tells who asks, and what came along.
		json.NewEncoder(w).Encode(map[string]any{"ok": true, "n": s.n, "echo": r.Header.Get("Authorization")})
		return
	}
	if s.is("down") {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	who := "erin"
	switch {
	case s.is("refuse"):
		fail(http.StatusBadRequest, "invalid_grant")
		return
	case f["grant_type"] == "refresh_token" && f["refresh_token"] == s.refresh:
	case f["grant_type"] == "authorization_code" && strings.HasPrefix(f["code"], "code-"):
		who = strings.TrimPrefix(f["code"], "code-")
	default:
		fail(http.StatusBadRequest, "invalid_grant")
		return
	}
	s.n++
	access, refresh := fmt.Sprintf("sk-ant-oat01-REALTOKEN-%s-%d", who, s.n), fmt.Sprintf("sk-ant-ort01-REALTOKEN-%s-%d", who, s.n)
	if who == "erin" {
		s.access, s.refresh = access, refresh
	}
	json.NewEncoder(w).Encode(map[string]any{
		"token_type": "Bearer", "access_token": access, "refresh_token": refresh, "expires_in": 28800, "scope": "user:inference user:profile",
		"account": map[string]any{"uuid": "uuid-" + who, "email_address": who + "@example.com"}, "organization": map[string]any{"uuid": "org-" + who},
	})
}
