package sandboxtest

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// WritesSpec is Spec with a folder of the host at /rw whose writes are judged by w.
func WritesSpec(host string, w *sandbox.Writes) sandbox.Spec {
	s := Spec(sandbox.NetNone, vocabulary.Mount{Kind: vocabulary.BindRW, Source: host, Target: "/rw", Why: "test"})
	s.Writes = w
	return s
}

// testWrites: every write by name is judged before it happens, what is judged is what
// happens, and the first change of what was there waits for its version.
func testWrites(t *testing.T, b sandbox.Backend) {
	for _, noDelete := range []bool{false, true} {
		host := t.TempDir()
		for name, content := range map[string]string{"old": "was", "gone": "was", "moved": "was", "read": "was", "shut": "was", "dir/in": "was", ".git/config": "[core]\n\tbare = false\n", ".git/HEAD": "ref: refs/heads/main\n", "full": "was"} {
			p := filepath.Join(host, name)
			os.MkdirAll(filepath.Dir(p), 0o755)
			if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		var mu sync.Mutex
		kept, refused, made := map[string]string{}, []string{}, []string{}
		single := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(single, []byte("was\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		spec := WritesSpec(host, &sandbox.Writes{
			Folders:   []sandbox.WritableFolder{{Path: "/rw", NoDelete: noDelete, Versions: true}, {Path: "/file"}},
			Protected: []sandbox.ProtectedPath{{Path: ".envrc", Reason: "run by direnv"}, {Path: ".git/hooks", Reason: "run by git"}, {Path: ".git/config", Reason: "obeyed by git"}},
			Fixed:     []string{"/rw/.git/config"},
			Refused: func(op, path, reason string) {
				mu.Lock()
				refused = append(refused, path+": "+reason)
				mu.Unlock()
			},
			Keep: func(c sandbox.Change) (*sandbox.Spool, error) {
				mu.Lock()
				defer mu.Unlock()
				if c.Path == "/rw/full" {
					return nil, errors.New("the budget is spent")
				}
				if text, err := os.ReadFile(host + strings.TrimPrefix(c.Path, "/rw")); err == nil && kept[c.Path] == "" {
					kept[c.Path] = string(text)
				}
				return nil, nil
			},
			Made: func(path string) {
				mu.Lock()
				made = append(made, path)
				mu.Unlock()
			},
		})
		spec.Mounts = append(spec.Mounts, vocabulary.Mount{Kind: vocabulary.BindRW, Source: single, Target: "/file", Why: "test"})
		i := Prepare(t, b, spec)
		for _, c := range []struct {
			script string
			ok     bool
		}{
			{"echo now > /rw/old && grep -q now /rw/old", true}, {"rm /rw/gone && ! cat /rw/gone", true}, {"cat /rw/read", true},
			{"echo new > /rw/new && mkdir /rw/d && mv /rw/new /rw/d/n && ln /rw/d/n /rw/hard && ln -s d/n /rw/soft && cat /rw/soft", true},
			{"rm -r /rw/d /rw/hard /rw/soft && echo again > /rw/again", true},
			{"umask 027; echo x > /rw/private && stat -c %a /rw/private | grep -qx 640", true},
			{"mv /rw/moved /rw/moved2 && cat /rw/moved2", true},
			{"chmod 444 /rw/shut && rm -f /rw/shut && echo x > /rw/shut", true},
			{"echo x > /rw/.envrc", false}, {"mkdir /rw/.envrc", false}, {"ln -s old /rw/.envrc", false}, {"cp /rw/old /rw/e && mv /rw/e /rw/.envrc", false},
			{"ln /rw/old /rw/.envrc", false}, {"cd /rw && echo x > .envrc", false}, {"mkdir /rw/sub && cd /rw/sub && echo x > .envrc", false},
			{"mkdir -p /rw/.git/hooks && echo x > /rw/.git/hooks/pre-commit", false}, {"mkdir /rw/h && echo x > /rw/h/pre-commit && mv /rw/h /rw/.git/hooks", false},
			{"echo '[core]' > /rw/.git/config", false}, {"rm /rw/.git/config", false}, {"mv /rw/.git/config /rw/c", false},
			{"cp /rw/.git/config /rw/.git/config.lock && echo '\tfsmonitor = evil' >> /rw/.git/config.lock && mv /rw/.git/config.lock /rw/.git/config", false},
			{"rm -f /rw/.git/config.lock && printf '[core]\\n\\tbare = false\\n[user]\\n\\tname = me\\n' > /rw/.git/config.lock && mv /rw/.git/config.lock /rw/.git/config && grep -q me /rw/.git/config", true},
			{"echo more >> /file && grep -q more /file", true}, {"rm /file", false}, {"mv /file /rw/f", false},
			{"echo x > /rw/full", !noDelete}, {"rmdir /rw/dir || rm -r /rw/dir", !noDelete}, {"mv /rw/dir /rw/dir2", false},
		} {
			out, code := Output(t, i, "", "sh", "-c", c.script)
			if (code == 0) != c.ok {
				t.Errorf("%s: exit %d, %q; want success %v (rw-no-delete: %v)", c.script, code, out, c.ok, noDelete)
			}
		}
		mu.Lock()
		for _, p := range []string{"/rw/old", "/rw/gone", "/rw/moved", "/rw/shut"} {
			if kept[p] != "was" {
				t.Errorf("the version of %s is %q", p, kept[p])
			}
		}
		if kept["/rw/read"] != "" {
			t.Error("a version of a file that was read only")
		}
		if !slices.Contains(refused, "/rw/.envrc: run by direnv") {
			t.Errorf("refusals: %q", refused)
		}
		if !slices.Contains(made, "/rw/again") {
			t.Errorf("made: %q", made)
		}
		mu.Unlock()
		for _, p := range []string{".envrc", ".git/hooks/pre-commit", "c"} {
			if _, err := os.Lstat(filepath.Join(host, p)); err == nil {
				t.Errorf("%s was planted", p)
			}
		}
		if text, _ := os.ReadFile(single); string(text) != "was\nmore\n" {
			t.Errorf("a single file is %q", text)
		}
		config, _ := os.ReadFile(host + "/.git/config")
		if !strings.Contains(string(config), "name = me") || strings.Contains(string(config), "evil") {
			t.Errorf("git's configuration: %q", config)
		}
	}
}
