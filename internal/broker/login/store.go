package login

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/secret"
)

var (
	errNone   = errors.New("there is no login")
	errLocked = errors.New("another program is refreshing it and does not finish")
)

// Host is what a login sees of the host. All of it belongs to the user.
type Host struct {
	Home   string
	Lookup func(string) (string, bool)
	// Keyring reads an entry; a missing one is "", nil. Store writes one.
	Keyring func(ctx context.Context, service, user string) (string, error)
	Store   func(ctx context.Context, service, user, value string) error
}

// tokens are a login as it is at a moment.
type tokens struct {
	access, refresh secret.Value
	id              string // claims are read from it; shown to nobody
	expires         time.Time
	scope           string
	account         Account
	doc             map[string]any // without the tokens: what may be kept inside
	from            *place
}

func (t *tokens) wipe() {
	t.access.Wipe()
	t.refresh.Wipe()
}

// place is a store, resolved on this host.
type place struct {
	Store
	folder, path string
}

func (p *place) String() string {
	if p.Keyring != "" {
		return "keyring entry " + p.Keyring
	}
	return p.path
}

func (s *Spec) places(h Host) []*place {
	var out []*place
	for _, st := range s.Stores {
		p := &place{Store: st}
		p.folder = expand(st.Folder, h.Home)
		if v, ok := h.Lookup(st.Env); ok && st.Env != "" && filepath.IsAbs(v) {
			p.folder = filepath.Clean(v)
		}
		if st.File != "" {
			p.path = filepath.Join(p.folder, st.File)
		}
		if strings.Contains(p.User, "{folder-hash}") {
			real, err := filepath.EvalSymlinks(p.folder)
			if err != nil {
				real = p.folder
			}
			sum := sha256.Sum256([]byte(real))
			p.User = strings.ReplaceAll(p.User, "{folder-hash}", hex.EncodeToString(sum[:])[:16])
		}
		out = append(out, p)
	}
	return out
}

func expand(name, home string) string {
	if rest, ok := strings.CutPrefix(name, "~/"); ok {
		return filepath.Join(home, rest)
	}
	return name
}

// read returns what the store holds; errNone if there is nothing.
func (p *place) read(ctx context.Context, h Host) ([]byte, error) {
	if p.Keyring != "" {
		if h.Keyring == nil {
			return nil, errNone
		}
		v, err := h.Keyring(ctx, p.Keyring, p.User)
		if err == nil && v == "" {
			err = errNone
		}
		return []byte(v), err
	}
	return readRegular(p.path)
}

func readRegular(name string) ([]byte, error) { return readAtMost(name, maxDocument) }

func readAtMost(name string, limit int64) ([]byte, error) {
	// O_NONBLOCK: a FIFO in its place must not hang the start.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNone
	}
	if err != nil {
		return nil, fmt.Errorf("%s can't be read", name)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil || int64(len(b)) > limit {
		return nil, fmt.Errorf("%s can't be read, or holds more than %d KiB", name, limit>>10)
	}
	return b, nil
}

// load reads the login from the first store that has one.
func (l *Login) load(ctx context.Context) (tokens, error) {
	var broken error
	for _, p := range l.spec.places(l.host) {
		data, err := p.read(ctx, l.host)
		if errors.Is(err, errNone) {
			continue
		}
		if err == nil {
			var t tokens
			t, err = l.decode(p, data)
			clear(data)
			if err == nil {
				t.from = p
				return t, nil
			}
			if errors.Is(err, errNone) {
				continue
			}
			err = fmt.Errorf("%s: %w", p, err)
		}
		if broken == nil {
			broken = err
		}
	}
	if broken != nil {
		return tokens{}, broken
	}
	return tokens{}, errNone
}

func (l *Login) decode(p *place, data []byte) (tokens, error) {
	if l.spec.Format == "gh" {
		return decodeGH(p, data)
	}
	var t tokens
	doc, err := object(data)
	if err != nil {
		return t, err
	}
	at := l.spec.At
	access, refresh := text(doc, at.Access), text(doc, at.Refresh)
	if access == "" && refresh == "" {
		return t, errNone
	}
	if err := checkToken("access token", access); err != nil {
		return t, err
	}
	if refresh != "" {
		if err := checkToken("refresh token", refresh); err != nil {
			return t, err
		}
	}
	t.access, t.refresh = secret.New([]byte(access)), secret.New([]byte(refresh))
	t.id, t.scope = text(doc, at.ID), scopeText(lookupPlace(doc, at.Scope))
	t.expires = expiryOf(access)
	if ms, ok := seconds(lookupPlace(doc, at.ExpiresMS)); ok && ms > 0 {
		t.expires = time.UnixMilli(ms)
	}
	t.account = l.accountOf(claims(t.id), nil, text(doc, at.Account))
	for _, place := range []Place{at.Access, at.Refresh, at.ID} {
		if len(place) > 0 {
			setPlace(doc, place, nil)
		}
	}
	t.doc = doc
	return t, nil
}

// encode puts new tokens into what the store holds now.
func (l *Login) encode(p *place, old []byte, t tokens, now time.Time) ([]byte, error) {
	if l.spec.Format == "gh" && p.Keyring != "" {
		return []byte(string(t.access.Reveal())), nil
	}
	if l.spec.Format == "gh" {
		return encodeGH(old, t)
	}
	if len(bytes.TrimSpace(old)) == 0 {
		old = []byte("{}")
	}
	at := l.spec.At
	out := old
	var err error
	put := func(place Place, v any) {
		if err == nil && len(place) > 0 {
			out, err = splice(out, place, v)
		}
	}
	put(at.Access, string(t.access.Reveal()))
	if !t.refresh.Empty() {
		put(at.Refresh, string(t.refresh.Reveal()))
	}
	if t.id != "" {
		put(at.ID, t.id)
	}
	if !t.expires.IsZero() {
		put(at.ExpiresMS, t.expires.UnixMilli())
	}
	put(at.Refreshed, now.UTC().Format(time.RFC3339Nano))
	if t.scope != "" && len(at.Scope) > 0 {
		doc, derr := object(out)
		if _, list := lookupPlace(doc, at.Scope).([]any); derr == nil && (list || lookupPlace(doc, at.Scope) == nil && l.scopeIsList()) {
			put(at.Scope, strings.Fields(t.scope))
		} else {
			put(at.Scope, t.scope)
		}
	}
	if t.account.ID != nil && len(at.Account) > 0 && t.account.File != "" {
		put(at.Account, t.account.File)
	}
	return out, err
}

// scopeIsList: a file with an expiry in milliseconds and a list of scopes is
// JavaScript's; Google's has one text.
func (l *Login) scopeIsList() bool { return len(l.spec.At.Scope) > 1 }

// writer is a new version of a store that only has to be filled in and put in
// place: what can fail has failed before a token is spent.
type writer struct {
	l    *Login
	p    *place
	tmp  *os.File
	real string
}

func (l *Login) prepare(p *place) (*writer, error) {
	w := &writer{l: l, p: p}
	if p.Keyring != "" {
		if l.host.Store == nil {
			return nil, errors.New("the keyring can't be written")
		}
		return w, nil
	}
	w.real = p.path
	if r, err := filepath.EvalSymlinks(p.path); err == nil {
		w.real = r // a link stays a link
	} else if err := os.MkdirAll(filepath.Dir(p.path), 0o700); err != nil {
		return nil, fmt.Errorf("%s can't be made", filepath.Dir(p.path))
	}
	tmp, err := os.CreateTemp(filepath.Dir(w.real), ".bulkhead-login-*") // 0600
	if err != nil {
		return nil, fmt.Errorf("nothing can be written to %s", filepath.Dir(w.real))
	}
	w.tmp = tmp
	if st, err := os.Stat(w.real); err == nil {
		if err = tmp.Chmod(st.Mode().Perm() &^ 0o077); err == nil {
			err = likeOriginal(tmp, st)
		}
		if err != nil {
			w.discard()
			return nil, fmt.Errorf("%s can't be replaced", w.real)
		}
	}
	return w, nil
}

func (w *writer) discard() {
	if w.tmp != nil {
		w.tmp.Close()
		os.Remove(w.tmp.Name())
		w.tmp = nil
	}
}

func (w *writer) commit(ctx context.Context, t tokens) error {
	defer w.discard()
	old, err := w.p.read(ctx, w.l.host)
	if err != nil && !errors.Is(err, errNone) {
		return err
	}
	data, err := w.l.encode(w.p, old, t, time.Now())
	clear(old)
	if err != nil {
		return fmt.Errorf("%s: %w", w.p, err)
	}
	defer clear(data)
	if w.p.Keyring != "" {
		// GitHub CLI keeps the active user's token a second time, under his name.
		if name := t.account.Name; w.l.spec.Format == "gh" && name != "" {
			if own, err := w.l.host.Keyring(ctx, w.p.Keyring, name); err == nil && own != "" {
				if err := w.l.host.Store(ctx, w.p.Keyring, name, string(data)); err != nil {
					return err
				}
			}
		}
		return w.l.host.Store(ctx, w.p.Keyring, w.p.User, string(data))
	}
	if _, err := w.tmp.Write(data); err != nil {
		return fmt.Errorf("%s can't be written", w.p.path)
	}
	if err := w.tmp.Sync(); err != nil {
		return fmt.Errorf("%s can't be written", w.p.path)
	}
	if err := os.Rename(w.tmp.Name(), w.real); err != nil {
		return fmt.Errorf("%s can't be replaced", w.p.path)
	}
	w.tmp.Close()
	w.tmp = nil
	return nil
}

// lock takes our own lock and those of the program itself.
func (l *Login) lock(ctx context.Context, p *place) (release func(), err error) {
	var held []func()
	undo := func() {
		for i := len(held) - 1; i >= 0; i-- {
			held[i]()
		}
	}
	dir := p.folder
	if dir == "" {
		return undo, nil
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("%s can't be made", dir)
		}
	}
	free, err := lockFolder(ctx, dir)
	if err != nil {
		if errors.Is(err, errLocked) {
			return nil, err
		}
		return nil, fmt.Errorf("%s can't be locked", dir)
	}
	held = append(held, free)
	for _, name := range p.Locks {
		at := filepath.Join(dir, name)
		if name == "*.lock" {
			real, err := filepath.EvalSymlinks(dir)
			if err != nil {
				real = dir
			}
			at = real + ".lock"
		}
		free, err := lockNode(ctx, at)
		if err != nil {
			undo()
			return nil, err
		}
		held = append(held, free)
	}
	return undo, nil
}

// staleAfter is proper-lockfile's, as Claude Code sets it.
const staleAfter = 10 * time.Second

// lockNode takes a lock of npm's proper-lockfile: a folder whose time is
// renewed while it is held.
func lockNode(ctx context.Context, at string) (release func(), err error) {
	for {
		err := os.Mkdir(at, 0o700)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("%s can't be made", at)
		}
		if st, err := os.Stat(at); err == nil && time.Since(st.ModTime()) > staleAfter {
			os.Remove(at)
			continue
		}
		select {
		case <-ctx.Done():
			return nil, errLocked
		case <-time.After(100 * time.Millisecond):
		}
	}
	stop := make(chan struct{})
	go func() {
		tick := time.NewTicker(staleAfter / 4)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case now := <-tick.C:
				os.Chtimes(at, now, now)
			}
		}
	}()
	return func() { close(stop); os.Remove(at) }, nil
}

// ghHost is the part of a hosts.yml that matters here (GitHub CLI's
// internal/config): the active user's token stands directly below the host, or
// in the keyring under an empty user.
const ghHost = "github.com"

func decodeGH(p *place, data []byte) (tokens, error) {
	if p.Keyring != "" {
		token := strings.TrimSpace(string(data))
		if err := checkToken("access token", token); err != nil {
			return tokens{}, err
		}
		t := tokens{access: secret.New([]byte(token))}
		// The account stands in the file even if the token does not.
		if data, err := readRegular(filepath.Join(p.folder, "hosts.yml")); err == nil {
			if user := ghUser(data); user != "" {
				t.account = Account{ID: []string{user}, Name: user}
			}
		}
		return t, nil
	}
	var hosts map[string]struct {
		User  string `yaml:"user"`
		Token string `yaml:"oauth_token"`
	}
	if err := yaml.Unmarshal(data, &hosts); err != nil {
		return tokens{}, errors.New("not a YAML file of hosts")
	}
	h := hosts[ghHost]
	if h.Token == "" {
		return tokens{}, errNone
	}
	if err := checkToken("access token", h.Token); err != nil {
		return tokens{}, err
	}
	t := tokens{access: secret.New([]byte(h.Token))}
	if h.User != "" {
		t.account = Account{ID: []string{h.User}, Name: h.User}
	}
	return t, nil
}

// ghUser is the active user that a hosts.yml names, tokens or not.
func ghUser(data []byte) string {
	var hosts map[string]struct {
		User string `yaml:"user"`
	}
	if yaml.Unmarshal(data, &hosts) != nil {
		return ""
	}
	return hosts[ghHost].User
}

func encodeGH(old []byte, t tokens) ([]byte, error) {
	var root yaml.Node
	if len(bytes.TrimSpace(old)) > 0 {
		if err := yaml.Unmarshal(old, &root); err != nil {
			return nil, errors.New("not a YAML file of hosts")
		}
	}
	if len(root.Content) == 0 || root.Content[0].Kind != yaml.MappingNode {
		root = yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{{Kind: yaml.MappingNode}}}
	}
	host := yamlChild(root.Content[0], ghHost, yaml.MappingNode)
	token := string(t.access.Reveal())
	yamlChild(host, "oauth_token", yaml.ScalarNode).SetString(token)
	if name := t.account.Name; name != "" {
		yamlChild(host, "user", yaml.ScalarNode).SetString(name)
		users := yamlChild(host, "users", yaml.MappingNode)
		yamlChild(yamlChild(users, name, yaml.MappingNode), "oauth_token", yaml.ScalarNode).SetString(token)
	}
	return yaml.Marshal(&root)
}

func yamlChild(m *yaml.Node, key string, kind yaml.Kind) *yaml.Node {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			if m.Content[i+1].Kind != kind {
				*m.Content[i+1] = yaml.Node{Kind: kind}
			}
			return m.Content[i+1]
		}
	}
	v := &yaml.Node{Kind: kind}
	m.Content = append(m.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, v)
	return v
}
