package modelstub

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Request is a Messages request, reduced to what scripts and the API's own
// checks look at.
type Request struct {
	Model     string
	MaxTokens int
	Stream    bool
	System    string // all system blocks, joined by blank lines
	Messages  []Message
	Tools     []Tool
	// Schema is the JSON schema that the answer's text must have, if the
	// request asks for structured output.
	Schema json.RawMessage
}

// Message is one turn of the conversation.
type Message struct {
	Role    string
	Content []Block
}

// Block is one content block. Which fields are set depends on Type: text
// (Text), tool_use (ID, Name, Input), tool_result (ToolUseID, Text, IsError).
// Blocks of other types keep their Type only.
type Block struct {
	Type      string
	Text      string
	ID        string
	Name      string
	Input     json.RawMessage
	ToolUseID string
	IsError   bool
}

// Tool is one tool that the request offers.
type Tool struct {
	Name       string
	Properties map[string]json.RawMessage // of its input schema
	Required   []string
}

// Tool returns the offered tool of that name, compared without case.
func (r *Request) Tool(name string) (Tool, bool) {
	i := slices.IndexFunc(r.Tools, func(t Tool) bool { return strings.EqualFold(t.Name, name) })
	if i < 0 {
		return Tool{}, false
	}
	return r.Tools[i], true
}

// Results returns the tool results of the last message.
func (r *Request) Results() []Result {
	var out []Result
	if len(r.Messages) == 0 {
		return nil
	}
	for _, b := range r.Messages[len(r.Messages)-1].Content {
		if b.Type == "tool_result" {
			out = append(out, Result{Text: cut(b.Text, 64<<10), IsError: b.IsError})
		}
	}
	return out
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// invalid is an invalid_request_error.
type invalid string

func (e invalid) Error() string { return string(e) }

// parseRequest reads a body and applies the checks that the API makes before
// it asks the model. count is set for count_tokens, which has no max_tokens.
func parseRequest(body []byte, count bool) (*Request, error) {
	var w struct {
		Model     *string           `json:"model"`
		MaxTokens *int              `json:"max_tokens"`
		Stream    bool              `json:"stream"`
		System    json.RawMessage   `json:"system"`
		Messages  []json.RawMessage `json:"messages"`
		Tools     []struct {
			Name        string `json:"name"`
			InputSchema struct {
				Properties map[string]json.RawMessage `json:"properties"`
				Required   []string                   `json:"required"`
			} `json:"input_schema"`
		} `json:"tools"`
		OutputConfig struct {
			Format format `json:"format"`
		} `json:"output_config"`
		OutputFormat format `json:"output_format"`
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(&w); err != nil {
		return nil, invalid("The request body is not valid JSON: " + err.Error())
	}
	switch {
	case w.Model == nil:
		return nil, invalid("model: Field required")
	case w.MaxTokens == nil && !count:
		return nil, invalid("max_tokens: Field required")
	case w.MaxTokens != nil && *w.MaxTokens < 1:
		return nil, invalid("max_tokens: Input should be greater than or equal to 1")
	case len(w.Messages) == 0:
		return nil, invalid("messages: at least one message is required")
	}
	r := &Request{Model: *w.Model, Stream: w.Stream}
	if w.MaxTokens != nil {
		r.MaxTokens = *w.MaxTokens
	}
	if s := w.OutputConfig.Format.Schema; len(s) > 0 {
		r.Schema = s
	} else {
		r.Schema = w.OutputFormat.Schema
	}
	system, err := parseContent(w.System)
	if err != nil {
		return nil, invalid("system: " + err.Error())
	}
	var texts []string
	for _, b := range system {
		texts = append(texts, b.Text)
	}
	r.System = strings.Join(texts, "\n\n")
	for _, t := range w.Tools {
		r.Tools = append(r.Tools, Tool{Name: t.Name, Properties: t.InputSchema.Properties, Required: t.InputSchema.Required})
	}
	for i, raw := range w.Messages {
		var m struct {
			Role    string          `json:"role"`
			Content json.RawMessage `json:"content"`
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, invalid(fmt.Sprintf("messages.%d: Input should be a valid dictionary", i))
		}
		if m.Role != "user" && m.Role != "assistant" && m.Role != "system" {
			return nil, invalid(fmt.Sprintf("messages.%d.role: Input should be 'user' or 'assistant'", i))
		}
		blocks, err := parseContent(m.Content)
		if err != nil {
			return nil, invalid(fmt.Sprintf("messages.%d.content: %v", i, err))
		}
		r.Messages = append(r.Messages, Message{Role: m.Role, Content: blocks})
	}
	return r, checkToolPairs(r.Messages)
}

type format struct {
	Type   string          `json:"type"`
	Schema json.RawMessage `json:"schema"`
}

// parseContent reads a string or a list of blocks; null is an empty list.
func parseContent(raw json.RawMessage) ([]Block, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return nil, nil
	}
	if raw[0] == '"' {
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			return nil, err
		}
		return []Block{{Type: "text", Text: s}}, nil
	}
	var list []struct {
		Type      string          `json:"type"`
		Text      string          `json:"text"`
		ID        string          `json:"id"`
		Name      string          `json:"name"`
		Input     json.RawMessage `json:"input"`
		ToolUseID string          `json:"tool_use_id"`
		IsError   bool            `json:"is_error"`
		Content   json.RawMessage `json:"content"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		//lint:ignore ST1005 these are the API's own words
		return nil, errors.New("Input should be a valid list")
	}
	var out []Block
	for _, b := range list {
		block := Block{Type: b.Type, Text: b.Text, ID: b.ID, Name: b.Name, Input: b.Input, ToolUseID: b.ToolUseID, IsError: b.IsError}
		if b.Type == "tool_result" {
			inner, err := parseContent(b.Content)
			if err != nil {
				return nil, err
			}
			for _, in := range inner {
				block.Text += in.Text
			}
		}
		out = append(out, block)
	}
	return out, nil
}

// checkToolPairs applies the API's rule that each tool_use is answered by a
// tool_result in the very next message, and no other result exists.
func checkToolPairs(messages []Message) error {
	var open []string
	for i, m := range messages {
		if m.Role == "system" {
			continue
		}
		answered := map[string]bool{}
		for j, b := range m.Content {
			if b.Type != "tool_result" {
				continue
			}
			if !slices.Contains(open, b.ToolUseID) {
				return invalid(fmt.Sprintf("messages.%d.content.%d: unexpected `tool_use_id` found in `tool_result` blocks: %s. Each `tool_result` block must have a corresponding `tool_use` block in the previous message.", i, j, b.ToolUseID))
			}
			answered[b.ToolUseID] = true
		}
		var missing []string
		for _, id := range open {
			if !answered[id] {
				missing = append(missing, id)
			}
		}
		if len(missing) > 0 {
			return invalid(fmt.Sprintf("messages.%d: `tool_use` ids were found without `tool_result` blocks immediately after: %s. Each `tool_use` block must have a corresponding `tool_result` block in the next message.", i-1, strings.Join(missing, ", ")))
		}
		open = open[:0]
		if m.Role == "assistant" {
			for _, b := range m.Content {
				if b.Type == "tool_use" {
					open = append(open, b.ID)
				}
			}
		}
	}
	return nil
}
