package process

import (
	"os"

	"github.com/rogpeppe/go-internal/testscript"
)

// The stories rule*.txtar attack the ten rules of the boundary (SECURITY.md),
// each from inside a real session, and look for the effect outside: at the
// server that the attack was for, and in the event log.

func init() {
	commands["prelude"] = cmdPrelude
}

// prelude: puts what the attacks have in common into the workspace, as a module
// of that name.
func cmdPrelude(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: prelude")
	}
	ts.Check(os.WriteFile(ts.MkAbs("prelude.py"), []byte(attackPrelude), 0o644))
}
