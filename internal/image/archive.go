package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/image/unpack"
)

const maxArchiveFiles = 10_000

// archiveFile is what docker save writes: a tar with manifest.json, a
// configuration and layers.
type archiveFile struct {
	from  io.ReaderAt
	files map[string]extent
	links map[string]string
}

type extent struct{ at, size int64 }

func openArchive(ref Reference, lim unpack.Limits) (*source, error) {
	f, err := os.OpenFile(ref.Where, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, fmt.Errorf("%w\nname a file that docker save wrote", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("it is not a regular file\nname a file that docker save wrote")
	}
	var s *source
	if err == nil {
		s, err = readArchive(f, st.Size(), lim)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	s.close = func() { f.Close() }
	return s, nil
}

// counted knows where in the file the tar reader is.
type counted struct {
	*io.SectionReader
}

func (c counted) at() int64 {
	n, _ := c.Seek(0, io.SeekCurrent)
	return n
}

func readArchive(from io.ReaderAt, size int64, lim unpack.Limits) (*source, error) {
	a := &archiveFile{from: from, files: map[string]extent{}, links: map[string]string{}}
	c := counted{io.NewSectionReader(from, 0, size)}
	t := tar.NewReader(c)
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if n == 0 {
				return nil, errors.New("it is no tar file that docker save wrote; if it is compressed, uncompress it first")
			}
			return nil, fmt.Errorf("the archive: %w", err)
		}
		if n == maxArchiveFiles {
			return nil, fmt.Errorf("the archive holds more than %d files", maxArchiveFiles)
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			at := c.at()
			if h.Size < 0 || h.Size > size-at {
				return nil, fmt.Errorf("the archive ends in %s", unpack.Printable(name))
			}
			a.files[name] = extent{at, h.Size}
		case tar.TypeSymlink: // a layer that is there already
			a.links[name] = path.Join(path.Dir(name), h.Linkname)
		}
	}
	text, err := a.read("manifest.json")
	if err != nil {
		return nil, err
	}
	var images []struct {
		Config string
		Layers []string
	}
	if err := decode(text, &images); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("the archive holds %d images, and one is needed: docker save NAME", len(images))
	}
	m := images[0]
	if len(m.Layers) > lim.Layers {
		return nil, fmt.Errorf("it has %d layers; %d are the most", len(m.Layers), lim.Layers)
	}
	if text, err = a.read(m.Config); err != nil {
		return nil, err
	}
	s := &source{id: digestOf(text)}
	// The name of the file is the digest, or ends with it.
	if base := strings.TrimSuffix(path.Base(m.Config), ".json"); len(base) == 64 && base != s.id.hex() {
		return nil, fmt.Errorf("its configuration is called sha256:%s and is %s", unpack.Printable(base), s.id)
	}
	if err := s.configure(text, len(m.Layers)); err != nil {
		return nil, err
	}
	for _, name := range m.Layers {
		e, err := a.find(name)
		if err != nil {
			return nil, err
		}
		s.layers = append(s.layers, layer{size: e.size, open: func() (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(from, e.at, e.size)), nil
		}})
	}
	return s, nil
}

func (a *archiveFile) find(name string) (extent, error) {
	name = path.Clean(name)
	if to, ok := a.links[name]; ok {
		name = to
	}
	e, ok := a.files[name]
	if !ok {
		return e, fmt.Errorf("the archive has no %s; is it from docker save?", unpack.Printable(name))
	}
	return e, nil
}

func (a *archiveFile) read(name string) ([]byte, error) {
	e, err := a.find(name)
	if err != nil {
		return nil, err
	}
	if e.size > maxDocument {
		return nil, fmt.Errorf("%s has %d bytes; %d are the most", unpack.Printable(name), e.size, maxDocument)
	}
	return readDocument(io.NewSectionReader(a.from, e.at, e.size))
}
