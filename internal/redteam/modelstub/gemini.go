package modelstub

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// gemini serves Google's generateContent, as far as an agent of that protocol
// needs it. The path ends with the method.
func (s *Server) gemini(w http.ResponseWriter, r *http.Request, rec Record) {
	fail := func(status int, message string) {
		rec.Status = status
		s.remember(rec)
		reply(w, status, map[string]any{"error": map[string]any{"code": status, "message": message}})
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		fail(http.StatusBadRequest, "The request body could not be read")
		return
	}
	name, method, _ := strings.Cut(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:], ":")
	if s.cfg.Live != nil && (method == "countTokens" || method == "" && r.Method == http.MethodGet) {
		s.forward(w, r, rec, body)
		return
	}
	if method == "countTokens" {
		s.remember(rec)
		reply(w, http.StatusOK, map[string]int{"totalTokens": tokens(len(body))})
		return
	}
	if r.Method != http.MethodPost || method != "generateContent" && method != "streamGenerateContent" {
		fail(http.StatusNotFound, "Not found")
		return
	}
	req, err := parseGemini(body)
	if err == nil {
		req.Model, req.Stream = name, method == "streamGenerateContent"
		rec.note(req)
	}
	if s.cfg.Live != nil {
		s.forward(w, r, rec, body)
		return
	}
	if err != nil {
		fail(http.StatusBadRequest, err.Error())
		return
	}
	turn := s.cfg.Script(req)
	var parts []map[string]any
	if turn.Text != "" || len(turn.Calls) == 0 {
		parts = append(parts, map[string]any{"text": turn.Text})
	}
	for _, c := range turn.Calls {
		rec.Answered = append(rec.Answered, c.Tool)
		parts = append(parts, map[string]any{"functionCall": map[string]any{"name": c.Tool, "args": c.Input}})
	}
	s.remember(rec)
	answer := map[string]any{
		"candidates":    []any{map[string]any{"index": 0, "content": map[string]any{"role": "model", "parts": parts}, "finishReason": "STOP"}},
		"usageMetadata": map[string]int{"promptTokenCount": tokens(len(body)), "candidatesTokenCount": 10, "totalTokenCount": tokens(len(body)) + 10},
		"modelVersion":  name, "responseId": ident("", 20),
	}
	if !rec.Stream {
		reply(w, http.StatusOK, answer)
		return
	}
	text, err := marshal(answer)
	if err != nil {
		panic(err) // scripts give what can be marshalled
	}
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprintf(w, "data: %s\n\n", text)
}

func parseGemini(body []byte) (*Request, error) {
	type part struct {
		Text string `json:"text"`
		Call *struct {
			Name string          `json:"name"`
			Args json.RawMessage `json:"args"`
		} `json:"functionCall"`
		Response *struct {
			Name     string                     `json:"name"`
			Response map[string]json.RawMessage `json:"response"`
		} `json:"functionResponse"`
	}
	var w struct {
		System struct {
			Parts []part `json:"parts"`
		} `json:"systemInstruction"`
		Contents []struct {
			Role  string `json:"role"`
			Parts []part `json:"parts"`
		} `json:"contents"`
		Tools []struct {
			Declarations []struct {
				Name       string     `json:"name"`
				Parameters toolSchema `json:"parameters"`
				JSON       toolSchema `json:"parametersJsonSchema"`
			} `json:"functionDeclarations"`
		} `json:"tools"`
		Config struct {
			Schema json.RawMessage `json:"responseSchema"`
			JSON   json.RawMessage `json:"responseJsonSchema"`
		} `json:"generationConfig"`
	}
	if err := json.Unmarshal(body, &w); err != nil {
		return nil, err
	}
	r := &Request{Schema: w.Config.JSON}
	if len(r.Schema) == 0 {
		r.Schema = w.Config.Schema
	}
	for _, t := range w.Tools {
		for _, d := range t.Declarations {
			s := d.JSON
			if s.Properties == nil {
				s = d.Parameters
			}
			r.Tools = append(r.Tools, Tool{Name: d.Name, Properties: s.Properties, Required: s.Required})
		}
	}
	for _, c := range w.Contents {
		m := Message{Role: "user"}
		if c.Role == "model" {
			m.Role = "assistant"
		}
		for _, p := range c.Parts {
			switch {
			case p.Call != nil:
				m.Content = append(m.Content, Block{Type: "tool_use", Name: p.Call.Name, Input: p.Call.Args})
			case p.Response != nil:
				b := Block{Type: "tool_result", ToolUseID: p.Response.Name}
				for _, key := range []string{"output", "error"} {
					for _, text := range texts(p.Response.Response[key]) {
						b.Text += text
					}
				}
				m.Content = append(m.Content, b)
			default:
				m.Content = append(m.Content, Block{Type: "text", Text: p.Text})
			}
		}
		r.Messages = append(r.Messages, m)
	}
	return r, nil
}

// toolSchema is what a tool takes.
type toolSchema struct {
	Properties map[string]json.RawMessage `json:"properties"`
	Required   []string                   `json:"required"`
}
