package egress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/door"
	"github.com/bulkhead-dev/bulkhead/internal/egress/confine"
	"github.com/bulkhead-dev/bulkhead/internal/egress/dial"
	"github.com/bulkhead-dev/bulkhead/internal/egress/gitssh"
	"github.com/bulkhead-dev/bulkhead/internal/egress/httpauthz"
	"github.com/bulkhead-dev/bulkhead/internal/egress/intercept"
	"github.com/bulkhead-dev/bulkhead/internal/egress/netstack"
	"github.com/bulkhead-dev/bulkhead/internal/egress/relay"
	"github.com/bulkhead-dev/bulkhead/internal/egress/resolver"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func init() { childproc.Register("gateway", gatewayMain) }

// gatewayMain is the child. It lives as long as its control connection.
func gatewayMain() int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := childproc.CloseInherited(controlFD, recordsFD, receiptsFD); err != nil {
		return fail(err)
	}
	conn, err := controlConn()
	if err != nil {
		return fail(err)
	}
	pipes, err := recordPipes()
	if err != nil {
		return fail(err)
	}
	c := &child{}
	c.conn = wire.NewConn(conn, wire.GatewayLimits, c.handle)
	c.conn.SendRecords(pipes)
	if err := c.conn.Serve(context.Background()); err != nil {
		return fail(err)
	}
	return 0
}

// child answers the controller's requests.
type child struct {
	conn *wire.Conn

	mu      sync.Mutex
	gateway *gateway
	network sandbox.NetworkKind
	linked  bool
}

func (c *child) handle(_ context.Context, what string, body json.RawMessage, file *os.File) (any, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if file != nil && what != wire.Attach && what != wire.Listen {
		file.Close()
	}
	if what == wire.Configure {
		return nil, c.configure(body)
	}
	if c.gateway == nil {
		return nil, fmt.Errorf("%w: %s before a configuration", wire.ErrProtocol, what)
	}
	switch what {
	case wire.Attach:
		return nil, c.attach(file)
	case wire.Listen:
		return nil, c.listen(body, file)
	case wire.Revoke:
		c.gateway.revoke()
		return nil, nil
	case wire.Stop:
		c.gateway.close()
		return nil, nil
	}
	return nil, fmt.Errorf("%w: unknown request %q", wire.ErrProtocol, what)
}

// configure builds the gateway and confines the process; nothing hostile has
// been read before it returns.
func (c *child) configure(body json.RawMessage) error {
	if c.gateway != nil {
		return fmt.Errorf("%w: configured twice", wire.ErrProtocol)
	}
	var cfg Config
	if err := json.Unmarshal(body, &cfg); err != nil {
		return fmt.Errorf("gateway: configuration: %w", err)
	}
	g, err := newGateway(cfg, wire.Client{Conn: c.conn})
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	if err := confine.Apply(); err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	c.gateway, c.network = g, cfg.Network
	return nil
}

func (c *child) attach(file *os.File) error {
	if c.linked {
		return errors.New("gateway: it has a link already")
	}
	c.linked = true
	switch {
	case c.network == sandbox.NetNone && file == nil:
		return nil
	case file == nil:
		return errors.New("gateway: no link came with the request")
	case c.network == sandbox.NetTAP:
		return c.gateway.tap(file)
	case c.network == sandbox.NetRelay:
		l, err := door.Listener(file)
		file.Close()
		if err != nil {
			return fmt.Errorf("gateway: the relay's listener: %w", err)
		}
		go func() {
			// Without its listener the sandbox has no way out; so be it.
			c.gateway.relay(l)
		}()
		return nil
	}
	file.Close()
	return errors.New("gateway: unexpected link")
}

// listen serves a listener inside that stands for a port of the host.
func (c *child) listen(body json.RawMessage, file *os.File) error {
	if file == nil {
		return errors.New("gateway: no listener came with the request")
	}
	defer file.Close()
	var req wire.ListenRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return fmt.Errorf("gateway: listener: %w", err)
	}
	l, err := door.Listener(file)
	if err != nil {
		return fmt.Errorf("gateway: the listener for port %d: %w", req.Port, err)
	}
	dst := hostport.HostPort{Host: dial.Localhost, Port: req.Port}
	go relay.Forward(l, c.gateway.maxFlows, func(conn net.Conn) {
		serve, _ := c.gateway.open(dst)
		if serve == nil {
			conn.Close()
			return
		}
		serve(conn)
	}, func() {
		c.gateway.journal.deny(refusal("tcp.connect", dst.String(), "flow-limit", "too many connections at a time"))
	})
	return nil
}

// gateway wires the packages of a flow's way together.
type gateway struct {
	set      *capability.Set
	client   wire.Client
	journal  *journal
	roots    *roots
	dialer   *dial.Dialer
	handler  *httpauthz.Handler
	tls      *intercept.Server
	ssh      *gitssh.Server
	resolver *resolver.Resolver
	maxFlows int
	link4    netip.Addr
	link6    netip.Addr
}

func newGateway(cfg Config, client wire.Client) (*gateway, error) {
	cat, err := catalog.Default().With(cfg.Services)
	if err != nil {
		return nil, err
	}
	set, err := capability.Compile(cfg.Spec, cat)
	if err != nil {
		return nil, fmt.Errorf("capability set: %w", err)
	}
	authority, err := intercept.NewAuthority(cfg.CACert, cfg.CAKey)
	if err != nil {
		return nil, err
	}
	g := &gateway{
		set: set, client: client, roots: &roots{fetch: client.Roots}, maxFlows: cfg.Limits.MaxFlows,
		link4: netip.MustParseAddr(sandbox.LinkGateway4), link6: netip.MustParseAddr(sandbox.LinkGateway6),
	}
	if g.maxFlows <= 0 || g.maxFlows > DefaultMaxFlows {
		g.maxFlows = DefaultMaxFlows
	}
	dc, err := dialConfig(cfg, g.roots, client)
	if err != nil {
		return nil, err
	}
	dc.Quota, dc.Spent = cfg.Limits.Quota, g.spent
	g.dialer = dial.New(dc)
	g.journal = newJournal(client.Record)
	g.handler = &httpauthz.Handler{
		Decider: set, Identity: capability.Identity{Placeholders: cfg.Placeholders},
		Controller: client, Upstream: g.dialer, Denied: g.journal.deny, Limits: cfg.Limits.Limits,
	}
	g.tls = intercept.New(authority, g.handler.Serve, func(dst hostport.HostPort, code, message string) {
		g.journal.deny(refusal("tcp.connect", "https://"+dst.String()+"/", code, message))
	})
	if g.ssh, err = gitssh.New(cfg.SSH); err != nil {
		return nil, err
	}
	g.ssh.Decider, g.ssh.Controller, g.ssh.Upstream, g.ssh.Denied = set, client, g.dialer, g.journal.deny
	g.resolver = &resolver.Resolver{
		Table: resolver.NewTable(),
		Allowed: func(h hostport.Host) (bool, string) {
			d := set.ResolveName(h)
			return d.Verdict == vocabulary.Allow, d.Reason.Message
		},
		Refused: func(r resolver.Refusal) {
			e := refusal("dns.resolve", r.Name, r.Code, r.Message)
			if h, err := hostport.ParseHost(r.Name); err == nil {
				e.Resource = vocabulary.Resource(h.String())
				// The decider's reason has the rule and what to ask for.
				if d := set.ResolveName(h); d.Verdict != vocabulary.Allow {
					e.Reason = d.Reason
				}
			}
			e.Attrs = map[string]string{"type": r.Type}
			g.journal.deny(e)
		},
	}
	return g, nil
}

func dialConfig(cfg Config, r *roots, client wire.Client) (dial.Config, error) {
	dc := dial.Config{Roots: r.get, Hosts: map[string][]netip.Addr{}}
	for _, u := range cfg.Upstreams {
		up, err := upstreamOf(u, r, client)
		if err != nil {
			return dc, err
		}
		dc.Upstreams = append(dc.Upstreams, up)
	}
	for _, s := range cfg.Nameservers {
		if a, err := netip.ParseAddr(s); err == nil {
			dc.Nameservers = append(dc.Nameservers, netip.AddrPortFrom(a, 53))
		} else if ap, err := netip.ParseAddrPort(s); err == nil {
			dc.Nameservers = append(dc.Nameservers, ap)
		} else {
			return dc, fmt.Errorf("name server %q is no address", s)
		}
	}
	for name, list := range cfg.Hosts {
		for _, s := range list {
			if a, err := netip.ParseAddr(s); err == nil {
				dc.Hosts[name] = append(dc.Hosts[name], a)
			}
		}
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return dc, fmt.Errorf("this host's own addresses: %w", err)
	}
	for _, a := range own {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			dc.Own = append(dc.Own, p.Addr())
		}
	}
	return dc, nil
}

func (g *gateway) tap(link *os.File) error {
	guest4, guest6 := netip.MustParsePrefix(sandbox.LinkGuest4), netip.MustParsePrefix(sandbox.LinkGuest6)
	_, err := netstack.New(link, netstack.Config{
		Guest4: guest4.Addr(), Guest6: guest6.Addr(), Gateway4: g.link4, Gateway6: g.link6,
		MTU: sandbox.LinkMTU, MaxFlows: g.maxFlows,
	}, (*packets)(g))
	return err
}

func (g *gateway) relay(l net.Listener) error { return relay.Serve(l, g.maxFlows, (*proxied)(g)) }

func (g *gateway) revoke() {
	g.handler.Revoke()
	g.ssh.Revoke()
	g.dialer.CloseIdle()
}

func (g *gateway) close() { g.journal.close() }

// open judges a destination that a name stands for.
func (g *gateway) open(dst hostport.HostPort) (func(net.Conn), *vocabulary.Reason) {
	treatment, d := g.set.Connect(dst)
	if d.Verdict == vocabulary.Allow {
		switch treatment {
		case capability.TreatTLS:
			return func(c net.Conn) { g.tls.Serve(c, dst, true) }, nil
		case capability.TreatHTTP:
			return func(c net.Conn) { g.tls.Serve(c, dst, false) }, nil
		case capability.TreatSSH:
			return func(c net.Conn) { g.ssh.Serve(c, dst) }, nil
		case capability.TreatOpaque:
			return func(c net.Conn) { g.opaque(c, dst, d) }, nil
		}
	}
	e := refusal("tcp.connect", dst.String(), d.Reason.Code, d.Reason.Message)
	e.Reason = d.Reason
	g.journal.deny(e)
	return nil, &d.Reason
}

// opaque records, dials and copies.
func (g *gateway) opaque(c net.Conn, dst hostport.HostPort, d capability.Decision) {
	defer c.Close()
	e := v1.Event{Actor: "sandbox", Action: "tcp.connect", Resource: vocabulary.Resource(dst.String()), Verdict: vocabulary.Allow, Reason: d.Reason, Attrs: map[string]string{"opaque": "true"}}
	if err := g.client.Record(e); err != nil {
		return
	}
	up, err := g.dialer.Opaque(context.Background(), d.Permit)
	if err != nil {
		code, quota := httpauthz.CodeUpstream, (*dial.QuotaError)(nil)
		switch {
		case errors.Is(err, dial.ErrAddress):
			code = httpauthz.CodeAddress
		case errors.As(err, &quota):
			code = httpauthz.CodeQuota
		}
		g.journal.deny(refusal("tcp.connect", dst.String(), code, err.Error()))
		return
	}
	intercept.Splice(c, up)
}

// spent records that a bound of bytes was reached.
func (g *gateway) spent(q *dial.QuotaError) {
	g.journal.deny(v1.Event{Actor: "gateway", Action: "session.bytes", Resource: vocabulary.Resource(q.Host.String()), Reason: httpauthz.QuotaReason(q)})
}

func refusal(action vocabulary.Action, resource, code, message string) v1.Event {
	return v1.Event{Actor: "sandbox", Action: action, Resource: vocabulary.Resource(resource), Reason: vocabulary.Reason{Code: code, Message: message}}
}

// packets is the gateway as the netstack sees it.
type packets gateway

func (p *packets) Accept(dst netip.AddrPort) func(net.Conn) {
	g := (*gateway)(p)
	if dst.Addr() == g.link4 || dst.Addr() == g.link6 {
		if dst.Port() == 53 {
			return g.resolver.Serve
		}
		g.journal.deny(refusal("tcp.connect", dst.String(), "no-grant", "the gateway itself serves nothing but DNS"))
		return nil
	}
	name, ok := g.resolver.Table.Name(dst.Addr())
	if !ok {
		e := refusal("tcp.connect", dst.String(), httpauthz.CodeIPLiteral, "a connection to an address; only names that a grant covers are reachable")
		e.Reason.Remedy = "use the name, and grant it"
		g.journal.deny(e)
		return nil
	}
	serve, _ := g.open(hostport.HostPort{Host: name, Port: hostport.Port(dst.Port())})
	return serve
}

func (p *packets) DNS(query []byte) []byte { return p.resolver.Answer(query) }

func (p *packets) Dropped(n uint64) {
	e := refusal("dns.resolve", "(several)", "query-limit", "more DNS queries at a time than there is room for; they were dropped")
	p.journal.many(e, int(min(n, math.MaxInt32)))
}

func (p *packets) Refused(k netstack.Kind, dst netip.AddrPort) {
	action, code, message := vocabulary.Action("ip.send"), "protocol-refused", "only TCP to granted names leaves the sandbox"
	switch k {
	case netstack.KindUDP:
		action, message = "udp.send", "UDP does not leave the sandbox (only DNS to the gateway is answered)"
	case netstack.KindICMP:
		action, message = "icmp.send", "ICMP does not leave the sandbox"
	case netstack.KindFlows:
		action, code, message = "tcp.connect", "flow-limit", "too many connections at a time"
	}
	resource := dst.Addr().String()
	if dst.Port() != 0 {
		resource = dst.String()
	}
	e := refusal(action, resource, code, message)
	e.Attrs = map[string]string{"kind": string(k)}
	p.journal.note(e)
}

// proxied is the gateway as the relay sees it.
type proxied gateway

func (p *proxied) Open(dst hostport.HostPort) (func(net.Conn), *vocabulary.Reason) {
	return (*gateway)(p).open(dst)
}

func (p *proxied) Request(w http.ResponseWriter, r *http.Request, dst hostport.HostPort) {
	g := (*gateway)(p)
	treatment, d := g.set.Connect(dst)
	if d.Verdict != vocabulary.Allow || treatment != capability.TreatHTTP {
		reason := d.Reason
		if d.Verdict == vocabulary.Allow {
			reason = vocabulary.Reason{Code: "no-grant", Message: "this destination is granted, but not as plain http", Rule: d.Reason.Rule}
		}
		e := refusal("http.request", "http://"+dst.String()+"/", "", "")
		e.Reason = reason
		g.journal.deny(e)
		p.Deny(w, r, string(e.Resource), reason)
		return
	}
	g.handler.Serve(w, r, dst, false)
}

func (p *proxied) Malformed(target, code, message string) vocabulary.Reason {
	e := refusal("tcp.connect", target, code, message)
	p.journal.deny(e)
	return e.Reason
}

func (p *proxied) Deny(w http.ResponseWriter, r *http.Request, resource string, reason vocabulary.Reason) {
	status := http.StatusForbidden
	if reason.Code == httpauthz.CodeBadRequest {
		status = http.StatusBadRequest
	}
	httpauthz.Denial{Status: status, Action: "tcp.connect", Resource: vocabulary.Resource(resource), Reason: reason}.Write(w, r)
}
