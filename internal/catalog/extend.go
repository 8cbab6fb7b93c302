package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// Parse reads one service file. Errors have file:line:column, all at once.
func Parse(file string, data []byte) (s *Service, err error) {
	defer func() {
		if r := recover(); r != nil { // the YAML library on malformed input
			s, err = nil, fmt.Errorf("%s: not YAML: %v", file, r)
		}
	}()
	return parseService(file, data)
}

// Extra is a service file of the user's own.
type Extra struct {
	Name string `json:"name"` // of the service
	File string `json:"file"` // for messages
	Data []byte `json:"data"`
}

// With returns a catalogue that has the services of extra as well. One that is
// called like a service of c, or unlike its file, is an error: reviewed data is
// never replaced. Errors are reported all at once.
func (c *Catalog) With(extra []Extra) (*Catalog, error) {
	if len(extra) == 0 {
		return c, nil
	}
	out := &Catalog{fsys: c.fsys, names: slices.Clone(c.names), services: map[string]*lazyService{}}
	for name, l := range c.services {
		out.services[name] = l
	}
	var errs []error
	for _, x := range extra {
		s, err := Parse(x.File, x.Data)
		switch {
		case err != nil:
			errs = append(errs, err)
			continue
		case s.Name != x.Name:
			errs = append(errs, fmt.Errorf("%s: the service is called %q, unlike its file", x.File, s.Name))
			continue
		case out.services[x.Name] != nil:
			errs = append(errs, fmt.Errorf("%s: %q is a service of Bulkhead's own catalogue; call yours by another name", x.File, x.Name))
			continue
		}
		l := &lazyService{}
		l.once.Do(func() { l.svc = s })
		out.services[x.Name] = l
		out.names = append(out.names, x.Name)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	slices.Sort(out.names)
	return out, nil
}

// File is where the service was read from.
func (s *Service) File() string { return s.file }

// Source returns the text of a service of the embedded catalogue.
func (c *Catalog) Source(name string) ([]byte, error) {
	if c == nil || c.services[name] == nil || strings.ContainsAny(name, "/\\") {
		return nil, fmt.Errorf("catalogue: no service %q", name)
	}
	return fs.ReadFile(c.fsys, name+".yaml")
}

// Requests are the match lines of the operation, as its file writes them.
func (op Operation) Requests() []string { return op.lines }

// BodyKind says what becomes of a body: "" (none is expected), "none" (refused),
// "any" (let through unread), or the kind by which it is read.
func (s *Service) BodyKind(op Operation) string {
	if b := s.bodies[op.body]; b != nil {
		return b.kind
	}
	return op.body
}
