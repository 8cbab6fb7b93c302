//go:build !linux

package childproc

import "errors"

// CloseInherited needs Linux.
func CloseInherited(...int) error { return errors.New("child processes need Linux") }
