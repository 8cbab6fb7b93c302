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

// wardens is what a Backend has started ahead.
type wardens = instance.Wardens

// Warm starts what the next Prepare with this network, and with overlays or not,
// will need, in parallel with what its caller still has to judge. Whoever calls
// it calls Prepare or Discard afterwards.
func (b *Backend) Warm(network sandbox.NetworkKind, layers bool) {
	b.wardens.Warm(want(network, layers))
}

// Discard ends what Warm started.
func (b *Backend) Discard() { b.wardens.Discard() }

// want is what a warden must have from its start.
func want(network sandbox.NetworkKind, layers bool) warden.Want {
	return warden.Want{TAP: network == sandbox.NetTAP, Layers: layers}
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
	w, err := b.wardens.Take(want(spec.Network, len(layers) > 0))
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
	setup := limits.Setup(spec, p.tmpfs)
	setup.ReadOnly, setup.Writable, setup.Judged = p.readOnly, p.writable, guest.Identities(spec.Judged)
	setup.DataLimit, setup.PinCPUs, setup.BoundShm = limits.DataLimit(), len(limits.CPUs) > 0, limits.Memory > 0
	setup.Sights = spec.Seen != nil
	for _, l := range layers {
		setup.Layers = append(setup.Layers, string(l.Path))
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
