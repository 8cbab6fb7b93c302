// Command bulkhead-runsc is gVisor's runsc, at the version that go.mod pins and
// unmodified but for an initialiser (package early) and its rest while nothing happens
// (rest_linux.go). bulkhead starts it for isolation container; nobody else needs to.
//
// It is a binary of its own because the sentry's initialisers cost time at every
// process start, and because runsc starts itself again under other names.
package main

import (
	"os"
	"slices"

	_ "github.com/bulkhead-dev/bulkhead/cmd/bulkhead-runsc/early"
	"gvisor.dev/gvisor/runsc/cli/maincli"
)

func main() {
	if slices.Contains(os.Args, "boot") { // the sentry
		steer()
	}
	maincli.Main()
}
