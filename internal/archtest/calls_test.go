package archtest

import (
	"fmt"
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// A call rule forbids names of some packages everywhere but in the rooms that
// are listed with their reason.
type callRule struct {
	name string
	why  string
	// names are "import/path.Name" or "import/path.*"; a name alone is a method
	// of any type.
	names []string
	// only restricts the rule to one layer; nil is everywhere.
	only func(pkgPath string) bool
	// allowed packages: "path" for all of the names, "path name" for one.
	allowed map[string]string
}

var callRules = []callRule{
	{
		name: "sockets",
		why:  "no package but the dialler opens a socket, so that no other way out exists (DESIGN section 5, rule 10)",
		names: []string{
			"net.Dial", "net.DialTimeout", "net.DialTCP", "net.DialUDP", "net.DialUnix", "net.DialIP", "net.Dialer",
			"net.Listen", "net.ListenTCP", "net.ListenUDP", "net.ListenUnix", "net.ListenUnixgram", "net.ListenIP",
			"net.ListenPacket", "net.ListenMulticastUDP", "net.ListenConfig",
			"net.Resolver", "net.DefaultResolver", "net.LookupHost", "net.LookupIP", "net.LookupAddr", "net.LookupCNAME",
			"net.LookupMX", "net.LookupNS", "net.LookupPort", "net.LookupSRV", "net.LookupTXT",
			"net.ResolveTCPAddr", "net.ResolveUDPAddr", "net.ResolveIPAddr",
			"crypto/tls.Dial", "crypto/tls.DialWithDialer", "crypto/tls.Dialer", "crypto/tls.Listen",
			"net/http.Get", "net/http.Head", "net/http.Post", "net/http.PostForm", "net/http.DefaultClient", "net/http.Client",
			"net/http.DefaultTransport", "net/http.Transport", "net/http.ListenAndServe", "net/http.ListenAndServeTLS",
			"golang.org/x/net/http2.Transport", "golang.org/x/net/websocket.Dial", "golang.org/x/net/websocket.DialConfig",
			"golang.org/x/sys/unix.Socket", "golang.org/x/sys/unix.Connect", "golang.org/x/sys/unix.Bind", "golang.org/x/sys/unix.Listen",
			"golang.org/x/sys/unix.Accept", "golang.org/x/sys/unix.Accept4", "golang.org/x/sys/unix.SYS_SOCKET", "golang.org/x/sys/unix.SYS_CONNECT",
			"syscall.Socket", "syscall.Connect", "syscall.Bind", "syscall.Listen", "syscall.Accept", "syscall.Accept4",
			"syscall.SYS_SOCKET", "syscall.SYS_CONNECT",
			"github.com/vishvananda/netlink.*",
		},
		allowed: map[string]string{
			"internal/egress/dial":                                     "the dialler",
			"internal/broker net.DialUnix":                             "the user's ssh-agent, a Unix socket of this host",
			"internal/sandbox/guest/connect net.DialTimeout":           "inside, as an ordinary command: the relay on the sandbox's own loopback",
			"internal/broker/login net/http.Client":                    "the controller refreshes the host's logins at the endpoints of catalog/logins: refresh tokens must not reach the gateway",
			"internal/broker/login net/http.Transport":                 "the same",
			"internal/broker/login net.Dialer":                         "the same",
			"internal/sandbox/guest golang.org/x/sys/unix.Socket":      "listeners of the relay and of granted ports, and connections for published ones, all on the sandbox's own loopback",
			"internal/sandbox/guest golang.org/x/sys/unix.Bind":        "the same",
			"internal/sandbox/guest golang.org/x/sys/unix.Listen":      "the same",
			"internal/sandbox/guest golang.org/x/sys/unix.Connect":     "the same",
			"internal/image net/http.Transport":                        "registries, before a session exists, on the word of a person or of the policy",
			"internal/image net.Dialer":                                "the same; only to the registry and to where it leads that is not nearer to this host",
			"internal/publish net.ListenTCP":                           "published ports, on this host's loopback, on the user's word",
			"internal/sandbox/warden github.com/vishvananda/netlink.*": "addresses and routes of the TAP, in the sandbox's own network namespace",
			"internal/sandbox/warden golang.org/x/sys/unix.Socket":     "what gVisor's monitoring connects to, in the abstract names of the sandbox's own network namespace",
			"internal/sandbox/warden golang.org/x/sys/unix.Bind":       "the same",
			"internal/sandbox/warden golang.org/x/sys/unix.Listen":     "the same",
			"internal/session golang.org/x/sys/unix.Socket":            "the session's control socket, in the abstract namespace of this host",
			"internal/session golang.org/x/sys/unix.Bind":              "the session's control socket",
			"internal/session golang.org/x/sys/unix.Listen":            "the session's control socket",
			"internal/session golang.org/x/sys/unix.Accept4":           "the session's control socket",
			"internal/session golang.org/x/sys/unix.Connect":           "the session's control socket, from exec, stop and revoke",
			"internal/redteam/thief":                                   "the thief's listener, on the loopback",
			"internal/redteam/stage github.com/vishvananda/netlink.*":  "addresses of a stage, in its own network namespace",
			"internal/redteam/modelstub":                               "the scripted model, on the loopback",
			"internal/redteam/live net/http.Transport":                 "the live model that a person names for attack runs",
			"internal/redteam/obedient":                                "the obedient agent: runs inside, as the sandboxed program",
			"internal/sandbox/sandboxtest":                             "the conformance suite attacks from inside",
		},
	},
	{
		name:  "reveal",
		why:   "a real credential is revealed in these places only; each writes it to the wire and drops it",
		names: []string{"Reveal"},
		allowed: map[string]string{
			"internal/secret":           "the type itself",
			"internal/broker/login":     "to the login's own token endpoint, and back to the host's login file",
			"internal/egress/httpauthz": "the swap, at the granted operation",
			"internal/egress/dial":      "to the operator's own proxy, before anything of the sandbox is sent",
			"internal/egress/wire":      "from the controller to the gateway, over an inherited socket",
		},
	},
	{
		name:  "environment",
		why:   "the environment is the user's, and an agent outside may have changed it: it is read where a person's wishes are read, and handed on as values",
		names: []string{"os.Getenv", "os.LookupEnv", "os.Environ", "os.ExpandEnv", "syscall.Getenv", "syscall.Environ", "golang.org/x/sys/unix.Getenv"},
		allowed: map[string]string{
			"internal/cli":                            "reads a person's wishes",
			"internal/session":                        "reads a person's wishes",
			"internal/redteam os.Getenv":              "PATH of the uncontained run",
			"internal/sandbox/container os.Getenv":    "PATH for bulkhead-runsc; only a file that root alone can replace is taken",
			"internal/sandbox/process os.Getenv":      "PATH for bwrap; only a file that root alone can replace is taken",
			"internal/truststore os.Getenv":           "JAVA_HOME: whose certificates to extend",
			"internal/sandbox/sandboxtest os.Environ": "the conformance suite",
		},
	},
	{
		name:  "exit",
		why:   "errors go up, so that terminals are restored and sandboxes are cleared away",
		names: []string{"os.Exit", "log.Fatal", "log.Fatalf", "log.Fatalln", "log.Panic", "log.Panicf", "log.Panicln", "syscall.Exit", "golang.org/x/sys/unix.Exit"},
		allowed: map[string]string{
			"internal/childproc":           "the end of a child's main",
			"internal/sandbox/guest":       "pid 1 inside: its end is the end of everything inside",
			"internal/sandbox/sandboxtest": "the main of test binaries",
		},
	},
	{
		name: "exec",
		why:  "what starts programs is listed: each takes an argument vector, an environment and descriptors that are decided",
		names: []string{
			"os/exec.Command", "os/exec.CommandContext", "os/exec.Cmd", "os.StartProcess",
			"syscall.Exec", "syscall.ForkExec", "syscall.StartProcess", "golang.org/x/sys/unix.Exec",
		},
		allowed: map[string]string{
			"internal/egress":              "the gateway, our own binary",
			"internal/sandbox/guest":       "the commands of the sandbox, inside",
			"internal/sandbox/warden":      "the warden, our own binary; bwrap; the cradle, our own binary",
			"internal/sandbox/container":   "the cradle becomes runsc",
			"internal/sandbox/sandboxtest": "the conformance suite",
			"internal/kernel":              "probes: our own binary, bwrap",
			"internal/image":               "apt-get and dpkg-deb for an image that a person builds",
			"internal/image/unpack":        "the unpacker, our own binary",
			"internal/broker":              "credentials from a command that the user's policy names",
			"internal/redteam":             "the agents of attack runs",
			"internal/redteam/stage":       "stages, and on them the agents and scripts of scenarios",
			"internal/redteam/obedient":    "the obedient agent: runs inside, as the sandboxed program",
		},
	},
	{
		name:    "clock",
		why:     "deciders are pure: the time is part of their input",
		names:   []string{"time.Now", "time.Since", "time.Until", "time.Sleep", "time.After", "time.AfterFunc", "time.Tick", "time.NewTimer", "time.NewTicker", "crypto/rand.*"},
		only:    func(p string) bool { _, l := room(p); return l == deciders },
		allowed: map[string]string{},
	},
}

// uses calls f for every name of another package, and every method called, in
// a file.
func uses(file *file, f func(name, plain string, at ast.Node)) {
	imports := file.imports()
	ast.Inspect(file.ast, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		id, ok := sel.X.(*ast.Ident)
		if ok && id.Obj == nil {
			if p, ok := imports[id.Name]; ok {
				f(p+"."+sel.Sel.Name, p+".*", sel)
				return true
			}
		}
		f(sel.Sel.Name, "", sel)
		return true
	})
}

func (r callRule) check(p *pkg) (found []string, used map[string]bool) {
	used = map[string]bool{}
	if _, l := room(p.path); l == tooling || l == entry || r.only != nil && !r.only(p.path) {
		return nil, used
	}
	for _, file := range p.files {
		if file.test {
			continue
		}
		uses(file, func(name, all string, at ast.Node) {
			rule := name
			if !slices.Contains(r.names, name) {
				if all == "" || !slices.Contains(r.names, all) {
					return
				}
				rule = all
			}
			for _, key := range []string{p.path, p.path + " " + rule} {
				if r.allowed[key] != "" {
					used[key] = true
					return
				}
			}
			found = append(found, fmt.Sprintf("%s: %s is not for %s: %s", file.at(at.Pos()), name, p.path, r.why))
		})
	}
	return found, used
}

func TestCalls(t *testing.T) {
	packages := tree(t)
	for _, r := range callRules {
		t.Run(r.name, func(t *testing.T) {
			unused := map[string]bool{}
			for key := range r.allowed {
				unused[key] = true
			}
			for _, p := range packages {
				found, used := r.check(p)
				report(t, found)
				for key := range used {
					delete(unused, key)
				}
			}
			for key := range unused { // the package may come later
				t.Logf("not used at present: %s (%s)", key, r.allowed[key])
			}
		})
	}
}

func TestCallRulesRefuse(t *testing.T) {
	for _, c := range []struct{ rule, path, source string }{
		{"sockets", "internal/broker", `import "net"; func f() { net.Dial("tcp", "x") }`},
		{"sockets", "internal/broker", `import n "net"; var d n.Dialer`},
		{"sockets", "internal/broker", `import "net/http"; var c = http.DefaultClient`},
		{"sockets", "internal/egress/httpauthz", `import "net/http"; var c = &http.Transport{}`},
		{"sockets", "internal/egress", `import "golang.org/x/sys/unix"; func f() { unix.Socket(1, 2, 3) }`},
		{"sockets", "internal/session", `import "net"; func f() { net.Listen("tcp", "x") }`},
		{"sockets", "internal/sandbox/guest", `import "net"; func f() { net.Dial("tcp", "x") }`},
		{"sockets", "internal/workspace", `import "github.com/vishvananda/netlink"; func f() { netlink.LinkAdd(nil) }`},
		{"sockets", "internal/new", `import "net"; func f() { net.LookupHost("x") }`},
		{"reveal", "internal/session", `func f(v interface{ Reveal() []byte }) { v.Reveal() }`},
		{"reveal", "internal/cli", `func f() { g := v.Reveal; _ = g }`},
		{"environment", "internal/workspace", `import "os"; var h = os.Getenv("HOME")`},
		{"environment", "internal/truststore", `import "os"; var h = os.Environ()`},
		{"exit", "internal/session", `import "os"; func f() { os.Exit(1) }`},
		{"exit", "internal/cli", `import "log"; func f() { log.Fatal() }`},
		{"exec", "internal/workspace", `import "os/exec"; func f() { exec.Command("git") }`},
		{"exec", "internal/workspace", `import "os/exec"; var c = exec.Cmd{}`},
		{"clock", "internal/policy", `import "time"; var n = time.Now()`},
		{"clock", "internal/capability", `import "crypto/rand"; func f() { rand.Read(nil) }`},
	} {
		rule := callRules[slices.IndexFunc(callRules, func(r callRule) bool { return r.name == c.rule })]
		if found, _ := rule.check(sample(t, c.path, "package p\n"+c.source)); len(found) == 0 || !strings.Contains(found[0], ":2: ") {
			t.Errorf("%s in %s: %s: %q", c.rule, c.path, c.source, found)
		}
	}
	for _, c := range []struct{ rule, path, source string }{
		{"sockets", "internal/broker", `import "net"; func f(c net.Conn) { net.FileConn(nil); net.Pipe() }`},
		{"sockets", "internal/broker", `func f(net struct{ Dial int }) { _ = net.Dial }`},
		{"sockets", "internal/egress/dial", `import "net"; var d net.Dialer`},
		{"clock", "internal/session", `import "time"; var n = time.Now()`},
		{"clock", "internal/policy", `import "time"; var n time.Duration`},
	} {
		rule := callRules[slices.IndexFunc(callRules, func(r callRule) bool { return r.name == c.rule })]
		if found, _ := rule.check(sample(t, c.path, "package p\n"+c.source)); len(found) != 0 {
			t.Errorf("%s in %s: %s: %q", c.rule, c.path, c.source, found)
		}
	}
}

func TestEveryExceptionHasAReason(t *testing.T) {
	for _, r := range callRules {
		if r.why == "" || len(r.names) == 0 {
			t.Errorf("%s says nothing", r.name)
		}
		for key, why := range r.allowed {
			if why == "" {
				t.Errorf("%s: %s has no reason", r.name, key)
			}
		}
	}
}
