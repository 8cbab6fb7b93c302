package trust

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
)

func listed(t testing.TB) []policy.TrustPath {
	t.Helper()
	list, err := policy.ParseTrust(catalogdata.Trust)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func look(t *testing.T, dir string) *Scan {
	t.Helper()
	s, err := ScanFolder(dir, listed(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func found(s *Scan) string {
	var out []string
	for _, f := range s.Found {
		out = append(out, f.Path+":"+string(f.Listed.Class))
	}
	return strings.Join(out, " ")
}

func TestWhereConfigurationIsFound(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, ".claude/settings.json", "{}")
	put(t, dir, ".claude/todo.txt", "")
	put(t, dir, "node_modules/x/.claude/skills/evil/SKILL.md", "obey")
	put(t, dir, ".vscode/tasks.json", "{}")
	put(t, dir, "sub/.vscode/tasks.json", "{}") // an editor reads the top only
	put(t, dir, ".MCP.JSON", "{}")
	put(t, dir, "a/.\u212aiRo/settings/mcp.json", "{}")      // the Kelvin sign folds to k
	put(t, dir, "b/.cur\u200csor/mcp.json", "{}")            // no width, ignored by some file systems
	put(t, dir, ".git/hooks/.mcp.json", "not looked at")     // git's own
	put(t, dir, ".clinerules/hooks/PreToolUse", "#!/bin/sh") // runs, in a folder that instructs
	put(t, dir, ".clinerules/rules.md", "be nice")
	put(t, dir, "mise.ci.toml", "")
	want := ".MCP.JSON:runs .claude/settings.json:runs .clinerules:instructs .clinerules/hooks:runs .vscode:runs a/.\u212aiRo/settings:runs a/.\u212aiRo/settings/mcp.json:runs b/.cur\u200csor/mcp.json:runs " +
		"mise.ci.toml:runs node_modules/x/.claude/skills:runs node_modules/x/.claude/skills/evil/SKILL.md:instructs"
	s := look(t, dir)
	if got := found(s); got != want {
		t.Errorf("found %s\nwant  %s", got, want)
	}
	for _, i := range s.Items {
		if i.Path == ".clinerules/hooks/PreToolUse" && i.Of != policy.TrustRuns {
			t.Errorf("%s only %s", i.Path, i.Of)
		}
	}
}

// TestEveryChangeIsAnotherContent is the guarantee of the digest.
func TestEveryChangeIsAnotherContent(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, ".claude/settings.json", "a")
	put(t, dir, ".claude/skills/x/run.sh", "b")
	put(t, dir, "docs/shared.sh", "c")
	if err := os.Symlink("../../../docs/shared.sh", filepath.Join(dir, ".claude/skills/x/link")); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "CLAUDE.md", "d")
	put(t, dir, "main.go", "e")
	was := look(t, dir)
	if was.Problem != "" {
		t.Fatal(was.Problem)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, change := range map[string]func() func(){
		"a byte": func() func() {
			put(t, dir, ".claude/settings.json", "A")
			return func() { put(t, dir, ".claude/settings.json", "a") }
		},
		"a script": func() func() {
			put(t, dir, ".claude/skills/x/run.sh", "B")
			return func() { put(t, dir, ".claude/skills/x/run.sh", "b") }
		},
		"the link's end": func() func() {
			put(t, dir, "docs/shared.sh", "C")
			return func() { put(t, dir, "docs/shared.sh", "c") }
		},
		"the execute bit": func() func() {
			os.Chmod(at(".claude/skills/x/run.sh"), 0o755)
			return func() { os.Chmod(at(".claude/skills/x/run.sh"), 0o644) }
		},
		"one file more": func() func() {
			put(t, dir, ".claude/skills/x/more", "")
			return func() { os.Remove(at(".claude/skills/x/more")) }
		},
		"one folder more": func() func() {
			os.Mkdir(at(".claude/skills/y"), 0o755)
			return func() { os.Remove(at(".claude/skills/y")) }
		},
		"one place more": func() func() { put(t, dir, "deep/er/.mcp.json", ""); return func() { os.RemoveAll(at("deep")) } },
		"a file renamed": func() func() {
			os.Rename(at(".claude/skills/x/run.sh"), at(".claude/skills/x/ran.sh"))
			return func() { os.Rename(at(".claude/skills/x/ran.sh"), at(".claude/skills/x/run.sh")) }
		},
		"a file no longer": func() func() {
			os.Remove(at(".claude/settings.json"))
			return func() { put(t, dir, ".claude/settings.json", "a") }
		},
		"a dangling link": func() func() {
			os.Symlink("nothing", at(".claude/hooks"))
			return func() { os.Remove(at(".claude/hooks")) }
		},
	} {
		undo := change()
		if now := look(t, dir); now.Digest() == was.Digest() {
			t.Errorf("%s did not change the digest", name)
		}
		undo()
		if now := look(t, dir); now.Digest() != was.Digest() || now.Problem != "" {
			t.Fatalf("%s taken back: %s %s", name, now.Digest(), now.Problem)
		}
	}
	put(t, dir, "CLAUDE.md", "D")
	put(t, dir, "main.go", "E")
	now := look(t, dir)
	if now.Digest() != was.Digest() {
		t.Error("instructions or code changed the digest")
	}
	if c := Compare(was.Items, now.Items, func(c policy.TrustClass) bool { return c == policy.TrustInstructs }); len(c) != 1 || c[0].Path != "CLAUDE.md" || c[0].What != "changed" {
		t.Errorf("changes %+v", c)
	}
}

// TestWhatIsHostileCannotBeTrusted: and nothing waits or grows on it.
func TestWhatIsHostileCannotBeTrusted(t *testing.T) {
	for name, plant := range map[string]func(dir string) error{
		"leads out":      func(d string) error { return os.Symlink("/etc/passwd", filepath.Join(d, ".mcp.json")) },
		"leads out of":   func(d string) error { return os.Symlink("/proc/self/cwd", filepath.Join(d, ".claude")) },
		"neither a file": func(d string) error { return syscall.Mkfifo(filepath.Join(d, ".mcp.json"), 0o600) },
		"more than 1048576": func(d string) error {
			return os.WriteFile(filepath.Join(d, ".mcp.json"), make([]byte, MaxFile+1), 0o600)
		},
		"more than 10000":   many,
		"past the bound":    large,
		"the folder itself": func(d string) error { return os.Symlink("..", filepath.Join(d, ".codex", "x")) },
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, ".codex"), 0o755); err != nil {
			t.Fatal(err)
		}
		if name == "leads out of" {
			put(t, dir, "settings.json", "{}")
		}
		if err := plant(dir); err != nil {
			t.Fatal(err)
		}
		s := look(t, dir)
		if !strings.Contains(s.Problem, name) {
			t.Errorf("%s: problem %q, found %s", name, s.Problem, found(s))
		}
		if err := (Store{filepath.Join(t.TempDir(), "bulkhead", "trust")}).Add(s, time.Now()); err == nil {
			t.Errorf("%s was trusted", name)
		}
	}
	dir := t.TempDir()
	put(t, dir, "a/b/c/x", "")
	if _, err := scan(dir, listed(t), 3); err == nil {
		t.Error("a folder that was not searched to its end was judged")
	}
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := ScanFolder(filepath.Join(dir, "link"), listed(t)); err == nil {
		t.Error("a folder was scanned through a link")
	}
}

func many(d string) error {
	for i := range MaxFiles + 1 {
		if err := os.WriteFile(filepath.Join(d, ".codex", strings.Repeat("x", 1+i%200)+string(rune('a'+i/200))), nil, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func large(d string) error {
	for i := range MaxContent/MaxFile + 1 {
		if err := os.WriteFile(filepath.Join(d, ".codex", string(rune('a'+i))), make([]byte, MaxFile), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, ".mcp.json", "{}")
	s := look(t, dir)
	store := Store{filepath.Join(t.TempDir(), "bulkhead", "trust")}
	if r, err := store.Lookup(dir); r != nil || err != nil {
		t.Fatal(r, err)
	}
	if err := store.Add(s, time.Now()); err != nil {
		t.Fatal(err)
	}
	r, err := store.Lookup(dir)
	if err != nil || r == nil || r.Digest != s.Digest() {
		t.Fatal(r, err)
	}
	if all, err := store.List(); err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	file := filepath.Join(store.Dir, fileName(dir))
	for name, spoil := range map[string]func() error{
		"writable by all": func() error { return os.Chmod(file, 0o666) },
		"a link": func() error {
			return os.Rename(file, file+".x")
		},
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if name == "a link" {
			if err := os.Symlink(file+".x", file); err != nil {
				t.Fatal(err)
			}
		}
		if r, err := store.Lookup(dir); err == nil {
			t.Errorf("%s: believed: %v", name, r)
		}
		if name != "a link" {
			os.Chmod(file, 0o600)
		}
	}
	os.Remove(file)
	os.Rename(file+".x", file)
	if os.Geteuid() == 0 {
		if err := os.Chown(file, 12345, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Lookup(dir); err == nil || !strings.Contains(err.Error(), "12345") {
			t.Errorf("a foreign record: %v", err)
		}
		os.Chown(file, 0, 0)
	}
	if ok, err := store.Remove(dir); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if r, err := store.Lookup(dir); r != nil || err != nil {
		t.Fatal(r, err)
	}
}

func TestShowAndFold(t *testing.T) {
	if got := Show("a\x1b[2Jb\u202e\tc\xff"); strings.ContainsAny(got, "\x1b\u202e\ufffd") || !strings.Contains(got, "\t") {
		t.Errorf("%q", got)
	}
	for _, name := range []string{".CLAUDE", ".cla\u200bude", ".claude", ".cl\ufe0faude"} {
		if fold(name) != ".claude" {
			t.Errorf("%q folds to %q", name, fold(name))
		}
	}
	if fold("\u017fettings.json") != "settings.json" {
		t.Errorf("long s: %q", fold("\u017fettings.json"))
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"folder":"/a","digest":"","trusted":"2026-01-01T00:00:00Z","items":[]}`))
	good := Record{Version: 1, Folder: "/a", Items: []Item{{Path: ".mcp.json", Kind: KindFile, Of: policy.TrustRuns}}}
	good.Digest = digest(good.Items)
	b, _ := json.Marshal(good)
	f.Add(b)
	f.Add([]byte("{}{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if r2, err := parseRecord(again); err != nil || r2.Digest != r.Digest {
			t.Fatalf("%s\n%s: %v", data, again, err)
		}
	})
}
