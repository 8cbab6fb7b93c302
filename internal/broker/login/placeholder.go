package login

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
)

// lifetime is what the sandbox is told that a token is good for. The real one
// is refreshed on the host whenever it has to be, so that nothing inside needs
// to know about its end.
const lifetime = 30 * 24 * time.Hour

// jwtLifetime is that of placeholders which a program decodes.
const jwtLifetime = 10 * 365 * 24 * time.Hour

func (l *Login) placeholders(random io.Reader) error {
	in := l.spec.Inside
	make := func(shape string) string {
		switch shape {
		case "":
			return ""
		case "jwt":
			return l.jwt(random)
		}
		return catalog.Shape(shape).New(random)
	}
	l.accessPH, l.refreshPH = make(in.Access), make(in.Refresh)
	if len(l.spec.At.ID) > 0 {
		l.idPH = l.jwt(random)
	}
	if l.spec.Endpoint.Device != "" {
		l.devicePH = catalog.Shape("{hex:40}").New(random)
	}
	if l.accessPH == "" {
		return errors.New("no randomness for a placeholder")
	}
	return nil
}

// jwt is a token of the right shape that nobody signed. It tells which account
// and plan the host's login has, which programs show, and nothing else.
func (l *Login) jwt(random io.Reader) string {
	now := l.opts.Now()
	payload := map[string]any{"iat": now.Unix(), "exp": now.Add(jwtLifetime).Unix(), "jti": catalog.Shape("{hex:32}").New(random)}
	real := claims(l.have.id)
	if real == nil {
		real = claims(string(l.have.access.Reveal()))
	}
	for _, at := range l.spec.Inside.Claims {
		if v, ok := harmless(lookupPlace(real, at), l.isReal); ok && v != nil {
			setPlace(payload, at, v)
		}
	}
	body, err := json.Marshal(payload)
	if err != nil {
		return ""
	}
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"RS256","typ":"JWT","kid":"placeholder"}`)) + "." + enc(body) + "." + catalog.Shape("{base64url:86}").New(random)
}

// isReal reports whether a text holds one of the real tokens.
func (l *Login) isReal(s string) bool {
	for _, t := range []string{string(l.have.access.Reveal()), string(l.have.refresh.Reveal()), l.have.id} {
		if t != "" && strings.Contains(s, t) {
			return true
		}
	}
	return false
}

// File is one to stand inside, mode 0600.
type File struct {
	Path string // begins with "~/": the home inside
	Data []byte
}

// Files are what the program finds inside. There are none while the host has no
// login: the program is to see that it is not logged in.
func (l *Login) Files() []File {
	l.mu.Lock()
	defer l.mu.Unlock()
	in := l.spec.Inside
	if in.File == "" || l.have.access.Empty() {
		return nil
	}
	doc := map[string]any{}
	for k, v := range in.Also {
		doc[k] = v
	}
	for _, at := range in.Keep {
		if v, ok := harmless(lookupPlace(l.have.doc, at), l.isReal); ok && v != nil {
			setPlace(doc, at, v)
		}
	}
	at, now := l.spec.At, l.opts.Now()
	setPlace(doc, at.Access, l.accessPH)
	if len(at.Refresh) > 0 && l.refreshPH != "" {
		setPlace(doc, at.Refresh, l.refreshPH)
	}
	if len(at.ID) > 0 {
		setPlace(doc, at.ID, l.idPH)
	}
	if len(at.ExpiresMS) > 0 {
		setPlace(doc, at.ExpiresMS, now.Add(lifetime).UnixMilli())
	}
	if len(at.Refreshed) > 0 {
		setPlace(doc, at.Refreshed, now.UTC().Format(time.RFC3339))
	}
	if v := lookupPlace(l.have.doc, at.Scope); v != nil {
		if v, ok := harmless(v, l.isReal); ok {
			setPlace(doc, at.Scope, v)
		}
	}
	data, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil
	}
	files := []File{{in.File, append(data, '\n')}}
	for _, path := range slices.Sorted(maps.Keys(in.With)) {
		files = append(files, File{path, []byte(in.With[path])})
	}
	return files
}

// Env are the variables inside.
func (l *Login) Env() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	env := map[string]string{}
	for k, v := range l.spec.Inside.Env {
		env[k] = v
	}
	if !l.have.access.Empty() {
		for _, name := range l.spec.Inside.TokenEnv {
			env[name] = l.accessPH
		}
	}
	return env
}
