//go:build !linux

package netstack

import (
	"errors"
	"os"
)

// Stack needs Linux.
type Stack struct{}

// New needs Linux.
func New(*os.File, Config, Handler) (*Stack, error) {
	return nil, errors.New("the network stack of the gateway needs Linux (a TAP device)")
}

// Close does nothing.
func (*Stack) Close() {}
