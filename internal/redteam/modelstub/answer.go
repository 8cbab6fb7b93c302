package modelstub

import (
	"bytes"
	"encoding/json"
	"net/http"
	"time"
	"unicode/utf8"
)

// answer is one assistant message, ready to be sent whole or as a stream.
type answer struct {
	id, model string
	input     int
	output    int
	blocks    []part
}

// part is one content block: a text, or a tool call.
type part struct {
	text  string
	call  string // tool name; empty for a text
	id    string
	input json.RawMessage
}

func newAnswer(r *Request, t Turn, input int) (*answer, error) {
	a := &answer{id: ident("msg_01", 22), model: r.Model, input: input}
	if t.Text != "" || len(t.Calls) == 0 {
		a.blocks = append(a.blocks, part{text: t.Text})
		a.output += tokens(len(t.Text))
	}
	for _, c := range t.Calls {
		in, err := marshal(c.Input)
		if err != nil {
			return nil, err
		}
		a.blocks = append(a.blocks, part{call: c.Tool, id: ident("toolu_01", 22), input: in})
		a.output += tokens(len(in))
	}
	return a, nil
}

func (a *answer) stopReason() string {
	if a.blocks[len(a.blocks)-1].call != "" {
		return "tool_use"
	}
	return "end_turn"
}

// The wire forms. Field order is the service's.
type (
	wireMessage struct {
		Model        string      `json:"model"`
		ID           string      `json:"id"`
		Type         string      `json:"type"`
		Role         string      `json:"role"`
		Content      []wireBlock `json:"content"`
		StopReason   *string     `json:"stop_reason"`
		StopSequence *string     `json:"stop_sequence"`
		Usage        wireUsage   `json:"usage"`
	}
	wireBlock struct {
		Type  string          `json:"type"`
		Text  *string         `json:"text,omitempty"`
		ID    string          `json:"id,omitempty"`
		Name  string          `json:"name,omitempty"`
		Input json.RawMessage `json:"input,omitempty"`
	}
	wireUsage struct {
		InputTokens   int            `json:"input_tokens"`
		CacheCreation int            `json:"cache_creation_input_tokens"`
		CacheRead     int            `json:"cache_read_input_tokens"`
		Ephemeral     *wireEphemeral `json:"cache_creation,omitempty"`
		OutputTokens  int            `json:"output_tokens"`
		ServiceTier   string         `json:"service_tier,omitempty"`
	}
	wireEphemeral struct {
		FiveMinutes int `json:"ephemeral_5m_input_tokens"`
		Hour        int `json:"ephemeral_1h_input_tokens"`
	}
)

func (a *answer) usage(output int) wireUsage {
	return wireUsage{InputTokens: a.input, Ephemeral: &wireEphemeral{}, OutputTokens: output, ServiceTier: "standard"}
}

func (a *answer) message() wireMessage {
	stop := a.stopReason()
	m := wireMessage{Model: a.model, ID: a.id, Type: "message", Role: "assistant", StopReason: &stop, Usage: a.usage(a.output)}
	for _, b := range a.blocks {
		if b.call == "" {
			m.Content = append(m.Content, wireBlock{Type: "text", Text: &b.text})
			continue
		}
		m.Content = append(m.Content, wireBlock{Type: "tool_use", ID: b.id, Name: b.call, Input: b.input})
	}
	return m
}

// stream sends the answer as server-sent events, each flushed by itself.
func (a *answer) stream(w http.ResponseWriter, r *http.Request, pace time.Duration) {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	gone := false
	send := func(kind string, v any) {
		if gone {
			return
		}
		data, err := marshal(v)
		if err != nil {
			panic(err) // only our own types get here
		}
		var b bytes.Buffer
		b.WriteString("event: " + kind + "\ndata: ")
		b.Write(data)
		b.WriteString("\n\n")
		if _, err := w.Write(b.Bytes()); err != nil || flush.Flush() != nil {
			gone = true
			return
		}
		if pace > 0 {
			select {
			case <-time.After(pace):
			case <-r.Context().Done():
				gone = true
			}
		}
	}

	type indexed struct {
		Type         string     `json:"type"`
		Index        int        `json:"index"`
		ContentBlock *wireBlock `json:"content_block,omitempty"`
		Delta        any        `json:"delta,omitempty"`
	}
	type textDelta struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	type inputDelta struct {
		Type string `json:"type"`
		JSON string `json:"partial_json"`
	}

	start := a.message()
	start.Content, start.StopReason, start.Usage = []wireBlock{}, nil, a.usage(1)
	send("message_start", struct {
		Type    string      `json:"type"`
		Message wireMessage `json:"message"`
	}{"message_start", start})
	empty := ""
	for i, b := range a.blocks {
		first := &wireBlock{Type: "text", Text: &empty}
		if b.call != "" {
			first = &wireBlock{Type: "tool_use", ID: b.id, Name: b.call, Input: json.RawMessage("{}")}
		}
		send("content_block_start", indexed{Type: "content_block_start", Index: i, ContentBlock: first})
		if i == 0 {
			send("ping", map[string]string{"type": "ping"})
		}
		if b.call == "" {
			for _, piece := range pieces(b.text, 24) {
				send("content_block_delta", indexed{Type: "content_block_delta", Index: i, Delta: textDelta{"text_delta", piece}})
			}
		} else {
			// The service opens every tool input with an empty fragment.
			for _, piece := range append([]string{""}, pieces(string(b.input), 40)...) {
				send("content_block_delta", indexed{Type: "content_block_delta", Index: i, Delta: inputDelta{"input_json_delta", piece}})
			}
		}
		send("content_block_stop", indexed{Type: "content_block_stop", Index: i})
	}
	type stop struct {
		Reason   string  `json:"stop_reason"`
		Sequence *string `json:"stop_sequence"`
	}
	send("message_delta", struct {
		Type  string    `json:"type"`
		Delta stop      `json:"delta"`
		Usage wireUsage `json:"usage"`
	}{"message_delta", stop{Reason: a.stopReason()}, wireUsage{InputTokens: a.input, OutputTokens: a.output}})
	send("message_stop", map[string]string{"type": "message_stop"})
}

// pieces cuts s into strings of about n bytes at rune boundaries.
func pieces(s string, n int) []string {
	var out []string
	for len(s) > n {
		k := n
		for k < len(s) && !utf8.RuneStart(s[k]) {
			k++
		}
		out, s = append(out, s[:k]), s[k:]
	}
	if s != "" {
		out = append(out, s)
	}
	return out
}

// marshal is json.Marshal without the escaping of <, > and &, which the
// service does not do either.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}
