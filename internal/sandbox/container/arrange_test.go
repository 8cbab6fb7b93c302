package container

import (
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// TestArrange: what could be moved away from inside is a mount of gVisor's, the
// rest stands on the host's side.
func TestArrange(t *testing.T) {
	a, err := arrange(sandbox.Spec{Mounts: []vocabulary.Mount{
		{Kind: vocabulary.BindRO, Source: "/usr", Target: "/usr"},
		{Kind: vocabulary.Data, Target: "/etc/passwd", Data: []byte("x")},
		{Kind: vocabulary.Tmpfs, Target: "/home/u", Perm: 0o700, Size: 4096},
		{Kind: vocabulary.File, Target: "/home/u/.rc", Data: []byte("x")},
		{Kind: vocabulary.Symlink, Source: "ws", Target: "/home/u/link"},
		{Kind: vocabulary.BindRW, Source: "/home/u/ws", Target: "/home/u/ws"},
		{Kind: vocabulary.BindRO, Source: "/home/u/ws/.git/hooks", Target: "/home/u/ws/.git/hooks"},
		{Kind: vocabulary.MaskDir, Target: "/home/u/ws/secret"},
		{Kind: vocabulary.MaskFile, Target: "/home/u/ws/.env"},
		{Kind: vocabulary.MaskDir, Target: "/usr/share/x"},
	}}, "/opt/bulkhead", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	gvisors := map[string]mount{}
	for _, m := range a.mounts {
		gvisors[m.Target] = m
	}
	for target, ro := range map[string]bool{"/home/u/ws": false, "/home/u/ws/.git/hooks": true, "/home/u/ws/secret": true, "/home/u/ws/.env": true, "/home/u": false} {
		if m, ok := gvisors[target]; !ok || m.RO != ro {
			t.Errorf("%s: %+v, %v; want a mount of gVisor's, read-only %v", target, m, ok, ro)
		}
	}
	for _, target := range []string{"/usr", "/etc/passwd", "/usr/share/x", "/run/bulkhead"} {
		if m, ok := gvisors[target]; ok {
			t.Errorf("%s is a mount of gVisor's: %+v", target, m)
		}
	}
	if len(a.files) != 1 || len(a.links) != 1 {
		t.Errorf("files %v, links %v", a.files, a.links)
	}
}

func TestArrangeRefuses(t *testing.T) {
	for name, m := range map[string]vocabulary.Mount{
		"relative target":  {Kind: vocabulary.BindRO, Source: "/usr", Target: "usr"},
		"unclean source":   {Kind: vocabulary.BindRO, Source: "/usr/../etc", Target: "/usr"},
		"second root":      {Kind: vocabulary.BindRO, Source: "/usr", Target: "/"},
		"over /proc":       {Kind: vocabulary.BindRO, Source: "/usr", Target: "/proc/x"},
		"over ours":        {Kind: vocabulary.BindRO, Source: "/usr", Target: "/run/bulkhead/bulkhead"},
		"host's proc":      {Kind: vocabulary.BindRW, Source: "/proc", Target: "/x"},
		"host's devices":   {Kind: vocabulary.BindRW, Source: "/dev/shm", Target: "/x"},
		"file in no tmpfs": {Kind: vocabulary.File, Target: "/etc/x"},
		"layer elsewhere":  {Kind: vocabulary.Overlay, Source: "/a", Target: "/b", Layer: "/l"},
		"name not UTF-8":   {Kind: vocabulary.BindRW, Source: "/a\xff", Target: "/a\xff"},
		"unknown kind":     {Kind: 99, Target: "/x"},
	} {
		first := vocabulary.Mount{Kind: vocabulary.BindRO, Source: "/usr", Target: "/usr"}
		if _, err := arrange(sandbox.Spec{Mounts: []vocabulary.Mount{first, m}}, "/opt/bulkhead", 1<<20); err == nil {
			t.Errorf("%s: accepted", name)
		} else if name == "name not UTF-8" && !strings.Contains(err.Error(), "--isolation process") {
			t.Errorf("%s: no way out in %q", name, err)
		}
	}
}

// TestRuntimeRefuses: another program, or none, is not run.
func TestRuntimeRefuses(t *testing.T) {
	for path, want := range map[string]string{"/nowhere/bulkhead-runsc": "neither beside", "/bin/sh": "not a program of Bulkhead's", "/proc/self/exe": "another program"} {
		_, err := (&Backend{Runsc: path}).Runtime()
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "make build") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
