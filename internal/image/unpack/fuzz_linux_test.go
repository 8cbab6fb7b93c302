package unpack

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
)

func TestMain(m *testing.M) {
	childproc.Dispatch()
	os.Exit(m.Run())
}

var tight = Limits{Bytes: 1 << 16, Entries: 64, Layers: 8, Depth: 12, Path: 512}

// put is one entry of a layer.
type put struct {
	name string
	kind byte // tar's; 0 is a file, or a folder if the name ends in /
	text string
	mode int64
}

func tarOf(t testing.TB, entries ...put) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode, ModTime: time.Unix(1e9, 0), Format: tar.FormatPAX, Uid: 4711, Gid: 4711}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		text := e.text
		switch h.Typeflag {
		case tar.TypeReg:
			h.Size = int64(len(text))
		default:
			h.Linkname, text = text, ""
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// FuzzLayer: whatever a layer says, what comes of it is bounded, has no
// set-user-ID, no device and no other owner, and nothing beside the folder changes.
func FuzzLayer(f *testing.F) {
	f.Add(tarOf(f, put{name: "d/", mode: 0o755}, put{name: "d/tool", text: "t", mode: 0o6755}, put{name: "l", kind: tar.TypeSymlink, text: "d"}, put{name: "/l/a", text: "a"},
		put{name: "hard", kind: tar.TypeLink, text: "/d/tool"}, put{name: "dev/null", kind: tar.TypeChar}), tarOf(f, put{name: ".wh.hard"}, put{name: "d/new", text: "n"}, put{name: "d/.wh..wh..opq"}))
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
