package live

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for address, want := range map[string]string{
		"https://api.anthropic.com":           "https://api.anthropic.com",
		"https://api.openai.com/v1/":          "https://api.openai.com",
		"https://gateway.example:8443/team/a": "https://gateway.example:8443/team/a",
		"http://127.0.0.1:8080/v1":            "http://127.0.0.1:8080",
		"http://[::1]:8080":                   "http://[::1]:8080",
		"http://localhost":                    "http://localhost",
	} {
		if e, err := Parse(address, OpenAI); err != nil || e.String() != want {
			t.Errorf("%s: %v, %v", address, e, err)
		}
	}
	for address, want := range map[string]string{
		"":                             "no address of a model",
		"api.openai.com":               "no address of a model",
		"ftp://api.openai.com":         "no address of a model",
		"http://api.openai.com":        "unencrypted",
		"http://127.0.0.1.example.com": "unencrypted",
		"http://10.0.0.1":              "unencrypted",
		"https://u:p@api.openai.com":   "keys belong into a variable",
		"https://api.openai.com?key=x": "keys belong into a variable",
	} {
		if _, err := Parse(address, OpenAI); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
}

// What is wrong with an endpoint is said before anything runs, and never with the key.
func TestCheck(t *testing.T) {
	const key = "sk-the-users-real-key"
	for _, c := range []struct {
		api    API
		status int
		body   string
		want   string // "" passes
	}{
		{Anthropic, 400, `{"type":"error","error":{"type":"invalid_request_error","message":"messages: at least one"}}`, ""},
		{OpenAI, 422, `{}`, ""},
		{Anthropic, 401, `{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key ` + key + `"}}`, "refuses the key in K (401 Unauthorized): invalid x-api-key (key)"},
		{OpenAI, 403, `{"error":{"message":"no"}}`, "refuses the key in K"},
		{Gemini, 400, `{"error":{"code":400,"message":"API key not valid.","details":[{"reason":"API_KEY_INVALID"}]}}`, "refuses the key in K"},
		{Gemini, 400, `{"error":{"code":400,"message":"contents is not specified"}}`, ""},
		{Anthropic, 404, "<html>\x1b[2J not here", "no API of anthropic's kind"},
		{OpenAI, 302, "", "is elsewhere"},
		{Anthropic, 529, `{"error":{"message":"Overloaded"}}`, ": Overloaded"},
		{OpenAI, 429, `{"error":{"message":"You exceeded your current quota"}}`, "exceeded your current quota"},
	} {
		asked := ""
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked = r.Method + " " + r.URL.Path + " " + r.Header.Get("X-Api-Key") + r.Header.Get("X-Goog-Api-Key") + strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
			w.Header().Set("Location", "https://other.example/")
			w.WriteHeader(c.status)
			io.WriteString(w, c.body)
		}))
		e, err := Parse(s.URL, c.api)
		if err != nil {
			t.Fatal(err)
		}
		err = e.Check(t.Context(), key, "K", "m")
		s.Close()
		if !strings.HasPrefix(asked, "POST /v1") || !strings.HasSuffix(asked, " "+key) {
			t.Errorf("%s asked %q", c.api, asked)
		}
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %d: %v, want %q", c.api, c.status, err, c.want)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\x1b\n") || err != nil && strings.Contains(err.Error(), key) {
			t.Errorf("%q", err)
		}
	}
	e, err := Parse("http://127.0.0.1:1", Anthropic)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Check(t.Context(), key, "K", ""); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Error(err)
	}
}

// The relay lets conversations through as they stream, below the endpoint's path
// and with the credential that was presented, and nothing else.
func TestRelay(t *testing.T) {
	next := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s\n", r.Method, r.URL, r.Header.Get("X-Api-Key"), body)
		w.(http.Flusher).Flush()
		if r.URL.Path == "/team/v1/messages" {
			<-next
			io.WriteString(w, "end\n")
		}
	}))
	defer s.Close()
	e, err := Parse(s.URL+"/team", Anthropic)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	ended := make(chan struct{})
	go func() { e.Relay(ours); close(ended) }()
	model := RoundTripper(theirs)
	ask := func(method, path string) *http.Response {
		t.Helper()
		r, err := http.NewRequest(method, "http://model"+path, strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Api-Key", "presented")
		res, err := model.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	res := ask("POST", "/v1/messages?beta=true")
	in := bufio.NewReader(res.Body)
	if line, err := in.ReadString('\n'); err != nil || line != "POST /team/v1/messages?beta=true presented hello\n" {
		t.Errorf("%q %v", line, err)
	}
	for _, c := range [][2]string{{"POST", "/v1/files"}, {"GET", "/v1/files"}, {"POST", "/v1/messages/batches"}, {"GET", "/v1/messages"}, {"DELETE", "/v1/models/x"}, {"POST", "/v1/messages%2f..%2ffiles"}, {"GET", "/v1/models/../files"}, {"POST", "/"}} {
		if res := ask(c[0], c[1]); res.StatusCode != http.StatusForbidden {
			t.Errorf("%v: %s", c, res.Status)
		}
	}
	if res := ask("GET", "/v1/models"); res.StatusCode != http.StatusOK {
		t.Error(res.Status)
	}
	close(next)
	if line, err := in.ReadString('\n'); err != nil || line != "end\n" {
		t.Errorf("%q %v", line, err)
	}
	theirs.Close()
	<-ended
}
