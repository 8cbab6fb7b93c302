package workspace

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// TestRoot: with a root of its own a plan shows nothing of the host's system, the
// rest as ever; what may not be one is refused.
func TestRoot(t *testing.T) {
	h := newHost(t)
	h.write("rootfs/bin/tool", "tool")
	h.write("vault/home/.ssh/key", canary)
	h.write("file", "no folder")
	h.link(h.home, "rootlink")
	h.link(h.path("rootfs"), "fine")
	req := h.request()
	req.Root = &Root{Folder: Folder{Path: h.path("fine"), Pos: at7}, Size: 4096}
	out, err := Plan(req)
	if err != nil {
		t.Fatal(err)
	}
	first := out.Mounts[0]
	if first.Kind != vocabulary.Root || first.Target != "/" || first.Source != h.path("rootfs") || first.Size != 4096 {
		t.Errorf("first comes %+v", first)
	}
	targets := map[string]bool{}
	for _, m := range out.Mounts {
		targets[m.Target] = true
		if m.Why == whySystem && m.Kind.ShowsHost() {
			t.Errorf("of the host: %+v", m)
		}
		if m.Kind == vocabulary.MaskFile || m.Kind == vocabulary.MaskDir {
			t.Errorf("a mask where nothing of the host is: %+v", m)
		}
	}
	for _, want := range []string{"/tmp", "/etc/passwd", "/etc/resolv.conf", h.home, out.Dir} {
		if !targets[want] {
			t.Errorf("no %s", want)
		}
	}
	judged := false
	for _, j := range out.Judged() {
		judged = judged || j.Path == "/" && j.Ino != 0
	}
	if !judged {
		t.Error("the root can be exchanged unseen")
	}
	for path, why := range map[string]string{
		"/": "whole filesystem", "/usr": "the system's", "/proc/1/root": "/proc", h.home: "your home", h.path("rootlink"): "your home", h.path("file"): "not a folder",
		filepath.Dir(h.home): "contains the homes", filepath.Join(h.home, ".ssh"): "place of secrets", h.path("none"): "does not exist",
	} {
		req := h.request()
		req.Root = &Root{Folder: Folder{Path: path, Pos: at7}}
		if _, err := Plan(req); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v; want: %s", path, err, why)
		}
	}
	if os.Getuid() == 0 {
		if err := os.Chown(h.path("rootfs"), 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if _, err := Plan(req); err == nil || !strings.Contains(err.Error(), "another user") {
			t.Errorf("somebody else's: %v", err)
		}
	}

	// One of ours has to be where it was put.
	req.Root = &Root{Folder: Folder{Path: h.path("fine"), Pos: at7}, Image: true}
	if _, err := Plan(req); err == nil || !strings.Contains(err.Error(), "not where it was put") {
		t.Errorf("%v", err)
	}
}
