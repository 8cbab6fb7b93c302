package policy

import (
	"strings"
	"testing"
	"time"
)

// TestHostileFilesAreFast: no file of the largest size takes long to refuse.
func TestHostileFilesAreFast(t *testing.T) {
	fill := func(s string) string { return strings.Repeat(s, (maxFile-64)/len(s)) }
	for name, text := range map[string]string{
		"brackets": fill("["), "braces": fill("{a: "), "dashes": fill("- "), "keys": fill("a: "), "questions": fill("? "), "lines": fill("\n"),
		"comments": fill("#\n"), "items": "mounts:\n" + fill("- a\n"), "quotes": fill("\"\n"), "items2": "mounts: [" + fill("a,"), "comments2": "a:\n" + fill(" # x\n"),
		"entries": fill("a: b\n"), "anchors": fill("- &a b\n"), "mixed": fill("- # x\n  a: [1,\n"), "folded": "a: >\n" + fill(" b\n"), "plain": "a: " + fill("b "),
		"comments3": "- a\n" + fill("  # x\n\n"), "docs": fill("---\n"), "grants": "version: 1\ngrants:\n" + fill("- {service: npm, operations: [read], credential: a}\n"),
		"mounts": "version: 1\nmounts:\n" + fill("- {path: /a}\n"), "passes": "version: 1\nenv:\n  pass:\n" + fill("  - A\n"), "small": strings.Repeat("a: [\n", 800),
		"small2": strings.Repeat("- a: # b\n", 400) + "\"", "indent": strings.Repeat(" - a\n", 700) + "\t\"",
	} {
		start := time.Now()
		_, err := Parse("p", []byte(text))
		d := time.Since(start)
		t.Logf("%-10s %8d bytes %v, %.100v", name, len(text), d, err)
		if err == nil {
			t.Errorf("%s is accepted", name)
		}
		if d > 10*time.Second {
			t.Errorf("%s: %v", name, d)
		}
	}
}
