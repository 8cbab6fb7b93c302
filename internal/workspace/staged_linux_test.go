package workspace

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func TestStagedPlan(t *testing.T) {
	h := newHost(t)
	h.write("home/proj/.envrc", "x")
	h.write("home/proj/.git/hooks/pre-commit", "x")
	h.write("home/proj/cache/x", "x")
	layer := t.TempDir()
	staged := func(mounts ...Folder) Request {
		r := h.request(mounts...)
		r.Workspace.Mode, r.Layer = vocabulary.StagedWrites, layer
		return r
	}
	l := h.plan(staged())
	kinds := map[string]vocabulary.MountKind{}
	for _, m := range l.Mounts {
		kinds[m.Target] = m.Kind
		if m.Kind == vocabulary.Overlay && (m.Source != l.Dir || m.Layer != layer) {
			t.Errorf("%+v", m)
		}
	}
	for at, want := range map[string]vocabulary.MountKind{"": vocabulary.Overlay, ".envrc": vocabulary.BindRO, ".git/hooks": vocabulary.BindRO} {
		if k, ok := kinds[filepath.Join(l.Dir, at)]; !ok || k != want {
			t.Errorf("%q has kind %d", at, k)
		}
	}
	// A staged workspace need not be writable for its user.
	if os.Getuid() != 0 {
		os.Chmod(l.Dir, 0o555)
		h.plan(staged())
		os.Chmod(l.Dir, 0o755)
	}
	for _, c := range []struct{ path, mode, want string }{
		{filepath.Join(l.Dir, "cache"), "rw", "would not be staged"}, {l.Dir, "rw", "would not be staged"}, {l.Dir, "ro", "both staged and ro"},
	} {
		_, err := Plan(staged(Folder{Path: c.path, Mode: vocabulary.MountMode(c.mode), Pos: at7}))
		refused(t, err, c.want)
	}
	h.plan(staged(Folder{Path: filepath.Join(l.Dir, "cache"), Mode: vocabulary.ReadOnly, Pos: at7}))
	r := staged()
	r.Layer = filepath.Join(l.Dir, "state")
	_, err := Plan(r)
	refused(t, err, "its own layer")
	for image, want := range map[bool]string{true: "the cache with the unpacked image", false: "holds the root"} {
		r = staged()
		r.Root = &Root{Folder: Folder{Path: filepath.Join(l.Dir, "cache"), Pos: at7}, Image: image}
		_, err = Plan(r)
		refused(t, err, want)
		r.Workspace.Mode, r.Layer = vocabulary.ReadWrite, ""
		h.plan(r)
	}
}

func TestMountPoints(t *testing.T) {
	if got := unescapeMount(`/a\040b\134\011`); got != "/a b\\\t" {
		t.Errorf("%q", got)
	}
	list, err := mountPoints()
	if err != nil || !slices.Contains(list, "/") || !slices.Contains(list, "/proc") {
		t.Errorf("%q %v", list, err)
	}
}
