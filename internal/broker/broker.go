// Package broker reads a session's real credentials and hands them out, one
// use at a time, until the session is revoked.
//
// It runs in the controller; real credentials exist nowhere else but in the
// gateway at the moment of a granted operation. In: sources from the policy
// (environment, file, command, desktop keyring) and a placeholder for each.
// Out: secret.Value, which cannot be printed; this package never looks at what
// one holds once it is made. Errors name credentials and sources, never
// values, and never repeat what a command said.
//
// Bounds: 16 KiB a credential (no service's header limit is higher), 10 s for
// a command, 60 s for a keyring, which may have to ask for a password.
package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/bulkhead-dev/bulkhead/internal/broker/login"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Source says where one credential comes from. Exactly one of Env, File,
// Command, Keyring, AWS, Google, Azure, SSH and Login is set.
type Source struct {
	Name    string
	Env     string   // a variable's name
	File    string   // one trailing newline is not part of the credential
	Command []string // argv, run without a shell; what it prints, as with File
	Keyring string   // "service/user"
	AWS     string   // a profile of AWS's tools; see AWSDefault
	Google  string   // "adc"
	Azure   string   // one of AzureAudiences

	// SSH is AgentSource or the path of a key: a source of signatures, whose
	// secret nobody gets (PublicKeys, Sign).
	SSH string

	Login *LoginSource

	// Or are sources to try, in this order, if the credential is not at this one.
	// Of each only what says where it is counts, and its placeholder.
	Or []Source

	// Post asks a token endpoint; Google and Azure need it.
	Post Poster

	Optional bool
	// Placeholder is what the sandbox sees instead.
	Placeholder string
	Pos         vocabulary.Position
}

// Missing is a credential that could not be had.
type Missing struct {
	// Broken says that something is there which can't be used; being optional
	// does not excuse that.
	Broken bool
	Name   string
	Reason string // for a person; never a value
	Remedy string
	Pos    vocabulary.Position
}

// String is one line.
func (m Missing) String() string {
	return fmt.Sprintf("credential %s: %s (%s)", m.Name, m.Reason, m.Pos)
}

// and joins what two sources of one credential lack.
func (m *Missing) and(next *Missing) *Missing {
	if m == nil {
		return next
	}
	both := *m
	both.Broken = next.Broken
	both.Reason += ", and " + next.Reason
	both.Remedy += "; or " + next.Remedy
	if next.Broken {
		both.Reason, both.Remedy = next.Reason, next.Remedy
	}
	return &both
}

// MissingError says which required credentials could not be had.
type MissingError []Missing

func (e MissingError) Error() string {
	lines := make([]string, len(e))
	for i, m := range e {
		lines[i] = m.String() + "\n  do: " + m.Remedy
	}
	return strings.Join(lines, "\n")
}

// The errors of Credential that callers tell apart.
var (
	ErrRevoked = errors.New("the session's credentials are revoked")
	ErrUnknown = errors.New("no such credential in this session")
)

// Broker holds a session's credentials. Safe for concurrent use. The zero
// Broker has none and is revoked.
type Broker struct {
	mu           sync.RWMutex
	open         bool
	values       map[string]secret.Value
	ssh          map[string]*sshKey
	renewed      map[string]*live // those of values that end
	logins       map[string]*login.Login
	chosen       map[string]int
	names        []string
	placeholders map[string]string
	warnings     []string
}

// Open reads all sources, side by side. Optional credentials that can't be had
// are returned as missing. Required ones, and any that are there and can't be
// used, are a MissingError in a *vocabulary.ExitError, and then there is no
// Broker.
func Open(ctx context.Context, sources []Source, lookup func(string) (string, bool)) (*Broker, []Missing, error) {
	if lookup == nil {
		return nil, nil, errors.New("broker: no environment to look in")
	}
	type result struct {
		value   secret.Value
		live    *live
		login   *login.Login
		ssh     *sshKey
		chosen  int
		warning string
		missing *Missing
	}
	results := make([]result, len(sources))
	var wg sync.WaitGroup
	for i, s := range sources {
		wg.Go(func() {
			r := &results[i]
			for n, c := range s.choices() {
				var err *sourceError
				if c.Login != nil && c.sources() == 1 && c.Name != "" {
					r.login, err = c.openLogin(ctx, lookup)
				} else if c.SSH != "" && c.sources() == 1 && c.Name != "" {
					r.ssh, r.warning, err = openSSH(ctx, c, lookup)
				} else if r.live = c.live(lookup); r.live != nil {
					r.value, err = r.live.first(ctx)
				} else {
					r.value, r.warning, err = read(ctx, c, lookup)
				}
				if err == nil {
					r.missing, r.chosen = nil, n
					break
				}
				r.missing = r.missing.and(&Missing{Broken: err.broken, Name: s.Name, Reason: err.reason, Remedy: err.remedy, Pos: s.Pos})
				if err.broken { // what is there and can't be used is not passed over
					break
				}
			}
		})
	}
	wg.Wait()
	b := &Broker{open: true, values: map[string]secret.Value{}, ssh: map[string]*sshKey{}, renewed: map[string]*live{}, logins: map[string]*login.Login{}, chosen: map[string]int{}, placeholders: map[string]string{}}
	var missing []Missing
	var required MissingError
	for i, s := range sources {
		r := results[i]
		if _, dup := b.placeholders[s.Name]; dup {
			b.Close()
			return nil, nil, fmt.Errorf("broker: credential %s has two sources", s.Name)
		}
		b.placeholders[s.Name], b.chosen[s.Name] = s.choices()[r.chosen].Placeholder, r.chosen
		switch {
		case r.missing == nil && r.login != nil:
			b.logins[s.Name] = r.login
			b.placeholders[s.Name] = r.login.Placeholder()
			b.names = append(b.names, s.Name)
		case r.missing == nil && r.ssh != nil:
			b.ssh[s.Name] = r.ssh
			if r.warning != "" {
				b.warnings = append(b.warnings, "credential "+s.Name+": "+r.warning)
			}
		case r.missing == nil:
			b.values[s.Name] = r.value
			if r.live != nil {
				b.renewed[s.Name] = r.live
			}
			b.names = append(b.names, s.Name)
			if r.warning != "" {
				b.warnings = append(b.warnings, "credential "+s.Name+": "+r.warning)
			}
		case s.Optional && !r.missing.Broken:
			missing = append(missing, *r.missing)
		default:
			required = append(required, *r.missing)
		}
	}
	if len(required) > 0 {
		b.Close()
		return nil, missing, &vocabulary.ExitError{Code: vocabulary.ExitRefused, Err: required}
	}
	return b, missing, nil
}

// Names returns the credentials that are there and have a placeholder, in the
// order of the sources.
func (b *Broker) Names() []string { return append([]string(nil), b.names...) }

// Warnings returns what a person should change about the sources.
func (b *Broker) Warnings() []string { return append([]string(nil), b.warnings...) }

// Placeholder returns what the sandbox sees instead of the named credential;
// "" if there is no such credential.
func (b *Broker) Placeholder(name string) string { return b.placeholders[name] }

// Credential returns the named credential for one use. The caller may wipe
// it: it is a copy. Action and resource say what for; every credential may be
// used for whatever the decider has permitted, so they do not decide here.
func (b *Broker) Credential(name string, _ vocabulary.Action, _ vocabulary.Resource) (secret.Value, error) {
	b.mu.RLock()
	v, ok := b.values[name]
	renewed := b.renewed[name]
	from := b.logins[name]
	if b.open && renewed == nil {
		v = v.Clone()
	}
	open := b.open
	b.mu.RUnlock()
	switch {
	case !open:
		return secret.Value{}, ErrRevoked
	case from != nil:
		ctx, cancel := context.WithTimeout(context.Background(), tokenTimeout)
		defer cancel()
		v, err := from.Token(ctx)
		if errors.Is(err, login.ErrRevoked) {
			return secret.Value{}, ErrRevoked
		}
		if err != nil {
			return secret.Value{}, fmt.Errorf("%q: %w", name, err)
		}
		return v, nil
	case !ok:
		return secret.Value{}, fmt.Errorf("%q: %w", name, ErrUnknown)
	case renewed == nil:
		return v, nil
	}
	// Not under the lock: a revocation does not wait for a token endpoint.
	v, err := renewed.get()
	if err != nil {
		return secret.Value{}, fmt.Errorf("%q: %s; %s", name, err.reason, err.remedy)
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if !b.open {
		v.Wipe()
		return secret.Value{}, ErrRevoked
	}
	return v, nil
}

// Revoke wipes all credentials; from its return on there are none. Idempotent.
func (b *Broker) Revoke() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = false
	for _, v := range b.values {
		v.Wipe()
	}
	clear(b.values)
	for _, l := range b.renewed {
		go l.wipe() // may have to wait for a fetch, whose value nobody gets
	}
	clear(b.renewed)
	for _, l := range b.logins {
		l.Revoke()
	}
}

// Close revokes.
func (b *Broker) Close() error {
	b.Revoke()
	for _, l := range b.logins {
		l.Close() // a refresh that has begun is stored first
	}
	return nil
}

// Format prints no part of a Broker, whatever the verb.
func (b *Broker) Format(s fmt.State, _ rune) { io.WriteString(s, "[broker]") }

// MarshalJSON refuses.
func (b *Broker) MarshalJSON() ([]byte, error) { return nil, errors.New("broker: refusing to marshal") }
