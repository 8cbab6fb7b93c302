// Package egress is the gateway: the one way out of a sandbox.
//
// Start runs in the controller and starts the gateway as a child process of its
// own (childproc "gateway"). The child reads its Config, confines itself
// (package confine), takes the sandbox's link, and from then on parses hostile
// bytes in the order that a flow passes: netstack or relay, resolver, intercept,
// httpauthz, dial. It holds no secret but the session's CA key; a credential
// comes over package wire for one request at a time, in the same round trip
// that records the request. If the controller goes away the child ends, and if
// the child ends nothing of the sandbox can reach anything.
//
// Known holes: the gateway process is root's or the user's own and shares the
// host's network namespace; what keeps it from listening, from files and from
// other processes is Landlock and seccomp, not a namespace.
package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/egress/dial"
	"github.com/bulkhead-dev/bulkhead/internal/egress/gitssh"
	"github.com/bulkhead-dev/bulkhead/internal/egress/httpauthz"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Config is everything that a gateway knows.
type Config struct {
	Session vocabulary.SessionID
	Spec    capability.Spec
	// Services are the user's own that the spec names, beside the embedded ones.
	Services []catalog.Extra
	// CACert and CAKey are the session's CA, DER; the key is ECDSA.
	CACert, CAKey []byte
	Upstreams     []Upstream
	// RootsPEM are the roots that upstreams are verified against. The gateway
	// asks for them at the first need.
	RootsPEM []byte `json:"-"`
	// Nameservers are addresses, with or without a port.
	Nameservers []string
	// Hosts are the host's hosts file: addresses by lower-case name.
	Hosts map[string][]string
	// Network says what Attach will bring.
	Network sandbox.NetworkKind
	// Placeholders maps a credential's name to what the sandbox sees.
	Placeholders map[string]string
	// SSH is what git over SSH needs; the zero value serves none.
	SSH    gitssh.Config
	Limits Limits
}

// Upstream says where a name really lives, as policy.Upstream does. CAPEM
// empty means the host's roots.
type Upstream struct {
	Host       string // a name, *.name or *
	Connect    string // ip:port
	CAPEM      []byte
	Proxy      string // URL, or policy.Direct
	Credential string // of the proxy: user:password
}

// Limits of a gateway. Zero means the default.
type Limits struct {
	MaxFlows         int   // connections of the sandbox at a time; default DefaultMaxFlows
	httpauthz.Limits       // of requests
	Quota            Quota // of bytes
}

// Quota and Bound are the dialler's, for who configures a gateway.
type (
	Quota = dial.Quota
	Bound = dial.Bound
)

// DefaultMaxFlows keeps the worst case of buffers (netstack.BufferMax in both
// directions) within half a gigabyte.
const DefaultMaxFlows = 512

// Controller is what the gateway may ask of its controller.
type Controller = wire.Controller

// Time that the controller gives its gateway.
const (
	readyTimeout  = 30 * time.Second // an emulated or crowded machine takes seconds
	revokeTimeout = 900 * time.Millisecond
	stopTimeout   = 500 * time.Millisecond
)

// Gateway is a running gateway. Safe for concurrent use.
type Gateway struct {
	cmd  *exec.Cmd
	conn *wire.Conn
	said *head

	ready    chan struct{} // closed when configured or failed
	readyErr error
	done     chan struct{}

	mu     sync.Mutex
	closed bool
	err    error
}

// Start starts a gateway and returns at once; Attach waits until it is ready.
// The gateway ends with ctx.
func Start(ctx context.Context, cfg Config, ctrl Controller) (*Gateway, error) {
	if ctrl == nil {
		return nil, errors.New("egress: a gateway needs a controller to record its events")
	}
	g := &Gateway{ready: make(chan struct{}), done: make(chan struct{}), said: &head{}}
	stream, pipes, err := g.spawn()
	if err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	g.conn = wire.NewConn(stream, wire.ControllerLimits, wire.ServeController(ctrl, cfg.RootsPEM))
	g.conn.TakeRecords(pipes, ctrl)
	served := make(chan error, 1)
	go func() { served <- g.conn.Serve(ctx) }()
	go g.configure(cfg)
	stop := context.AfterFunc(ctx, func() { g.Close() })
	go func() {
		broken := <-served // the child is gone, or does not keep to the protocol
		g.cmd.Process.Kill()
		werr := g.cmd.Wait()
		stop()
		g.mu.Lock()
		if !g.closed {
			g.err = g.cause(broken, werr)
		}
		g.mu.Unlock()
		close(g.done)
	}()
	return g, nil
}

func (g *Gateway) cause(broken, exit error) error {
	switch said := g.said.firstLine(); {
	case broken != nil:
		return broken
	case said != "":
		return fmt.Errorf("%v: %q", exit, said)
	case exit != nil:
		return exit
	}
	return errors.New("it ended on its own")
}

func (g *Gateway) configure(cfg Config) {
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	g.readyErr = g.conn.Call(ctx, wire.Configure, cfg, nil, nil)
	close(g.ready)
}

// Attach gives the gateway the sandbox's link (nil for sandbox.NetNone) and
// returns once it is confined and serves. The caller still owns link.
func (g *Gateway) Attach(link *os.File) error {
	<-g.ready
	if g.readyErr != nil {
		return g.explain(g.readyErr)
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	return g.explain(g.conn.Call(ctx, wire.Attach, struct{}{}, nil, link))
}

// Listen gives the gateway a listener of the sandbox's loopback that stands for
// a port of this host: its connections are judged like any for
// localhost:port. To be called after Attach; the caller still owns l.
func (g *Gateway) Listen(port hostport.Port, l *os.File) error {
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	return g.explain(g.conn.Call(ctx, wire.Listen, wire.ListenRequest{Port: port}, nil, l))
}

// explain prefers what the child itself said at its end.
func (g *Gateway) explain(err error) error {
	if !errors.Is(err, wire.ErrClosed) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	select {
	case <-g.done:
		if e := g.Err(); e != nil {
			return e
		}
	case <-time.After(time.Second):
	}
	return err
}

// Revoke cuts every flow that carries a credential and has later ones denied.
// A gateway that does not confirm it in time is ended: then everything is cut.
func (g *Gateway) Revoke() error {
	ctx, cancel := context.WithTimeout(context.Background(), revokeTimeout)
	defer cancel()
	if err := g.conn.Call(ctx, wire.Revoke, struct{}{}, nil, nil); err != nil {
		g.cmd.Process.Kill()
		return fmt.Errorf("egress: the gateway did not confirm the revocation and was ended: %w", err)
	}
	return nil
}

// Done is closed when the gateway has ended.
func (g *Gateway) Done() <-chan struct{} { return g.done }

// Err says why the gateway ended by itself, after Done.
func (g *Gateway) Err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// PID is the gateway's process, for posture tests.
func (g *Gateway) PID() int { return g.cmd.Process.Pid }

// Close lets the gateway write its last counts and ends it. Idempotent.
func (g *Gateway) Close() error {
	g.mu.Lock()
	first := !g.closed
	g.closed = true
	g.mu.Unlock()
	if first {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		g.conn.Call(ctx, wire.Stop, struct{}{}, nil, nil)
		cancel()
		g.conn.Close()
	}
	<-g.done
	return nil
}

// head keeps the beginning of what the child said.
type head struct {
	mu sync.Mutex
	b  []byte
}

func (t *head) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// The beginning of a Go panic says what happened; the rest is stacks.
	if room := 4096 - len(t.b); room > 0 {
		t.b = append(t.b, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

func (t *head) firstLine() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	line, _, _ := strings.Cut(strings.TrimSpace(string(t.b)), "\n")
	return line
}
