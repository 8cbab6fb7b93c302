package trust

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Words says in plain words what configuration in JSON would run or reach: each
// command with the event, server or task that it belongs to. It reads for the
// person who is asked, and decides nothing; what it can't read it leaves out,
// and the content is shown in any case. The lines hold a stranger's text: Show
// makes it safe.
func Words(items []Item) []string {
	var out []string
	for _, i := range items {
		base := fold(path.Base(i.Path))
		if i.Kind != KindFile || len(i.Text) == 0 || !strings.HasSuffix(base, ".json") && !strings.HasSuffix(base, ".jsonc") && !strings.HasSuffix(base, ".code-workspace") {
			continue
		}
		var v any
		if json.Unmarshal(withoutComments(i.Text), &v) != nil {
			continue
		}
		w := &wording{}
		w.walk(v, nil, 0)
		for _, l := range w.lines {
			out = append(out, i.Path+": "+l)
		}
	}
	return out
}

// maxWords bounds the lines about one file.
const maxWords = 100

type wording struct{ lines []string }

func (w *wording) add(where []string, verb, what string) {
	if len(w.lines) == maxWords {
		w.lines = append(w.lines, "… and more")
	}
	if len(w.lines) < maxWords {
		at := strings.Join(where, " › ")
		if at != "" {
			at += " "
		}
		w.lines = append(w.lines, at+verb+": "+what)
	}
}

// runners are keys whose value is a command by itself: of agents' helpers and of
// development containers, of which initializeCommand runs on the host.
var runners = []string{
	"apiKeyHelper", "awsAuthRefresh", "awsCredentialExport", "otelHeadersHelper", "initializeCommand", "onCreateCommand", "updateContentCommand",
	"postCreateCommand", "postStartCommand", "postAttachCommand",
}

// walk follows where by name. A list's place is the entry's own name if it has one.
func (w *wording) walk(v any, where []string, depth int) {
	if depth > 64 {
		return
	}
	switch v := v.(type) {
	case map[string]any:
		w.object(v, where, depth)
	case []any:
		for _, e := range v {
			w.walk(e, where, depth+1)
		}
	}
}

func (w *wording) object(o map[string]any, where []string, depth int) {
	for _, key := range []string{"label", "matcher", "name"} {
		if name, ok := o[key].(string); ok && name != "" && len(where) > 0 {
			where = append(slices.Clone(where), name)
			break
		}
	}
	if c := commandLine(o["command"], o["args"]); c != "" {
		w.add(where, "runs", c)
	} else if c := commandLine(o["bash"], nil); c != "" {
		w.add(where, "runs", c)
	}
	for _, key := range []string{"url", "httpUrl", "serverUrl"} {
		if u, ok := o[key].(string); ok {
			w.add(where, "connects to", u)
		}
	}
	for _, key := range sortedKeys(o) {
		switch {
		case slices.Contains(runners, key):
			w.runner(key, o[key], where)
		case key == "allow" && len(where) > 0 && where[len(where)-1] == "permissions":
			if c := commandLine(nil, o[key]); c != "" {
				w.add(where, "allows without asking", c)
			}
		case key == "hooks" && len(where) > 0: // of one event
			w.walk(o[key], where, depth+1)
		default:
			w.walk(o[key], append(slices.Clone(where), key), depth+1)
		}
	}
}

// runner is a command, or several by name.
func (w *wording) runner(key string, v any, where []string) {
	at := append(slices.Clone(where), key)
	if several, ok := v.(map[string]any); ok {
		for _, name := range sortedKeys(several) {
			if c := commandLine(several[name], nil); c != "" {
				w.add(append(slices.Clone(at), name), "runs", c)
			}
		}
	} else if c := commandLine(v, nil); c != "" {
		w.add(at, "runs", c)
	}
}

func sortedKeys(o map[string]any) []string {
	var out []string
	for k := range o {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// commandLine joins a command and its arguments, in which the words stay apart.
func commandLine(command, args any) string {
	var words []string
	add := func(v any) {
		if s, ok := v.(string); ok {
			words = append(words, s)
		}
	}
	one, plain := command.(string)
	if list, ok := command.([]any); ok {
		for _, v := range list {
			add(v)
		}
	} else if plain && one != "" {
		words = append(words, one)
	}
	list, _ := args.([]any)
	for _, v := range list {
		add(v)
	}
	if plain && len(list) == 0 {
		return one // for a shell: as it is written
	}
	for i, word := range words {
		if word == "" || strings.ContainsAny(word, " \t\n'\"\\$&|;<>()*?") {
			words[i] = fmt.Sprintf("%q", word)
		}
	}
	return strings.Join(words, " ")
}

// withoutComments takes comments and commas in front of a closing bracket out, as
// editors do, so that what remains is JSON if it was meant to be.
func withoutComments(data []byte) []byte {
	out := make([]byte, 0, len(data))
	for i := 0; i < len(data); {
		switch c := data[i]; {
		case c == '"':
			end := i + 1
			for end < len(data) && data[end] != '"' {
				if data[end] == '\\' {
					end++
				}
				end++
			}
			end = min(end+1, len(data))
			out = append(out, data[i:end]...)
			i = end
		case c == '/' && bytes.HasPrefix(data[i:], []byte("//")):
			for i < len(data) && data[i] != '\n' {
				i++
			}
		case c == '/' && bytes.HasPrefix(data[i:], []byte("/*")):
			end := bytes.Index(data[i+2:], []byte("*/"))
			if end < 0 {
				return out
			}
			i += end + 4
		case c == ']' || c == '}':
			if t := bytes.TrimRight(out, " \t\r\n"); len(t) > 0 && t[len(t)-1] == ',' {
				out = t[:len(t)-1]
			}
			out = append(out, c)
			i++
		default:
			out = append(out, c)
			i++
		}
	}
	return out
}
