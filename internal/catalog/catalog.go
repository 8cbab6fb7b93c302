// Package catalog says what a canonical request means: which operation of
// which service it is, on which resource, with which server-side features, and
// where a credential may stand in it.
//
// It is pure: services come from an fs.FS of YAML files (the embedded ones by
// Default), requests come in already canonical, and nothing is opened, dialled
// or logged. The controller uses it to compile policies and to make
// placeholders; the gateway uses it for every request. Sizes are bytes.
//
// A service file is strict: unknown and duplicate keys, anchors, a second
// document, two operations that one request could match, and features that no
// operation declares are errors with file:line:column. Whatever a request has
// that its service file doesn't list (a path, a body field, a kind of tool, a
// beta) is never part of an ordinary operation.
//
// Known holes: only top-level fields and every "type" of an inspected body are
// checked against lists, not its whole schema; bodies of operations with
// "body: any" and files inside of multipart bodies are not read.
package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// Request is one request in canonical form.
type Request struct {
	// Scheme is "https", "http" or "ssh".
	Scheme string
	Host   hostport.Host
	Port   hostport.Port
	// Method is HTTP's; MethodWebSocket for a WebSocket handshake, whichever way
	// it is asked for; for ssh the git command in capitals (GIT-UPLOAD-PACK).
	Method string
	// Path is decoded once, starts with "/", and CheckPath accepts it, except
	// that an escaped slash stays as "%2F" where EscapedSlash allows it.
	Path   string
	Query  url.Values
	Header http.Header
	// HasBody says that a body follows, whether or not it is in Body.
	HasBody bool
	// Body holds what Need asked for, else nothing.
	Body []byte
}

// MethodWebSocket is the pseudo-method of a WebSocket handshake, which is a GET
// on the wire. No plain GET is one, and none is a plain GET.
const MethodWebSocket = "WEBSOCKET"

// Endpoint is where a service answers.
type Endpoint struct {
	Host   HostPattern
	Port   hostport.Port
	Scheme string // "https", "http" or "ssh"
	User   string // of ssh, as in git@
}

// Service is one entry of the catalogue. It is immutable.
type Service struct {
	Name        string
	Description string
	Endpoints   []Endpoint
	// Credential is nil for a service that takes none.
	Credential *CredentialSpec
	Operations []Operation

	file           string
	sets           map[string][]string
	routes         []route
	bodies         map[string]*bodySpec
	headers        []headerRule
	requestHeaders []string
	publicKeys     []publicKey
	query          []string // nil: open
	tokens         []tokenPlace
	whenHeaders    []string
	byName         map[string]int

	exact    map[routeKey][]*route
	captured []*route
}

// CredentialSpec says how a service's credential looks and where it stands.
type CredentialSpec struct {
	// Env are the variables that carry it, the usual one first.
	Env []string
	// Placeholder is the shape of the usual form.
	Placeholder Shape
	// Slots are the only places where the placeholder may stand.
	Slots []Slot
	// Required says that the service answers nothing useful without it.
	Required bool
	// Sign is how the credential shows that it is there: "" by standing in its
	// slot, SignAWS4 by a signature in it.
	Sign string

	shapes map[string]Shape
	// together: all of Env hold it.
	together bool
}

// EnvFor lists the variables that should hold the placeholder when the real
// credential came from the variable source ("" if it came from elsewhere):
// that one alone if the service knows it, else the usual one. Setting several
// forms at once confuses clients, except where the service's file says that
// they are one (env-together).
func (c *CredentialSpec) EnvFor(source string) []string {
	if c == nil || len(c.Env) == 0 {
		return nil
	}
	if c.together {
		return slices.Clone(c.Env)
	}
	if slices.Contains(c.Env, source) {
		return []string{source}
	}
	return c.Env[:1]
}

// ShapeFor is the placeholder's shape in the given variable.
func (c *CredentialSpec) ShapeFor(env string) Shape {
	if c == nil {
		return ""
	}
	if s, ok := c.shapes[env]; ok {
		return s
	}
	return c.Placeholder
}

// Operation is something a grant can name.
type Operation struct {
	Name string
	// Aliases are other names that a grant may use for the same thing.
	Aliases []string
	// Allows and DoesNot are one sentence each, for a person who decides.
	Allows  string
	DoesNot string
	// FeatureOf names the operations whose requests can use this feature; an
	// operation with it set is never a request of its own.
	FeatureOf []string
	// ResourceTemplate is like "{owner}/{repo}"; empty if there are no resources.
	ResourceTemplate string
	// NeedsResources makes a grant without resources an error.
	NeedsResources bool
	// SignedURLs: the host authenticates downloads by a signature in the query,
	// which the service itself handed out; such query keys are no credential.
	SignedURLs bool
	// SignedBy are further places where such a signature stands.
	SignedBy []Slot
	// CredentialRequired: a request without credential is refused.
	CredentialRequired bool
	// WebSocket: the operation is a WebSocket handshake and what follows it.
	WebSocket bool
	// Subprotocols are the globs that each offered one must match, besides
	// credential slots; nil: none may be offered.
	Subprotocols []string
	// Refs: resources may name refs, as in "owner/repo@refs/heads/x".
	Refs bool
	// Via names the operations that a grant for this feature grants as well, for
	// requests that use only features granted so.
	Via []string
	// Uses lists the features that one request needs besides the operation, and
	// Credentials what its body holds of them. Only Identify fills them, in the
	// operation that it returns.
	Uses        []Use
	Credentials []Found

	lines      []string // under match:
	body       string   // section, "none", "any" or "" (no line that could have one)
	bodyLimit  int
	messages   string
	query      []string
	when       []condition
	resourceAt []string
	except     []string
	fold       bool
	template   []string // names in ResourceTemplate
	wide       bool     // see wide.go
	path       bool     // {name:path}: the last name may have slashes
}

// Use is one feature found in a request.
type Use struct {
	Operation string // the feature's operation; "" if the catalogue has none for it
	Where     string // the place that asks for it, never its value
	// Resource is what the use is about where that isn't the request's resource:
	// of a push "owner/repo@refs/heads/x", else the value at resource-at.
	Resource string
	// Own: the use has a resource of its own, even if it is "".
	Own bool
}

// Errors that Identify's callers tell apart with errors.Is.
var (
	// ErrUnknownOperation: the service has no operation for this request.
	ErrUnknownOperation = errors.New("unknown operation")
	// ErrQuery: the operation takes no such query key. It is an unknown operation.
	ErrQuery = fmt.Errorf("%w: query key", ErrUnknownOperation)
	// ErrBadBody: an inspected body is not in the one form that can be judged.
	ErrBadBody = errors.New("body refused")
)

// Catalog is a set of services. Safe for concurrent use.
type Catalog struct {
	fsys     fs.FS
	names    []string
	services map[string]*lazyService
}

type lazyService struct {
	once sync.Once
	svc  *Service
	err  error
}

// Load reads every service of fsys ("*.yaml" at the root or below "services")
// and reports all errors at once.
func Load(fsys fs.FS) (*Catalog, error) {
	c, err := open(fsys)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, name := range c.names {
		if _, err := c.load(name); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return c, nil
}

// Default is the embedded catalogue. A service is parsed when it is first
// asked for; a broken one is as if it weren't there (and fails the tests).
func Default() *Catalog { return defaultCatalog() }

var defaultCatalog = sync.OnceValue(func() *Catalog {
	c, err := open(catalogdata.Services)
	if err != nil {
		return &Catalog{}
	}
	return c
})

func open(fsys fs.FS) (*Catalog, error) {
	if sub, err := fs.Sub(fsys, "services"); err == nil {
		if _, err := fs.Stat(sub, "."); err == nil {
			fsys = sub
		}
	}
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return nil, fmt.Errorf("catalogue: %w", err)
	}
	c := &Catalog{fsys: fsys, services: map[string]*lazyService{}}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".yaml"); ok && !e.IsDir() {
			c.names = append(c.names, name)
			c.services[name] = new(lazyService)
		}
	}
	slices.Sort(c.names)
	return c, nil
}

// Names lists the services in alphabetical order.
func (c *Catalog) Names() []string {
	if c == nil {
		return nil
	}
	return slices.Clone(c.names)
}

// Service returns the named service.
func (c *Catalog) Service(name string) (*Service, bool) {
	s, err := c.load(name)
	return s, err == nil
}

func (c *Catalog) load(name string) (*Service, error) {
	if c == nil || c.services[name] == nil {
		return nil, fmt.Errorf("catalogue: no service %q", name)
	}
	l := c.services[name]
	l.once.Do(func() {
		file := path.Join("catalog/services", name+".yaml")
		data, err := fs.ReadFile(c.fsys, name+".yaml")
		if err != nil {
			l.err = fmt.Errorf("catalogue: %w", err)
			return
		}
		l.svc, l.err = parseService(file, data)
		if l.err == nil && l.svc.Name != name {
			l.svc, l.err = nil, fmt.Errorf("%s: service is called %q, unlike its file", file, l.svc.Name)
		}
	})
	return l.svc, l.err
}

// Operation returns the operation with this name or alias.
func (s *Service) Operation(name string) (Operation, bool) {
	i, ok := s.byName[name]
	if !ok {
		return Operation{}, false
	}
	return s.Operations[i], true
}

// HasHost reports whether the service answers at this destination.
func (s *Service) HasHost(scheme string, host hostport.Host, port hostport.Port) bool {
	for i := range s.Endpoints {
		if e := &s.Endpoints[i]; e.Port == port && e.Scheme == scheme && e.Host.Match(host) {
			return true
		}
	}
	return false
}
