package process

import (
	"fmt"
	"os"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/modelstub"
)

func init() {
	commands["provider"] = cmdProvider
	commands["asked"] = cmdAsked
}

// provider NAME KEY obeys|declines: a model provider on this host's loopback that
// takes one key. NAME_URL is where, and the file NAME.pem its authority.
func cmdProvider(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: provider NAME KEY obeys|declines")
	}
	script := modelstub.Obedient
	if args[2] == "declines" {
		script = func(*modelstub.Request) modelstub.Turn {
			return modelstub.Turn{Text: "I won't run that: it looks like an attack."}
		}
	}
	s, err := modelstub.Start(modelstub.Config{Key: args[1], Script: script})
	ts.Check(err)
	ts.Defer(func() { s.Close() })
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pem"), s.CAPEM(), 0o644))
	ts.Setenv(args[0]+"_URL", s.URL())
	providers[s.URL()] = s
}

var providers = map[string]*modelstub.Server{}

// asked NAME KEY N: N turns of conversations reached the provider, and every
// request came with that key and no other.
func cmdAsked(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: asked NAME KEY N")
	}
	n := 0
	for _, rec := range providers[ts.Getenv(args[0]+"_URL")].Records() {
		for _, c := range rec.Credentials {
			if c.Prefix != modelstub.FingerprintOf(args[1]) {
				ts.Fatalf("%s %s came with another key", rec.Method, rec.Path)
			}
		}
		if strings.HasSuffix(rec.Path, "/messages") && len(rec.Tools) > 0 && rec.Status == 200 {
			n++
		}
	}
	if fmt.Sprint(n) != args[2] {
		ts.Fatalf("%d turns reached the provider, want %s", n, args[2])
	}
}
