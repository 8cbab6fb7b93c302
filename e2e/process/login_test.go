package process

import (
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
}

// loginserver NAME HOST…: a stand-in for Anthropic's and GitHub's sign-ins and
// APIs on loopback. Refresh tokens rotate: a used one is refused. The APIs take
// nothing but the latest real access token. It records every request in
// $WORK/NAME.log. The folder $WORK/NAME steers it: a file "slow" delays token
// answers by two seconds, "down" makes them 503, "refuse" makes them
// invalid_grant. Codes are "code-ACCOUNT".
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

type loginServer struct {
	mu              sync.Mutex
	log             *os.File
	dir             string
	access, refresh string
	n               int
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
	f := map[string]string{}
	if json.Unmarshal(body, &f) != nil {
		v, _ := url.ParseQuery(string(body))
		for k := range v {
			f[k] = v.Get(k)
		}
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
