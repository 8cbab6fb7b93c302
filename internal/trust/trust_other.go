//go:build !linux

package trust

import (
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// ScanFolder is only available on Linux.
func ScanFolder(string, []policy.TrustPath) (*Scan, error) { return nil, errSystem }

var errSystem = vocabulary.Exitf(vocabulary.ExitNoIsolation, "trust of folders needs Linux\nrun bulkhead on Linux, or in a Linux virtual machine")

func openDir(string, bool) (*ownDir, error) { return nil, errSystem }

type ownDir struct{}

func (*ownDir) close()                      {}
func (*ownDir) read(string) ([]byte, error) { return nil, errSystem }
func (*ownDir) names() ([]string, error)    { return nil, errSystem }
func (*ownDir) write(string, []byte) error  { return errSystem }
func (*ownDir) remove(string) error         { return errSystem }
