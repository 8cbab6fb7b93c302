package broker

import (
	"context"
	"net/url"
	"sync"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/secret"
)

// renewMargin is how long before its end a credential is fetched again: longer
// than a request may take to reach its server.
const renewMargin = 5 * time.Minute

// renewTimeout bounds one fetch.
const renewTimeout = 20 * time.Second

// Poster sends a form to a token endpoint and returns status and body; the body
// is bounded by maxAnswer. The session gives one that obeys upstreams:.
type Poster func(ctx context.Context, endpoint string, form url.Values) (status int, body []byte, err error)

// fetched is a credential with its end; the zero time is none.
type fetched struct {
	value []byte
	until time.Time
}

// live is a credential that is fetched anew before it ends. One fetch at a
// time; a failed one leaves the old value in use until its end.
type live struct {
	fetch func(context.Context) (fetched, *sourceError)
	now   func() time.Time

	mu    sync.Mutex
	value secret.Value
	until time.Time
}

// first fetches for the start of a session.
func (l *live) first(ctx context.Context) (secret.Value, *sourceError) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.renew(ctx); err != nil {
		return secret.Value{}, err
	}
	return l.value.Clone(), nil
}

func (l *live) renew(ctx context.Context) *sourceError {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	f, err := l.fetch(ctx)
	defer clear(f.value)
	if err != nil {
		return err
	}
	if !f.until.IsZero() && !f.until.After(l.now()) {
		return missing("sign in again on the host", "what it gives out has ended at %s", f.until.UTC().Format(time.RFC3339))
	}
	l.value.Wipe()
	l.value, l.until = secret.New(f.value), f.until
	return nil
}

// get returns a value that is good for a request now.
func (l *live) get() (secret.Value, *sourceError) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.until.IsZero() || l.now().Add(renewMargin).Before(l.until) {
		return l.value.Clone(), nil
	}
	if err := l.renew(context.Background()); err != nil && !l.now().Before(l.until) {
		return secret.Value{}, err
	}
	return l.value.Clone(), nil
}

func (l *live) wipe() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.value.Wipe()
	l.fetch = func(context.Context) (fetched, *sourceError) {
		return fetched{}, missing("start a new session", "the credentials of this session are revoked")
	}
}

// live returns how the source is fetched, or nil for the plain sources.
func (s Source) live(lookup func(string) (string, bool)) *live {
	set := 0
	for _, is := range []bool{s.Env != "", s.File != "", len(s.Command) > 0, s.Keyring != "", s.AWS != "", s.Google != "", s.Azure != ""} {
		if is {
			set++
		}
	}
	l := &live{now: time.Now}
	switch {
	case s.AWS == "" && s.Google == "" && s.Azure == "":
		return nil
	case set != 1 || s.Name == "":
		l.fetch = func(context.Context) (fetched, *sourceError) {
			return fetched{}, broken("give it exactly one source", "it has %d sources", set)
		}
	case s.AWS != "":
		l.fetch = func(ctx context.Context) (fetched, *sourceError) { return fetchAWS(ctx, s.AWS, lookup) }
	case s.Google != "":
		l.fetch = func(ctx context.Context) (fetched, *sourceError) {
			return fetchGoogle(ctx, lookup, s.Post, l.now())
		}
	default:
		l.fetch = func(ctx context.Context) (fetched, *sourceError) {
			return fetchAzure(ctx, s.Azure, lookup, s.Post, l.now())
		}
	}
	return l
}
