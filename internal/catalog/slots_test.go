package catalog

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

func basicValue(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }

var (
	token = "ghp_" + strings.Repeat("a1B2", 9)
	jwt   = "eyJ" + strings.Repeat("h", 20) + ".eyJ" + strings.Repeat("p", 20) + "." + strings.Repeat("s", 20)
)

func TestCredentials(t *testing.T) {
	for _, c := range []struct {
		header, value string // "?" for the query, "/" for the path
		want          string // slot and kind; "" for nothing
	}{
		{"Authorization", "Bearer x", "the header Authorization (Bearer) 0"},
		{"Authorization", "bearer x", "the header Authorization (Bearer) 0"},
		{"Authorization", "token x", "the header Authorization (Token) 0"},
		{"Authorization", basicValue("u:p"), "the header Authorization (Basic) 0"},
		{"Authorization", "x", "the header Authorization 0"},
		{"Authorization", "", "the header Authorization 0"},
		{"Proxy-Authorization", "Bearer x", "the header Proxy-Authorization (Bearer) 0"},
		{"X-Api-Key", "x", "the header X-Api-Key 0"},
		{"X-Goog-Api-Key", "x", "the header X-Goog-Api-Key 0"},
		{"Api-Key", "x", "the header Api-Key 0"},
		{"Private-Token", "x", "the header Private-Token 0"},
		{"X-Amz-Security-Token", "x", "the header X-Amz-Security-Token 0"},
		{"X-Whatever-Token", "x", "the header X-Whatever-Token 0"},
		{"X-My-Secret", "x", "the header X-My-Secret 0"},
		{"Cookie", "session=1", "the header Cookie 0"},
		{"Cookie", "__cf_bm=1; session=1", "the header Cookie 0"},
		{"Cookie", "__cf_bm=1", "the header Cookie 0"},
		{"Cookie", "", ""},
		{"User-Agent", "x " + token, "the header User-Agent 1"},
		{"X-Note", jwt, "the header X-Note 1"},
		{"X-Note", "sk-ant-api03-" + strings.Repeat("x", 93), "the header X-Note 1"},
		{"?key", "x", "the query parameter key 0"},
		{"?api_key", "x", "the query parameter api_key 0"},
		{"?API-Key", "x", "the query parameter API-Key 0"},
		{"?access_token", "x", "the query parameter access_token 0"},
		{"?token", "x", "the query parameter token 0"},
		{"?q", "a+" + token, "the query parameter q 1"},
		{"?" + token, "", "the query parameter " + token + " 1"},
		{"?X-Amz-Signature", "x", "the query parameter X-Amz-Signature 2"},
		{"?sig", "x", "the query parameter sig 2"},
		{"/", "/x/" + token, "the path 1"},
		// What clients send without meaning a credential.
		{"X-Claude-Code-Session-Id", "dc7fbf9e-d30b-44a8-b20b-2e7b918e4e5e", ""},
		{"X-Stainless-Retry-Count", "0", ""},
		{"Anthropic-Version", "2023-06-01", ""},
		{"Idempotency-Key", "stainless-node-retry-1", ""},
		{"Npm-Auth-Type", "web", ""},
		{"Npm-Command", "install", ""},
		{"Git-Protocol", "version=2", ""},
		{"Sec-Websocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", ""},
		{"If-None-Match", `"abc"`, ""},
		{"Session_id", "x", ""},
		{"?service", "git-upload-pack", ""},
		{"?page_token", "x", ""},
		{"/", "/npm_config/task-runner/sk-learn-extensions", ""},
		{"/", "/a/eyJfile.js", ""},
	} {
		r := Request{Path: "/", Header: http.Header{}, Query: url.Values{}}
		switch {
		case strings.HasPrefix(c.header, "?"):
			r.Query.Add(c.header[1:], c.value)
		case c.header == "/":
			r.Path = c.value
		default:
			r.Header.Add(c.header, c.value)
		}
		var got []string
		for _, f := range Credentials(r) {
			got = append(got, fmt.Sprint(f.Slot, " ", uint8(f.Kind)))
		}
		if g := strings.Join(got, ", "); g != c.want {
			t.Errorf("%s: %q: got %q, want %q", c.header, clip(c.value, 30), g, c.want)
		}
	}
}

func TestBasicCredential(t *testing.T) {
	old := strings.Repeat("0123456789abcdef", 3)[:40] // the form of GitHub's old tokens
	for in, want := range map[string]string{
		"git:PW": "PW", "PW:": "PW", "PW:x-oauth-basic": "PW", "x-access-token:PW": "PW",
		token + ":PW": token + ":PW", old + ":PW": old + ":PW", "a b:PW": "a b:PW", "PW": "PW",
	} {
		f := authorization("Authorization", basicValue(in))
		if !f.Value.Equal([]byte(want)) {
			t.Errorf("%q is not read as %q", in, want)
		}
	}
	f := authorization("Authorization", "Basic !!!")
	if f.Slot.Scheme != "Basic" || !f.Value.Equal([]byte("!!!")) {
		t.Error("broken base64")
	}
}

func TestCredentialsNeverPrint(t *testing.T) {
	r := Request{Path: "/", Header: http.Header{"X-Api-Key": {"sesame-1234"}, "Authorization": {"Bearer sesame-1234"}}, Query: url.Values{"key": {"sesame-1234"}}}
	found := Credentials(r)
	if s := fmt.Sprintf("%v %+v %#v %q", found, found, found, found); len(found) != 3 || strings.Contains(s, "sesame") || strings.Contains(s, "115 101 115") {
		t.Errorf("printed: %s", s)
	}
}

func TestCredentialsInOwnSlots(t *testing.T) {
	r := Request{Path: "/", Header: http.Header{"X-Odd": {"v"}, "X-Odder": {"Key v"}}, Query: url.Values{"odd": {"v"}}}
	if n := len(Credentials(r)); n != 0 {
		t.Fatalf("%d found without slots", n)
	}
	slots := []Slot{{Header: "X-Odd"}, {Header: "X-Odder", Scheme: "Key"}, {Query: "odd"}}
	found := CredentialsIn(r, slots)
	if len(found) != 3 {
		t.Fatalf("%v", found)
	}
	for _, f := range found {
		ok := false
		for _, s := range slots {
			ok = ok || s == f.Slot
		}
		if !ok || !f.Value.Equal([]byte("v")) {
			t.Errorf("%v", f)
		}
	}
}

// chacha is a deterministic source.
func chacha(seed byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{seed}) }

func TestPlaceholders(t *testing.T) {
	cat := embedded(t)
	for name, want := range map[string]string{
		"anthropic": `^sk-ant-api03-[A-Za-z0-9_-]{93}AA$`,
		"openai":    `^sk-proj-[A-Za-z0-9_-]{156}$`,
		"github":    `^ghp_[A-Za-z0-9]{36}$`,
		"npm":       `^npm_[A-Za-z0-9]{36}$`,
	} {
		svc, _ := cat.Service(name)
		a, b := Placeholder(svc.Credential, chacha(1)), Placeholder(svc.Credential, chacha(2))
		if a == b || !regexp.MustCompile(want).MatchString(a) {
			t.Errorf("%s: %q, %q", name, a, b)
		}
		r := Request{Path: "/", Header: http.Header{"X-Note": {a}}}
		if f := Credentials(r); len(f) != 1 {
			t.Errorf("%s: the placeholder is not seen as a credential in an odd place", name)
		}
	}
	if p := Placeholder(nil, chacha(1)); !regexp.MustCompile(`^placeholder-[A-Za-z0-9]{40}$`).MatchString(p) {
		t.Errorf("generic: %q", p)
	}
	if p := Placeholder(nil, strings.NewReader("")); p != "" {
		t.Errorf("without randomness: %q", p)
	}
	svc, _ := cat.Service("anthropic")
	if got := svc.Credential.EnvFor("CLAUDE_CODE_OAUTH_TOKEN"); len(got) != 1 || got[0] != "CLAUDE_CODE_OAUTH_TOKEN" {
		t.Errorf("%q", got)
	}
	if got := svc.Credential.EnvFor("MY_KEY"); len(got) != 1 || got[0] != "ANTHROPIC_API_KEY" {
		t.Errorf("%q", got)
	}
	if got := svc.Credential.ShapeFor("CLAUDE_CODE_OAUTH_TOKEN"); !strings.HasPrefix(string(got), "sk-ant-oat01-") {
		t.Errorf("%q", got)
	}
	var none *CredentialSpec
	if none.EnvFor("X") != nil || none.ShapeFor("X").New(chacha(1)) != "" {
		t.Error("a nil spec has a form")
	}
}

// TestShapeIsUniform counts letters: a biased placeholder would be guessable.
func TestShapeIsUniform(t *testing.T) {
	counts := map[rune]int{}
	src := chacha(3)
	for range 100 {
		for _, c := range Shape("{base62:620}").New(src) {
			counts[c]++
		}
	}
	for c, n := range counts {
		if n < 800 || n > 1200 { // 1000 expected, standard deviation 31
			t.Errorf("%q occurs %d times", c, n)
		}
	}
	if len(counts) != 62 {
		t.Errorf("%d letters", len(counts))
	}
}
