package image

import (
	"fmt"
	"io"
	"os"

	"github.com/bulkhead-dev/bulkhead/internal/image/unpack"
)

// layoutDir is an OCI layout.
type layoutDir struct{ root *os.Root }

func openLayout(ref Reference, lim unpack.Limits) (*source, error) {
	root, err := os.OpenRoot(ref.Where)
	if err != nil {
		return nil, fmt.Errorf("%w\nname the folder of an OCI layout, with index.json in it", err)
	}
	l := layoutDir{root}
	f, err := l.file("index.json")
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("%w\nname the folder of an OCI layout, with index.json in it", err)
	}
	text, err := readDocument(f)
	f.Close()
	var s *source
	if err == nil {
		s, err = fromManifest(l, text, indexTypes[0], lim)
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	s.close = func() { root.Close() }
	return s, nil
}

func (l layoutDir) file(name string) (*os.File, error) {
	f, err := l.root.OpenFile(name, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	return f, nil
}

func (l layoutDir) document(d descriptor) ([]byte, error) {
	f, err := l.file("blobs/sha256/" + d.Digest.hex())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readDocument(f)
}

func (l layoutDir) layer(d descriptor) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return l.file("blobs/sha256/" + d.Digest.hex()) }
}
