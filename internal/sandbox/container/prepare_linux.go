package container

import (
	"bytes"
	"context"
	"encoding/gob"
	"fmt"
	"os"

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
		if o.Trace, err = trace.Init(warden.TraceSocket, spec.Watched != ""); err != nil {
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

// Warm starts what the next Prepare with this network, and with overlays or not,
// will need, in parallel with what its caller still has to judge. Whoever calls
// it calls Prepare or Discard afterwards.
func (b *Backend) Warm(network sandbox.NetworkKind, layers bool) {
	warmed := make(chan warm, 1)
	s := shape{network, layers}
	b.warm, b.warmed = warmed, s
	go func() {
		h, err := s.spawn()
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
func (b *Backend) warden(s shape) (*warden.Handle, error) {
	if b.warm != nil && b.warmed == s {
		w := <-b.warm
		b.warm = nil
		return w.handle, w.err
	}
	b.Discard()
	return s.spawn()
}

// shape is what a warden must know before it starts.
type shape struct {
	network sandbox.NetworkKind
	layers  bool
}

func (s shape) spawn() (*warden.Handle, error) {
	return warden.Spawn(warden.Want{TAP: s.network == sandbox.NetTAP, Layers: s.layers, Own: true})
}

type warm struct {
	handle *warden.Handle
	err    error
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
	w, err := b.warden(shape{spec.Network, len(layers) > 0})
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
	setup := guest.Setup{TaskLimit: limits.Tasks, Ports: spec.HostPorts,
		Foreign: &guest.Foreign{UID: spec.UID, GID: spec.GID, Files: a.files, Links: a.links}}
	setup.FileLimit, setup.DescriptorLimit = uint64(spec.Limits.Disk), uint64(spec.Limits.Descriptors)
	setup.Watch = instance.Watch(spec.Limits, a.memoryFileSystems())
	if spec.Network == sandbox.NetRelay {
		setup.RelayPort = sandbox.RelayPort
	}
	door := instance.Inode(theirs)
	for _, f := range files { // the end of the supervisor must be the end of its socket
		f.Close()
	}
	files = nil
	i := instance.New(instance.Parts{Spec: spec, Limits: limits, Warden: w, Guest: guest.NewClient(conn, setup, nil, nil), Door: door, Foreign: true, Beside: beside,
		Trace: func(l *os.File) { observe(l, spec) }, Runtime: "gVisor", Explain: explain})
	if err := i.Await(ctx); err != nil {
		_ = i.Kill()
		return nil, err
	}
	return i, nil
}

// enforce chooses the means for each limit. Tasks inside are gVisor's and not
// the host's: gVisor counts them itself.
func enforce(spec sandbox.Spec) (*instance.Enforcement, error) {
	outside := spec
	outside.Limits.PIDs = 0
	e, err := instance.Enforce(outside)
	if err == nil && spec.Limits.PIDs > 0 {
		e.Tasks = uint64(spec.Limits.PIDs)
	}
	return e, err
}
