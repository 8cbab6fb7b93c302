package image

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/image/imagetest"
	"github.com/bulkhead-dev/bulkhead/internal/image/unpack"
)

var tight = unpack.Limits{Bytes: 1 << 16, Entries: 64, Layers: 8, Depth: 12, Path: 512}

// FuzzArchive: whatever a file of docker save says, what is read of it lies in it.
func FuzzArchive(f *testing.F) {
	b := build(f, nil, imagetest.Tar(f, ordinary...))
	f.Add(b.archive(f))
	f.Add(imagetest.Tar(f, imagetest.Entry{Name: "manifest.json", Text: `[{"Config":"c","Layers":["l"]}]`}, imagetest.Entry{Name: "c", Text: "{}"}, imagetest.Entry{Name: "l", Kind: tar.TypeSymlink, Text: "../l"}))
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
	b := build(f, nil, imagetest.Tar(f, ordinary...))
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
