//go:build !linux

package door

import (
	"net"
	"os"
)

// Listener makes a net.Listener of a listening socket.
func Listener(f *os.File) (net.Listener, error) { return net.FileListener(f) }
