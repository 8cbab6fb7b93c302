package image

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var tight = Limits{Bytes: 1 << 16, Entries: 64, Layers: 8, Depth: 12, Path: 512}

// FuzzLayer: whatever a layer says, what comes of it is bounded, has no
// set-user-ID, no device and no other owner, and nothing beside the folder changes.
func FuzzLayer(f *testing.F) {
	f.Add(tarOf(f, ordinary...), tarOf(f, second...))
	f.Add(tarOf(f, put{name: "a", kind: tar.TypeSymlink, text: "../beside"}), tarOf(f, put{name: "a", text: "x"}))
	f.Add(tarOf(f, put{name: "a", kind: tar.TypeSymlink, text: ".."}), tarOf(f, put{name: "a/beside", text: "x"}, put{name: "a/.wh.beside"}))
	f.Add(tarOf(f, put{name: "b", kind: tar.TypeLink, text: "../beside"}), tarOf(f, put{name: ".wh...", text: "x"}))
	f.Add(tarOf(f, put{name: "d/"}, put{name: "d/x", text: "x"}), tarOf(f, put{name: "d/.wh..wh..opq"}, put{name: "d", text: "now a file"}))
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

// FuzzArchive: whatever a file of docker save says, what is read of it lies in it.
func FuzzArchive(f *testing.F) {
	b := build(f, nil, tarOf(f, ordinary...))
	f.Add(b.archive(f))
	f.Add(tarOf(f, put{name: "manifest.json", text: `[{"Config":"c","Layers":["l"]}]`}, put{name: "c", text: "{}"}, put{name: "l", kind: tar.TypeSymlink, text: "../l"}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := readArchive(bytes.NewReader(data), int64(len(data)), tight)
		if err != nil {
			return
		}
		if len(s.layers) > tight.Layers || len(s.layers) != len(s.config.RootFS.DiffIDs) || s.id.check() != nil {
			t.Errorf("%d layers, %d digests, id %s", len(s.layers), len(s.config.RootFS.DiffIDs), s.id)
		}
		for _, l := range s.layers {
			if l.size < 0 || l.size > int64(len(data)) {
				t.Errorf("a layer of %d bytes in %d", l.size, len(data))
			}
		}
	})
}

// FuzzManifest: whatever an index or manifest says, what is accepted is bounded and
// named by digests.
func FuzzManifest(f *testing.F) {
	b := build(f, nil, tarOf(f, ordinary...))
	f.Add(b.index)
	f.Add(b.manifest)
	f.Add([]byte(`{"manifests":[{"digest":"sha256:x"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := fromManifest(memory(b.blobs), text, "", tight)
		if err != nil {
			return
		}
		if len(s.layers) > tight.Layers || len(s.layers) != len(s.config.RootFS.DiffIDs) {
			t.Errorf("%d layers", len(s.layers))
		}
		sum := int64(0)
		for _, l := range s.layers {
			if sum += l.size; l.size < 0 || sum > tight.Bytes || l.digest.check() != nil {
				t.Errorf("%+v", l)
			}
		}
	})
}

type memory map[digest][]byte

func (m memory) document(d descriptor) ([]byte, error) {
	b, ok := m[d.Digest]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return b, nil
}

func (m memory) layer(descriptor) func() (io.ReadCloser, error) { return nil }
