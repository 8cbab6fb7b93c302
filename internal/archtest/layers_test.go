package archtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The layers. Arrows of import point down; a mechanism sees none of its peers.
type layer int

const (
	words     layer = iota // L0
	deciders               // L1, pure
	leaves                 // anyone from L2 up
	mechanism              // L2
	wiring                 // L3
	service                // L4
	frontend               // L5
	entry                  // cmd
	tooling                // not part of what is shipped
)

var layerNames = map[layer]string{
	words: "L0 (words)", deciders: "L1 (deciders)", leaves: "leaf", mechanism: "L2 (mechanisms)",
	wiring: "L3 (session)", service: "L4 (services)", frontend: "L5 (command line)", entry: "cmd", tooling: "tooling",
}

// places says where each room of the tree lies. A room is a folder with all
// below it. What is not listed is a mechanism.
var places = map[string]layer{
	"internal/vocabulary": words,
	"internal/secret":     words,
	"internal/hostport":   words,
	"internal/event":      words,
	"internal/switches":   words, // constant false but in test builds
	"internal/spool":      words, // records that pid 1 inside writes and the journal reads
	"api":                 words,
	"catalog":             words, // data, embedded

	"internal/policy":     deciders,
	"internal/capability": deciders,
	"internal/catalog":    deciders,
	"internal/inspect":    deciders,

	"internal/childproc": leaves,
	"internal/kernel":    leaves,
	"internal/seccomp":   leaves, // a filter, as data
	"internal/archtest":  leaves,
	"internal/tally":     leaves, // sizes of folders, for the controller and the guest
	"internal/door":      leaves, // connections by descriptor: the sandbox's end and the gateway's

	"internal/session": wiring,
	"internal/server":  service,
	"internal/redteam": service,
	"internal/cli":     frontend,
	"cmd":              entry,

	"bench": tooling, "e2e": tooling, "scripts": tooling, "tools": tooling,
}

// room returns the folder that a package belongs to and its layer.
func room(p string) (string, layer) {
	parts := strings.Split(p, "/")
	for n := len(parts); n > 0; n-- {
		r := strings.Join(parts[:n], "/")
		if l, ok := places[r]; ok {
			return r, l
		}
	}
	if parts[0] == "internal" && len(parts) > 1 {
		return "internal/" + parts[1], mechanism
	}
	return parts[0], mechanism
}

// contracts are mechanism packages that hold types and constants only; their
// peers may import them.
var contracts = map[string]string{
	"internal/sandbox": "the contract between session, backends and gateway: addresses of the link, no mechanism",
}

// standardOnly packages are the words that every process shares, the confined
// ones too.
var standardOnly = map[string]string{
	"internal/vocabulary": "every package of every process imports it",
	"internal/secret":     "it holds real credentials: no foreign code near them",
	"internal/switches":   "every enforcement asks it",
	"internal/hostport":   "it stands in front of every decision about a destination",
}

// impure is what L1 may not import: a decider's answer depends on its input and
// nothing else, so that it can be tested, fuzzed and trusted.
var impure = map[string]string{
	"os": "reads the host", "os/exec": "starts programs", "os/signal": "listens to the host", "os/user": "reads the host",
	"net": "opens sockets (net/netip and net/url are fine)", "syscall": "talks to the kernel", "log": "writes", "log/slog": "writes",
	"path/filepath": "depends on the operating system (path is fine)", "plugin": "loads code", "math/rand": "is not the same twice",
	"math/rand/v2": "is not the same twice", "golang.org/x/sys/unix": "talks to the kernel", "io/ioutil": "reads the host",
}

// ranks order the packages within a room: imports go to a strictly lower rank.
// What is not listed has rank 1.
var ranks = map[string]int{
	"internal/broker":                    2, // above its logins
	"internal/egress":                    4, // the process: puts the stages together
	"internal/egress/intercept":          3, // the order in which a flow passes
	"internal/egress/relay":              3,
	"internal/egress/httpauthz":          2,
	"internal/egress/gitssh":             2,
	"internal/egress/netstack":           1,
	"internal/egress/resolver":           1,
	"internal/egress/dial":               0,
	"internal/egress/gather":             -1, // bytes only, below dial
	"internal/egress/direct":             -2, // system calls only
	"internal/egress/wire":               0,
	"internal/egress/gitssh/hostkeys":    0, // pure
	"internal/egress/confine":            0,
	"internal/image/unpack":              0, // layers only
	"internal/sandbox":                   0, // the contract knows no backend
	"internal/sandbox/guest/frame":       1,
	"internal/sandbox/process/cgroup":    1,
	"internal/sandbox/guest/guard/rules": 0, // names only
	"internal/sandbox/guest/guard":       1,
	"internal/sandbox/guest":             2,
	"internal/sandbox/warden":            2,
	"internal/sandbox/instance":          3,
	"internal/sandbox/process":           4, // backends do not know each other
	"internal/sandbox/container":         4,
	"internal/sandbox/vm":                4,
	"internal/sandbox/sandboxtest":       1, // knows the contract, no backend
	"internal/workspace/tree":            0, // handles only
	"internal/workspace/journal":         1,
	"internal/workspace/staged":          2, // a layer is brought over through a journal
}

func rank(p string) int {
	if r, ok := ranks[p]; ok {
		return r
	}
	return 1
}

// importAllowed judges one import within the module.
func importAllowed(from, to string) error {
	fromRoom, fromLayer := room(from)
	toRoom, toLayer := room(to)
	if fromRoom == toRoom {
		if fromLayer == mechanism && rank(to) >= rank(from) {
			return fmt.Errorf("within %s imports go downwards: %s has rank %d, %s has rank %d", fromRoom, from, rank(from), to, rank(to))
		}
		return nil
	}
	switch {
	case toLayer == tooling || toLayer == entry:
		return fmt.Errorf("%s is %s: nothing imports it", to, layerNames[toLayer])
	case strings.HasSuffix(to, "/sandboxtest") || strings.HasSuffix(to, "/imagetest") || to == "internal/archtest":
		return fmt.Errorf("%s is for tests", to)
	case fromLayer == tooling || fromLayer == entry:
		return nil
	case toLayer == leaves && fromLayer == deciders:
		return fmt.Errorf("%s is pure, %s asks the host", from, to)
	case contracts[to] != "" && fromLayer >= mechanism:
		return nil
	case fromLayer == mechanism && toLayer == mechanism:
		return fmt.Errorf("mechanisms never import each other; the session wires them together, or the words both need go to L0")
	case toLayer > fromLayer:
		return fmt.Errorf("%s is %s, above %s", to, layerNames[toLayer], layerNames[fromLayer])
	case toLayer == fromLayer && fromLayer >= service:
		return fmt.Errorf("%s and %s are both %s", from, to, layerNames[fromLayer])
	}
	return nil
}

func checkImports(p *pkg) (found []string) {
	_, l := room(p.path)
	for _, f := range p.files {
		if f.test {
			continue
		}
		for name, imported := range f.imports() {
			switch name {
			case ".":
				found = append(found, fmt.Sprintf("%s: dot import of %s: a reader and these tests must see where a name comes from", f.name, imported))
			}
			if imported == "C" {
				found = append(found, f.name+": cgo: the binaries are static")
			}
			if to, ok := inModule(imported); ok {
				if err := importAllowed(p.path, to); err != nil {
					found = append(found, fmt.Sprintf("%s imports %s: %v", f.name, to, err))
				}
				continue
			}
			if why := standardOnly[p.path]; why != "" && strings.Contains(strings.Split(imported, "/")[0], ".") {
				found = append(found, fmt.Sprintf("%s imports %s: standard library only: %s", f.name, imported, why))
			}
			if why := impure[imported]; why != "" && l == deciders {
				found = append(found, fmt.Sprintf("%s imports %s, which %s: deciders are pure", f.name, imported, why))
			}
		}
	}
	slices.Sort(found)
	return found
}

func TestImports(t *testing.T) {
	for _, p := range tree(t) {
		if r, l := room(p.path); places[r] == 0 && l == mechanism {
			t.Logf("%s: %s", p.path, layerNames[l])
		}
		report(t, checkImports(p))
	}
}

// TestImportRulesRefuse shows that each rule would be noticed.
func TestImportRulesRefuse(t *testing.T) {
	for _, c := range []struct{ from, to, why string }{
		{"internal/vocabulary", "internal/policy", "above"},
		{"internal/policy", "internal/egress/dial", "above"},
		{"internal/policy", "internal/kernel", "pure"},
		{"internal/capability", "internal/session", "above"},
		{"internal/broker", "internal/workspace", "never import each other"},
		{"internal/egress/httpauthz", "internal/broker", "never import each other"},
		{"internal/terminal", "internal/sandbox/process", "never import each other"},
		{"internal/something-new", "internal/terminal", "never import each other"},
		{"internal/terminal", "internal/session", "above"},
		{"internal/session", "internal/cli", "above"},
		{"internal/server", "internal/redteam", "both"},
		{"internal/kernel", "internal/session", "above"},
		{"internal/childproc", "internal/broker", "above"},
		{"internal/cli", "cmd/bulkhead", "nothing imports it"},
		{"internal/cli", "bench", "nothing imports it"},
		{"internal/session", "internal/sandbox/sandboxtest", "for tests"},
		{"internal/egress/dial", "internal/egress/httpauthz", "downwards"},
		{"internal/egress/resolver", "internal/egress/netstack", "downwards"},
		{"internal/egress/netstack", "internal/egress", "downwards"},
		{"internal/sandbox", "internal/sandbox/guest", "downwards"},
		{"internal/sandbox/vm", "internal/sandbox/process", "downwards"},
	} {
		if err := importAllowed(c.from, c.to); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s imports %s: %v", c.from, c.to, err)
		}
	}
	for _, c := range [][2]string{
		{"internal/policy", "internal/hostport"}, {"internal/session", "internal/broker"}, {"internal/broker", "internal/kernel"},
		{"internal/cli", "internal/session"}, {"internal/cli", "internal/policy"}, {"cmd/bulkhead", "internal/childproc"},
		{"internal/egress", "internal/sandbox"}, {"internal/server", "internal/session"}, {"internal/egress/httpauthz", "internal/egress/dial"},
		{"internal/sandbox/process", "internal/sandbox/guest"}, {"internal/catalog", "catalog"}, {"internal/event", "api/v1"},
	} {
		if err := importAllowed(c[0], c[1]); err != nil {
			t.Errorf("%s imports %s: %v", c[0], c[1], err)
		}
	}
	for source, why := range map[string]string{
		`import "os"`:                          "pure",
		`import "golang.org/x/sys/unix"`:       "pure",
		`import . "strings"`:                   "dot import",
		`import "C"`:                           "cgo",
		`import "` + module + `/internal/cli"`: "above",
	} {
		if found := checkImports(sample(t, "internal/policy", "package policy\n"+source)); len(found) != 1 || !strings.Contains(found[0], why) {
			t.Errorf("%s: %q", source, found)
		}
	}
	if found := checkImports(sample(t, "internal/secret", "package secret\nimport \"golang.org/x/crypto/nacl\"")); len(found) != 1 {
		t.Errorf("foreign code in secret: %q", found)
	}
}
