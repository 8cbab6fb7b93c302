package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/image/unpack"
)

// maxDocument bounds an index, a manifest and a configuration.
const maxDocument = 4 << 20

// Media types of documents and layers that are known.
var (
	indexTypes    = []string{"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
	manifestTypes = []string{"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
	layerTypes    = []string{
		"application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.layer.v1.tar+zstd",
		"application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.docker.image.rootfs.diff.tar.zstd",
	}
)

type descriptor struct {
	MediaType string    `json:"mediaType"`
	Digest    digest    `json:"digest"`
	Size      int64     `json:"size"`
	Platform  *platform `json:"platform"`
}

type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
}

func (p platform) String() string { return p.OS + "/" + p.Architecture }

// here is what this machine runs.
var here = platform{"linux", runtime.GOARCH}

type index struct {
	MediaType string       `json:"mediaType"`
	Manifests []descriptor `json:"manifests"`
}

type manifest struct {
	MediaType     string       `json:"mediaType"`
	SchemaVersion int          `json:"schemaVersion"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type configuration struct {
	OS           string    `json:"os"`
	Architecture string    `json:"architecture"`
	Created      time.Time `json:"created"`
	Config       struct {
		Env []string `json:"Env"`
	} `json:"config"`
	RootFS struct {
		DiffIDs []digest `json:"diff_ids"`
	} `json:"rootfs"`
}

// digest is "sha256:" and 64 hex digits, lower case.
type digest string

func (d digest) check() error {
	h, ok := strings.CutPrefix(string(d), "sha256:")
	if !ok || len(h) != 64 || strings.Trim(h, "0123456789abcdef") != "" {
		return fmt.Errorf("%s is no sha256 digest", unpack.Printable(string(d)))
	}
	return nil
}

func (d digest) hex() string { return strings.TrimPrefix(string(d), "sha256:") }

func digestOf(b []byte) digest {
	sum := sha256.Sum256(b)
	return digest("sha256:" + hex.EncodeToString(sum[:]))
}

// source is an image before it is unpacked: documents that were verified, and
// layers that will be.
type source struct {
	manifest digest // "" of docker save
	id       digest // of the configuration
	config   configuration
	layers   []layer
	close    func()
}

// layer opens a layer's bytes, compressed or not. Digest is "" where only the
// configuration says what it is to be.
type layer struct {
	digest digest
	size   int64
	open   func() (io.ReadCloser, error)
}

// unpackable are the layers, each with what the configuration says that it holds.
func (s *source) unpackable() (layers []unpack.Layer) {
	for i, l := range s.layers {
		layers = append(layers, unpack.Layer{Digest: string(l.digest), Size: l.size, Open: l.open, Content: string(s.config.RootFS.DiffIDs[i])})
	}
	return layers
}

// blobs gets documents and layers by digest, from wherever.
type blobs interface {
	document(d descriptor) ([]byte, error) // not verified
	layer(d descriptor) func() (io.ReadCloser, error)
}

// fetch is a document that is what its descriptor says.
func fetch(from blobs, d descriptor) ([]byte, error) {
	if err := d.Digest.check(); err != nil {
		return nil, err
	}
	if d.Size < 0 || d.Size > maxDocument {
		return nil, fmt.Errorf("a document of %d bytes; %d are the most", d.Size, maxDocument)
	}
	b, err := from.document(d)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != d.Size {
		return nil, fmt.Errorf("%s has %d bytes, and %d were announced", d.Digest, len(b), d.Size)
	}
	if is := digestOf(b); is != d.Digest {
		return nil, fmt.Errorf("%s was asked for, and came %s", d.Digest, is)
	}
	return b, nil
}

// fromManifest goes on from a document that is an index or a manifest.
func fromManifest(from blobs, text []byte, mediaType string, lim unpack.Limits) (*source, error) {
	for nested := 0; isIndex(mediaType, text); nested++ {
		if nested == 3 {
			return nil, errors.New("indexes in one another")
		}
		d, err := choose(text)
		if err != nil {
			return nil, err
		}
		if text, err = fetch(from, d); err != nil {
			return nil, err
		}
		mediaType = d.MediaType
	}
	var m manifest
	if err := decode(text, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if mediaType == "" {
		mediaType = m.MediaType
	}
	if m.SchemaVersion != 2 || mediaType != "" && !slices.Contains(manifestTypes, mediaType) || m.MediaType != "" && !slices.Contains(manifestTypes, m.MediaType) {
		return nil, fmt.Errorf("its manifest is of no kind that is known (%s, schema %d)", unpack.Printable(mediaType), m.SchemaVersion)
	}
	if len(m.Layers) > lim.Layers {
		return nil, fmt.Errorf("it has %d layers; %d are the most", len(m.Layers), lim.Layers)
	}
	text2, err := fetch(from, m.Config)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	s := &source{manifest: digestOf(text), id: m.Config.Digest}
	if err := s.configure(text2, len(m.Layers)); err != nil {
		return nil, err
	}
	sum := int64(0)
	for _, l := range m.Layers {
		if !slices.Contains(layerTypes, l.MediaType) {
			return nil, fmt.Errorf("a layer is of kind %s, which is not known", unpack.Printable(l.MediaType))
		}
		if err := l.Digest.check(); err != nil {
			return nil, err
		}
		if l.Size < 0 || l.Size > lim.Bytes || sum+l.Size > lim.Bytes {
			return nil, fmt.Errorf("its layers are larger than %d bytes", lim.Bytes)
		}
		sum += l.Size
		s.layers = append(s.layers, layer{l.Digest, l.Size, from.layer(l)})
	}
	return s, nil
}

// configure reads the configuration.
func (s *source) configure(text []byte, layers int) error {
	if err := decode(text, &s.config); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	c := &s.config
	if is := (platform{c.OS, c.Architecture}); is != here {
		return fmt.Errorf("it is for %s, and this machine runs %s", unpack.Printable(is.String()), here)
	}
	if len(c.RootFS.DiffIDs) != layers {
		return fmt.Errorf("it has %d layers, and its configuration tells of %d", layers, len(c.RootFS.DiffIDs))
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := d.check(); err != nil {
			return err
		}
	}
	for _, kv := range c.Config.Env {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" || strings.ContainsRune(kv, 0) {
			return fmt.Errorf("its environment has %s", unpack.Printable(kv))
		}
	}
	return nil
}

func isIndex(mediaType string, text []byte) bool {
	if mediaType != "" {
		return slices.Contains(indexTypes, mediaType)
	}
	var i index
	return decode(text, &i) == nil && (slices.Contains(indexTypes, i.MediaType) || i.MediaType == "" && i.Manifests != nil)
}

// choose is the manifest of an index that is for this machine.
func choose(text []byte) (descriptor, error) {
	var i index
	if err := decode(text, &i); err != nil {
		return descriptor{}, fmt.Errorf("index: %w", err)
	}
	var fit []descriptor
	var others []string
	for _, d := range i.Manifests {
		switch {
		case d.Platform == nil || *d.Platform == here:
			if !slices.ContainsFunc(fit, func(f descriptor) bool { return f.Digest == d.Digest }) {
				fit = append(fit, d)
			}
		case d.Platform.OS != "unknown" && len(others) < 20: // attestations
			others = append(others, unpack.Printable(d.Platform.String()))
		}
	}
	switch {
	case len(fit) == 1:
		return fit[0], nil
	case len(fit) > 1:
		return descriptor{}, fmt.Errorf("it holds %d images for this machine, and nothing says which is meant", len(fit))
	case len(others) > 0:
		return descriptor{}, fmt.Errorf("it is for %s, and this machine runs %s", strings.Join(others, ", "), here)
	}
	return descriptor{}, errors.New("its index holds no image")
}

func decode(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(into); err != nil {
		return errors.New(unpack.Printable(err.Error()))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one document")
	}
	return nil
}

func readDocument(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err == nil && len(b) > maxDocument {
		err = fmt.Errorf("a document of more than %d bytes", maxDocument)
	}
	return b, err
}
