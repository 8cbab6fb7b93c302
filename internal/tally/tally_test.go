//go:build linux

package tally

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	write := func(name string, n int) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, make([]byte, n), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(dir+"/a/b/file", 1<<20)
	write(dir+"/other", 64<<10)
	write(outside+"/big", 8<<20)
	for _, err := range []error{os.Symlink(outside, dir+"/link"), os.Link(dir+"/a/b/file", dir+"/again")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	got := Of(root, 0)
	if got.Inodes != 5 || got.Partial || got.Bytes < 1<<20+64<<10 || got.Bytes > 2<<20 {
		t.Errorf("a, b, file, other and link: %+v", got)
	}
	if got := Of(root, 2); got.Inodes != 2 {
		t.Errorf("up to 2: %+v", got)
	}
}

// TestDeep: a folder deeper than what is looked into is not passed over in
// silence.
func TestDeep(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/"+strings.Repeat("d/", maxDepth+10), 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if got := Of(root, 0); !got.Partial || got.Inodes < maxDepth {
		t.Errorf("%+v", got)
	}
}
