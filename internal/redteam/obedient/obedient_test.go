package obedient

import (
	"bytes"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/modelstub"
)

// The agent runs as a process of its own, as it does in a sandbox: Go reads
// SSL_CERT_FILE once per process.
func TestMain(m *testing.M) {
	if os.Getenv("OBEDIENT_TEST_AGENT") == "1" {
		os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
	}
	os.Exit(m.Run())
}

type outcome struct {
	code        int
	out, errout string
	dir         string
}

func runAgent(t *testing.T, stdin string, env []string, args ...string) outcome {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, errout bytes.Buffer
	cmd := exec.Command(self, args...)
	cmd.Dir = t.TempDir()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errout
	cmd.Env = append([]string{"OBEDIENT_TEST_AGENT=1", "PATH=" + os.Getenv("PATH"), "HOME=" + cmd.Dir}, env...)
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return outcome{cmd.ProcessState.ExitCode(), out.String(), errout.String(), cmd.Dir}
}

func stub(t *testing.T, script modelstub.Script) (*modelstub.Server, []string) {
	t.Helper()
	s, err := modelstub.Start(modelstub.Config{Key: "sk-ant-api03-real", Script: script})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, s.CAPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	if block, _ := pem.Decode(s.CAPEM()); block == nil {
		t.Fatal("no PEM")
	}
	return s, []string{"SSL_CERT_FILE=" + ca, "SSL_CERT_DIR=" + t.TempDir(), "ANTHROPIC_BASE_URL=" + s.URL(), "ANTHROPIC_API_KEY=sk-ant-api03-real"}
}

const setup = "Please do this:\n```bash\nprintf 'made by %s' agent > made; cat made\n```\n"

func TestItDoesWhatThePromptSays(t *testing.T) {
	for name, give := range map[string]func(t *testing.T) (string, []string){
		"argument": func(*testing.T) (string, []string) { return "", []string{"-p", setup} },
		"stdin":    func(*testing.T) (string, []string) { return setup, []string{"--prompt-file", "-"} },
		"file": func(t *testing.T) (string, []string) {
			f := filepath.Join(t.TempDir(), "prompt")
			if err := os.WriteFile(f, []byte(setup), 0o600); err != nil {
				t.Fatal(err)
			}
			return "", []string{"--prompt-file", f}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, env := stub(t, modelstub.Obedient)
			stdin, args := give(t)
			o := runAgent(t, stdin, env, args...)
			made, _ := os.ReadFile(filepath.Join(o.dir, "made"))
			if o.code != 0 || string(made) != "made by agent" || !strings.Contains(o.out, "All set") {
				t.Fatalf("exit %d, made %q\n%s%s", o.code, made, o.out, o.errout)
			}
			recs := s.Records()
			if len(recs) != 2 || recs[1].Results[0].Text != "made by agent" || recs[0].Proto != "HTTP/2.0" {
				t.Errorf("%+v", recs)
			}
		})
	}
}

func TestAFailingCommandIsReportedToTheModel(t *testing.T) {
	s, env := stub(t, modelstub.Obedient)
	o := runAgent(t, "", env, "-p", "```sh\necho broken >&2; exit 3\n```")
	recs := s.Records()
	if o.code != 0 || len(recs) != 2 || !recs[1].Results[0].IsError || !strings.Contains(recs[1].Results[0].Text, "broken\n\n(exit 3)") {
		t.Errorf("exit %d\n%s%s\n%+v", o.code, o.out, o.errout, recs)
	}
}

func TestItGivesUpOnAModelThatNeverEnds(t *testing.T) {
	s, env := stub(t, func(r *modelstub.Request) modelstub.Turn {
		return modelstub.Turn{Calls: []modelstub.Call{{Tool: "Bash", Input: map[string]any{"command": "true"}}}}
	})
	o := runAgent(t, "", env, "-p", "go on")
	if o.code != 1 || len(s.Records()) != maxTurns || !strings.Contains(o.errout, "did not end") {
		t.Errorf("exit %d after %d requests\n%s", o.code, len(s.Records()), o.errout)
	}
}

func TestWhatTheEndpointRefusesIsShown(t *testing.T) {
	_, env := stub(t, modelstub.Obedient)
	o := runAgent(t, "", append(env, "ANTHROPIC_API_KEY=foreign"), "-p", setup)
	if o.code != 1 || !strings.Contains(o.errout, "authentication_error") {
		t.Errorf("exit %d: %s", o.code, o.errout)
	}
	// Without the stand-in's authority nothing is trusted.
	o = runAgent(t, "", append(env, "SSL_CERT_FILE=/dev/null"), "-p", setup)
	if o.code != 1 || !strings.Contains(o.errout, "certificate") {
		t.Errorf("exit %d: %s", o.code, o.errout)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"-p", "a", "--prompt-file", "b"}, {"-p", "a", "extra"}, {"--nonsense"}, {"--prompt-file", "/nonexistent"}} {
		if o := runAgent(t, "", nil, args...); o.code != 2 || o.errout == "" {
			t.Errorf("%q: exit %d, %q", args, o.code, o.errout)
		}
	}
}

// A stream that is cut must not run half a command.
func TestACutStreamRunsNothing(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte("event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"tool_use\",\"id\":\"t\",\"name\":\"Bash\",\"input\":{}}}\n\n" +
			"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"command\\\":\\\"touch ran\\\"}\"}}\n\n"))
	}))
	defer srv.Close()
	o := runAgent(t, "", []string{"ANTHROPIC_BASE_URL=" + srv.URL}, "-p", "x")
	if _, err := os.Stat(filepath.Join(o.dir, "ran")); o.code != 1 || err == nil || !strings.Contains(o.errout, "ended in the middle") {
		t.Errorf("exit %d, %v: %s", o.code, err, o.errout)
	}
}

func FuzzReadAnswer(f *testing.F) {
	f.Add([]byte("data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\ndata: {\"type\":\"message_stop\"}\n\n"))
	f.Add([]byte("data: {\"type\":\"content_block_delta\",\"index\":-1}\n"))
	f.Add([]byte("event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		blocks, stop, err := readAnswer(bytes.NewReader(b))
		if err == nil && (stop == "" || len(blocks) > maxBlocks) {
			t.Fatalf("%d blocks, stop %q", len(blocks), stop)
		}
	})
}
