//go:build cgo && linux

package main

import (
	"fmt"
	"os"
)

// A process with C threads cannot be confined as a whole: Go refuses to apply a
// system call to all threads then. Such a binary would refuse every session, so
// it says at once what is wrong with it.
func init() {
	fmt.Fprintln(os.Stderr, "bulkhead: this binary was built with cgo and cannot confine its own processes\nbuild it with: make build   (or CGO_ENABLED=0 go build ./cmd/...)")
	os.Exit(125)
}
