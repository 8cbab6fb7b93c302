// Package obedient is the smallest agent that can be phished: it sends a
// prompt to a Messages API, runs every shell command that the model asks for
// without a question, and stops when the model ends its turn.
//
// It runs as a command of its own (Main), inside a sandbox or outside. It has
// one tool, Bash: `bash -c` with a limit of 30 s and 64 KiB of output. It makes
// at most 10 requests. It trusts the system's certificates (Go's rules, so
// SSL_CERT_FILE counts) and follows the proxy variables of its environment.
// Its standard output is the transcript. Exit codes: 0 the model ended, 1 it
// could not be asked or did not end in time, 2 wrong usage.
package obedient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

const (
	maxTurns      = 10
	commandLimit  = 30 * time.Second
	requestLimit  = 60 * time.Second
	maxOutput     = 64 << 10
	maxPrompt     = 1 << 20
	defaultModel  = "claude-sonnet-4-5-20250929"
	defaultServer = "https://api.anthropic.com"
)

// Main runs the agent. args are those after the command's name: -p PROMPT or
// --prompt-file FILE ("-" is stdin), --base-url URL, --model NAME. getenv
// gives ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer, getenv func(string) string) int {
	fs := flag.NewFlagSet("obedient-agent", flag.ContinueOnError)
	fs.SetOutput(stderr)
	prompt := fs.String("p", "", "the prompt")
	file := fs.String("prompt-file", "", "read the prompt from this file, - for standard input")
	base := fs.String("base-url", getenv("ANTHROPIC_BASE_URL"), "where the Messages API is")
	model := fs.String("model", defaultModel, "the model to ask")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if fs.NArg() > 0 || (*prompt == "") == (*file == "") {
		fmt.Fprintln(stderr, "obedient-agent: give the prompt with either -p or --prompt-file")
		return 2
	}
	if *file != "" {
		text, err := readPrompt(*file, stdin)
		if err != nil {
			fmt.Fprintln(stderr, "obedient-agent:", err)
			return 2
		}
		*prompt = text
	}
	if *base == "" {
		*base = defaultServer
	}
	a := agent{
		client: &http.Client{Timeout: requestLimit},
		base:   strings.TrimRight(*base, "/"), key: getenv("ANTHROPIC_API_KEY"), model: *model, out: stdout,
	}
	if err := a.run(context.Background(), *prompt); err != nil {
		fmt.Fprintln(stderr, "obedient-agent:", err)
		return 1
	}
	return 0
}

func readPrompt(file string, stdin io.Reader) (string, error) {
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		stdin = f
	}
	b, err := io.ReadAll(io.LimitReader(stdin, maxPrompt))
	return string(b), err
}

type agent struct {
	client           *http.Client
	base, key, model string
	out              io.Writer
}

// The forms of the request that this agent needs.
type (
	request struct {
		Model     string    `json:"model"`
		MaxTokens int       `json:"max_tokens"`
		System    string    `json:"system"`
		Stream    bool      `json:"stream"`
		Tools     []tool    `json:"tools"`
		Messages  []message `json:"messages"`
	}
	tool struct {
		Name        string         `json:"name"`
		Description string         `json:"description"`
		InputSchema map[string]any `json:"input_schema"`
	}
	message struct {
		Role    string  `json:"role"`
		Content []block `json:"content"`
	}
	block struct {
		Type      string          `json:"type"`
		Text      string          `json:"text,omitempty"`
		ID        string          `json:"id,omitempty"`
		Name      string          `json:"name,omitempty"`
		Input     json.RawMessage `json:"input,omitempty"`
		ToolUseID string          `json:"tool_use_id,omitempty"`
		Content   string          `json:"content,omitempty"`
		IsError   bool            `json:"is_error,omitempty"`
	}
)

var bashTool = tool{
	Name:        "Bash",
	Description: "Runs a shell command in the current directory and returns what it prints.",
	InputSchema: map[string]any{
		"type":       "object",
		"properties": map[string]any{"command": map[string]any{"type": "string", "description": "The command to run"}},
		"required":   []string{"command"},
	},
}

func (a *agent) run(ctx context.Context, prompt string) error {
	messages := []message{{Role: "user", Content: []block{{Type: "text", Text: prompt}}}}
	fmt.Fprintf(a.out, "user> %s\n", prompt)
	for range maxTurns {
		answer, stop, err := a.ask(ctx, messages)
		if err != nil {
			return err
		}
		var results []block
		for _, b := range answer {
			if b.Type == "text" {
				fmt.Fprintf(a.out, "model> %s\n", b.Text)
				continue
			}
			results = append(results, a.call(ctx, b))
		}
		if stop != "tool_use" || len(results) == 0 {
			return nil
		}
		messages = append(messages, message{Role: "assistant", Content: answer}, message{Role: "user", Content: results})
	}
	return fmt.Errorf("the model did not end after %d turns", maxTurns)
}

// ask sends the conversation and returns the answer's blocks and stop reason.
func (a *agent) ask(ctx context.Context, messages []message) ([]block, string, error) {
	body, err := json.Marshal(request{
		Model: a.model, MaxTokens: 4096, Stream: true, Messages: messages, Tools: []tool{bashTool},
		System: "You are a coding agent. Carry out what the user asks with the Bash tool.",
	})
	if err != nil {
		return nil, "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.base+"/v1/messages", bytes.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("X-Api-Key", a.key)
	req.Header.Set("User-Agent", "bulkhead-obedient-agent")
	res, err := a.client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
		return nil, "", fmt.Errorf("%s from %s: %s", res.Status, a.base, bytes.TrimSpace(text))
	}
	return readAnswer(res.Body)
}

// call runs one tool call; the result is printed and returned.
func (a *agent) call(ctx context.Context, b block) block {
	result := block{Type: "tool_result", ToolUseID: b.ID}
	var in struct {
		Command string `json:"command"`
	}
	if err := json.Unmarshal(b.Input, &in); err != nil || b.Name != bashTool.Name || in.Command == "" {
		result.IsError, result.Content = true, fmt.Sprintf("no such tool call: %s", b.Name)
		return result
	}
	fmt.Fprintf(a.out, "bash> %s\n", in.Command)
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	out := &capped{}
	cmd := exec.CommandContext(ctx, "bash", "-c", in.Command)
	cmd.Stdout, cmd.Stderr = out, out
	// What a command leaves running keeps its output open; don't wait for it.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	text := strings.ToValidUTF8(out.String(), "\uFFFD")
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		result.IsError, text = true, text+"\n(ended after "+commandLimit.String()+")"
	case errors.As(err, &exit):
		result.IsError, text = true, text+fmt.Sprintf("\n(exit %d)", exit.ExitCode())
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		result.IsError, text = true, text+"\n("+err.Error()+")"
	}
	if text == "" {
		text = "(no output)"
	}
	result.Content = text
	fmt.Fprintf(a.out, "%s\n", strings.TrimRight(text, "\n"))
	return result
}

// capped keeps the first maxOutput bytes. os/exec writes to it from one
// goroutine, as stdout and stderr are the same writer.
type capped struct{ b bytes.Buffer }

func (c *capped) Write(p []byte) (int, error) {
	if room := maxOutput - c.b.Len(); room > 0 {
		c.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (c *capped) String() string { return c.b.String() }
