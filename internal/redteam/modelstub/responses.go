package modelstub

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"
)

// responses serves the Responses API, as far as an agent of that protocol needs it.
func (s *Server) responses(w http.ResponseWriter, r *http.Request, rec Record) {
	fail := func(status int, message string) {
		rec.Status = status
		s.remember(rec)
		reply(w, status, map[string]any{"error": map[string]string{"type": "invalid_request_error", "message": message}})
	}
	if r.Method != http.MethodPost {
		fail(http.StatusMethodNotAllowed, "Method Not Allowed")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		fail(http.StatusBadRequest, "The request body could not be read")
		return
	}
	req, err := parseResponses(body)
	if s.cfg.Live != nil {
		if err == nil {
			rec.note(req)
		}
		s.forward(w, r, rec, body)
		return
	}
	if err != nil {
		fail(http.StatusBadRequest, err.Error())
		return
	}
	rec.note(req)
	turn := s.cfg.Script(req)
	for _, c := range turn.Calls {
		rec.Answered = append(rec.Answered, c.Tool)
	}
	s.remember(rec)
	streamResponse(w, req, turn, tokens(len(body)))
}

// parseResponses reads a request. What the tools returned last is the last
// message, as the Messages API has it.
func parseResponses(body []byte) (*Request, error) {
	var w struct {
		Model        string `json:"model"`
		Instructions string `json:"instructions"`
		Stream       bool   `json:"stream"`
		Input        []struct {
			Type      string          `json:"type"`
			Role      string          `json:"role"`
			Content   json.RawMessage `json:"content"`
			CallID    string          `json:"call_id"`
			Name      string          `json:"name"`
			Arguments string          `json:"arguments"`
			Output    json.RawMessage `json:"output"`
		} `json:"input"`
		Tools []struct {
			Name       string `json:"name"`
			Parameters struct {
				Properties map[string]json.RawMessage `json:"properties"`
				Required   []string                   `json:"required"`
			} `json:"parameters"`
		} `json:"tools"`
	}
	if err := json.Unmarshal(body, &w); err != nil {
		return nil, err
	}
	if w.Model == "" || len(w.Input) == 0 {
		return nil, errors.New("model and input are required")
	}
	r := &Request{Model: w.Model, Stream: w.Stream, System: w.Instructions}
	for _, t := range w.Tools {
		if t.Name != "" {
			r.Tools = append(r.Tools, Tool{Name: t.Name, Properties: t.Parameters.Properties, Required: t.Parameters.Required})
		}
	}
	add := func(role string, b ...Block) {
		if n := len(r.Messages); n > 0 && r.Messages[n-1].Role == role {
			r.Messages[n-1].Content = append(r.Messages[n-1].Content, b...)
			return
		}
		r.Messages = append(r.Messages, Message{Role: role, Content: b})
	}
	for _, in := range w.Input {
		switch in.Type {
		case "message", "":
			for _, text := range texts(in.Content) {
				add(in.Role, Block{Type: "text", Text: text})
			}
		case "function_call":
			add("assistant", Block{Type: "tool_use", ID: in.CallID, Name: in.Name, Input: json.RawMessage(in.Arguments)})
		case "function_call_output":
			result := Block{Type: "tool_result", ToolUseID: in.CallID}
			for _, text := range texts(in.Output) {
				result.Text += text
			}
			add("user", result)
		}
	}
	return r, nil
}

// texts reads a string, or the texts of a list of parts.
func texts(raw json.RawMessage) []string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return []string{s}
	}
	var parts []struct {
		Text string `json:"text"`
	}
	var out []string
	if json.Unmarshal(raw, &parts) == nil {
		for _, p := range parts {
			out = append(out, p.Text)
		}
	}
	return out
}

// streamResponse sends a turn as server-sent events.
func streamResponse(w http.ResponseWriter, req *Request, t Turn, input int) {
	type item map[string]any
	var items []item
	if t.Text != "" || len(t.Calls) == 0 {
		items = append(items, item{"type": "message", "id": ident("msg_", 24), "role": "assistant", "status": "completed",
			"content": []item{{"type": "output_text", "text": t.Text, "annotations": []any{}}}})
	}
	for _, c := range t.Calls {
		args, err := marshal(c.Input)
		if err != nil {
			panic(err) // scripts give what can be marshalled
		}
		items = append(items, item{"type": "function_call", "id": ident("fc_", 24), "call_id": ident("call_", 24), "name": c.Tool, "arguments": string(args), "status": "completed"})
	}
	head := item{"id": ident("resp_", 24), "object": "response", "created_at": time.Now().Unix(), "model": req.Model, "status": "in_progress", "output": []item{}}
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w)
	n := 0
	send := func(kind string, v item) {
		v["type"], v["sequence_number"] = kind, n
		n++
		data, err := marshal(v)
		if err != nil {
			panic(err) // only our own types get here
		}
		w.Write(bytes.Join([][]byte{[]byte("event: " + kind + "\ndata: "), data, []byte("\n\n")}, nil))
		flush.Flush()
	}
	send("response.created", item{"response": head})
	for i, it := range items {
		send("response.output_item.added", item{"output_index": i, "item": it})
		send("response.output_item.done", item{"output_index": i, "item": it})
	}
	done := item{"usage": item{"input_tokens": input, "input_tokens_details": item{"cached_tokens": 0}, "output_tokens": 10, "output_tokens_details": item{"reasoning_tokens": 0}, "total_tokens": input + 10}}
	for k, v := range head {
		done[k] = v
	}
	done["status"], done["output"] = "completed", items
	send("response.completed", item{"response": done})
}
