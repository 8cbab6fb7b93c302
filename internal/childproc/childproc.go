// Package childproc is the one registry of the processes that bulkhead starts
// from its own binary: the gateway, the warden, the guest supervisor.
//
// A child is chosen by argv[0] ("bulkhead-gateway"), never by an environment
// variable or a flag that a user's command line could carry. Dispatch is the
// first statement of main: a child runs before any flag or file is read.
package childproc

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const prefix = "bulkhead-"

var children = map[string]func() int{}

// Register names a child's main function; called from package initialisers.
// main gets its input over inherited descriptors and returns the exit code.
func Register(name string, main func() int) {
	if _, dup := children[name]; dup {
		panic("childproc: " + name + " registered twice")
	}
	children[name] = main
}

// Argv0 returns the argv[0] that starts the named child.
func Argv0(name string) string {
	if _, ok := children[name]; !ok {
		panic("childproc: " + name + " is not registered")
	}
	return prefix + name
}

// Dispatch runs the child that argv[0] asks for and exits; it returns if this
// process is no child.
func Dispatch() {
	if len(os.Args) == 0 {
		return
	}
	name, ok := strings.CutPrefix(filepath.Base(os.Args[0]), prefix)
	if !ok {
		return
	}
	main, ok := children[name]
	if !ok {
		return // bulkhead-runsc and renamed copies are not ours to judge
	}
	os.Exit(main())
}

// Self returns a path that executes this very binary, also when the file was
// replaced or unlinked since the start.
func Self() string { return "/proc/self/exe" }

// Path returns where the binary lies, for mounting it into a sandbox.
func Path() (string, error) {
	p, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding our own binary: %w", err)
	}
	return p, nil
}
