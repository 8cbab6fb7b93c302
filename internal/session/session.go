// Package session is the only room where the mechanisms meet: it turns an
// expanded policy and a command into a running, contained command, and takes
// everything down again.
//
// It runs in the controller. Order matters and is this: judge (compile, plan,
// credentials; nothing is started if one fails), record, start the gateway and
// the sandbox side by side, join them by the link, start the command, relay its
// terminal, end. Nothing of a session is on disk but its event log and, of a staged
// workspace, its layer, so nothing else outlives the controller, kill -9 included:
// the gateway and the warden end with their sockets.
package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/broker"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/egress"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
	"github.com/bulkhead-dev/bulkhead/internal/event"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Actions of a session's own events.
const (
	ActionStart  vocabulary.Action = "session.start"
	ActionExec   vocabulary.Action = "session.exec"
	ActionRevoke vocabulary.Action = "session.revoke"
	ActionEnd    vocabulary.Action = "session.end"
)

// Options say what to run. Policy is expanded; Argv is not empty.
type Options struct {
	Policy *policy.Policy
	// Catalog has the Services, the user's own, besides the embedded ones.
	Catalog  *catalog.Catalog
	Services []catalog.Extra
	// Config is the folder of the user's policy and services, which no sandbox
	// sees; empty: there is none.
	Config string
	Argv   []string
	// Trust says how project configuration is believed.
	Trust Trust
	// Resume is the session whose layer a staged workspace goes on with; "": a new one.
	Resume vocabulary.SessionID
	// Events is the path of the event log; empty chooses one below EventDir.
	Events                string
	Stdin, Stdout, Stderr *os.File
	// Notice prints a line for the person; it must not block for long.
	Notice func(format string, args ...any)
}

// session is one run. It is built by open and lives until close.
type session struct {
	id       vocabulary.SessionID
	opts     Options
	started  time.Time
	view     *view
	log      *event.Log
	creds    *broker.Broker
	gateway  *egress.Gateway
	instance sandbox.Instance
	control  *controlServer
	ports    ports
	ssh      sshSide
	seen     *sightings
	refusals *refusals // nil: nothing of the host is writable
	versions versions
	layer    layer
	revoked  atomic.Bool
	moved    atomic.Int64 // when output last passed, nanoseconds since started
	stop     context.CancelCauseFunc
	recorded bool // session.start is in the log
	told     bool // why the sandbox ended is in the answer already
}

// endPatience bounds the wait for the rest of a sandbox of which one part died.
const endPatience = 5 * time.Second

var (
	errStopped = errors.New("stopped by: bulkhead session stop")
)

// Run runs a command in a new session and returns its exit code. The error is
// a *vocabulary.ExitError or a policy error list if nothing ran or the session
// broke.
func Run(ctx context.Context, o Options) (code int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &session{id: vocabulary.NewSessionID(), opts: o, started: time.Now(), stop: cancel}
	if err := s.open(ctx); err != nil {
		cerr := s.close()
		s.closeLayer(false)
		s.closeVersions(false)
		s.recordEnd(exitCodeOf(err), err)
		s.closeLog()
		return 0, errors.Join(err, cerr)
	}
	code, err = s.run(ctx)
	if err != nil {
		code = exitCodeOf(err)
	}
	// The end is recorded when nothing runs any more, so that it is the last line.
	cerr := s.close()
	s.closeLayer(true)
	s.closeVersions(true)
	s.recordEnd(code, errors.Join(err, cerr))
	s.closeLog()
	return code, errors.Join(err, cerr)
}

// closeLog also takes back a log of our own choosing that nothing got into.
func (s *session) closeLog() {
	if s.log == nil {
		return
	}
	s.log.Close()
	if !s.recorded && s.opts.Events == "" {
		os.Remove(s.log.Path())
	}
}

// record writes an event of the controller's own; no record, no act.
func (s *session) record(action vocabulary.Action, resource vocabulary.Resource, attrs map[string]string) error {
	return s.log.Record(v1.Event{
		Actor: "controller", Action: action, Resource: resource, Verdict: vocabulary.Allow,
		Reason: vocabulary.Reason{Code: "session", Rule: vocabulary.Position{File: s.opts.Policy.File}},
		Attrs:  attrs,
	})
}

func (s *session) recordEnd(code int, err error) {
	if !s.recorded {
		return // what never started doesn't end
	}
	attrs := map[string]string{"exit": fmt.Sprint(code)}
	if err != nil {
		attrs["error"] = err.Error()
	}
	if rerr := s.record(ActionEnd, vocabulary.Resource(s.id), attrs); rerr != nil {
		s.opts.Notice("the end of the session could not be recorded: %v", rerr)
	}
}

// open brings everything up to the point where a command can start.
func (s *session) open(ctx context.Context) (err error) {
	if s.view, err = look(ctx, s.opts, s.id); err != nil {
		return err
	}
	s.opts.Policy = s.view.opts.Policy // as it was narrowed
	if s.log, err = openLog(s.opts.Events, s.id, s.view.layout.Mounts); err != nil {
		return err
	}
	if s.creds, err = s.openBroker(ctx); err != nil {
		return err
	}
	if err = s.loginsInside(); err != nil {
		return err
	}
	if err = s.openLayer(); err != nil {
		return err
	}
	if err = s.openVersions(); err != nil {
		return err
	}
	ca, trust, err := s.view.trust()
	if err != nil {
		return err
	}
	if err := s.view.compose(trust, s.placeholders()); err != nil {
		return err
	}
	if err := s.openSSH(); err != nil {
		return err
	}
	attrs := map[string]string{
		"isolation": string(s.view.backend.Isolation()), "network": s.view.networkName(),
		"profile": string(s.opts.Policy.Profile), "mode": string(s.opts.Policy.Workspace.Mode),
		"trust": s.view.belief.state,
	}
	if name := s.layer.name(); name != "" {
		attrs["layer"] = name
	}
	if i := s.opts.Policy.Image; i.Where != "" {
		attrs["image"] = i.String()
	}
	if s.view.image != nil {
		attrs["image-id"] = s.view.image.ID
	}
	s.boundsInForce(attrs)
	if err := s.record(ActionStart, vocabulary.Resource(s.view.dir), attrs); err != nil {
		return vocabulary.Exitf(vocabulary.ExitRefused, "%v\nnothing was started: a session that cannot be recorded does not run\nfree space, or name another file with --events", err)
	}
	s.recorded = true
	if err := errors.Join(s.recordNarrowed(), s.recordTrust()); err != nil {
		return err
	}

	if err := s.openPorts(); err != nil {
		return err
	}
	config, err := s.gatewayConfig(ca, trust.Roots)
	if err != nil {
		return err
	}
	if s.gateway, err = egress.Start(ctx, config, (*gatewayController)(s)); err != nil {
		return vocabulary.Exitf(vocabulary.ExitNoIsolation, "the egress gateway did not start: %v", err)
	}
	spec := s.view.sandboxSpec()
	spec.Writes = s.writes()
	s.seen = newSightings(s.log.Record)
	spec.Seen = s.seen.add
	if s.opts.Policy.Workspace.Mode == vocabulary.StagedWrites {
		spec.Watched = s.view.dir
	}
	if s.instance, err = s.view.backend.Prepare(ctx, spec); err != nil {
		return asExit(vocabulary.ExitNoIsolation, err)
	}
	// The gateway has its own descriptor then. The last one to close a TAP waits
	// for the kernel to take the device down; that is not to be a person.
	link := s.instance.Link()
	err = s.gateway.Attach(link)
	link.Close()
	if err != nil {
		code := vocabulary.ExitBulkheadFailed // it died
		if errors.As(err, new(*wire.RemoteError)) {
			code = vocabulary.ExitNoIsolation // it says what this host lacks
		}
		return vocabulary.Exitf(code, "the egress gateway could not take the sandbox's link: %v\nnothing was started", err)
	}
	if err := s.joinPorts(); err != nil {
		return err
	}
	s.control, err = listenControl(s.id, controlOps{
		info: s.info, stop: func() { s.stop(errStopped) }, revoke: s.revoke, exec: s.exec, publish: s.publish,
	})
	return err
}

// close takes everything down; nothing of the session runs when it returns. The
// log stays open for the last event.
func (s *session) close() error {
	var errs []error
	if s.control != nil {
		s.control.Close()
	}
	s.ports.close()
	var both sync.WaitGroup
	if s.gateway != nil {
		both.Go(func() { s.gateway.Close() })
	}
	if s.instance != nil {
		if err := s.instance.Kill(); !s.told {
			errs = append(errs, err)
		}
		if err := s.recordExceeded(); err != nil {
			errs = append(errs, err)
		}
	} else if s.view != nil {
		s.view.discard(nil)
	}
	both.Wait()
	if s.view != nil {
		s.view.image.Close()
	}
	if s.seen != nil {
		s.seen.close()
	}
	if s.refusals != nil {
		s.refusals.say(s.opts.Notice, s.view.dir, s.id)
	}
	if s.creds != nil {
		s.creds.Close()
	}
	return errors.Join(errs...)
}

// run starts the command, relays it and returns its exit code.
func (s *session) run(ctx context.Context) (int, error) {
	s.view.say(s.opts.Notice)
	defer s.watchLimits(ctx)()
	// Whatever breaks the boundary ends the command: a sandbox without its
	// gateway has no way out, but a person should not be left waiting in it.
	go func() {
		select {
		case <-ctx.Done():
		case <-s.gateway.Done():
			s.stop(fmt.Errorf("the egress gateway ended: %w", orUnknown(s.gateway.Err())))
		case <-s.instance.Done():
			return
		}
		s.instance.Kill()
	}()
	if err := s.recordExec(s.opts.Argv); err != nil {
		return 0, err
	}
	code, err := relay(ctx, s.opts.Stdin, s.opts.Stdout, s.opts.Stderr, s.view.command(s.opts.Argv), s.noteMoved, func(cmd sandbox.Command) (sandbox.Process, error) {
		defer collectAgain()
		p, err := s.instance.Start(ctx, cmd)
		return p, s.withoutRoom(err)
	})
	if err == nil {
		return code, nil
	}
	return s.verdictOn(ctx, err)
}

// verdictOn turns "the sandbox is gone" into why.
func (s *session) verdictOn(ctx context.Context, err error) (int, error) {
	const killed = 128 + 9
	switch cause := context.Cause(ctx); {
	case errors.As(cause, new(*limitReached)):
		s.opts.Notice("%v; the session was ended", cause)
		return killed, nil
	case errors.Is(cause, errStopped):
		s.opts.Notice("%v", cause)
		return killed, nil
	case cause != nil:
		return 0, vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%v\nthe session was ended; its events: %s", cause, s.log.Path())
	}
	// A part that died takes the others along in a moment, and only then is it
	// known which one was the first.
	patience := time.Duration(0)
	if errors.Is(err, sandbox.ErrGone) {
		patience = endPatience
	}
	select {
	case <-s.instance.Done():
	case <-time.After(patience):
	}
	if cause := s.instance.Cause(); cause != nil {
		s.told = true
		if l, ok := s.instance.(interface{ Exceeded() []string }); ok && len(l.Exceeded()) > 0 {
			s.opts.Notice("the session was ended: %v", cause)
			return killed, nil
		}
		return 0, vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%v\nthe session was ended; its events: %s", cause, s.log.Path())
	}
	return 0, asExit(vocabulary.ExitBulkheadFailed, err)
}

func (s *session) recordExec(argv []string) error {
	if err := s.record(ActionExec, vocabulary.Resource(argv[0]), map[string]string{"args": fmt.Sprint(len(argv) - 1)}); err != nil {
		return vocabulary.Exitf(vocabulary.ExitRefused, "%v\nthe command was not started", err)
	}
	return nil
}

// exec starts a further command for bulkhead exec.
func (s *session) exec(ctx context.Context, argv []string, term string, cmd sandbox.Command) (sandbox.Process, error) {
	if len(argv) == 0 {
		return nil, errors.New("no command")
	}
	if err := s.recordExec(argv); err != nil {
		return nil, err
	}
	full := s.view.command(argv)
	full.Terminal, full.Rows, full.Cols, full.Stdio = cmd.Terminal, cmd.Rows, cmd.Cols, cmd.Stdio
	if term != "" {
		full.Env = setenv(full.Env, "TERM", term)
	}
	p, err := s.instance.Start(ctx, full)
	return p, s.withoutRoom(err)
}

// revoke cuts the session's credentials: the broker gives out none from now
// on, and the gateway ends what uses one.
func (s *session) revoke() error {
	s.revoked.Store(true)
	s.creds.Revoke()
	err := s.gateway.Revoke()
	return errors.Join(err, s.record(ActionRevoke, vocabulary.Resource(s.id), nil))
}

func (s *session) info() Info {
	p := s.opts.Policy
	return Info{
		ID: s.id, PID: os.Getpid(), UID: os.Getuid(), Started: s.started,
		Isolation: s.view.backend.Isolation(), Network: s.view.networkName(), Profile: p.Profile,
		Workspace: s.view.dir + ":" + string(p.Workspace.Mode), Command: s.opts.Argv, Policy: p.File,
		Events: s.log.Path(), Grants: describeGrants(p), Revoked: s.revoked.Load(),
		Published: s.ports.list(), Limits: s.describeLimits(),
	}
}

func describeGrants(p *policy.Policy) []string {
	lines := make([]string, 0, len(p.Grants))
	for _, g := range p.Grants {
		what := g.String()
		if g.TCP != "" {
			what += " (weak: opaque bytes)"
		}
		lines = append(lines, what+"  ("+g.Pos.String()+")")
	}
	return lines
}

// asExit gives an error without an exit code of its own the one given.
func asExit(code int, err error) error {
	var coded *vocabulary.ExitError
	if errors.As(err, &coded) {
		return err
	}
	return &vocabulary.ExitError{Code: exitCodeOr(code, err), Err: err}
}

func exitCodeOf(err error) int { return exitCodeOr(vocabulary.ExitBulkheadFailed, err) }

func exitCodeOr(code int, err error) int {
	var coded *vocabulary.ExitError
	var exec *sandbox.ExecError
	switch {
	case errors.As(err, &coded):
		return coded.Code
	case errors.As(err, &exec) && exec.NotFound:
		return vocabulary.ExitNotFound
	case errors.As(err, &exec):
		return vocabulary.ExitCannotExecute
	}
	return code
}

func orUnknown(err error) error {
	if err == nil {
		return errors.New("no reason known")
	}
	return err
}

// person is who runs the controller.
type person struct {
	name, home string
	uid, gid   int
}

func whoami() (person, error) {
	p := person{uid: os.Getuid(), gid: os.Getgid(), home: os.Getenv("HOME")}
	if u, err := user.LookupId(fmt.Sprint(p.uid)); err == nil {
		p.name = u.Username
		if p.home == "" {
			p.home = u.HomeDir
		}
	}
	if p.name == "" {
		p.name = "user"
	}
	if p.home == "" || p.home[0] != '/' {
		return p, vocabulary.Exitf(vocabulary.ExitRefused, "HOME is not set to an absolute path\nset it to your home folder; Bulkhead hides that folder from the sandbox")
	}
	return p, nil
}
