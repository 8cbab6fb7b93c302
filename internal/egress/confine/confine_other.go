//go:build !linux

package confine

import "errors"

// Apply needs Linux.
func Apply() error {
	return errors.New("the gateway can confine itself only on Linux (Landlock and seccomp)")
}
