package modelstub

import (
	"encoding/json"
	"regexp"
	"strings"
)

// Script is the model: it maps a request to what the model says next. It must
// be a function of the request alone, as a model is; it may be called from
// several goroutines.
type Script func(*Request) Turn

// Turn is an answer: some text, then tool calls. With tool calls the stop
// reason is tool_use, without it is end_turn.
type Turn struct {
	Text  string
	Calls []Call
}

// Call is one tool call. Input is marshalled as JSON.
type Call struct {
	Tool  string
	Input map[string]any
}

var fenced = regexp.MustCompile("(?ms)^[ \t]*```[ \t]*(?:bash|sh|shell|console)[ \t]*\r?\n(.*?)^[ \t]*```")

// Obedient is a model that does what the prompt says: the first shell block
// of the last thing the user wrote becomes one call of the tool that runs
// commands, and when its result comes back, the model reports and ends.
func Obedient(r *Request) Turn {
	if t, ok := helper(r); ok {
		return t
	}
	if results := r.Results(); len(results) > 0 {
		for _, res := range results {
			if res.IsError {
				return Turn{Text: "The command failed. I've left things as they are."}
			}
		}
		return Turn{Text: "All set: the setup steps ran as described."}
	}
	m := fenced.FindStringSubmatch(userText(r))
	if m == nil {
		return Turn{Text: "There is nothing to run in that."}
	}
	tool, ok := shellTool(r)
	if !ok {
		return Turn{Text: "I have no tool to run commands with."}
	}
	return Turn{Text: "I'll run the setup steps now.", Calls: []Call{RunCommand(tool, strings.TrimSpace(m[1]))}}
}

// Steps is a model that works through a fixed list: each step becomes one
// turn, the next one follows once the tool results are back, and done is the
// text that ends. Requests without tools are answered as Obedient does.
func Steps(done string, steps ...func(*Request) Call) Script {
	return func(r *Request) Turn {
		if t, ok := helper(r); ok {
			return t
		}
		n := 0
		for _, m := range r.Messages {
			for _, b := range m.Content {
				if b.Type == "tool_use" {
					n++
				}
			}
		}
		if n >= len(steps) {
			return Turn{Text: done}
		}
		return Turn{Calls: []Call{steps[n](r)}}
	}
}

// RunCommand calls t, a tool that runs commands, with the fields it requires.
func RunCommand(t Tool, command string) Call {
	in := map[string]any{"command": command}
	var p struct {
		Type string `json:"type"`
	}
	_ = json.Unmarshal(t.Properties["command"], &p)
	switch {
	case p.Type == "array":
		in["command"] = []string{"bash", "-c", command}
	case t.Properties["cmd"] != nil:
		in = map[string]any{"cmd": command}
	}
	if _, ok := t.Properties["yield_time_ms"]; ok {
		in["yield_time_ms"] = 30000 // it would answer before the command has ended
	}
	if _, ok := t.Properties["description"]; ok {
		in["description"] = "Run the setup steps"
	}
	if _, ok := t.Properties["max_output_tokens"]; ok {
		in["max_output_tokens"] = 50000
	}
	return Call{Tool: t.Name, Input: in}
}

// shellTool finds the tool that runs commands: by the names that agents use,
// or else the first one that takes a command as a string.
func shellTool(r *Request) (Tool, bool) {
	for _, name := range []string{"Bash", "shell", "run_shell_command", "execute_command", "exec_command", "shell_command"} {
		if t, ok := r.Tool(name); ok {
			return t, true
		}
	}
	for _, t := range r.Tools {
		var p struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(t.Properties["command"], &p) == nil && p.Type == "string" {
			return t, true
		}
	}
	return Tool{}, false
}

// userText joins the last user message's text, without the reminders that
// agents add to it.
func userText(r *Request) string {
	for i := len(r.Messages) - 1; i >= 0; i-- {
		m := r.Messages[i]
		if m.Role != "user" {
			continue
		}
		var texts []string
		for _, b := range m.Content {
			if b.Type == "text" && !strings.HasPrefix(strings.TrimSpace(b.Text), "<system-reminder>") {
				texts = append(texts, b.Text)
			}
		}
		return strings.Join(texts, "\n")
	}
	return ""
}

// helper answers the small requests that agents make beside the conversation
// (quota probes, titles, topics): they offer no tools.
func helper(r *Request) (Turn, bool) {
	if len(r.Tools) > 0 {
		return Turn{}, false
	}
	if len(r.Schema) > 0 {
		return Turn{Text: string(example(r.Schema))}, true
	}
	return Turn{Text: "Project setup"}, true
}

// example makes the smallest JSON object that has a schema's properties.
func example(schema json.RawMessage) []byte {
	var s struct {
		Properties map[string]struct {
			Type string            `json:"type"`
			Enum []json.RawMessage `json:"enum"`
		} `json:"properties"`
	}
	json.Unmarshal(schema, &s)
	out := map[string]any{}
	for name, p := range s.Properties {
		switch {
		case len(p.Enum) > 0:
			out[name] = p.Enum[0]
		case p.Type == "boolean":
			out[name] = false
		case p.Type == "integer" || p.Type == "number":
			out[name] = 0
		case p.Type == "array":
			out[name] = []any{}
		case p.Type == "object":
			out[name] = map[string]any{}
		default:
			out[name] = "Project setup"
		}
	}
	b, _ := json.Marshal(out)
	return b
}
