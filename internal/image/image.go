// Package image turns an OCI image into a folder that can be the root of a
// container, and keeps such folders in a cache.
//
// It runs in the controller and the command line, before a session exists, with
// the user's powers. In: a Reference (a registry's name, an OCI layout, a file of
// docker save). Out: an Image: an unpacked root that nobody changes, with the
// parts of its configuration that count, held in use until it is closed.
//
// What an image says is hostile. Documents (index, manifest, configuration) are
// bounded and read here; the layers are read by a process of their own (package
// unpack), which Landlock leaves the one folder that it fills and seccomp no socket
// and no program. What counts is what was
// verified: manifest, configuration and layers against their digests, each layer
// once more, uncompressed, against the configuration. A root comes into being by
// one rename at the end; what was begun and not ended is swept by the next that
// opens the store.
//
// Known gap: a registry learns who asks it for what; an image that it serves to
// this machine only is not told from another one without a digest in the name.
package image

import (
	"fmt"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/image/unpack"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Kind says what a Reference leads to.
type Kind uint8

// The kinds.
const (
	Registry Kind = iota // NAME[:TAG][@DIGEST]
	Layout               // oci:DIR
	Archive              // docker-archive:FILE
)

// Reference names an image. Where is a registry's name as the user wrote it, or
// an absolute path.
type Reference struct {
	Kind  Kind
	Where string
}

func (r Reference) String() string {
	switch r.Kind {
	case Layout:
		return "oci:" + r.Where
	case Archive:
		return "docker-archive:" + r.Where
	}
	return r.Where
}

// DefaultLimits are far beyond what images in use have.
var DefaultLimits = unpack.Limits{Bytes: 32 << 30, Entries: 2_000_000, Layers: 256, Depth: 200, Path: 4000}

// Config is what counts of an image's configuration. User, working directory,
// entrypoint, volumes and ports do not: a session's command runs as the session's
// user in its workspace.
type Config struct {
	Env     []string  `json:"env,omitempty"` // NAME=VALUE
	Created time.Time `json:"created,omitzero"`
}

// Entry is one image of the store.
type Entry struct {
	Names   []Named   `json:"names"`
	ID      string    `json:"id"` // digest of the configuration, "sha256:" and hex
	Bytes   int64     `json:"bytes"`
	Files   int       `json:"files"`
	Created time.Time `json:"created,omitzero"` // as the image says
	Pulled  time.Time `json:"pulled,omitzero"`
	InUse   bool      `json:"in_use"`
}

// Named is a name of an image, and the manifest that it stood for when it was
// pulled.
type Named struct {
	Name     string    `json:"name"`
	Manifest string    `json:"manifest,omitempty"` // digest; none for docker save
	Pulled   time.Time `json:"pulled"`
}

// Progress is told how many bytes of an image have come, of how many. It does
// not wait.
type Progress func(have, all int64)

// refuse is an image, or what was said of one, that is not taken.
func refuse(ref Reference, format string, args ...any) error {
	return vocabulary.Exitf(vocabulary.ExitRefused, "image %s: %w\nnothing of it was kept", unpack.Printable(ref.String()), fmt.Errorf(format, args...))
}
