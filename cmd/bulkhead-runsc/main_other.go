//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bulkhead-runsc: gVisor runs on Linux only\nrun bulkhead in a Linux virtual machine")
	os.Exit(12)
}
