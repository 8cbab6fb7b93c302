package container

import (
	"bytes"
	"context"
	"encoding/gob"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/container/trace"
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
	runsc, err := b.Runtime()
	if err != nil {
		return nil, err
	}
	self, err := childproc.Path()
	if err != nil {
		return nil, err
	}
	a, err := arrange(spec, self, instance.TmpfsSize(spec.Limits))
	if err != nil {
		return nil, err
	}
	config, err := bundle(spec, a)
	if err != nil {
		return nil, err
	}
	layers, err := instance.Layers(a.layers)
	if err != nil {
		return nil, err
	}
	for i := range a.steps {
		for _, l := range layers {
			if a.steps[i].Layer && a.steps[i].Source == string(l.Path) {
				a.steps[i].Device = l.Device
			}
		}
	}
	o := orders{Steps: a.steps, Runsc: runsc, Bundle: config, Args: arguments(spec.Network, a, spec.Seen != nil), Guarded: a.guarded}
	if spec.Seen != nil {
		if o.Trace, err = trace.Init(warden.TraceSocket, spec.Watched != "", spec.Limits.PIDs > 0); err != nil {
			return nil, err
		}
	}
	limits, err := enforce(spec)
	if err != nil {
		return nil, err
	}
	i, err := b.launch(ctx, spec, o, a, layers, limits)
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
	return warden.Want{TAP: network == sandbox.NetTAP, Layers: layers, Own: true}
}

// launch starts the warden and waits until the supervisor inside answers.
func (b *Backend) launch(ctx context.Context, spec sandbox.Spec, o orders, a *arrangement, layers []warden.Layer, limits *instance.Enforcement) (*instance.Instance, error) {
	conn, theirs, err := frame.Pair()
	if err != nil {
		return nil, err
	}
	files := []*os.File{theirs}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	var text bytes.Buffer
	if err := gob.NewEncoder(&text).Encode(o); err != nil {
		conn.Close()
		return nil, err
	}
	f, err := instance.MemoryFile(text.Bytes())
	if err != nil {
		conn.Close()
		return nil, err
	}
	files = append(files, f)
	var beside *guest.Beside
	if len(o.Guarded) > 0 {
		c, theirs, err := frame.Pair()
		if err != nil {
			conn.Close()
			return nil, err
		}
		files = append(files, theirs)
		beside = guest.NewBeside(c, spec.Writes, goferRoot, spec.Seen)
	}
	w, err := b.wardens.Take(want(spec.Network, len(layers) > 0))
	if err != nil {
		conn.Close()
		return nil, explain(err.Error())
	}
	err = w.Configure(warden.Config{
		Runtime: childproc.Self(), Command: []string{childproc.Argv0(Child)}, Init: true,
		Group: *limits.Group, CPUs: limits.CPUs, Memory: limits.Memory, Layers: layers, Trace: spec.Seen != nil,
	}, files)
	if err != nil {
		conn.Close()
		return nil, vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "the warden died before the sandbox stood: %v", err)
	}
	setup := limits.Setup(spec, a.memoryFileSystems())
	setup.Foreign = &guest.Foreign{UID: spec.UID, GID: spec.GID, Files: a.files, Links: a.links}
	door := instance.Inode(theirs)
	for _, f := range files { // the end of the supervisor must be the end of its socket
		f.Close()
	}
	files = nil
	var refused atomic.Int64
	i := instance.New(instance.Parts{Spec: spec, Limits: limits, Warden: w, Guest: guest.NewClient(conn, setup, nil, nil), Door: door, Foreign: true, Beside: beside,
		Trace: func(l *os.File) { observe(l, spec, &refused) }, RefusedTasks: refused.Load, Runtime: "gVisor", Explain: explain})
	if err := i.Await(ctx); err != nil {
		_ = i.Kill()
		return nil, err
	}
	return i, nil
}

// enforce chooses the means for each limit. Tasks inside are gVisor's and not
// the host's: gVisor counts them itself, those of the supervisor included.
func enforce(spec sandbox.Spec) (*instance.Enforcement, error) {
	outside := spec
	outside.Limits.PIDs = 0
	e, err := instance.Enforce(outside)
	if err == nil && spec.Limits.PIDs > 0 {
		e.Tasks, e.Counted = uint64(spec.Limits.PIDs)+cgroup.Overhead, spec.Seen != nil
	}
	return e, err
}
