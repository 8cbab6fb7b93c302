package login

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
)

const claudeHost = "platform.claude.com"

func spec(t testing.TB, name string) *Spec {
	t.Helper()
	s, err := Load(catalogdata.Logins, name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// home makes a host with Claude Code's files.
func home(t testing.TB, access, refresh string, expires time.Time) Host {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, ".claude", ".credentials.json"), fmt.Sprintf(
		`{"claudeAiOauth":{"accessToken":%q,"refreshToken":%q,"expiresAt":%d,"scopes":["user:inference","user:profile"],"subscriptionType":"max","rateLimitTier":"t1"},"mcpOAuth":{"x":{"serverName":"keep me"}}}`,
		access, refresh, expires.UnixMilli()))
	write(t, filepath.Join(dir, ".claude.json"), `{"numStartups":3,"oauthAccount":{"accountUuid":"uuid-erin","emailAddress":"erin@example.com","organizationUuid":"org-erin"}}`)
	return hostAt(dir)
}

func hostAt(dir string) Host {
	return Host{Home: dir, Lookup: func(string) (string, bool) { return "", false }}
}

func write(t testing.TB, name, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func open(t testing.TB, s *Spec, h Host, o Options) *Login {
	t.Helper()
	l, err := Open(t.Context(), s, h, o, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func token(t testing.TB, l *Login) string {
	t.Helper()
	v, err := l.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return string(v.Reveal())
}

// A token that has not ended is used as it is; one that has is refreshed on the
// host, the host's file holds the new one, and nothing else of it changes.
func TestRefreshAndWriteBack(t *testing.T) {
	e := newEndpoint(t)
	h := home(t, "access-old", "refresh-0", time.Now().Add(time.Hour))
	var c clock
	l := open(t, spec(t, "claude-code"), h, Options{Network: e.network(claudeHost), Now: c.now})
	if got := token(t, l); got != "access-old" || e.count() != 0 {
		t.Fatalf("%s after %d requests", got, e.count())
	}
	c.advance(2 * time.Hour)
	if got := token(t, l); got != "access-erin-1-REALTOKEN" {
		t.Fatal(got)
	}
	got := e.requests[0]
	for k, want := range map[string]string{"grant_type": "refresh_token", "refresh_token": "refresh-0", "client_id": "9d1c250a-e61b-44d9-88ed-5944d1962f5e", "scope": "user:inference user:profile"} {
		if got.Get(k) != want {
			t.Errorf("%s = %q, want %q", k, got.Get(k), want)
		}
	}
	if !strings.Contains(e.raw[0], "application/json") {
		t.Errorf("not JSON: %s", e.raw[0])
	}
	file := filepath.Join(h.Home, ".claude", ".credentials.json")
	var doc struct {
		ClaudeAiOauth struct {
			AccessToken, RefreshToken, SubscriptionType, RateLimitTier string
			ExpiresAt                                                  int64
			Scopes                                                     []string
		} `json:"claudeAiOauth"`
		McpOAuth map[string]any `json:"mcpOAuth"`
	}
	if err := json.Unmarshal([]byte(read(t, file)), &doc); err != nil {
		t.Fatal(err)
	}
	o := doc.ClaudeAiOauth
	if o.AccessToken != "access-erin-1-REALTOKEN" || o.RefreshToken != "refresh-erin-1-REALTOKEN" || o.SubscriptionType != "max" || o.RateLimitTier != "t1" || len(o.Scopes) != 2 || doc.McpOAuth["x"] == nil {
		t.Errorf("%s", read(t, file))
	}
	if left := time.UnixMilli(o.ExpiresAt).Sub(c.now()); left < 50*time.Minute || left > 70*time.Minute {
		t.Errorf("ends in %v", left)
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(h.Home, ".claude", ".*")); len(left) != 1 {
		t.Errorf("left behind: %q", left)
	}
	if _, err := os.Stat(filepath.Join(h.Home, ".claude.lock")); err == nil {
		t.Error("the program's lock was left behind")
	}
	// The rotated token works once more.
	c.advance(2 * time.Hour)
	if got := token(t, l); got != "access-erin-2-REALTOKEN" {
		t.Fatal(got)
	}
}

// Many requests at a time make one refresh.
func TestSingleFlight(t *testing.T) {
	e := newEndpoint(t)
	e.broken = func(http.ResponseWriter, *http.Request) bool { time.Sleep(100 * time.Millisecond); return false }
	l := open(t, spec(t, "claude-code"), home(t, "old", "refresh-0", time.Now().Add(-time.Hour)), Options{Network: e.network(claudeHost)})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if v, err := l.Token(t.Context()); err != nil || string(v.Reveal()) != "access-erin-1-REALTOKEN" {
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	if e.count() != 1 {
		t.Errorf("%d refreshes", e.count())
	}
}

// Sessions that share a host's login do not spend each other's refresh token.
func TestSessionsShareTheRotation(t *testing.T) {
	e := newEndpoint(t)
	e.broken = func(http.ResponseWriter, *http.Request) bool { time.Sleep(20 * time.Millisecond); return false }
	h := home(t, "old", "refresh-0", time.Now().Add(-time.Hour))
	var sessions []*Login
	for range 6 {
		sessions = append(sessions, open(t, spec(t, "claude-code"), h, Options{Network: e.network(claudeHost)}))
	}
	var wg sync.WaitGroup
	for _, l := range sessions {
		wg.Go(func() {
			if v, err := l.Token(t.Context()); err != nil || string(v.Reveal()) != "access-erin-1-REALTOKEN" {
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	if e.count() != 1 {
		t.Errorf("%d refreshes of 6 sessions", e.count())
	}
}

// The same for a program without a lock of its own.
func TestSessionsShareTheFolderLock(t *testing.T) {
	e := newEndpoint(t)
	e.claims, e.lifetime = codexClaims, 3600
	e.broken = func(http.ResponseWriter, *http.Request) bool { time.Sleep(20 * time.Millisecond); return false }
	h := codexHome(t, time.Now().Add(-time.Minute))
	var wg sync.WaitGroup
	for range 6 {
		l := open(t, spec(t, "codex"), h, Options{Network: e.network("auth.openai.com")})
		wg.Go(func() {
			if _, err := l.Token(t.Context()); err != nil {
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	spent := map[string]int{}
	for _, r := range e.requests {
		spent[r.Get("refresh_token")]++
	}
	for token, n := range spent {
		if n > 1 {
			t.Errorf("%s was spent %d times", token, n)
		}
	}
}

// The program on the host holds its own lock while it refreshes; we wait, and
// then take what it wrote.
func TestProgramsOwnLock(t *testing.T) {
	e := newEndpoint(t)
	h := home(t, "old", "refresh-0", time.Now().Add(-time.Hour))
	lock := filepath.Join(h.Home, ".claude", ".oauth_refresh.lock")
	if err := os.Mkdir(lock, 0o700); err != nil {
		t.Fatal(err)
	}
	l := open(t, spec(t, "claude-code"), h, Options{Network: e.network(claudeHost)})
	time.AfterFunc(300*time.Millisecond, func() {
		write(t, filepath.Join(h.Home, ".claude", ".credentials.json"), fmt.Sprintf(`{"claudeAiOauth":{"accessToken":"by-the-program","refreshToken":"refresh-7","expiresAt":%d}}`, time.Now().Add(time.Hour).UnixMilli()))
		os.Remove(lock)
	})
	if got := token(t, l); got != "by-the-program" || e.count() != 0 {
		t.Errorf("%s after %d requests", got, e.count())
	}
	// A lock that its holder left behind is taken over.
	if err := os.Mkdir(lock, 0o700); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Minute)
	os.Chtimes(lock, old, old)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	free, err := lockNode(ctx, lock)
	if err != nil {
		t.Fatal(err)
	}
	free()
}

// A refusal is final: it is not asked again, and the reason says what to do.
func TestRefusal(t *testing.T) {
	e := newEndpoint(t)
	e.refresh = "another"
	h := home(t, "old", "refresh-used", time.Now().Add(-time.Hour))
	var c clock
	var notes []Outcome
	var mu sync.Mutex
	l := open(t, spec(t, "claude-code"), h, Options{Network: e.network(claudeHost), Now: c.now, Notify: func(o Outcome) { mu.Lock(); notes = append(notes, o); mu.Unlock() }})
	for range 3 {
		_, err := l.Token(t.Context())
		if err == nil || !strings.Contains(err.Error(), "log in again on the host: claude") || strings.Contains(err.Error(), "secret-in-the-description") || strings.Contains(err.Error(), "refresh-used") {
			t.Errorf("%v", err)
		}
		c.advance(2 * time.Minute)
	}
	if e.count() != 1 {
		t.Errorf("asked %d times", e.count())
	}
	if !strings.Contains(read(t, filepath.Join(h.Home, ".claude", ".credentials.json")), "refresh-used") {
		t.Error("the host's file was changed")
	}
	// The person logs in again on the host: the session goes on.
	e.mu.Lock()
	e.refresh = "refresh-new"
	e.mu.Unlock()
	write(t, filepath.Join(h.Home, ".claude", ".credentials.json"), fmt.Sprintf(`{"claudeAiOauth":{"accessToken":"again","refreshToken":"refresh-new","expiresAt":%d}}`, c.now().Add(time.Hour).UnixMilli()))
	if got := token(t, l); got != "again" {
		t.Error(got)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(notes) == 0 || notes[0].Action != "credential.refresh" || notes[0].Allowed || notes[0].Code != "refused" {
		t.Errorf("%+v", notes)
	}
}

// Another program rotated the token at the same moment: ours is refused, its
// new one is used.
func TestRefusedBecauseTheProgramWasFaster(t *testing.T) {
	e := newEndpoint(t)
	h := home(t, "old", "refresh-used", time.Now().Add(-time.Hour))
	e.broken = func(w http.ResponseWriter, r *http.Request) bool {
		if e.n == 0 && len(e.requests) == 0 {
			write(t, filepath.Join(h.Home, ".claude", ".credentials.json"), fmt.Sprintf(`{"claudeAiOauth":{"accessToken":"faster","refreshToken":"refresh-0","expiresAt":%d}}`, time.Now().Add(time.Hour).UnixMilli()))
		}
		return false
	}
	l := open(t, spec(t, "claude-code"), h, Options{Network: e.network(claudeHost)})
	if got := token(t, l); got != "faster" || e.count() != 1 {
		t.Errorf("%s after %d requests", got, e.count())
	}
}

// What an endpoint can do wrong leaves the login as it was.
func TestBrokenEndpoints(t *testing.T) {
	requestTime = 500 * time.Millisecond
	defer func() { requestTime = 20 * time.Second }()
	elsewhere := newEndpoint(t)
	for name, broken := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"5xx":           func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(503); return true },
		"429":           func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(429); return true },
		"malformed":     func(w http.ResponseWriter, r *http.Request) bool { w.Write([]byte(`{"access_token":`)); return true },
		"not an object": func(w http.ResponseWriter, r *http.Request) bool { w.Write([]byte(`["access_token"]`)); return true },
		"no token":      func(w http.ResponseWriter, r *http.Request) bool { w.Write([]byte(`{"expires_in":3600}`)); return true },
		"line in token": func(w http.ResponseWriter, r *http.Request) bool {
			w.Write([]byte(`{"access_token":"a\r\nx: y"}`))
			return true
		},
		"long token": func(w http.ResponseWriter, r *http.Request) bool {
			fmt.Fprintf(w, `{"access_token":%q}`, strings.Repeat("x", 20<<10))
			return true
		},
		"endless": func(w http.ResponseWriter, r *http.Request) bool {
			fmt.Fprintf(w, `{"access_token":"x","expires_in":3600}%s`, strings.Repeat(" ", 1<<20))
			return true
		},
		"slow": func(w http.ResponseWriter, r *http.Request) bool { time.Sleep(time.Second); return true },
		"redirect": func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "https://auth.openai.com/oauth/token", http.StatusTemporaryRedirect)
			return true
		},
		"blocked": func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(403)
			w.Write([]byte("<html>"))
			return true
		},
		"server_error": func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(400)
			w.Write([]byte(`{"error":"server_error"}`))
			return true
		},
	} {
		e := newEndpoint(t)
		e.broken = broken
		h := home(t, "old-REALTOKEN", "refresh-0", time.Now().Add(2*time.Minute))
		before := read(t, filepath.Join(h.Home, ".claude", ".credentials.json"))
		var c clock
		n := e.network(claudeHost)
		n.Upstreams = append(n.Upstreams, elsewhere.network("auth.openai.com").Upstreams...)
		l := open(t, spec(t, "claude-code"), h, Options{Network: n, Now: c.now})
		// While the token lasts nobody has to wait or fail.
		start := time.Now()
		if got := token(t, l); got != "old-REALTOKEN" || time.Since(start) > 200*time.Millisecond {
			t.Errorf("%s: %s after %v", name, got, time.Since(start))
		}
		c.advance(10 * time.Minute)
		_, err := l.Token(t.Context())
		if err == nil || strings.Contains(err.Error(), "REALTOKEN") || strings.Contains(err.Error(), "log in again") {
			t.Errorf("%s: %v", name, err)
		}
		if n := len(e.raw); n > 3 {
			t.Errorf("%s: asked %d times", name, n)
		}
		if read(t, filepath.Join(h.Home, ".claude", ".credentials.json")) != before {
			t.Errorf("%s: the host's file was changed", name)
		}
		// It recovers.
		e.mu.Lock()
		e.broken = nil
		e.mu.Unlock()
		c.advance(5 * time.Minute)
		if got := token(t, l); got != "access-erin-1-REALTOKEN" {
			t.Errorf("%s: %s", name, got)
		}
		l.Close()
	}
	if elsewhere.count() != 0 {
		t.Error("the redirect was followed with the refresh token")
	}
}

// Without a certificate that the host trusts nothing is sent.
func TestEndpointIsVerified(t *testing.T) {
	e := newEndpoint(t)
	n := e.network(claudeHost)
	n.Upstreams[0].CAPEM = nil
	l := open(t, spec(t, "claude-code"), home(t, "old", "refresh-0", time.Now().Add(-time.Hour)), Options{Network: n})
	if _, err := l.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("%v", err)
	}
	if e.count() != 0 {
		t.Error("the refresh token was sent to an endpoint without a certificate")
	}
}

// A revocation ends all waiting at once; a refresh under way is still stored.
func TestRevokeDuringRefresh(t *testing.T) {
	e := newEndpoint(t)
	asked := make(chan bool, 1)
	e.broken = func(http.ResponseWriter, *http.Request) bool {
		asked <- true
		time.Sleep(700 * time.Millisecond)
		return false
	}
	h := home(t, "old", "refresh-0", time.Now().Add(-time.Hour))
	l := open(t, spec(t, "claude-code"), h, Options{Network: e.network(claudeHost)})
	done := make(chan error, 1)
	go func() { _, err := l.Token(context.Background()); done <- err }()
	select {
	case <-asked:
	case <-time.After(10 * time.Second):
		t.Fatal("no refresh")
	}
	start := time.Now()
	l.Revoke()
	if err := <-done; !errors.Is(err, ErrRevoked) || time.Since(start) > 200*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	if _, err := l.Token(t.Context()); !errors.Is(err, ErrRevoked) {
		t.Errorf("%v", err)
	}
	if r, _ := l.Exchange(t.Context(), Request{URL: "x", ContentType: "application/json", Body: []byte(`{"grant_type":"refresh_token"}`)}); r.Status != 403 {
		t.Errorf("%d", r.Status)
	}
	l.Close()
	if got := read(t, filepath.Join(h.Home, ".claude", ".credentials.json")); !strings.Contains(got, "refresh-erin-1-REALTOKEN") {
		t.Errorf("the host's login was lost: %s", got)
	}
	if !l.have.access.Empty() {
		t.Error("a token stays in memory")
	}
}

// The host's login was replaced by another account's: the session does not
// follow.
func TestHostSwitchesAccounts(t *testing.T) {
	e := newEndpoint(t)
	h := home(t, "old", "refresh-0", time.Now().Add(2*time.Minute))
	var c clock
	l := open(t, spec(t, "claude-code"), h, Options{Network: e.network(claudeHost), Now: c.now})
	write(t, filepath.Join(h.Home, ".claude", ".credentials.json"), fmt.Sprintf(`{"claudeAiOauth":{"accessToken":"mallory","refreshToken":"refresh-0","expiresAt":%d}}`, c.now().Add(9*time.Hour).UnixMilli()))
	write(t, filepath.Join(h.Home, ".claude.json"), `{"oauthAccount":{"accountUuid":"uuid-mallory","emailAddress":"mallory@example.com"}}`)
	c.advance(time.Hour)
	if _, err := l.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "mallory@example.com") {
		t.Errorf("%v", err)
	}
	if _, err := Open(t.Context(), spec(t, "claude-code"), h, Options{Account: "erin@example.com"}, rand.Reader); err == nil {
		t.Error("the wrong account was opened")
	}
}

func TestNothingPrints(t *testing.T) {
	l := open(t, spec(t, "claude-code"), home(t, "old-REALTOKEN", "refresh-REALTOKEN", time.Now().Add(time.Hour)), Options{})
	for _, s := range []string{fmt.Sprint(l), fmt.Sprintf("%+v %#v", l, l), fmt.Sprintf("%+v", l.State()), fmt.Sprintf("%+v", l.have)} {
		if strings.Contains(s, "REALTOKEN") {
			t.Error(s)
		}
	}
	if _, err := json.Marshal(l); err == nil {
		t.Error("marshals")
	}
}
