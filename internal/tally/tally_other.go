//go:build !linux

package tally

import "os"

// Of sees nothing: sandboxes run on Linux only.
func Of(*os.Root, int64) Sum { return Sum{Partial: true} }
