//go:build !linux

package administrator

import (
	"errors"
	"io/fs"
	"os"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Read refuses a policy that stands at the path: it can only be judged on Linux.
func Read(path string) ([]byte, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return nil, vocabulary.Exitf(vocabulary.ExitPolicyInvalid, "the administrator's policy %s can only be judged on Linux\nnothing was started\nrun bulkhead on Linux, or in a Linux virtual machine", path)
}
