package unpack

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/image/imagetest"
)

func TestMain(m *testing.M) {
	childproc.Dispatch()
	os.Exit(m.Run())
}

var tight = Limits{Bytes: 1 << 16, Entries: 64, Layers: 8, Depth: 12, Path: 512}

// FuzzLayer: whatever a layer says, what comes of it is bounded, has no
// set-user-ID, no device and no other owner, and nothing beside the folder changes.
func FuzzLayer(f *testing.F) {
	f.Add(imagetest.Tar(f, imagetest.Entry{Name: "d/", Mode: 0o755}, imagetest.Entry{Name: "d/tool", Text: "t", Mode: 0o6755}, imagetest.Entry{Name: "l", Kind: tar.TypeSymlink, Text: "d"}, imagetest.Entry{Name: "/l/a", Text: "a"},
		imagetest.Entry{Name: "hard", Kind: tar.TypeLink, Text: "/d/tool"}, imagetest.Entry{Name: "dev/null", Kind: tar.TypeChar}), imagetest.Tar(f, imagetest.Entry{Name: ".wh.hard"}, imagetest.Entry{Name: "d/new", Text: "n"}, imagetest.Entry{Name: "d/.wh..wh..opq"}))
	f.Add(imagetest.Tar(f, imagetest.Entry{Name: "a", Kind: tar.TypeSymlink, Text: "../beside"}), imagetest.Tar(f, imagetest.Entry{Name: "a", Text: "x"}))
	f.Add(imagetest.Tar(f, imagetest.Entry{Name: "a", Kind: tar.TypeSymlink, Text: ".."}), imagetest.Tar(f, imagetest.Entry{Name: "a/beside", Text: "x"}, imagetest.Entry{Name: "a/.wh.beside"}))
	f.Add(imagetest.Tar(f, imagetest.Entry{Name: "b", Kind: tar.TypeLink, Text: "../beside"}), imagetest.Tar(f, imagetest.Entry{Name: ".wh...", Text: "x"}))
	f.Add(imagetest.Tar(f, imagetest.Entry{Name: "d/"}, imagetest.Entry{Name: "d/x", Text: "x"}), imagetest.Tar(f, imagetest.Entry{Name: "d/.wh..wh..opq"}, imagetest.Entry{Name: "d", Text: "now a file"}))
	f.Add([]byte("no tar"), []byte{})
	f.Fuzz(func(t *testing.T, one, two []byte) {
		dir := t.TempDir()
		root, beside := filepath.Join(dir, "root"), filepath.Join(dir, "beside")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(beside, []byte("before"), 0o600); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		a := &applier{root: fd, lim: tight}
		for _, layer := range [][]byte{one, two} {
			if err := a.layer(bytes.NewReader(layer)); err != nil {
				break
			}
		}
		files := 0
		err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			files++
			info, err := d.Info()
			if err != nil {
				return err
			}
			if m := info.Mode(); m&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0 {
				t.Errorf("%s is %v", p, m)
			}
			if depth := strings.Count(strings.TrimPrefix(p, root), "/"); depth > tight.Depth+1 {
				t.Errorf("%d deep", depth)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if most := tight.Entries * (tight.Depth + 1); files > most || a.bytes > tight.Bytes {
			t.Errorf("%d files, %d bytes", files, a.bytes)
		}
		if list, _ := os.ReadDir(dir); len(list) != 2 {
			t.Errorf("beside: %v", list)
		}
		if text, _ := os.ReadFile(beside); string(text) != "before" {
			t.Errorf("beside is %q", text)
		}
	})
}
