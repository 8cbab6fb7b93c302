package session

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/broker"
	"github.com/bulkhead-dev/bulkhead/internal/broker/login"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// loginSource is the broker's view of from: {login: NAME}; c is the credential,
// of which name may stand among the alternatives.
func (s *session) loginSource(c policy.Credential, name string) (*broker.LoginSource, error) {
	if name == "" {
		return nil, nil
	}
	spec, err := login.Load(catalogdata.Logins, name)
	if err != nil {
		return nil, vocabulary.Exitf(vocabulary.ExitPolicyInvalid, "%s: %v", c.Pos, err)
	}
	network, err := s.loginNetwork()
	if err != nil {
		return nil, err
	}
	return &broker.LoginSource{Spec: spec, Options: login.Options{
		AllowLogin: s.opts.Policy.BeginsLogin(c), Account: c.Account, Network: network,
		Notify: func(o login.Outcome) { s.recordLogin(c.Name, c.Pos, o) },
	}}, nil
}

// loginNetwork is how the controller reaches token endpoints: as the gateway
// reaches its upstreams.
func (s *session) loginNetwork() (login.Network, error) {
	var n login.Network
	for _, u := range s.opts.Policy.Upstreams {
		up := login.Upstream{Host: u.Host, Connect: u.Connect, Proxy: u.Proxy}
		if name := u.Credential; name != "" {
			up.ProxyAuth = func() (secret.Value, error) { return s.creds.Credential(name, "credential.refresh", "") }
		}
		if u.CA != "" {
			pem, err := readCertificates(policy.ResolvePath(u.CA, s.view.who.home, s.view.cwd))
			if err != nil {
				return n, vocabulary.Exitf(vocabulary.ExitRefused, "%s: the upstream's ca cannot be read: %v\nnothing was started", u.Pos, err)
			}
			up.CAPEM = pem
		}
		n.Upstreams = append(n.Upstreams, up)
	}
	return n, nil
}

// loginsInside settles what stands inside for the logins in use: files,
// variables, and the rules that let token requests come to the controller.
func (s *session) loginsInside() error {
	for _, c := range s.opts.Policy.Credentials {
		l := s.creds.Login(c.Name)
		if l == nil {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(l.Env())) {
			s.view.loginEnv = append(s.view.loginEnv, name+"="+l.Env()[name])
		}
		for _, f := range l.Files() {
			s.view.loginFile(f)
		}
		for _, endpoint := range l.Spec().Endpoints() {
			s.view.spec.Rules = append(s.view.spec.Rules, capability.Rule{Pos: c.Pos, Exchange: endpoint, Credential: c.Name})
		}
	}
	if _, err := capability.Compile(s.view.spec, s.opts.Catalog); err != nil {
		return err
	}
	return nil
}

// loginFile puts a file with placeholders into the private home. Where the
// policy mounts a folder of the host over that place, nothing is written there.
func (v *view) loginFile(f login.File) {
	m, ok := v.homeFile(f.Path, f.Data)
	if !ok {
		v.notices = append(v.notices, fmt.Sprintf("%s is not shown inside: a mount of the policy covers its folder\nthe program there will not find its login; leave the mount out", f.Path))
		return
	}
	m.Why = "a login's placeholders"
	v.loginMounts = append(v.loginMounts, m)
}

// homeFile is a file in the private home, unless the host's own is shown there.
func (v *view) homeFile(path string, data []byte) (m vocabulary.Mount, ok bool) {
	target := policy.ResolvePath(path, v.who.home, v.who.home)
	kind := vocabulary.Tmpfs
	for _, m := range v.layout.Mounts {
		if target != m.Target && (m.Target == "/" || strings.HasPrefix(target, strings.TrimSuffix(m.Target, "/")+"/")) && m.Kind != vocabulary.Symlink {
			kind = m.Kind
		}
	}
	return vocabulary.Mount{Kind: vocabulary.File, Target: target, Data: data, Perm: 0o600}, kind == vocabulary.Tmpfs
}

// Exchange answers a token request of the sandbox. The gateway has judged only
// that it goes to an endpoint; its word for that is checked.
func (g *gatewayController) Exchange(ctx context.Context, r wire.ExchangeRequest) (wire.ExchangeReply, error) {
	s := (*session)(g)
	l := s.creds.Login(r.Credential)
	if l == nil || !slices.Contains(l.Spec().Endpoints(), r.URL) {
		return wire.ExchangeReply{}, fmt.Errorf("%q has no such endpoint", r.Credential)
	}
	reply, outcome := l.Exchange(ctx, login.Request{URL: r.URL, ContentType: r.ContentType, Body: r.Body})
	if outcome.Action != "" {
		s.recordLogin(r.Credential, s.credentialPos(r.Credential), outcome)
	}
	return wire.ExchangeReply{Status: reply.Status, Body: reply.Body}, nil
}

func (s *session) credentialPos(name string) vocabulary.Position {
	for _, c := range s.opts.Policy.Credentials {
		if c.Name == name {
			return c.Pos
		}
	}
	return vocabulary.Position{File: s.opts.Policy.File}
}

// recordLogin writes what became of a refresh or a login. It has happened: a log
// that takes no event stops what comes next, not this.
func (s *session) recordLogin(credential string, pos vocabulary.Position, o login.Outcome) {
	e := v1.Event{
		Actor: "controller", Action: vocabulary.Action(o.Action), Resource: vocabulary.Resource(credential),
		Reason: vocabulary.Reason{Code: o.Code, Message: o.Message, Rule: pos, Remedy: o.Remedy}, Attrs: o.Attrs,
	}
	if o.Allowed {
		e.Verdict, e.Reason.Remedy = vocabulary.Allow, ""
	}
	e = wire.Clean(e)
	e.Actor = "controller"
	if err := s.log.Record(e); err != nil {
		s.opts.Notice("an event of credential %s could not be recorded: %v", credential, err)
	}
}
