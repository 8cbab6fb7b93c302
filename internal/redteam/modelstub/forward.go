package modelstub

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/live"
)

// hop are headers that belong to one connection, and those of whose effect
// nothing could be read here.
var hop = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Accept-Encoding"}

const maxAnswer = 8 << 20

// forward lets Config.Live answer, and remembers what it said. What an agent has
// seen is in Records.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, rec Record, body []byte) {
	out, err := http.NewRequestWithContext(r.Context(), r.Method, "http://model"+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		rec.Status, rec.Failure = http.StatusBadGateway, err.Error()
		s.remember(rec)
		http.Error(w, rec.Failure, rec.Status)
		return
	}
	out.Header = r.Header.Clone()
	for _, h := range hop {
		out.Header.Del(h)
	}
	res, err := s.cfg.Live.RoundTrip(out)
	if err != nil {
		rec.Status, rec.Failure = http.StatusBadGateway, err.Error()
		s.remember(rec)
		http.Error(w, rec.Failure, rec.Status)
		return
	}
	defer res.Body.Close()
	for _, h := range hop {
		res.Header.Del(h)
	}
	for name, values := range res.Header {
		w.Header()[name] = values
	}
	rec.Status = res.StatusCode
	rec.Stream = strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream")
	if !rec.Stream || rec.Status != http.StatusOK {
		answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
		switch {
		case rec.Status >= http.StatusBadRequest:
			rec.Failure = fmt.Sprintf("%s: %s", res.Status, live.Excerpt(answer))
		case err != nil:
			rec.Failure = "the answer broke off: " + err.Error()
		default:
			var l listener
			l.event(answer)
			l.tell(&rec)
		}
		s.remember(rec)
		w.Header().Del("Content-Length")
		w.WriteHeader(rec.Status)
		w.Write(answer)
		return
	}
	w.WriteHeader(rec.Status)
	at, l, flush := s.remember(rec), listener{}, http.NewResponseController(w)
	buf := make([]byte, 32<<10)
	for {
		n, err := res.Body.Read(buf)
		l.feed(buf[:n])
		// An agent may leave when it has heard the last event, before the end.
		if err != nil && err != io.EOF && r.Context().Err() == nil {
			rec.Failure = "the answer broke off: " + err.Error()
		}
		l.tell(&rec)
		s.correct(at, rec)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
			flush.Flush()
		}
		if err != nil {
			return
		}
	}
}

// listener hears what a model says, in each protocol, streamed or not.
type listener struct {
	line       []byte
	text, asks strings.Builder
	calls      []string
}

const maxHeard = 256 << 10

// feed takes the next bytes of an event stream.
func (l *listener) feed(b []byte) {
	for len(b) > 0 {
		part, rest, ended := bytes.Cut(b, []byte("\n"))
		if len(l.line) < maxAnswer {
			l.line = append(l.line, part...)
		}
		if b = rest; !ended {
			return
		}
		if data, ok := bytes.CutPrefix(l.line, []byte("data:")); ok {
			l.event(bytes.TrimSpace(data))
		}
		l.line = l.line[:0]
	}
}

type heardItem struct {
	Type      string          `json:"type"`
	Text      string          `json:"text"`
	Name      string          `json:"name"`
	Input     json.RawMessage `json:"input"`     // of a Messages call, of a custom tool's
	Arguments json.RawMessage `json:"arguments"` // of a Responses call
	Action    json.RawMessage `json:"action"`    // of a local shell's
	Content   []heardItem     `json:"content"`
}

// event takes one event of a stream, or a whole answer. Fields of other kinds
// than these are other events.
func (l *listener) event(data []byte) {
	var e struct {
		Type    string          `json:"type"`
		Content json.RawMessage `json:"content"`
		Block   heardItem       `json:"content_block"`
		Delta   json.RawMessage `json:"delta"`
		Item    heardItem       `json:"item"`
		Output  []heardItem     `json:"output"`
		Answers []struct {
			Content struct {
				Parts []struct {
					Text string `json:"text"`
					Call *struct {
						Name string          `json:"name"`
						Args json.RawMessage `json:"args"`
					} `json:"functionCall"`
				} `json:"parts"`
			} `json:"content"`
		} `json:"candidates"`
	}
	json.Unmarshal(data, &e)
	var items []heardItem
	switch e.Type {
	case "content_block_start":
		l.item(e.Block)
	case "content_block_delta":
		var d struct {
			Text string `json:"text"`
			JSON string `json:"partial_json"`
		}
		json.Unmarshal(e.Delta, &d)
		l.say(d.Text)
		l.ask(d.JSON)
	case "response.output_item.done":
		l.item(e.Item)
	case "message":
		json.Unmarshal(e.Content, &items)
	case "":
		items = e.Output
	}
	for _, it := range items {
		l.item(it)
	}
	for _, a := range e.Answers {
		for _, p := range a.Content.Parts {
			l.say(p.Text)
			if p.Call != nil {
				l.calls = append(l.calls, p.Call.Name)
				l.ask(string(p.Call.Args))
			}
		}
	}
}

func (l *listener) item(it heardItem) {
	switch it.Type {
	case "tool_use", "function_call", "custom_tool_call":
		l.calls = append(l.calls, it.Name)
	case "local_shell_call":
		l.calls = append(l.calls, "local_shell")
	}
	l.say(it.Text)
	for _, c := range it.Content {
		l.say(c.Text)
	}
	for _, raw := range []json.RawMessage{it.Input, it.Arguments, it.Action} {
		if s := string(raw); s != "" && s != "{}" {
			l.ask(s)
		}
	}
}

func (l *listener) say(s string) {
	if l.text.Len()+len(s) <= maxHeard {
		l.text.WriteString(s)
	}
}

func (l *listener) ask(s string) {
	if l.asks.Len()+len(s) <= maxHeard {
		l.asks.WriteString(s)
	}
}

func (l *listener) tell(rec *Record) {
	rec.Answered, rec.Said, rec.Asked = l.calls, l.text.String(), l.asks.String()
}

// correct replaces a record that was remembered before its answer was known.
func (s *Server) correct(at int, rec Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[at] = rec
}
