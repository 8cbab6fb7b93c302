// Command bulkhead runs AI agents inside a boundary. See README.md.
package main

import (
	"os"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/cli"
)

func main() {
	childproc.Dispatch()
	os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr))
}
