package httpauthz

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
)

func issueOf(h *Handler, body string, header http.Header) (string, *http.Response) {
	resp := &http.Response{StatusCode: 200, Header: header, Trailer: http.Header{"X": nil}}
	out := (&request{h: h}).issue(resp, strings.NewReader(body), capability.Decision{Issues: "docker-hub", Swap: &capability.Swap{Credential: "hub"}})
	if out == nil {
		return "", resp
	}
	data, _ := io.ReadAll(out)
	return string(data), resp
}

// The sandbox gets a stand-in and nothing else that the token endpoint said.
func TestIssue(t *testing.T) {
	h := &Handler{}
	got, resp := issueOf(h, `{"token":"real-token","access_token":"real-token","refresh_token":"real-refresh","id_token":"real-id","expires_in":300,"issued_at":"2026-01-02T03:04:05Z"}`,
		http.Header{"X-Token": {"real-token"}, "Link": {"<real-token>"}, "Date": {"now"}})
	var a map[string]any
	if err := json.Unmarshal([]byte(got), &a); err != nil {
		t.Fatalf("%q: %v", got, err)
	}
	standIn, _ := a["token"].(string)
	if strings.Contains(got, "real") || len(a) != 4 || !strings.HasPrefix(standIn, standInPrefix) || a["access_token"] != a["token"] || a["expires_in"] != 300.0 {
		t.Errorf("%s", got)
	}
	if len(resp.Header) != 3 || resp.Trailer != nil || resp.ContentLength != int64(len(got)) {
		t.Errorf("%v %v", resp.Header, resp.ContentLength)
	}
	if name, ok := h.tokens.issued("docker-hub", secret.New([]byte(standIn))); !ok || name != "hub" {
		t.Errorf("%q %v", name, ok)
	}
	for service, value := range map[string]string{"ghcr": standIn, "docker-hub": "real-token"} {
		if _, ok := h.tokens.issued(service, secret.New([]byte(value))); ok {
			t.Errorf("%s takes %q", service, value)
		}
	}
	if real := h.tokens.real("Bearer " + standIn); !real.Equal([]byte("real-token")) {
		t.Error("the token is not the one that was issued")
	}
	h.Revoke()
	if _, ok := h.tokens.issued("docker-hub", secret.New([]byte(standIn))); ok || !h.tokens.real("Bearer "+standIn).Empty() {
		t.Error("a stand-in outlives the revocation")
	}
}

// What Hugging Face calls its tokens, in the body and in headers.
func TestIssueXet(t *testing.T) {
	h := &Handler{}
	got, resp := issueOf(h, `{"accessToken":"real-token","exp":1900000000,"casUrl":"https://cas.example.com","more":"real-more"}`,
		http.Header{"X-Xet-Access-Token": {"real-token"}, "X-Xet-Cas-Url": {"https://real-token.example"}})
	var a map[string]any
	if err := json.Unmarshal([]byte(got), &a); err != nil || len(a) != 3 || a["exp"] != 1.9e9 || a["casUrl"] != "https://cas.example.com" {
		t.Fatalf("%q: %v", got, err)
	}
	standIn := a["accessToken"].(string)
	if !strings.HasPrefix(standIn, standInPrefix) || resp.Header.Get("X-Xet-Access-Token") != standIn || resp.Header.Get("X-Xet-Token-Expiration") != "1900000000" || resp.Header.Get("X-Xet-Cas-Url") != "https://cas.example.com" {
		t.Errorf("%s %v", got, resp.Header)
	}
	if real := h.tokens.real("Bearer " + standIn); !real.Equal([]byte("real-token")) {
		t.Error("the token is not the one that was issued")
	}
	if got, resp = issueOf(h, `{"accessToken":"real-token","casUrl":"https://cas.example.com/?real-token"}`, http.Header{}); got == "" || strings.Contains(got+resp.Header.Get("X-Xet-Cas-Url"), "real-token") {
		t.Errorf("%s %v", got, resp.Header)
	}
}

func TestIssueRefuses(t *testing.T) {
	for _, body := range []string{
		"", "real-token", `["real-token"]`, `{}`, `{"token":""}`, `{"token":"x"}`, `{"token":["real-token"]}`, `{"token":"real-token"} {}`,
		`{"token":"` + strings.Repeat("x", maxTokenAnswer) + `"}`,
	} {
		if got, _ := issueOf(&Handler{}, body, http.Header{}); got != "" {
			t.Errorf("%.40q: %s", body, got)
		}
	}
	if got, _ := issueOf(&Handler{}, `{"token":"real-token"}`, http.Header{"Content-Encoding": {"gzip"}}); got != "" {
		t.Errorf("encoded: %s", got)
	}
}

func TestTokensAreBounded(t *testing.T) {
	var k tokens
	first := k.add("s", "c", "real-first")
	for range maxTokens {
		k.add("s", "c", "real-other")
	}
	if _, ok := k.issued("s", secret.New([]byte(first))); ok || len(k.list) != maxTokens {
		t.Errorf("%d are kept", len(k.list))
	}
}

// Whatever a token endpoint answers, what is passed on is an object of known
// members: a stand-in, a number and a time, none of which can be the real token.
func FuzzIssue(f *testing.F) {
	for _, s := range []string{
		`{"token":"real-token","access_token":"real-token","refresh_token":"x","expires_in":300,"issued_at":"2026-01-02T03:04:05Z"}`,
		`{"access_token":"real-token"}`, `{"token":"real-token","issued_at":"real-token"}`, `{"TOKEN":"real-token","Token":"another-token"}`,
		`{"token":"real-token","access_token":"another-token"}`, `{"token":"\u0072eal-token","expires_in":1e3}`, `{"accessToken":"real-token","exp":1900000000,"casUrl":"https://cas.example.com"}`, `{"accessToken":"real-token","casUrl":"https://u:p@x/real"}`, `[]`, `{"token":1}`, "",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		h := &Handler{}
		got, resp := issueOf(h, string(body), http.Header{"Link": {string(body)}, "Date": {"now"}})
		if got == "" {
			return
		}
		var a tokenAnswer
		dec := json.NewDecoder(strings.NewReader(got))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&a); err != nil || a.Token != a.AccessToken || a.Token != "" && a.XetToken != "" || !strings.HasPrefix(a.Token+a.XetToken, standInPrefix) {
			t.Fatalf("%q: %v", got, err)
		}
		if _, err := time.Parse(time.RFC3339Nano, a.IssuedAt); err != nil && a.IssuedAt != "" {
			t.Fatalf("%q passes on what is no time", got)
		}
		if _, err := hostport.ParseHost(strings.TrimPrefix(a.XetAt, "https://")); err != nil && a.XetAt != "" {
			t.Fatalf("%q passes on what is no host", got)
		}
		if len(resp.Header["Link"]) > 0 || resp.Trailer != nil {
			t.Fatalf("headers pass on: %v", resp.Header)
		}
	})
}
