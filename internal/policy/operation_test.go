package policy

import (
	"testing"
)

// A feature of an operation is granted by the name that a denial shows.
func TestFeaturesCanBeGranted(t *testing.T) {
	for name, ok := range map[string]bool{
		"messages": true, "messages.mcp": true, "messages.web-fetch": true, "count_tokens": true,
		"messages.": false, ".mcp": false, ".": false, "messages..mcp": false, "messages.a.b": false, "messages.*": false, "messages.Mcp": false,
	} {
		_, err := Parse("p.yaml", []byte("version: 1\ngrants:\n  - service: anthropic\n    operations: [\""+name+"\"]\n"))
		if (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}
