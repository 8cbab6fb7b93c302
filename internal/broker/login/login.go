// Package login uses a login that a program keeps on the host (Claude Code's,
// Codex's, Gemini CLI's, GitHub CLI's) without its tokens ever entering a
// sandbox.
//
// It runs in the controller. In: a description (catalog/logins), the host's
// files and keyring, and what a sandbox posts to a token endpoint. Out: the
// access token for one use, the files and variables with placeholders that the
// program finds inside, and answers for the sandbox that hold placeholders
// only. Real tokens go to the description's own endpoint, over verified TLS,
// and back to where the host's program keeps them.
//
// A token is refreshed shortly before it ends, by one request at a time, under
// a lock that Bulkhead's sessions share and under the program's own lock where
// it has one. The store is read again under the lock, and a new version of it
// is prepared before the request, because with rotation (RFC 6749 section 6)
// the old refresh token is worth nothing afterwards. A refresh that has begun
// is finished and stored even if the session is revoked or ends meanwhile.
//
// A login begun inside needs Options.AllowLogin, and is only taken if it is of
// the account that the policy names or that the host's login has: otherwise
// whoever steers the sandbox could log it in to an account of his own and have
// the session's work sent there. Nothing is taken on first use.
//
// Errors name stores, endpoints and error codes, never tokens and never what an
// endpoint said beyond its error code.
//
// Known holes: an authorization code and its verifier pass through the sandbox
// when a login is begun there, so a hostile program with a way out can have
// them redeemed elsewhere first; log in on the host where that matters. A
// program on the host that takes no lock (Codex, Gemini CLI) can refresh at the
// same moment; whoever is refused then reads the store again.
//
// Figures: 64 KiB a document, 16 KiB a token; early is Claude Code's own
// margin; 20 s a request; at most one forced refresh a minute.
package login

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/secret"
)

const (
	maxDocument = 64 << 10
	maxToken    = 16 << 10
	early       = 5 * time.Minute
	// spare is what is left at least of a token that is handed out.
	spare = 15 * time.Second
)

// Variables, so that tests need not wait.
var (
	requestTime  = 20 * time.Second
	lockTime     = 20 * time.Second
	pauseShort   = 5 * time.Second // after a failed refresh
	pauseLong    = time.Minute
	forcedPause  = time.Minute // between refreshes that the sandbox asks for
	finishAtMost = 25 * time.Second
)

// ErrRevoked: the session's credentials are revoked.
var ErrRevoked = errors.New("the session's credentials are revoked")

// Options of one login in one session.
type Options struct {
	// AllowLogin lets a login begun inside complete.
	AllowLogin bool
	// Account, if set, is the only account that may be used: one of the values by
	// which the description tells accounts apart, or the name.
	Account string
	Network Network
	// Notify hears what happened besides the sandbox's own requests.
	Notify func(Outcome)
	Now    func() time.Time // time.Now if nil
}

// Outcome is something to be recorded. It holds no secret.
type Outcome struct {
	Action  string // "credential.refresh" or "credential.login"
	Allowed bool
	Code    string
	Message string
	Remedy  string
	Attrs   map[string]string
}

// Login is one login in one session. Safe for concurrent use.
type Login struct {
	spec *Spec
	host Host
	opts Options

	// Placeholders of this session.
	accessPH, refreshPH, idPH, devicePH string

	mu      sync.Mutex
	have    tokens
	dead    secret.Value // the refresh token that the endpoint refused
	why     error        // and why, or why the last refresh failed
	failed  time.Time
	fails   int
	forced  time.Time
	flight  *flight
	device  secret.Value
	revoked chan struct{}
}

type flight struct {
	done chan struct{}
	err  error
}

// Open reads the host's login. Without one it is ErrNoLogin, unless a login may
// be begun inside.
func Open(ctx context.Context, spec *Spec, host Host, opts Options, random io.Reader) (*Login, error) {
	if spec == nil || host.Lookup == nil || host.Home == "" {
		return nil, errors.New("login: no description, or no host to look at")
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	opts.Network.now = opts.Now
	l := &Login{spec: spec, host: host, opts: opts, revoked: make(chan struct{})}
	have, err := l.load(ctx)
	switch {
	case errors.Is(err, errNone) && opts.AllowLogin && opts.Account != "":
	case errors.Is(err, errNone):
		return nil, &NoLoginError{spec}
	case err != nil:
		return nil, err
	default:
		l.have = have
		if opts.Account != "" && !have.account.is(opts.Account) {
			was := have.account.Name
			if was == "" {
				was = "an account that it does not name"
			}
			have.wipe()
			return nil, fmt.Errorf("the host is logged in as %s, and the policy wants %s", was, opts.Account)
		}
	}
	if err := l.placeholders(random); err != nil {
		return nil, err
	}
	return l, nil
}

// NoLoginError: the host has no such login.
type NoLoginError struct{ spec *Spec }

func (e *NoLoginError) Error() string { return "this host has no login of " + e.spec.Name }

// Remedy says how to get one.
func (e *NoLoginError) Remedy() string { return "log in on the host: " + e.spec.Again }

// Placeholder is what the sandbox has instead of the access token.
func (l *Login) Placeholder() string { return l.accessPH }

// Placeholders are all that the sandbox may hold, by what they stand for.
func (l *Login) Placeholders() map[string]string {
	m := map[string]string{"access": l.accessPH}
	for k, v := range map[string]string{"refresh": l.refreshPH, "id": l.idPH} {
		if v != "" {
			m[k] = v
		}
	}
	return m
}

// Spec is the description.
func (l *Login) Spec() *Spec { return l.spec }

// State is what a person may know of a login.
type State struct {
	LoggedIn bool
	Account  string
	Store    string
	Expires  time.Time // of the access token; zero: it says none
	Refresh  bool      // it can be refreshed
	Problem  string
}

// State reports without touching the network.
func (l *Login) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := State{LoggedIn: !l.have.access.Empty(), Account: l.have.account.Name, Expires: l.have.expires, Refresh: !l.have.refresh.Empty()}
	if l.have.from != nil {
		s.Store = l.have.from.String()
	}
	if l.why != nil {
		s.Problem = l.why.Error()
	}
	return s
}

func (l *Login) isRevoked() bool {
	select {
	case <-l.revoked:
		return true
	default:
		return false
	}
}

// Token returns the access token for one use, refreshed if it has to be. It
// waits only if the token has ended.
func (l *Login) Token(ctx context.Context) (secret.Value, error) {
	for attempt := 0; ; attempt++ {
		l.mu.Lock()
		if l.isRevoked() {
			l.mu.Unlock()
			return secret.Value{}, ErrRevoked
		}
		now := l.opts.Now()
		if l.have.access.Empty() {
			// The person may have logged in on the host meanwhile.
			if have, err := l.load(ctx); err == nil {
				if l.opts.Account == "" || have.account.is(l.opts.Account) {
					l.have = have
				}
			}
			if l.have.access.Empty() {
				l.mu.Unlock()
				return secret.Value{}, fmt.Errorf("not logged in; %s", (&NoLoginError{l.spec}).Remedy())
			}
		}
		left := l.have.expires.Sub(now)
		if l.have.expires.IsZero() || left > early {
			defer l.mu.Unlock()
			return l.have.access.Clone(), nil
		}
		usable := left > spare
		f := l.begin(now, false)
		if usable || attempt > 0 && f == nil {
			defer l.mu.Unlock()
			if !usable {
				return secret.Value{}, l.reason()
			}
			return l.have.access.Clone(), nil
		}
		if f == nil {
			err := l.reason()
			l.mu.Unlock()
			return secret.Value{}, err
		}
		l.mu.Unlock()
		select {
		case <-f.done:
			if f.err != nil {
				return secret.Value{}, f.err
			}
			if attempt > 1 {
				return secret.Value{}, errors.New("the endpoint gives tokens that have ended already")
			}
		case <-l.revoked:
			return secret.Value{}, ErrRevoked
		case <-ctx.Done():
			return secret.Value{}, ctx.Err()
		}
	}
}

func (l *Login) reason() error {
	switch {
	case l.why != nil:
		return l.why
	case l.have.refresh.Empty():
		return fmt.Errorf("the login has ended; log in again on the host: %s", l.spec.Again)
	}
	return errors.New("the login could not be refreshed")
}

// begin starts a refresh, or joins the one under way. It is nil while there is
// no use in trying. Call it with mu held.
func (l *Login) begin(now time.Time, force bool) *flight {
	if l.flight != nil {
		return l.flight
	}
	if l.fails > 0 {
		pause := min(pauseShort<<min(l.fails-1, 8), pauseLong)
		if now.Sub(l.failed) < pause && now.After(l.failed.Add(-time.Second)) {
			return nil
		}
	}
	f := &flight{done: make(chan struct{})}
	l.flight = f
	// Not the caller's context: what rotates a token has to be finished.
	go func() {
		outcome, err := l.refresh(force)
		l.mu.Lock()
		l.flight, f.err, l.why = nil, err, err
		if err != nil {
			l.fails++
			l.failed = l.opts.Now()
		} else {
			l.fails = 0
		}
		if l.isRevoked() {
			l.have.wipe()
		}
		l.mu.Unlock()
		close(f.done)
		if outcome.Action != "" && l.opts.Notify != nil {
			l.opts.Notify(outcome)
		}
	}()
	return f
}

// refresh makes the login good for a while, by the host's store if that is
// newer, otherwise by the endpoint.
func (l *Login) refresh(force bool) (Outcome, error) {
	note := Outcome{Action: "credential.refresh", Attrs: map[string]string{"login": l.spec.Name}}
	deny := func(code string, err error) (Outcome, error) {
		note.Code, note.Message = code, err.Error()
		return note, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockTime+requestTime)
	defer cancel()
	l.mu.Lock()
	before, store := l.have.access.Clone(), l.have.from
	l.mu.Unlock()
	defer before.Wipe()
	if store == nil {
		return deny("no-login", errors.New("there is no login to refresh"))
	}
	lctx, lcancel := context.WithTimeout(ctx, lockTime)
	release, err := l.lock(lctx, store)
	lcancel()
	if err != nil {
		return deny("locked", fmt.Errorf("the login of %s: %w", l.spec.Name, err))
	}
	defer release()

	for attempt := 0; ; attempt++ {
		have, err := l.load(ctx)
		if errors.Is(err, errNone) {
			err = fmt.Errorf("the host was logged out; %s", (&NoLoginError{l.spec}).Remedy())
		}
		if err != nil {
			return deny("no-login", err)
		}
		if err := l.adoptable(have); err != nil {
			have.wipe()
			return deny("account-mismatch", err)
		}
		now := l.opts.Now()
		fresh := !have.access.Equal(before.Reveal()) && (have.expires.IsZero() || have.expires.Sub(now) > early)
		if fresh || attempt == 0 && !force && (have.expires.IsZero() || have.expires.Sub(now) > early) {
			l.adopt(have)
			note.Allowed, note.Code, note.Message = true, "host-refreshed", "the host's program had refreshed the login already"
			return note, nil
		}
		if have.refresh.Empty() {
			have.wipe()
			return deny("no-refresh-token", fmt.Errorf("the login has ended and has no refresh token; log in again on the host: %s", l.spec.Again))
		}
		l.mu.Lock()
		dead := !l.dead.Empty() && l.dead.Equal(have.refresh.Reveal())
		l.mu.Unlock()
		if dead {
			have.wipe()
			return deny("refused", l.refused("invalid_grant"))
		}
		out, err := l.prepare(have.from)
		if err != nil {
			have.wipe()
			return deny("not-storable", fmt.Errorf("the login was not refreshed, because the new one could not be kept: %w", err))
		}
		next, err := l.opts.Network.refresh(ctx, l.spec, have)
		if err == nil {
			if next.account.ID == nil {
				next.account = have.account
			}
			next.account.File = "" // a refresh does not change what the file says
			next.doc, next.from = have.doc, have.from
			if cerr := l.commit(ctx, out, have, next); cerr != nil {
				note.Attrs["stored"] = "no"
				note.Message = cerr.Error()
			}
			have.wipe()
			l.adopt(next)
			note.Allowed, note.Code = true, "refreshed"
			if note.Message == "" {
				note.Message = "the login was refreshed on the host"
			}
			return note, nil
		}
		out.discard()
		var refusal *refusalError
		if !errors.As(err, &refusal) {
			have.wipe()
			return deny("endpoint", err)
		}
		// Another program may have rotated the token a moment ago.
		if attempt == 0 {
			again, lerr := l.load(ctx)
			changed := lerr == nil && !again.refresh.Empty() && !again.refresh.Equal(have.refresh.Reveal())
			again.wipe()
			if changed {
				have.wipe()
				continue
			}
		}
		l.mu.Lock()
		l.dead = have.refresh.Clone()
		l.mu.Unlock()
		have.wipe()
		return deny("refused", l.refused(refusal.code))
	}
}

func (l *Login) refused(code string) error {
	return fmt.Errorf("the login was refused (%s); log in again on the host: %s", code, l.spec.Again)
}

// commit stores a refreshed login, unless somebody stored another one since.
func (l *Login) commit(ctx context.Context, out *writer, used, next tokens) error {
	now, err := l.load(ctx)
	if err == nil {
		other := !now.refresh.Empty() && !now.refresh.Equal(used.refresh.Reveal())
		now.wipe()
		if other {
			out.discard()
			return errors.New("the host's program stored another login meanwhile; that one stays")
		}
	}
	return out.commit(ctx, next)
}

// adoptable: the host's login may have been replaced by one of another account.
func (l *Login) adoptable(have tokens) error {
	if l.opts.Account != "" && !have.account.is(l.opts.Account) {
		return fmt.Errorf("the host is logged in as %s now, and the policy wants %s", have.account.Name, l.opts.Account)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opts.Account == "" && l.have.account.ID != nil && have.account.ID != nil && !l.have.account.same(have.account) {
		return fmt.Errorf("the host is logged in as %s now, and this session began as %s; start a new session", have.account.Name, l.have.account.Name)
	}
	return nil
}

func (l *Login) adopt(t tokens) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.have.wipe()
	l.have = t
	if l.isRevoked() {
		l.have.wipe()
	}
}

// Revoke ends every use: no token and no answer comes from here any more. A
// refresh under way is finished for the host's sake. Idempotent.
func (l *Login) Revoke() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isRevoked() {
		return
	}
	close(l.revoked)
	l.device.Wipe()
	if l.flight == nil {
		l.have.wipe()
	}
}

// Close revokes, and waits for a refresh under way: without its end the host's
// login could be lost.
func (l *Login) Close() {
	l.Revoke()
	l.mu.Lock()
	f := l.flight
	l.mu.Unlock()
	if f != nil {
		select {
		case <-f.done:
		case <-time.After(finishAtMost):
		}
	}
}

// Format prints no part of a Login, whatever the verb.
func (l *Login) Format(s fmt.State, _ rune) { io.WriteString(s, "[login]") }

// MarshalJSON refuses.
func (l *Login) MarshalJSON() ([]byte, error) { return nil, errors.New("login: refusing to marshal") }
