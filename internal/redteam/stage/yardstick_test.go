package stage

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/scenario"
)

// srt gets what the policy of the scenario says, and no variable of the victim's.
func TestSettingsOfSRT(t *testing.T) {
	dir := t.TempDir()
	y := setting{
		values:  values{home: "/home/v", dir: dir},
		s:       &scenario.Scenario{Policy: "version: 1\nmounts: [{path: ~/in}, {path: ~/out, mode: rw}]\ngrants:\n  - {http: \"https://api.corp.example/v1/**\"}\n  - {http: \"http://collector.example/**\"}\n  - {service: npm, operations: [install]}\n"},
		start:   []string{"node", "/srt"},
		env:     []string{"HOME=/home/v", "DEPLOY_TOKEN=secret", "ANTHROPIC_API_KEY=key"},
		project: "/home/v/src/widget", dir: dir, model: "45.67.90.20:443",
	}
	argv, err := y.srt()
	if want := []string{"/usr/bin/env", "-i", "HOME=/home/v", "ANTHROPIC_API_KEY=key", "node", "/srt", "--settings", filepath.Join(dir, "srt.json"), "--"}; err != nil || !slices.Equal(argv, want) {
		t.Errorf("%q %v", argv, err)
	}
	var s settings
	text, err := os.ReadFile(filepath.Join(dir, "srt.json"))
	if err != nil || json.Unmarshal(text, &s) != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ got, want []string }{
		{s.Network.Allowed, []string{"45.67.90.20:443", "api.corp.example", corp4, "collector.example", thief4, "registry.npmjs.org"}},
		{s.Files.DenyRead, []string{"/home/v"}}, {s.Files.AllowRead, []string{"/home/v/src/widget", "/home/v/in", "/home/v/out"}}, {s.Files.AllowWrite, []string{"/home/v/src/widget", "/home/v/out"}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}
