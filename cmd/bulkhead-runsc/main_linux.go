// Command bulkhead-runsc is gVisor's runsc, unmodified, at the version that
// go.mod pins. bulkhead starts it for isolation container; nobody else needs to.
//
// It is a binary of its own because the sentry's initialisers cost time at every
// process start, and because runsc starts itself again under other names.
package main

import "gvisor.dev/gvisor/runsc/cli/maincli"

func main() { maincli.Main() }
