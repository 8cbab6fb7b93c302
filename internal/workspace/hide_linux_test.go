package workspace

import (
	"os"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func TestContainedHidden(t *testing.T) {
	h := newHost(t)
	h.write("home/proj/.claude/settings.json", canary)
	h.write("home/proj/.codex/config.toml", canary)
	h.write("home/proj/tool/versions", canary)
	h.write("home/proj/real.json", canary)
	h.link("real.json", "home/proj/.mcp.json")
	h.link("/nowhere", "home/proj/.dangling")
	h.link(h.write("outside/secret", canary), "home/proj/.outside") // not visible inside
	r := h.request()
	for _, name := range []string{".claude/settings.json", ".codex", "tool/versions", ".mcp.json", ".dangling", ".outside", ".missing"} {
		r.Hidden = append(r.Hidden, Hidden{Path: h.path("home/proj/" + name), Empty: []byte("{}"), Why: "test"})
	}
	l := h.plan(r)
	out := h.mustRun(l, "cat .claude/settings.json tool/versions .mcp.json real.json; ls -A .codex; touch beside .claude/beside; ! cat .outside")
	contains(t, out, "{}{}{}{}", canary)
	for _, script := range []string{"echo x > .claude/settings.json", "mv .claude c2", "mv tool t2", "rm tool/versions", "mv main.go tool/versions", "touch .codex/x", "mv .codex c3", "rmdir .codex", "echo x > .mcp.json", "mv real.json r2"} {
		if out, err := inside(t, l, script); err == nil {
			t.Errorf("%s worked %s", script, out)
		}
	}
	if err := standing(l); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(h.path("home/proj/.claude/settings.json")); err != nil || string(b) != canary {
		t.Errorf("on the host: %q, %v", b, err)
	}
}

// contains checks for what must and what must not be in an output.
func contains(t *testing.T, out, want, never string) {
	t.Helper()
	if len(out) < len(want) || out[:len(want)] != want {
		t.Errorf("not %q: %s", want, out)
	}
	for i := range out {
		if len(out)-i >= len(never) && out[i:i+len(never)] == never {
			t.Fatalf("%q is in %s", never, out)
		}
	}
}

// TestRefusedHidden: what can't be hidden is not run with.
func TestRefusedHidden(t *testing.T) {
	for _, to := range []string{"/etc", "/proc/self/cwd/main.go", "."} {
		h := newHost(t)
		h.link(to, "home/proj/.mcp.json")
		r := h.request()
		r.Hidden = []Hidden{{Path: h.path("home/proj/.mcp.json"), Why: "test"}}
		_, err := Plan(r)
		refused(t, err, ".mcp.json", "remove")
	}
	h := newHost(t)
	h.link(h.write("shared/mcp.json", canary), "home/proj/.mcp.json")
	r := h.request(Folder{Path: h.path("shared"), Mode: vocabulary.ReadOnly})
	r.Hidden = []Hidden{{Path: h.path("home/proj/.mcp.json"), Why: "test"}}
	_, err := Plan(r)
	refused(t, err, "can't be hidden")
}
