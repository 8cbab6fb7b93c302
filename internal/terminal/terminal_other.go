//go:build !linux

package terminal

import (
	"context"
	"errors"
	"os"
)

var errNeedsLinux = errors.New("running a command in a sandbox needs Linux")

// Relay does not exist here.
type Relay struct{}

// Plan fails.
func Plan(stdin, stdout, stderr *os.File) (*Relay, error) { return nil, errNeedsLinux }

// Terminal is false.
func (r *Relay) Terminal() bool { return false }

// Size is unknown.
func (r *Relay) Size() (rows, cols uint16) { return 0, 0 }

// Stdio has nothing.
func (r *Relay) Stdio() [3]*os.File { return [3]*os.File{} }

// Run fails.
func (r *Relay) Run(context.Context, Process, Options) (int, error) { return 0, errNeedsLinux }

// Close does nothing.
func (r *Relay) Close() error { return nil }
