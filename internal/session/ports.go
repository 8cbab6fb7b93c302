package session

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/bulkhead-dev/bulkhead/internal/egress/dial"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/publish"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Actions of ports that lead inside.
const (
	ActionPublish vocabulary.Action = "port.publish"
	ActionInbound vocabulary.Action = "port.connect"
)

// maxHostPorts bounds the listeners that a sandbox has to make before it is
// ready.
const maxHostPorts = 32

// hostPorts lists the ports of this host's loopback that the policy grants. The
// sandbox gets a listener for each.
func hostPorts(p *policy.Policy, network sandbox.NetworkKind) ([]int, error) {
	var ports []int
	for _, g := range p.Grants {
		var port hostport.Port
		switch {
		case g.TCP != "":
			if hp, err := hostport.Parse(g.TCP); err == nil && hp.Host == dial.Localhost {
				port = hp.Port
			}
		case g.HTTP != "":
			if u, err := policy.ParseURLPattern(g.HTTP); err == nil && u.Host().Match(dial.Localhost) && u.Host().String() == dial.Localhost.String() {
				port = u.Port()
			}
		}
		switch {
		case port == 0 || slices.Contains(ports, int(port)):
			continue
		case port < 1024:
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "%s: port %d of this host cannot be offered inside: nothing in a sandbox may listen below 1024\nnothing was started\nlet it listen on a higher port as well, and grant that one", g.Pos, port)
		case network == sandbox.NetRelay && port == sandbox.RelayPort:
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "%s: port %d is taken inside by Bulkhead's own relay\nnothing was started\nlet the service listen on another port, and grant that one", g.Pos, port)
		case len(ports) == maxHostPorts:
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "%s: more than %d ports of this host are granted\nnothing was started", g.Pos, maxHostPorts)
		}
		ports = append(ports, int(port))
	}
	return ports, nil
}

// ports are the published ports of a session.
type ports struct {
	mu    sync.Mutex
	open  []*publish.Published
	ended bool
}

// add keeps p, or closes it when the session has ended.
func (o *ports) add(p *publish.Published) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		p.Close()
		return false
	}
	o.open = append(o.open, p)
	return true
}

func (o *ports) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	for _, p := range o.open {
		p.Close()
	}
}

func (o *ports) all() []*publish.Published {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.open)
}

func (o *ports) list() []string {
	list := []string{}
	for _, p := range o.all() {
		list = append(list, p.Port().String())
	}
	return list
}

// openPorts takes the published ports of the policy before anything is started,
// so that one that is in use is known in time.
func (s *session) openPorts() error {
	for _, want := range s.opts.Policy.Publish {
		if err := s.openPort(publish.Port{Host: want.Host, Inside: want.Inside}); err != nil {
			return vocabulary.Exitf(vocabulary.ExitRefused, "%s: %v\nnothing was started\npublish another one: publish: [\"PORT:%d\"]", want.Pos, err, want.Inside)
		}
	}
	return nil
}

func (s *session) openPort(p publish.Port) error {
	open, err := publish.Open(p, inside{s})
	if err != nil {
		return err
	}
	if err := s.record(ActionPublish, vocabulary.Resource(p.String()), nil); err != nil {
		open.Close()
		return err
	}
	if !s.ports.add(open) {
		return sandbox.ErrGone
	}
	return nil
}

// joinPorts gives the gateway the listeners for ports of this host, and starts
// to carry what comes for the published ones.
func (s *session) joinPorts() error {
	var failed error
	for _, l := range s.instance.Listeners() {
		if failed == nil {
			failed = s.gateway.Listen(hostport.Port(l.Port), l.File)
		}
		l.File.Close()
	}
	if failed != nil {
		return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "the egress gateway could not take a listener for a port of this host: %v\nnothing was started", failed)
	}
	for _, p := range s.ports.all() {
		go p.Serve()
	}
	return nil
}

// publish opens a port while the session runs, for bulkhead session publish.
func (s *session) publish(p publish.Port) error {
	for _, n := range []int{p.Host, p.Inside} {
		if n < 1 || n > 65535 {
			return fmt.Errorf("%d is not a port", n)
		}
	}
	if err := s.mayPublish(p.Host, p.Inside); err != nil {
		return err
	}
	if err := s.openPort(p); err != nil {
		return vocabulary.Exitf(vocabulary.ExitRefused, "%v", err)
	}
	for _, open := range s.ports.all() {
		if open.Port() == p {
			go open.Serve()
		}
	}
	return nil
}

// inside is the sandbox as a published port sees it.
type inside struct{ s *session }

func (i inside) Dial(ctx context.Context, port int) (net.Conn, error) {
	return i.s.instance.Dial(ctx, port)
}

func (i inside) Announce(p publish.Port) error {
	return i.s.record(ActionInbound, vocabulary.Resource(p.String()), nil)
}
