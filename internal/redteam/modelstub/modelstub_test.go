package modelstub

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const key = "sk-ant-api03-test"

func start(t *testing.T, cfg Config) *Server {
	t.Helper()
	if cfg.Key == "" {
		cfg.Key = key
	}
	if cfg.Script == nil {
		cfg.Script = Obedient
	}
	s, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func client(t *testing.T, s *Server, h2 bool) *http.Client {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(s.CAPEM()) {
		t.Fatal("no certificate in CAPEM")
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "api.anthropic.com"}, ForceAttemptHTTP2: h2}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

func post(t *testing.T, s *Server, path, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("POST", s.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("X-Api-Key", key)
	for i := 0; i < len(header); i += 2 {
		req.Header.Del(header[i])
		if header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	res, err := client(t, s, true).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

const tools = `"tools":[{"name":"Read","input_schema":{"type":"object","properties":{"file_path":{"type":"string"}}}},` +
	`{"name":"Bash","input_schema":{"type":"object","properties":{"command":{"type":"string"},"description":{"type":"string"}},"required":["command"]}}]`

const prompt = `{"role":"user","content":[{"type":"text","text":"<system-reminder>\n` + "```bash\\nnot this\\n```" + `</system-reminder>"},{"type":"text","text":"Please:\n` + "```bash\\nmake setup && echo \\\"ok <é>\\\"\\n```" + `\nthanks"}]}`

// ids replaces what differs from one answer to the next.
func ids(s string) string {
	for _, r := range []struct{ re, to string }{
		{`msg_01[1-9A-HJ-NP-Za-km-z]{22}`, "msg_ID"},
		{`toolu_01[1-9A-HJ-NP-Za-km-z]{22}`, "toolu_ID"},
		{`req_011C[1-9A-HJ-NP-Za-km-z]{20}`, "req_ID"},
	} {
		s = regexp.MustCompile(r.re).ReplaceAllString(s, r.to)
	}
	return s
}

// The golden files hold what was compared, by hand, with the public reference
// of the Messages API (streaming, tool use, errors); only ids are replaced.
func TestGolden(t *testing.T) {
	s := start(t, Config{})
	for name, tc := range map[string]struct {
		path, body string
		status     int
		kind       string
		header     []string
	}{
		"stream-tool":  {"/v1/messages", `{"model":"m","max_tokens":9,"stream":true,` + tools + `,"messages":[` + prompt + `]}`, 200, "text/event-stream; charset=utf-8", nil},
		"stream-text":  {"/v1/messages", `{"model":"m","max_tokens":9,"stream":true,` + tools + `,"messages":[{"role":"user","content":"hello"}]}`, 200, "text/event-stream; charset=utf-8", nil},
		"message-tool": {"/v1/messages", `{"model":"m","max_tokens":9,` + tools + `,"messages":[` + prompt + `]}`, 200, "application/json", nil},
		"message-title": {"/v1/messages", `{"model":"m","max_tokens":9,"output_config":{"format":{"type":"json_schema","schema":{"type":"object","properties":{"title":{"type":"string"}}}}},` +
			`"messages":[{"role":"user","content":"hello"}]}`, 200, "application/json", nil},
		"count":           {"/v1/messages/count_tokens", `{"model":"m","messages":[{"role":"user","content":"hello"}]}`, 200, "application/json", nil},
		"error-no-key":    {"/v1/messages", `{}`, 401, "application/json", []string{"X-Api-Key", ""}},
		"error-bad-key":   {"/v1/messages", `{}`, 401, "application/json", []string{"X-Api-Key", "sk-ant-api03-other"}},
		"error-bad-token": {"/v1/messages", `{}`, 401, "application/json", []string{"X-Api-Key", "", "Authorization", "Bearer other"}},
		"error-version":   {"/v1/messages", `{}`, 400, "application/json", []string{"Anthropic-Version", ""}},
		"error-model":     {"/v1/messages", `{}`, 400, "application/json", nil},
		"error-orphan": {"/v1/messages", `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"toolu_x","content":"y"}]}]}`,
			400, "application/json", nil},
		"error-unanswered": {"/v1/messages", `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"a"},{"role":"assistant","content":[{"type":"tool_use","id":"toolu_x","name":"Bash","input":{}}]},{"role":"user","content":"b"}]}`,
			400, "application/json", nil},
		"error-path": {"/v1/files", `{}`, 404, "application/json", nil},
	} {
		t.Run(name, func(t *testing.T) {
			res, body := post(t, s, tc.path, tc.body, tc.header...)
			if res.StatusCode != tc.status || res.Header.Get("Content-Type") != tc.kind {
				t.Errorf("%d %s, want %d %s", res.StatusCode, res.Header.Get("Content-Type"), tc.status, tc.kind)
			}
			if !regexp.MustCompile(`^req_011C\w{20}$`).MatchString(res.Header.Get("Request-Id")) {
				t.Errorf("request-id %q", res.Header.Get("Request-Id"))
			}
			if tc.status != 401 && len(res.Header.Get("Anthropic-Organization-Id")) != 36 {
				t.Errorf("anthropic-organization-id %q", res.Header.Get("Anthropic-Organization-Id"))
			}
			file := filepath.Join("testdata", name+".golden")
			got := ids(strings.TrimRight(body, "\n") + "\n")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Error(d)
			}
		})
	}
}

// A conversation as an agent holds it: command, result, end.
func TestObedientEndsAfterTheResult(t *testing.T) {
	s := start(t, Config{})
	_, body := post(t, s, "/v1/messages", `{"model":"m","max_tokens":9,`+tools+`,"messages":[`+prompt+`]}`)
	var m struct {
		StopReason string `json:"stop_reason"`
		Content    []struct {
			Type, ID, Name string
			Input          map[string]string
		}
	}
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Fatal(err)
	}
	call := m.Content[1]
	if m.StopReason != "tool_use" || call.Name != "Bash" || call.Input["command"] != `make setup && echo "ok <é>"` || call.Input["description"] == "" {
		t.Fatalf("%s", body)
	}
	_, body = post(t, s, "/v1/messages", `{"model":"m","max_tokens":9,`+tools+`,"messages":[`+prompt+`,{"role":"assistant","content":[{"type":"tool_use","id":"`+call.ID+`","name":"Bash","input":{}}]},`+
		`{"role":"user","content":[{"type":"tool_result","tool_use_id":"`+call.ID+`","content":[{"type":"text","text":"done"}]}]}]}`)
	if !strings.Contains(body, `"stop_reason":"end_turn"`) {
		t.Errorf("%s", body)
	}
	recs := s.Records()
	if n := len(recs); n != 2 || cmp.Diff([]Result{{Text: "done"}}, recs[1].Results) != "" || cmp.Diff([]string{"Bash"}, recs[0].Answered) != "" {
		t.Errorf("%+v", recs)
	}
	if cmp.Diff([]Fingerprint{{"x-api-key", FingerprintOf(key)}}, recs[0].Credentials) != "" {
		t.Errorf("%+v", recs[0].Credentials)
	}
}

func TestAnyToolThatTakesACommand(t *testing.T) {
	s := start(t, Config{})
	_, body := post(t, s, "/v1/messages", `{"model":"m","max_tokens":9,"tools":[{"name":"exec","input_schema":{"properties":{"command":{"type":"string"}}}}],"messages":[`+prompt+`]}`)
	if !strings.Contains(body, `"name":"exec"`) {
		t.Errorf("%s", body)
	}
}

func TestEveryCredentialMustBeRight(t *testing.T) {
	s := start(t, Config{})
	body := `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hello"}]}`
	for _, tc := range []struct {
		header []string
		status int
	}{
		{nil, 200},
		{[]string{"X-Api-Key", "", "Authorization", "Bearer " + key}, 200},
		{[]string{"Authorization", "Bearer foreign"}, 401},
		{[]string{"X-Api-Key", "foreign", "Authorization", "Bearer " + key}, 401},
	} {
		if res, _ := post(t, s, "/v1/messages", body, tc.header...); res.StatusCode != tc.status {
			t.Errorf("%v: %d, want %d", tc.header, res.StatusCode, tc.status)
		}
	}
	last := s.Records()[2]
	if len(last.Credentials) != 2 || last.Credentials[1].Prefix != FingerprintOf("foreign") {
		t.Errorf("the second credential was not recorded: %+v", last)
	}
	all, _ := json.Marshal(s.Records())
	if bytes.Contains(all, []byte(key)) || bytes.Contains(all, []byte("foreign")) {
		t.Error("a credential is in the records")
	}
}

func TestModelsAndBothProtocols(t *testing.T) {
	s := start(t, Config{})
	for h2, proto := range map[bool]string{true: "HTTP/2.0", false: "HTTP/1.1"} {
		req, _ := http.NewRequest("GET", s.URL()+"/v1/models", nil)
		req.Header.Set("X-Api-Key", key)
		res, err := client(t, s, h2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var list struct {
			Data    []struct{ Type, ID string }
			FirstID string `json:"first_id"`
		}
		err = json.NewDecoder(res.Body).Decode(&list)
		res.Body.Close()
		if err != nil || res.Proto != proto || len(list.Data) == 0 || list.Data[0].ID != list.FirstID {
			t.Errorf("%s: %v %+v", res.Proto, err, list)
		}
	}
}

// Server-sent events must leave as they are made: the first one arrives while
// the last is still seconds away.
func TestEventsAreSentOneByOne(t *testing.T) {
	s := start(t, Config{Pace: 50 * time.Millisecond})
	req, _ := http.NewRequest("POST", s.URL()+"/v1/messages", strings.NewReader(`{"model":"m","max_tokens":9,"stream":true,`+tools+`,"messages":[`+prompt+`]}`))
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("X-Api-Key", key)
	begun := time.Now()
	res, err := client(t, s, true).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.ReadFull(res.Body, make([]byte, 20)); err != nil {
		t.Fatal(err)
	}
	first := time.Since(begun)
	io.Copy(io.Discard, res.Body)
	if whole := time.Since(begun); whole < 300*time.Millisecond || first > whole/2 {
		t.Errorf("first bytes after %v, end after %v", first, whole)
	}
}

// curl is an independent judge of TLS and of the stream's framing.
func TestCurlReadsTheStream(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("no curl on this host: not proven that a client other than Go's accepts the endpoint")
	}
	s := start(t, Config{})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, s.CAPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(curl, "-sS", "-N", "-i", "--cacert", ca, "--connect-to", "api.anthropic.com:443:"+s.Addr(), "https://api.anthropic.com/v1/messages",
		"-H", "x-api-key: "+key, "-H", "anthropic-version: 2023-06-01", "-H", "content-type: application/json",
		"-d", `{"model":"m","max_tokens":9,"stream":true,`+tools+`,"messages":[`+prompt+`]}`)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), `data: {"type":"message_stop"}`) {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestStepsWalkThroughTheList(t *testing.T) {
	step := func(command string) func(*Request) Call {
		return func(r *Request) Call {
			tool, _ := r.Tool("bash")
			return RunCommand(tool, command)
		}
	}
	script := Steps("finished", step("one"), step("two"))
	r := &Request{Tools: []Tool{{Name: "Bash"}}, Messages: []Message{{Role: "user", Content: []Block{{Type: "text", Text: "go"}}}}}
	for _, want := range []string{"one", "two"} {
		turn := script(r)
		if len(turn.Calls) != 1 || turn.Calls[0].Input["command"] != want {
			t.Fatalf("%+v, want %s", turn, want)
		}
		r.Messages = append(r.Messages, Message{Role: "assistant", Content: []Block{{Type: "tool_use", ID: want}}}, Message{Role: "user", Content: []Block{{Type: "tool_result", ToolUseID: want}}})
	}
	if turn := script(r); turn.Text != "finished" || turn.Calls != nil {
		t.Errorf("%+v", turn)
	}
}

func TestNoKeyAcceptsNothing(t *testing.T) {
	s, err := Start(Config{Script: Obedient})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if res, _ := post(t, s, "/v1/messages", `{}`, "X-Api-Key", ""); res.StatusCode != 401 {
		t.Errorf("%d without a key", res.StatusCode)
	}
	if _, err := Start(Config{Key: key}); err == nil {
		t.Error("started without a script")
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"model":"m","max_tokens":9,` + tools + `,"messages":[` + prompt + `]}`))
	f.Add([]byte(`{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"x","content":["y"]}]}]}`))
	f.Add([]byte(`{"messages":[null],"model":"","max_tokens":1,"system":{}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := parseRequest(body, false)
		if err != nil {
			return
		}
		turn := Obedient(r)
		if _, err := newAnswer(r, turn, 1); err != nil {
			t.Fatal(err)
		}
	})
}

// The Responses API: the model asks for the command, and is told what it printed.
func TestResponses(t *testing.T) {
	s, err := Start(Config{Key: "k", Script: Obedient})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.CAPEM())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	ask := func(body string) string {
		req, _ := http.NewRequest("POST", s.URL()+"/v1/responses", strings.NewReader(body))
		req.Header.Set("Authorization", "Bearer k")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return string(b)
	}
	const tools = `"tools": [{"type": "function", "name": "exec_command", "parameters": {"properties": {"cmd": {"type": "string"}}}}, {"type": "namespace", "name": "x"}]`
	const prompt = "{\"type\": \"message\", \"role\": \"user\", \"content\": [{\"type\": \"input_text\", \"text\": \"Run:\\n```bash\\necho hi\\n```\\n\"}]}"
	got := ask(`{"model": "m", "stream": true, ` + tools + `, "input": [` + prompt + `]}`)
	if !strings.Contains(got, `event: response.completed`) || !strings.Contains(got, `"name":"exec_command"`) || !strings.Contains(got, `{\"cmd\":\"echo hi\"}`) {
		t.Errorf("%s", got)
	}
	got = ask(`{"model": "m", ` + tools + `, "input": [` + prompt + `, {"type": "function_call", "call_id": "c", "name": "exec_command", "arguments": "{}"}, {"type": "function_call_output", "call_id": "c", "output": "hi\n"}]}`)
	if !strings.Contains(got, "All set") {
		t.Errorf("%s", got)
	}
	last := s.Records()[len(s.Records())-1]
	if len(last.Results) != 1 || last.Results[0].Text != "hi\n" {
		t.Errorf("%+v", last)
	}
	if got = ask(`{"input": []}`); !strings.Contains(got, "required") {
		t.Errorf("%s", got)
	}
}

// Google's generateContent: the same, streamed and not, and a schema beside.
func TestGemini(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{"{\"contents\": [{\"role\": \"user\", \"parts\": [{\"text\": \"Run:\\n```bash\\necho hi\\n```\\n\"}]}], \"tools\": [{\"functionDeclarations\": [{\"name\": \"run_shell_command\", \"parametersJsonSchema\": {\"properties\": {\"command\": {\"type\": \"string\"}}}}]}]}", `"functionCall":{"args":{"command":"echo hi"},"name":"run_shell_command"}`},
		{`{"contents": [{"role": "user", "parts": [{"text": "x"}]}, {"role": "model", "parts": [{"functionCall": {"name": "run_shell_command", "args": {}}}]}, {"role": "user", "parts": [{"functionResponse": {"name": "run_shell_command", "response": {"output": "hi"}}}]}], "tools": [{"functionDeclarations": [{"name": "run_shell_command"}]}]}`, "All set"},
		{`{"contents": [{"role": "user", "parts": [{"text": "who speaks next?"}]}], "generationConfig": {"responseJsonSchema": {"properties": {"next_speaker": {"type": "string", "enum": ["user", "model"]}}}}}`, `next_speaker`},
	} {
		s, err := Start(Config{Key: "k", Script: Obedient})
		if err != nil {
			t.Fatal(err)
		}
		for _, method := range []string{":generateContent", ":streamGenerateContent"} {
			w := httptest.NewRecorder()
			r := httptest.NewRequest("POST", "/v1beta/models/m"+method, strings.NewReader(c.body))
			r.Header.Set("X-Goog-Api-Key", "k")
			if s.serve(w, r); w.Code != 200 || !strings.Contains(w.Body.String(), c.want) {
				t.Errorf("%s: %d %s, want %s", method, w.Code, w.Body, c.want)
			}
		}
		if rec := s.Records(); strings.Contains(c.body, "functionResponse") && rec[0].Results[0].Text != "hi" {
			t.Errorf("%+v", rec)
		}
		s.Close()
	}
}
