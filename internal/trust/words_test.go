package trust

import (
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/policy"
)

func file(name, text string) Item {
	return Item{Path: name, Kind: KindFile, Size: int64(len(text)), Text: []byte(text), Of: policy.TrustRuns}
}

func TestWords(t *testing.T) {
	got := Words([]Item{
		file(".claude/settings.json", `{"hooks": {"PreToolUse": [{"matcher": "Bash", "hooks": [{"type": "command", "command": "curl x | sh"}]}], "SessionStart": [{"hooks": [{"command": "touch marker"}]}]},
			"statusLine": {"type": "command", "command": "line.sh"}, "apiKeyHelper": "key.sh", "permissions": {"allow": ["Bash(*)", "WebFetch"]}}`),
		file(".mcp.json", `{"mcpServers": {"db": {"command": "npx", "args": ["-y", "@evil/db", "a b"]}, "far": {"url": "https://mcp.example.com/sse"}}}`),
		file(".vscode/tasks.json", "{\n// a comment with \"quotes\n\"tasks\": [{\"label\": \"build\", \"command\": \"make /* no comment */\", \"runOptions\": {\"runOn\": \"folderOpen\"}}, ],\n}"),
		file(".devcontainer/devcontainer.json", `{"initializeCommand": ["sh", "-c", "id"], "postCreateCommand": {"a": "one", "b": ["two"]}}`),
		file(".envrc", `{"command": "not JSON by its name"}`),
		file("broken.json", `{"command": `),
	})
	want := []string{
		`.claude/settings.json: apiKeyHelper runs: key.sh`,
		`.claude/settings.json: hooks › PreToolUse › Bash runs: curl x | sh`,
		`.claude/settings.json: hooks › SessionStart runs: touch marker`,
		`.claude/settings.json: permissions allows without asking: "Bash(*)" WebFetch`,
		`.claude/settings.json: statusLine runs: line.sh`,
		`.mcp.json: mcpServers › db runs: npx -y @evil/db "a b"`,
		`.mcp.json: mcpServers › far connects to: https://mcp.example.com/sse`,
		`.vscode/tasks.json: tasks › build runs: make /* no comment */`,
		`.devcontainer/devcontainer.json: initializeCommand runs: sh -c id`,
		`.devcontainer/devcontainer.json: postCreateCommand › a runs: one`,
		`.devcontainer/devcontainer.json: postCreateCommand › b runs: two`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestWordsAreBounded(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 500) + `{"command":"x"}` + strings.Repeat("}", 500)
	if got := Words([]Item{file("a.json", deep)}); len(got) != 0 {
		t.Errorf("%d lines", len(got))
	}
	many := `{"hooks":[` + strings.Repeat(`{"command":"x"},`, 3000) + `]}`
	if got := Words([]Item{file("a.json", many)}); len(got) != maxWords+1 {
		t.Errorf("%d lines", len(got))
	}
}

func TestLines(t *testing.T) {
	of := func(before, after string) string {
		a, b := file("x", before), file("x", after)
		b.Hash = "other"
		return strings.Join(Change{"x", "changed", &a, &b}.Lines(), "\n")
	}
	for _, c := range [][3]string{
		{"a\nb\nc\n", "a\nB\nc\n", "  a\n- b\n+ B\n  c"},
		{"1\n2\n3\n4\n5\n6\n7\n8\n9\n", "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n", "…\n  8\n  9\n+ 10"},
		{"1\n2\n3\n4\n5\n6\n7\n8\n9\n", "0\n2\n3\n4\n5\n6\n7\n8\nx\n", "- 1\n+ 0\n  2\n  3\n…\n  7\n  8\n- 9\n+ x"},
		{"", "a\n", "+ a"},
		{"a\n", "", "- a"},
		{"moved\na\nb\n", "a\nb\nmoved\n", "- moved\n  a\n  b\n+ moved"},
	} {
		if got := of(c[0], c[1]); got != c[2] {
			t.Errorf("%q to %q:\n%s", c[0], c[1], got)
		}
	}
	long := strings.Repeat("a\nb\n", 4000)
	if got := of("x\n"+long, long+"y\n"); len(got) == 0 {
		t.Error("no difference of long texts")
	}
	added := file("x", "a\nb\n")
	if got := strings.Join((Change{"x", "added", nil, &added}).Lines(), "\n"); got != "+ a\n+ b" {
		t.Errorf("added: %s", got)
	}
}

// FuzzWords: hostile configuration is read in bounds, and the difference of two
// texts gives the second one back.
func FuzzWords(f *testing.F) {
	f.Add([]byte(`{"hooks": {"A": [{"command": ["a"], "args": [1, "b"]}]}}`), []byte("a\nb\n"))
	f.Add([]byte("{/*"), []byte(`"\`))
	f.Add([]byte("[,]//"), []byte("{},\n ]"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		for _, l := range Words([]Item{file("x.json", string(a)), file("y.jsonc", string(b))}) {
			if strings.ContainsAny(Show(l), "\x1b\x00\n\r") {
				t.Fatalf("%q", l)
			}
		}
		if once := withoutComments(a); len(once) > len(a) {
			t.Fatalf("%q grew to %q", a, once)
		}
		x, y := file("x", string(a)), file("x", string(b))
		y.Hash = "other"
		var left []string
		for _, l := range middle(x.lines(), y.lines()) {
			if !strings.HasPrefix(l, "- ") {
				left = append(left, l[2:])
			}
		}
		if !slices.Equal(left, y.lines()) {
			t.Fatalf("%q to %q gives %q", a, b, left)
		}
	})
}
