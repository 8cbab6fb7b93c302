//go:build linux

package container

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/sandboxtest"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// imageEnv, if set, runs the conformance suite with an image for a root.
const imageEnv = "BULKHEAD_TEST_IMAGE_ROOT"

// onImage puts an image below every sandbox.
type onImage struct {
	*Backend
	root string
}

func (b onImage) Prepare(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
	if len(spec.Mounts) == 0 || spec.Mounts[0].Target != "/" {
		spec.Mounts = append([]vocabulary.Mount{{Kind: vocabulary.Root, Source: b.root, Target: "/", Why: "test"}}, spec.Mounts...)
	}
	return b.Backend.Prepare(ctx, spec)
}

// hostileRoot is what an image could be to lead mounts elsewhere: to the host's
// files beside the cradle's root, upwards, in circles, into the kernel's files.
func hostileRoot(t *testing.T) (root, beside string) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	root, beside = filepath.Join(dir, "root"), filepath.Join(dir, "beside")
	for _, d := range []string{root, beside, filepath.Join(root, "var/run"), filepath.Join(root, "full/of")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{
		"etc": hostDir + beside, "home": "../../../.." + hostDir + beside, "tmp": hostDir + beside, "run": "run", "opt": "/proc/self/root/opt", "usr": hostDir + "/usr",
		"bin": beside, "proc": hostDir + "/proc", "dev": hostDir + "/dev", "lib": "../..", "lib64": "/scratch", "ws": "/bundle",
	} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"sys": "a file", "full/of/things": "as it was"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root, beside
}

// TestImageMakesWay: mounts stand where they say, whatever an image has there; the
// image stays as it is, and a session's writes are bounded and its own.
func TestImageMakesWay(t *testing.T) {
	sandboxtest.EachUser(t, func(t *testing.T) {
		root, beside := hostileRoot(t)
		ws := t.TempDir()
		if err := os.WriteFile(filepath.Join(ws, "in"), []byte("workspace"), 0o644); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(root, &st); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadDir(root)
		if err != nil {
			t.Fatal(err)
		}
		spec := sandboxtest.Spec(sandbox.NetNone,
			vocabulary.Mount{Kind: vocabulary.BindRO, Source: ws, Target: "/ws", Why: "test"},
			vocabulary.Mount{Kind: vocabulary.Tmpfs, Target: "/home/me", Perm: 0o700, Size: 1 << 20, Why: "test"},
			vocabulary.Mount{Kind: vocabulary.Symlink, Source: "/run", Target: "/var/run", Why: "test"})
		spec.Mounts = slices.Insert(spec.Mounts, 0, vocabulary.Mount{Kind: vocabulary.Root, Source: root, Target: "/", Size: 4 << 20, Why: "test"})
		spec.Judged = append(spec.Judged, sandbox.Identity{Path: "/", Dev: st.Dev, Ino: st.Ino})
		for range 2 {
			i := sandboxtest.Prepare(t, backend(t), spec)
			out, code := sandboxtest.Output(t, i, "", "sh", "-c", `cat /ws/in /etc/passwd /full/of/things; test ! -e /host && test ! -e /bundle/config.json && test ! -e /new && echo mine > /new &&
				echo x > /full/of/things && cat /full/of/things && mv /full /moved && cat /moved/of/things && ls /var/run > /dev/null && test -d /home/me && echo held; dd if=/dev/zero of=/big bs=1M count=9 2>&1; rm -f /big; echo y > /small && echo after`)
			for _, want := range []string{"workspace", ":/bin/sh", "as it was", "x\nx\nheld", "No space left on device", "after"} {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in %q (exit %d)", want, out, code)
				}
			}
			if err := i.Kill(); err != nil {
				t.Error(err)
			}
		}
		if list, _ := os.ReadDir(beside); len(list) > 0 {
			t.Errorf("beside: %v", list)
		}
		after, _ := os.ReadDir(root)
		same := slices.EqualFunc(before, after, func(a, b os.DirEntry) bool { return a.Name() == b.Name() && a.Type() == b.Type() })
		if text, _ := os.ReadFile(filepath.Join(root, "full/of/things")); !same || string(text) != "as it was" {
			t.Errorf("the image changed: %v, %q", after, text)
		}

		// Another folder in its place since it was judged.
		spec.Judged[len(spec.Judged)-1].Ino++
		if i, err := backend(t).Prepare(context.Background(), spec); err == nil || !strings.Contains(err.Error(), "exchanged") {
			t.Errorf("%v", err)
			if err == nil {
				i.Kill()
			}
		}
	})
}
