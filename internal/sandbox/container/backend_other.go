//go:build !linux

package container

import (
	"context"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

var errLinux = vocabulary.Exitf(vocabulary.ExitNoIsolation,
	"isolation container needs Linux: gVisor runs on nothing else\nrun bulkhead in a Linux virtual machine")

// Runtime fails.
func (*Backend) Runtime() (string, error) { return "", errLinux }

// Check implements sandbox.Backend.
func (*Backend) Check(sandbox.Spec) error { return errLinux }

// Prepare implements sandbox.Backend.
func (*Backend) Prepare(context.Context, sandbox.Spec) (sandbox.Instance, error) {
	return nil, errLinux
}

type wardens struct{}

// Warm does nothing here.
func (*Backend) Warm(sandbox.NetworkKind, bool) {}

// Discard does nothing here.
func (*Backend) Discard() {}
