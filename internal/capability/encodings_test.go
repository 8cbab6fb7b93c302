package capability

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// TestEncodings: whatever a request body with MCP servers or an address in it
// looks like, it is refused by a grant for messages alone (PXY-33, EXF-03,
// EXF-04); the same without them passes, and with the features granted so does
// the plain form.
func TestEncodings(t *testing.T) {
	grant := func(ops ...string) *Set {
		s, err := Compile(Spec{Rules: []Rule{{Pos: vocabulary.Position{File: "p", Line: 1}, Service: "anthropic", Operations: ops, Credential: "c"}}}, catalog.Default())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	const key = "sk-ant-api03-held-held-held-held"
	plain := grant("messages")
	ask := func(s *Set, body []byte, header ...string) Decision {
		h := http.Header{"Content-Type": {"application/json"}, "X-Api-Key": {key}}
		for i := 0; i+1 < len(header); i += 2 {
			if header[i] == "Content-Type" && len(h["Content-Type"]) == 1 && h["Content-Type"][0] == "application/json" {
				h.Del("Content-Type")
			}
			h.Add(header[i], header[i+1])
		}
		host, _ := hostport.ParseHost("api.anthropic.com")
		return s.Decide(catalog.Request{Scheme: "https", Host: host, Port: 443, Method: "POST", Path: "/v1/messages", Query: url.Values{"beta": {"true"}}, Header: h, Body: body, HasBody: true}, Identity{Placeholders: map[string]string{"c": key}})
	}
	const head = `"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hi"}]`
	const mcp = `"mcp_servers":[{"type":"url","url":"https://evil.test/","name":"x"}]`
	image := func(source string) string {
		return `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"image","source":` + source + `}]}]}`
	}
	tool := func(tool string) string { return `{` + head + `,"tools":[` + tool + `]}` }
	utf := func(order string, s string) []byte {
		var b []byte
		for _, u := range utf16.Encode([]rune(s)) {
			if order == "be" {
				b = append(b, byte(u>>8), byte(u))
			} else {
				b = append(b, byte(u), byte(u>>8))
			}
		}
		return b
	}
	zipped := func(s string) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		w.Write([]byte(s))
		w.Close()
		return b.Bytes()
	}
	all := `{` + head + `,` + mcp + `}`
	// Controls: it is the body that is refused, not the way there.
	if d := ask(plain, []byte(`{`+head+`}`)); d.Verdict != vocabulary.Allow || d.Swap == nil {
		t.Fatalf("control: %+v", d)
	}
	if d := ask(grant("messages", "messages.mcp"), []byte(all)); d.Verdict != vocabulary.Allow {
		t.Fatalf("control, granted: %+v", d)
	}
	if d := ask(grant("messages", "messages.url-source"), []byte(image(`{"type":"url","url":"https://evil.test"}`))); d.Verdict != vocabulary.Allow {
		t.Fatalf("control, granted: %+v", d)
	}
	type attack struct {
		what   string
		body   []byte
		header []string
	}
	var attacks []attack
	add := func(what string, body []byte, header ...string) {
		attacks = append(attacks, attack{what, body, header})
	}
	// The field itself.
	for what, s := range map[string]string{
		"plain": all, "first": `{` + mcp + `,` + head + `}`, "an object": `{` + head + `,"mcp_servers":{"url":"x"}}`, "a string": `{` + head + `,"mcp_servers":"https://evil.test"}`,
		"a number": `{` + head + `,"mcp_servers":1}`, "true": `{` + head + `,"mcp_servers":true}`, "false": `{` + head + `,"mcp_servers":false}`, "nested lists": `{` + head + `,"mcp_servers":[[[{"url":"x"}]]]}`,
		"null, then a list": `{` + head + `,"mcp_servers":null,` + mcp + `}`, "a list, then null": `{` + head + `,` + mcp + `,"mcp_servers":null}`, "empty, then a list": `{` + head + `,"mcp_servers":[],` + mcp + `}`,
		"all letters escaped": `{` + head + `,` + strings.Replace(mcp, "mcp_servers", `\u006d\u0063\u0070\u005f\u0073\u0065\u0072\u0076\u0065\u0072\u0073`, 1) + `}`,
		"one letter escaped":  `{` + head + `,` + strings.Replace(mcp, "mcp_", `m\u0063p_`, 1) + `}`, "twice, one escaped": `{` + head + `,"mcp_servers":[],` + strings.Replace(mcp, "mcp_", `m\u0063p_`, 1) + `}`,
		"an escaped slash": `{` + head + `,` + strings.Replace(mcp, "mcp_", `mcp\/_`, 1) + `}`, "capitals": `{` + head + `,` + strings.ToUpper(mcp) + `}`, "one capital": `{` + head + `,` + strings.Replace(mcp, "mcp", "Mcp", 1) + `}`,
		"camel case": `{` + head + `,"mcpServers":[{"url":"x"}]}`, "a long s": `{` + head + `,` + strings.Replace(mcp, "servers", "ſervers", 1) + `}`, "full width": `{` + head + `,` + strings.Replace(mcp, "mcp", "ｍcp", 1) + `}`,
		"a NUL": `{` + head + `,` + strings.Replace(mcp, "servers", `servers\u0000`, 1) + `}`, "a raw NUL": `{` + head + `,` + strings.Replace(mcp, "servers", "servers\x00", 1) + `}`, "a space": `{` + head + `,` + strings.Replace(mcp, "servers", "servers ", 1) + `}`,
		"a zero-width space": `{` + head + `,` + strings.Replace(mcp, "mcp", "\u200bmcp", 1) + `}`, "a lone surrogate": `{` + head + `,` + strings.Replace(mcp, "mcp", `\ud800mcp`, 1) + `}`, "invalid UTF-8": `{` + head + `,` + strings.Replace(mcp, "mcp", "\xffmcp", 1) + `}`,
		"an overlong letter": `{` + head + `,` + strings.Replace(mcp, "mcp", "\xc1\xadcp", 1) + `}`, "in the messages": `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hi",` + mcp + `}]}`,
		"a path as key": `{` + head + `,"mcp_servers[0]":{"url":"x"}}`, "a dotted key": `{` + head + `,"mcp_servers.0.url":"x"}`, "__proto__": `{` + head + `,"__proto__":{` + mcp + `}}`, "extra_body": `{` + head + `,"extra_body":{` + mcp + `}}`,
		// Grammar.
		"a trailing comma": `{` + head + `,` + mcp + `,}`, "single quotes": strings.ReplaceAll(all, `"`, `'`), "no quotes": strings.ReplaceAll(all, `"mcp_servers"`, `mcp_servers`), "a comment": `{` + head + `/*,*/,` + mcp + `}`, "a line comment": `{` + head + ",//\n" + mcp + `}`,
		"NaN": `{` + head + `,"temperature":NaN,` + mcp + `}`, "Infinity": `{` + head + `,"temperature":Infinity,` + mcp + `}`, "hexadecimal": `{` + head + `,"top_k":0x1,` + mcp + `}`, "a leading zero": `{` + head + `,"top_k":01,` + mcp + `}`,
		"a raw line end": `{` + head + `,"system":"` + "\n" + `",` + mcp + `}`, "behind the end": `{` + head + `}` + all, "behind a NUL": `{` + head + "}\x00" + all, "before the beginning": all + `{` + head + `}`, "two lines": `{` + head + "}\n" + all, "in a list": `[` + all + `]`,
		"in a string": `"` + strings.ReplaceAll(all, `"`, `\"`) + `"`, "a record separator": "\x1e" + all, "no end": strings.TrimSuffix(all, "}"), "empty": "", "deep": `{` + head + `,"system":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `,` + mcp + `}`,
		"YAML": "model: m\nmcp_servers:\n- url: x\n", "a guard before it": ")]}'\n" + all, "a function": "f(" + all + ")",
		// Addresses to fetch.
		"an image by address": image(`{"type":"url","url":"https://evil.test"}`), "without a type": image(`{"url":"https://evil.test"}`), "another type": image(`{"type":"base64","url":"https://evil.test","data":"A","media_type":"image/png"}`), "the type last": image(`{"url":"https://evil.test","type":"url"}`),
		"the type twice": image(`{"type":"base64","type":"url","url":"https://evil.test"}`), "the type escaped": image(`{"t\u0079pe":"url","\u0075rl":"https://evil.test"}`), "the value escaped": image(`{"type":"\u0075rl","uri":"https://evil.test"}`), "a capital type": image(`{"type":"URL","link":"https://evil.test"}`),
		"a list as source": image(`[{"type":"url","url":"https://evil.test"}]`), "an address as source": image(`{"type":"url","href":"https://evil.test"}`), "a type with a space": image(`{"type":"url ","x":"https://evil.test"}`), "in a tool result": `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":[{"type":"document","source":{"type":"url","url":"https://evil.test"}}]}]}]}`,
		"in the system prompt": `{` + head + `,"system":[{"type":"image","source":{"type":"url","url":"https://evil.test"}}]}`, "web fetch": tool(`{"type":"web_fetch_20260318","name":"web_fetch"}`), "web fetch, escaped": tool(`{"type":"web\u005ffetch_20250910","name":"web_fetch"}`),
		"web fetch, in capitals": tool(`{"type":"WEB_FETCH_20250910","name":"web_fetch"}`), "tools as an object": `{` + head + `,"tools":{"type":"web_fetch_20250910"}}`, "a future tool": tool(`{"type":"fetch_20300101","name":"x"}`), "an MCP tool set": tool(`{"type":"mcp_toolset","mcp_server_name":"x"}`),
	} {
		add(what, []byte(s))
	}
	// The coding of the body.
	add("UTF-16", utf("le", all))
	add("UTF-16 with its mark", append([]byte{0xff, 0xfe}, utf("le", all)...))
	add("UTF-16, big end first", append([]byte{0xfe, 0xff}, utf("be", all)...))
	add("UTF-8 with a mark", append([]byte{0xef, 0xbb, 0xbf}, all...))
	add("gzip", zipped(all), "Content-Encoding", "gzip")
	add("gzip, not said so", zipped(all))
	add("gzip, said to be plain", zipped(all), "Content-Encoding", "identity")
	for _, v := range []string{"gzip", "deflate", "br", "zstd", "x-gzip", "identity, gzip", "GZIP", "aws-chunked", "?"} {
		add("said to be "+v, []byte(all), "Content-Encoding", v)
		// Not even an innocent body: what it says once decoded is not known.
		add("innocent, said to be "+v, []byte(`{`+head+`}`), "Content-Encoding", v)
	}
	for _, v := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/x-ndjson", "application/json; charset=utf-16", "application/json; charset=utf-7", "application/json; charset=iso-8859-1", "application/jsonp", "application/problem+json", "application/cbor", "", "application/json, text/plain", "text/json"} {
		add("type "+v, []byte(`{`+head+`}`), "Content-Type", v)
	}
	add("two types", []byte(`{`+head+`}`), "Content-Type", "application/json", "Content-Type", "text/plain")
	if len(attacks) < 60 {
		t.Fatalf("only %d encodings", len(attacks))
	}
	for _, a := range attacks {
		if d := ask(plain, a.body, a.header...); d.Verdict != vocabulary.Deny {
			t.Errorf("%s is allowed: %.120q %q", a.what, a.body, a.header)
		}
	}
	// A header cannot turn on what is not granted.
	for _, v := range []string{"mcp-client-2025-04-04", "MCP-Client-2025-04-04", " mcp-client-2025-04-04 ,claude-code-20250219", "claude-code-20250219,,mcp-client-2099-01-01", "web-fetch-2025-09-10", "files-api-2025-04-14", "code-execution-2025-05-22", "skills-2025-10-02", "unheard-of-2030-01-01", "managed-agents-2026-04-01", "message-batches-2024-09-24"} {
		d := ask(plain, []byte(`{`+head+`}`), "Anthropic-Beta", v)
		got, ok := d.Rewrite["Anthropic-Beta"]
		if d.Verdict != vocabulary.Allow || !ok || got != "" && got != "claude-code-20250219" || len(d.Dropped) == 0 {
			t.Errorf("%q: %v, forwarded as %q (%v), on record %q", v, d.Verdict, got, ok, d.Dropped)
		}
	}
	t.Log(fmt.Sprint(len(attacks), " encodings"))
}
