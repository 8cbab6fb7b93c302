package login

import (
	"context"
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
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// endpoint is a token endpoint as the services behave: it rotates refresh
// tokens, refuses used ones, and answers JSON or forms.
type endpoint struct {
	*httptest.Server
	t *testing.T

	mu       sync.Mutex
	n        int
	refresh  string            // the one that is good
	codes    map[string]string // authorization codes and device codes → account
	pending  int               // device polls until the person agreed
	claims   func(account string) map[string]any
	rotate   bool
	lifetime int
	account  string
	requests []url.Values
	raw      []string
	// broken, if set, answers instead.
	broken func(w http.ResponseWriter, r *http.Request) bool
}

func newEndpoint(t *testing.T) *endpoint {
	e := &endpoint{t: t, refresh: "refresh-0", rotate: true, lifetime: 3600, account: "erin", codes: map[string]string{}}
	e.Server = httptest.NewUnstartedServer(http.HandlerFunc(e.serve))
	e.Config.ErrorLog = log.New(io.Discard, "", 0) // failed handshakes are part of the tests
	e.TLS = &tls.Config{Certificates: []tls.Certificate{certificate(t)}}
	e.StartTLS()
	t.Cleanup(e.Close)
	return e
}

// certificate is for the names that the descriptions have.
func certificate(t testing.TB) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		DNSNames: []string{"platform.claude.com", "auth.openai.com", "oauth2.googleapis.com", "github.com", "api.github.com"},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (e *endpoint) network(hosts ...string) Network {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.Certificate().Raw})
	var n Network
	for _, h := range hosts {
		n.Upstreams = append(n.Upstreams, Upstream{Host: h, Connect: e.Listener.Addr().String(), CAPEM: ca})
	}
	return n
}

func (e *endpoint) serve(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	e.raw = append(e.raw, r.Method+" "+r.Host+r.URL.Path+" "+r.Header.Get("Content-Type")+" "+string(body))
	if e.broken != nil && e.broken(w, r) {
		return
	}
	if r.Method == http.MethodGet && r.URL.Path == "/user" {
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		who, _, _ := strings.Cut(strings.TrimPrefix(token, "access-"), "-")
		json.NewEncoder(w).Encode(map[string]any{"login": who})
		return
	}
	v := url.Values{}
	if strings.Contains(r.Header.Get("Content-Type"), "json") {
		var m map[string]string
		if json.Unmarshal(body, &m) != nil {
			w.WriteHeader(400)
			return
		}
		for k, s := range m {
			v.Set(k, s)
		}
	} else {
		v, _ = url.ParseQuery(string(body))
	}
	e.requests = append(e.requests, v)
	fail := func(status int, code string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]any{"error": code, "error_description": "secret-in-the-description"})
	}
	if r.URL.Path == "/login/device/code" {
		e.codes["device-real"] = e.account
		json.NewEncoder(w).Encode(map[string]any{"device_code": "device-real", "user_code": "ABCD-1234", "verification_uri": "https://github.com/login/device", "expires_in": 899, "interval": 5})
		return
	}
	who := ""
	switch v.Get("grant_type") {
	case "refresh_token":
		if v.Get("refresh_token") != e.refresh {
			fail(400, "invalid_grant")
			return
		}
		who = e.account
	case "authorization_code":
		if who = e.codes[v.Get("code")]; who == "" || v.Get("code_verifier") == "" {
			fail(400, "invalid_grant")
			return
		}
		delete(e.codes, v.Get("code"))
	case deviceCode:
		if e.pending > 0 {
			e.pending--
			fail(200, "authorization_pending")
			return
		}
		if who = e.codes[v.Get("device_code")]; who == "" {
			fail(200, "expired_token")
			return
		}
	default:
		fail(400, "unsupported_grant_type")
		return
	}
	e.n++
	answer := map[string]any{
		"token_type": "Bearer", "access_token": fmt.Sprintf("access-%s-%d-REALTOKEN", who, e.n), "scope": "user:profile user:inference",
		"account": map[string]any{"uuid": "uuid-" + who, "email_address": who + "@example.com"}, "organization": map[string]any{"uuid": "org-" + who},
	}
	if e.lifetime > 0 {
		answer["expires_in"] = e.lifetime
	}
	if e.rotate {
		e.refresh = fmt.Sprintf("refresh-%s-%d-REALTOKEN", who, e.n)
		answer["refresh_token"] = e.refresh
	}
	if e.claims != nil {
		answer["id_token"] = testJWT(e.claims(who))
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(answer)
}

func (e *endpoint) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.requests)
}

func testJWT(claims map[string]any) string {
	b, _ := json.Marshal(claims)
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"RS256"}`)) + "." + enc(b) + "." + enc([]byte("signature-REALTOKEN"))
}

// clock is a host's clock that tests move.
type clock struct {
	mu sync.Mutex
	d  time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.d)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.d += d
}

type ctx = context.Context

func refusedByOpenAI(w http.ResponseWriter, _ *http.Request) bool {
	w.WriteHeader(401)
	w.Write([]byte(`{"error":{"message":"Your refresh token has already been used. secret-in-the-description","type":"invalid_request_error","param":null,"code":"refresh_token_reused"}}`))
	return true
}
