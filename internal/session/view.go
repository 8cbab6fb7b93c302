package session

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/image"
	"github.com/bulkhead-dev/bulkhead/internal/kernel"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/container"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/process"
	"github.com/bulkhead-dev/bulkhead/internal/truststore"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace"
)

// view is what the sandbox will see of the host, decided before anything is
// started: folders, environment, network.
type view struct {
	opts      Options
	id        vocabulary.SessionID
	who       person
	cwd       string
	isolation vocabulary.Isolation // that backend was chosen for
	backend   sandbox.Backend
	spec      capability.Spec
	set       *capability.Set // of spec, without the logins
	network   sandbox.NetworkKind
	hostPorts []int // ports of this host's loopback that some grant covers
	noTUN     error // why there is no TAP device
	layout    *workspace.Layout
	dir       string
	layerDir  string          // of a staged workspace
	root      *workspace.Root // nil: the host's system directories
	image     *image.Image    // in use; nil: none, or root is a folder of the user's

	mounts  []vocabulary.Mount
	env     environment
	credEnv map[string][]string // credential → variables that hold its placeholder
	// What programs with a login find inside.
	loginEnv    []string
	loginMounts []vocabulary.Mount
	notices     []string
	belief      belief // in the project's own configuration
	project     *policy.Bounds
}

// look judges the policy against this host. Nothing is started, and nothing is
// written but an image to the cache.
func look(ctx context.Context, o Options, id vocabulary.SessionID) (v *view, err error) {
	go builtIn()
	v = &view{opts: o, id: id, credEnv: map[string][]string{}}
	defer func(v *view) {
		if err != nil {
			v.image.Close()
		}
	}(v)
	if v.who, err = whoami(); err != nil {
		return nil, err
	}
	if v.cwd, err = os.Getwd(); err != nil {
		return nil, vocabulary.Exitf(vocabulary.ExitRefused, "the current folder is gone: %v\ncd to a folder that exists", err)
	}
	admin, err := Administrator()
	if err != nil {
		return nil, err
	}
	if admin != nil {
		if err := v.narrow(admin); err != nil {
			return nil, err
		}
	}
	if err := v.settle(); err != nil {
		return nil, err
	}
	if err := v.openImage(ctx); err != nil {
		return nil, err
	}
	v.network = sandbox.NetTAP
	if v.noTUN = kernel.TUNUsable(); v.noTUN != nil {
		v.network = sandbox.NetRelay
	}
	if v.hostPorts, err = hostPorts(v.opts.Policy, v.network); err != nil {
		return nil, err
	}
	if w, ok := v.backend.(warmer); ok {
		w.Warm(v.network, v.opts.Policy.Workspace.Mode == vocabulary.StagedWrites)
	}
	if err := v.plan(); err != nil {
		return nil, v.discard(err)
	}
	spec := v.sandboxSpec()
	if len(v.layout.Writable) > 0 {
		spec.Writes = &sandbox.Writes{} // which there will be rules for
	}
	if err := v.backend.Check(spec); err != nil {
		return nil, v.discard(asExit(vocabulary.ExitNoIsolation, err))
	}
	return v, nil
}

// settle chooses the backend and compiles the grants of the policy as it is now.
func (v *view) settle() (err error) {
	p := v.opts.Policy
	if v.backend == nil || v.isolation != p.Isolation {
		v.discard(nil)
		if v.backend, err = backendFor(p); err != nil {
			return err
		}
		v.isolation = p.Isolation
	}
	if err := p.AtLeast(v.backend.Isolation()); err != nil {
		return err
	}
	v.spec = capability.FromPolicy(p)
	v.set, err = capability.Compile(v.spec, v.opts.Catalog)
	return err
}

// warmer is a backend that can start its own parts while the plan is made. They
// hold nothing of the session yet, and start nothing.
type warmer interface {
	Warm(sandbox.NetworkKind, bool)
	Discard()
}

// discard ends what was warmed for a session that is refused.
func (v *view) discard(err error) error {
	if w, ok := v.backend.(warmer); ok {
		w.Discard()
	}
	return err
}

// backendFor answers for the isolation that was asked for, never for a weaker
// one. "auto" is the strongest that this version has.
func backendFor(p *policy.Policy) (sandbox.Backend, error) {
	switch p.Isolation {
	case vocabulary.Auto:
		if p.Image.Where != "" {
			return &container.Backend{}, nil
		}
		return &process.Backend{}, nil
	case vocabulary.Process:
		return &process.Backend{}, nil
	case vocabulary.Container:
		return &container.Backend{}, nil
	}
	return nil, vocabulary.Exitf(vocabulary.ExitNoIsolation,
		"isolation %q (%s) is not part of this version; nothing was started\nthis version has: process, container\nask for one of them: --isolation container", p.Isolation, p.IsolationPos)
}

// builtIn reads the built-in lists of secret and protected paths once. look
// begins with it in the background: it takes a millisecond of parsing.
var builtIn = func() func() (lists, error) {
	return sync.OnceValues(func() (l lists, err error) {
		secrets, err := policy.ParseSecrets(catalogdata.Secrets)
		if err != nil {
			return l, fmt.Errorf("built-in list of secrets: %w", err)
		}
		protected, installed, err := policy.ParseProtected(catalogdata.Protected)
		if err != nil {
			return l, fmt.Errorf("built-in list of protected files: %w", err)
		}
		for _, s := range secrets {
			l.secrets = append(l.secrets, workspace.Secret{Path: s.Path, Reason: s.Reason})
		}
		for _, f := range protected {
			p := workspace.Protected{Path: f.Path, Reason: f.Reason}
			if l.protected = append(l.protected, p); f.Kind != policy.Environments {
				l.withoutEnvironments = append(l.withoutEnvironments, p)
			} else {
				l.environments = append(l.environments, p)
			}
		}
		l.installed = installed
		return l, nil
	})
}()

// lists are the built-in lists for the workspace.
type lists struct {
	secrets   []workspace.Secret
	protected []workspace.Protected
	installed []string
	// What policies may make writable by choice, and the list without it.
	environments, withoutEnvironments []workspace.Protected
}

// plan asks workspace for the mounts, and again once it is known what the
// project's own configuration may do.
func (v *view) plan() error {
	req, err := v.request()
	if err != nil {
		return err
	}
	if v.layout, err = workspace.Plan(req); err != nil {
		return err
	}
	dir := v.layout.Dir
	if err := v.believe(dir); err != nil {
		return err
	}
	if v.project != nil {
		if err := v.narrow(v.project); err != nil {
			return err
		}
		if err := v.settle(); err != nil {
			return err
		}
		if req, err = v.request(); err != nil {
			return err
		}
	}
	v.tellGrants(v.set)
	if req.Hidden = v.belief.hidden; len(req.Hidden) > 0 || v.project != nil {
		if v.layout, err = workspace.Plan(req); err != nil {
			return err
		}
		if v.layout.Dir != dir {
			return vocabulary.Exitf(vocabulary.ExitRefused, "the workspace was exchanged while it was looked at; nothing was started")
		}
	}
	v.dir, v.who.home = v.layout.Dir, v.layout.Home
	v.notices = append(v.notices, v.layout.Warnings...)
	return nil
}

// request is what the policy, as it is now, asks of package workspace.
func (v *view) request() (workspace.Request, error) {
	p := v.opts.Policy
	lists, err := builtIn()
	if err != nil {
		return workspace.Request{}, err
	}
	if v.root != nil {
		v.root.Size = p.Limits.Root.Value
	}
	req := workspace.Request{
		Home: v.who.home, Cwd: v.cwd, User: v.who.name, UID: v.who.uid, GID: v.who.gid,
		Workspace: workspace.Folder{Path: p.Workspace.Path, Mode: p.Workspace.Mode, Pos: p.Workspace.Pos},
		Permit:    v.mayShow, Root: v.root,
	}
	if v.network == sandbox.NetTAP {
		req.Nameserver = sandbox.LinkGateway4
	}
	for _, m := range p.Mounts {
		req.Mounts = append(req.Mounts, workspace.Folder{Path: m.Path, Mode: m.Mode, Optional: m.Optional, Pos: m.Pos})
	}
	req.Secrets, req.Protected, req.Installed = slices.Clone(lists.secrets), lists.protected, lists.installed
	if p.Workspace.IsWritable(policy.Environments) {
		req.Protected = lists.withoutEnvironments
	}
	if v.layerDir, err = v.layerPlace(); err != nil {
		return req, err
	}
	req.Layer = v.layerDir
	for _, b := range p.Within {
		for _, f := range b.None(places(v.who, v.cwd)) {
			req.Secrets = append(req.Secrets, workspace.Secret{Path: f.Path, Reason: string(b.By) + ", " + f.Pos.String()})
		}
	}
	if state, err := EventDir(); err == nil {
		req.OwnState = append(req.OwnState, filepath.Dir(state))
	}
	if dir, err := cacheDir(); err == nil {
		req.OwnState = append(req.OwnState, filepath.Join(dir, "bulkhead", "images"))
	}
	req.OwnState = append(req.OwnState, filepath.Dir(administratorPath))
	if v.opts.Config != "" {
		req.OwnState = append(req.OwnState, v.opts.Config)
	}
	if self, err := childproc.Path(); err == nil {
		req.OwnFiles = append(req.OwnFiles, self)
	}
	if c, ok := v.backend.(*container.Backend); ok {
		runsc, err := c.Runtime()
		if err != nil {
			return req, err
		}
		req.OwnFiles = append(req.OwnFiles, runsc)
	}
	if filepath.IsAbs(p.File) {
		req.OwnFiles = append(req.OwnFiles, p.File)
	} else if !strings.Contains(p.File, ":") {
		req.OwnFiles = append(req.OwnFiles, filepath.Join(v.cwd, p.File))
	}
	return req, nil
}

// resolve makes a path of the policy absolute; "" stays "".
func (v *view) resolve(path string) string {
	if path == "" {
		return ""
	}
	return policy.ResolvePath(path, v.who.home, v.cwd)
}

// trust makes the session's certificate authority and the mounts and variables
// that make programs accept it.
func (v *view) trust() (truststore.CA, truststore.Trust, error) {
	ca, err := truststore.NewFor(v.opts.Policy.Limits.Wall)
	if err != nil {
		return ca, truststore.Trust{}, err
	}
	env, _ := v.imageEnv()
	t, err := truststore.For(ca, v.layout.Mounts, env)
	v.notices = append(v.notices, t.Warnings...)
	return ca, t, err
}

// compose joins plan, trust store and placeholders into the final mounts and
// environment.
func (v *view) compose(t truststore.Trust, placeholders map[string]string) error {
	p := v.opts.Policy
	v.mounts = slices.Concat(v.layout.Mounts, t.Mounts, v.loginMounts)
	image, path := v.imageEnv()
	if path == "" {
		path = searchPath(os.Getenv("PATH"), v.mounts)
	}
	v.env.add(image)
	v.env.base(v.who, v.id, path, v.root == nil)
	if v.backend.Isolation() == vocabulary.Container {
		v.env.foreign()
	}
	v.env.pass(p.EnvPass)
	v.env.add(t.Env)
	if v.network == sandbox.NetRelay {
		v.env.relay()
	}
	for _, kv := range p.EnvSet {
		v.env.set(kv.Name, kv.Expand(v.who.home))
	}
	for name, placeholder := range placeholders {
		for _, variable := range v.credEnv[name] {
			v.env.set(variable, placeholderIn(variable, placeholder))
		}
	}
	v.env.add(v.loginEnv)
	for _, f := range p.EnvFiles {
		content, wanted := f.ExpandFile(v.inside)
		m, ok := v.homeFile(f.Name, []byte(content))
		if !wanted || !ok || slices.ContainsFunc(v.mounts, func(have vocabulary.Mount) bool { return have.Target == m.Target }) {
			continue // what the policy mounts there is what a person wants
		}
		m.Why = f.Pos.String()
		v.mounts = append(v.mounts, m)
	}
	return nil
}

// inside is a variable's value in the sandbox, or WORKSPACE.
func (v *view) inside(name string) string {
	if name == "WORKSPACE" {
		return v.dir
	}
	for _, kv := range v.env.vars {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value
		}
	}
	return ""
}

// sandboxSpec is what the backend gets.
func (v *view) sandboxSpec() sandbox.Spec {
	l := v.opts.Policy.Limits
	var judged []sandbox.Identity
	for _, j := range v.layout.Judged() {
		judged = append(judged, sandbox.Identity(j))
	}
	return sandbox.Spec{
		Judged:  judged,
		Session: v.id, Mounts: v.mounts, UID: v.who.uid, GID: v.who.gid, Hostname: "bulkhead",
		Network: v.network, HostPorts: v.hostPorts,
		Limits: sandbox.Limits{Memory: l.Memory, PIDs: l.PIDs, CPUs: l.CPUs, Wall: l.Wall,
			Disk: l.Disk.Value, Inodes: l.Inodes.Value, Descriptors: l.Descriptors.Value, Idle: time.Duration(l.Idle.Value)},
	}
}

// command is how argv starts inside.
func (v *view) command(argv []string) sandbox.Command {
	return sandbox.Command{Argv: argv, Env: append([]string(nil), v.env.vars...), Dir: v.dir}
}

func (v *view) networkName() string {
	if v.network == sandbox.NetTAP {
		return "tap"
	}
	return "relay"
}

// say prints what a person should know before the command's own words.
func (v *view) say(notice func(string, ...any)) {
	for _, n := range v.notices {
		notice("%s", n)
	}
	if v.network == sandbox.NetRelay && len(v.opts.Policy.Grants) > 0 {
		notice("relay network: %v\nonly programs that honour HTTP_PROXY or SOCKS reach the granted services; nothing else leaves\nremedy: bulkhead doctor", v.noTUN)
	}
}
