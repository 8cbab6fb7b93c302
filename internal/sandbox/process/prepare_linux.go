package process

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/frame"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/instance"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/process/cgroup"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/warden"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Prepare implements sandbox.Backend.
func (b *Backend) Prepare(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
	i, err := b.prepare(ctx, spec)
	if err != nil {
		return nil, err // not a nil *Instance in a non-nil interface
	}
	return i, nil
}

func (b *Backend) prepare(ctx context.Context, spec sandbox.Spec) (*instance.Instance, error) {
	if spec.Network > sandbox.NetRelay {
		return nil, fmt.Errorf("unknown network %d", spec.Network)
	}
	if err := b.Check(spec); err != nil {
		return nil, err
	}
	bwrap, err := b.findBwrap()
	if err != nil {
		return nil, err
	}
	self, err := childproc.Path()
	if err != nil {
		return nil, err
	}
	p, err := arguments(spec, self, instance.TmpfsSize(spec.Limits), os.Stat)
	if err != nil {
		return nil, err
	}
	limits, err := instance.Enforce(spec)
	if err != nil {
		return nil, err
	}
	i, err := b.launch(ctx, spec, bwrap, p, limits)
	if err != nil {
		_ = cgroup.Remove(limits.Group.Dirs)
		return nil, err
	}
	return i, nil
}

// Warm starts what the next Prepare with this network, and with overlays or not,
// will need, in parallel
// with what its caller still has to judge. Whoever calls it calls Prepare or
// Discard afterwards.
func (b *Backend) Warm(network sandbox.NetworkKind, layers bool) {
	warmed := make(chan warm, 1)
	b.warm, b.warmed = warmed, shape{network, layers}
	go func() {
		h, err := warden.Spawn(warden.Want{TAP: network == sandbox.NetTAP, Layers: layers})
		warmed <- warm{h, err}
	}()
}

// Discard ends what Warm started.
func (b *Backend) Discard() {
	if b.warm == nil {
		return
	}
	if w := <-b.warm; w.err == nil {
		w.handle.Discard()
	}
	b.warm = nil
}

// warden returns the one that Warm started, or a new one.
func (b *Backend) warden(network sandbox.NetworkKind, layers bool) (*warden.Handle, error) {
	if b.warm != nil && b.warmed == (shape{network, layers}) {
		w := <-b.warm
		b.warm = nil
		return w.handle, w.err
	}
	b.Discard()
	return warden.Spawn(warden.Want{TAP: network == sandbox.NetTAP, Layers: layers})
}

// shape is what a warden must know before it starts.
type shape struct {
	network sandbox.NetworkKind
	layers  bool
}

type warm struct {
	handle *warden.Handle
	err    error
}

// launch starts the warden and waits until the supervisor inside is confined.
func (b *Backend) launch(ctx context.Context, spec sandbox.Spec, bwrap string, p *plan, limits *instance.Enforcement) (*instance.Instance, error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	conn, theirs, err := frame.Pair()
	if err != nil {
		return nil, err
	}
	files = append(files, theirs)
	for _, content := range append([][]byte{[]byte(strings.Join(p.args, "\x00") + "\x00")}, p.data...) {
		f, err := instance.MemoryFile(content)
		if err != nil {
			conn.Close()
			return nil, err
		}
		files = append(files, f)
	}
	layers, err := instance.Layers(p.layers)
	if err != nil {
		conn.Close()
		return nil, err
	}
	w, err := b.warden(spec.Network, len(layers) > 0)
	if err != nil {
		conn.Close()
		return nil, explain(err.Error())
	}
	err = w.Configure(warden.Config{
		Runtime: bwrap, Command: []string{"bwrap", "--args", fmt.Sprint(warden.ArgsFD), "--", supervisor},
		Group: *limits.Group, CPUs: limits.CPUs, Memory: limits.Memory, Tmpfs: p.tmpfs, Layers: layers,
	}, files)
	if err != nil {
		conn.Close()
		return nil, vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "the warden died before the sandbox stood: %v", err)
	}
	setup := guest.Setup{ReadOnly: p.readOnly, Writable: p.writable, DataLimit: limits.DataLimit(), TaskLimit: limits.Tasks,
		PinCPUs: len(limits.CPUs) > 0, BoundShm: limits.Memory > 0, Ports: spec.HostPorts, Judged: guest.Identities(spec.Judged)}
	setup.FileLimit, setup.DescriptorLimit = uint64(spec.Limits.Disk), uint64(spec.Limits.Descriptors)
	setup.Sights = spec.Seen != nil
	setup.Watch = instance.Watch(spec.Limits, p.tmpfs)
	for _, l := range layers {
		setup.Layers = append(setup.Layers, string(l.Path))
	}
	if spec.Network == sandbox.NetRelay {
		setup.RelayPort = sandbox.RelayPort
	}
	door := instance.Inode(theirs)
	for _, f := range files { // the end of the supervisor must be the end of its socket
		f.Close()
	}
	files = nil
	i := instance.New(instance.Parts{Spec: spec, Limits: limits, Warden: w, Guest: guest.NewClient(conn, setup, spec.Writes, spec.Seen), Door: door,
		Runtime: "bwrap", Explain: explain})
	if err := i.Await(ctx); err != nil {
		_ = i.Kill()
		return nil, err
	}
	return i, nil
}
