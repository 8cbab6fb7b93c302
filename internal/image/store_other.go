//go:build !linux

package image

import (
	"context"

	"github.com/bulkhead-dev/bulkhead/internal/image/unpack"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const nonblock = 0

// Store needs Linux.
type Store struct {
	Limits   unpack.Limits
	Patience Patience
}

// Image needs Linux.
type Image struct {
	ID, Root string
	Config   Config
}

var errLinux = vocabulary.Exitf(vocabulary.ExitNoIsolation, "images need Linux")

// Open needs Linux.
func Open(string) (*Store, error) { return nil, errLinux }

// Close lets go.
func (*Image) Close() {}

// Find needs Linux.
func (*Store) Find(Reference) (*Image, error) { return nil, errLinux }

// Pull needs Linux.
func (*Store) Pull(context.Context, Reference, Progress) (*Image, error) { return nil, errLinux }

// List needs Linux.
func (*Store) List() ([]Entry, error) { return nil, errLinux }

// Remove needs Linux.
func (*Store) Remove(string) (int64, error) { return 0, errLinux }

// Agents needs Linux.
var Agents []string

// BuiltName is what an image is called that Build made and nobody named.
const BuiltName = "bulkhead.local/agent:latest"

// Build needs Linux.
func (*Store) Build(context.Context, string, []string, []string, func(string)) (*Image, error) {
	return nil, errLinux
}
