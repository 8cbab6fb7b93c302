package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-dev/bulkhead/internal/image/imagetest"
)

// TestAssemble: packages that know nothing of a merged /usr become one layer that
// the unpacker takes, the same each time.
func TestAssemble(t *testing.T) {
	packages := map[string][]imagetest.Entry{
		"a.deb": {{Name: "./"}, {Name: "./bin/", Mode: 0o755}, {Name: "./bin/dash", Text: "shell", Mode: 0o755}, {Name: "./lib/"}, {Name: "./lib/x.so", Kind: tar.TypeSymlink, Text: "x.so.1"}},
		"b.deb": {{Name: "./usr/"}, {Name: "./usr/bin/"}, {Name: "./usr/bin/dash", Kind: tar.TypeLink, Text: "./bin/dash"}, {Name: "./lib/x.so.1", Text: "library"},
			{Name: "./lib/y", Kind: tar.TypeLink, Text: "./lib/x.so.1"}, {Name: "./usr/bin/su", Text: "su", Mode: 0o4755}},
	}
	open := func(deb string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(imagetest.Tar(t, packages[filepath.Base(deb)]...))), nil
	}
	ids := map[digest]bool{}
	for range 2 {
		s := store(t)
		src, err := assemble(filepath.Join(t.TempDir(), "layer"), []string{"a.deb", "b.deb"}, open)
		if err != nil {
			t.Fatal(err)
		}
		ids[src.id] = true
		i, err := s.make(context.Background(), Reference{Registry, BuiltName}, src, func(int64, int64) {})
		if err != nil {
			t.Fatal(err)
		}
		got := tree(t, i.Root)
		for name := range got {
			if name[len(name)-1] == '/' {
				delete(got, name)
			}
		}
		want := map[string]string{"bin": "-> usr/bin", "sbin": "-> usr/sbin", "lib": "-> usr/lib", "lib32": "-> usr/lib32", "lib64": "-> usr/lib64", "libx32": "-> usr/libx32",
			"usr/bin/dash": "-rwxr-xr-x shell", "usr/bin/sh": "-> dash", "usr/lib/x.so": "-> x.so.1", "usr/lib/x.so.1": "-rw-r--r-- library",
			"usr/lib/y": "-rw-r--r-- library", "usr/bin/su": "-rwxr-xr-x su"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		i.Close()
	}
	if len(ids) != 1 {
		t.Errorf("the same packages gave %v", ids)
	}
}

// TestBuildRefuses: names that are options or paths, and a host without apt.
func TestBuildRefuses(t *testing.T) {
	s := store(t)
	for _, p := range []string{"", "-o", "./x.deb", "a;b", "../x"} {
		if _, err := s.Build(context.Background(), BuiltName, []string{p}, nil, func(string) {}); !refusedWith(err, "not the name of a Debian package") {
			t.Errorf("%q: %v", p, err)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := s.Build(context.Background(), BuiltName, Agents, os.Environ(), func(string) {}); err == nil {
		t.Error("built without apt")
	}
	nothingLeft(t, s)
}
