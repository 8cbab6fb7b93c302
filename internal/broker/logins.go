package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"path/filepath"
	"time"

	"github.com/zalando/go-keyring"

	"github.com/bulkhead-dev/bulkhead/internal/broker/login"
)

// LoginSource is a login that a program keeps on the host.
type LoginSource struct {
	Spec    *login.Spec
	Options login.Options
}

// tokenTimeout bounds the wait for a token that has ended: longer than a
// refresh takes, and shorter than clients wait for an answer.
const tokenTimeout = 30 * time.Second

// choices are the source and those to be tried instead of it, in this order.
func (s Source) choices() []Source {
	all := []Source{s}
	for _, o := range s.Or {
		o.Name, o.Optional, o.Pos = s.Name, s.Optional, s.Pos
		all = append(all, o)
	}
	return all
}

// OpenLogin reads a login of this host's user.
func OpenLogin(ctx context.Context, spec *login.Spec, o login.Options, lookup func(string) (string, bool), random io.Reader) (*login.Login, error) {
	home, ok := lookup("HOME")
	if !ok || !filepath.IsAbs(home) {
		return nil, errors.New("HOME is not set")
	}
	return login.Open(ctx, spec, login.Host{
		Home: home, Lookup: lookup,
		Keyring: func(ctx context.Context, service, user string) (string, error) {
			return getKeyring(ctx, service, user, lookup)
		},
		Store: func(ctx context.Context, service, user, value string) error {
			return setKeyring(ctx, service, user, value, lookup)
		},
	}, o, random)
}

func (s Source) openLogin(ctx context.Context, lookup func(string) (string, bool)) (*login.Login, *sourceError) {
	l, err := OpenLogin(ctx, s.Login.Spec, s.Login.Options, lookup, rand.Reader)
	var none *login.NoLoginError
	switch {
	case errors.As(err, &none):
		return nil, missing(none.Remedy(), "%v", none)
	case err != nil:
		return nil, broken("log in again on the host: "+s.Login.Spec.Again, "%v", err)
	}
	return l, nil
}

// withKeyring bounds a call of the library, which takes no context; an
// unanswered call is left behind.
func withKeyring(ctx context.Context, call func() (string, error)) (string, error) {
	type answer struct {
		text string
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		text, err := call()
		done <- answer{text, err}
	}()
	timeout := time.NewTimer(keyringTimeout)
	defer timeout.Stop()
	select {
	case a := <-done:
		switch {
		case errors.Is(a.err, keyring.ErrNotFound):
			return "", nil
		case a.err != nil:
			return "", errors.New("the keyring does not answer")
		}
		return a.text, nil
	case <-timeout.C:
		return "", errors.New("the keyring did not answer in time")
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// Login returns the named credential's login; nil if it is of another kind.
func (b *Broker) Login(name string) *login.Login {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.logins[name]
}

// Chosen says which of a credential's sources is in use: 0 is the first.
func (b *Broker) Chosen(name string) int { return b.chosen[name] }
