package modelstub

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

type answerer func(*http.Request) *http.Response

func (f answerer) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

// What a live model says and asks for is heard in each protocol, streamed or not,
// and passed on as it came.
func TestLiveModelIsHeard(t *testing.T) {
	for _, c := range []struct {
		path, request, kind, answer, call, said, asked string
	}{
		{"/v1/messages", `{"model":"m","max_tokens":5,"stream":true,"messages":[{"role":"user","content":"x"}],"tools":[{"name":"Bash"}]}`, "text/event-stream",
			"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"I wi\"}}\n\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"ll.\"}}\r\n\ndata: {\"type\":\"content_block_start\",\"content_block\":{\"type\":\"tool_use\",\"name\":\"Bash\",\"input\":{}}}\n\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"command\\\": \\\"ec\"}}\n\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"ho a\\\"}\"}}\n\n", "Bash", "I will.", "echo a"},
		{"/v1/messages", `{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"x"}]}`, "application/json",
			`{"type":"message","content":[{"type":"text","text":"I will."},{"type":"tool_use","name":"Bash","input":{"command":"echo a"}}]}`, "Bash", "I will.", "echo a"},
		{"/v1/responses", `{"model":"m","stream":true,"input":[{"role":"user","content":"x"}]}`, "text/event-stream",
			"data: {\"type\":\"response.output_text.delta\",\"delta\":\"I will.\"}\n\ndata: {\"type\":\"response.output_item.done\",\"item\":{\"type\":\"message\",\"content\":[{\"type\":\"output_text\",\"text\":\"I will.\"}]}}\n\ndata: {\"type\":\"response.output_item.done\",\"item\":{\"type\":\"function_call\",\"name\":\"shell\",\"arguments\":\"{\\\"cmd\\\":\\\"echo a\\\"}\"}}\n\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"type\":\"function_call\",\"name\":\"shell\"}]}}\n\n", "shell", "I will.", "echo a"},
		{"/v1beta/models/m:streamGenerateContent", `{"contents":[{"role":"user","parts":[{"text":"x"}]}]}`, "text/event-stream",
			"data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"I will.\"},{\"functionCall\":{\"name\":\"run_shell_command\",\"args\":{\"command\":\"echo a\"}}}]}}]}\n\n", "run_shell_command", "I will.", "echo a"},
		{"/v1/messages", `{"model":"m","max_tokens":5,"stream":true,"messages":[{"role":"user","content":"x"}]}`, "text/event-stream",
			"data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"No.\"}}\n\n", "", "No.", ""},
	} {
		s, err := Start(Config{Key: "k", Live: answerer(func(r *http.Request) *http.Response {
			if r.Header.Get("Accept-Encoding") != "" || r.Header.Get("X-Api-Key") != "k" {
				t.Errorf("%v", r.Header)
			}
			return &http.Response{StatusCode: 200, Status: "200 OK", Header: http.Header{"Content-Type": {c.kind}, "X-Provider": {"p"}}, Body: io.NopCloser(io.MultiReader(strings.NewReader(c.answer[:30]), strings.NewReader(c.answer[30:])))}
		})})
		if err != nil {
			t.Fatal(err)
		}
		res, body := postTo(t, s, c.path, "k", c.request)
		rec := s.Records()[0]
		if body != c.answer || res.Header.Get("X-Provider") != "p" {
			t.Errorf("%s: passed on %q", c.path, body)
		}
		if strings.Join(rec.Answered, ",") != c.call || rec.Said != c.said || !strings.Contains(rec.Asked, c.asked) || rec.Failure != "" {
			t.Errorf("%s: %+v", c.path, rec)
		}
		s.Close()
	}
}

// lasting is an answer that has said all and does not end before its reader leaves.
type lasting struct {
	io.Reader
	left context.Context
}

func (l lasting) Read(p []byte) (int, error) {
	if n, err := l.Reader.Read(p); err == nil {
		return n, nil
	}
	<-l.left.Done()
	return 0, l.left.Err()
}

// An agent that leaves is no failure of the model; a model that breaks off is.
func TestLiveModelIsLeft(t *testing.T) {
	for leaves, failure := range map[bool]string{true: "", false: "the answer broke off: unexpected EOF"} {
		left := make(chan struct{})
		s, err := Start(Config{Key: "k", Live: answerer(func(r *http.Request) *http.Response {
			said := strings.NewReader("data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"No.\"}}\n\n")
			var body io.Reader = io.MultiReader(said, iotest.ErrReader(io.ErrUnexpectedEOF))
			if leaves {
				body = lasting{said, r.Context()}
			}
			context.AfterFunc(r.Context(), func() { close(left) })
			return &http.Response{StatusCode: 200, Status: "200 OK", Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: io.NopCloser(body)}
		})})
		if err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, "POST", s.URL()+"/v1/messages", strings.NewReader(`{"model":"m","max_tokens":5,"stream":true,"messages":[{"role":"user","content":"x"}]}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Api-Key", "k")
		r.Header.Set("Anthropic-Version", "2023-06-01")
		res, err := client(t, s, false).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(res.Body, make([]byte, 40)); err != nil {
			t.Fatal(err)
		}
		if leaves {
			leave()
		}
		<-left
		s.Close() // when all is answered
		if rec := s.Records()[0]; rec.Said != "No." || rec.Failure != failure {
			t.Errorf("leaves %t: %+v", leaves, rec)
		}
		leave()
	}
}

// Another key and another path get no further than here; a refusal of the
// endpoint is kept with its reason.
func TestLiveModelIsOnlyForConversations(t *testing.T) {
	asked := 0
	s, err := Start(Config{Key: "k", Live: answerer(func(*http.Request) *http.Response {
		asked++
		return &http.Response{StatusCode: 404, Status: "404 Not Found", Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"error":{"message":"model: m"}}`))}
	})})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	good := `{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"x"}]}`
	for _, c := range []struct{ path, key string }{{"/v1/files", "k"}, {"/v1/messages", "other"}, {"/v1/messages", ""}, {"/v1/organizations/api_keys", "k"}} {
		if res, _ := postTo(t, s, c.path, c.key, good); res.StatusCode < 400 || asked != 0 {
			t.Errorf("%v: %s, asked %d", c, res.Status, asked)
		}
	}
	res, body := postTo(t, s, "/v1/messages", "k", good)
	records := s.Records()
	if rec := records[len(records)-1]; asked != 1 || res.StatusCode != 404 || !strings.Contains(body, "model: m") || rec.Failure != "404 Not Found: model: m" {
		t.Errorf("%d %s %+v", asked, body, rec)
	}
}

func postTo(t *testing.T, s *Server, path, key, body string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest("POST", s.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		r.Header.Set("X-Api-Key", key)
	}
	r.Header.Set("Anthropic-Version", "2023-06-01")
	r.Header.Set("Accept-Encoding", "gzip")
	res, err := client(t, s, false).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(text)
}
