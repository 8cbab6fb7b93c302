//go:build !linux

package workspace

import "github.com/bulkhead-dev/bulkhead/internal/vocabulary"

// Plan is only available on Linux.
func Plan(Request) (*Layout, error) {
	return nil, vocabulary.Exitf(vocabulary.ExitNoIsolation, "a mount plan needs Linux\n  do: run bulkhead on Linux, or in a Linux virtual machine")
}

// Verify is only available on Linux.
func (*Layout) Verify(string) error {
	return vocabulary.Exitf(vocabulary.ExitNoIsolation, "a mount plan needs Linux")
}
