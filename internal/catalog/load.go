package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// reader decodes one service file strictly and collects all errors.
type reader struct {
	file string
	errs []error
}

func (d *reader) fail(n *yaml.Node, format string, args ...any) {
	d.errs = append(d.errs, fmt.Errorf("%s:%d:%d: %s", d.file, n.Line, n.Column, fmt.Sprintf(format, args...)))
}

// fields walks a mapping; a key without a function is an error.
func (d *reader) fields(n *yaml.Node, known map[string]func(*yaml.Node)) {
	d.each(n, func(key, value *yaml.Node) {
		if f := known[key.Value]; f != nil {
			f(value)
		} else {
			d.fail(key, "unknown key %q", key.Value)
		}
	})
}

func (d *reader) each(n *yaml.Node, f func(key, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode || n.Anchor != "" {
		d.fail(n, "expected a mapping")
		return
	}
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind != yaml.ScalarNode || k.ShortTag() == "!!merge" {
			d.fail(k, "expected a plain key")
			continue
		}
		if seen[k.Value] {
			d.fail(k, "%q occurs twice", k.Value)
			continue
		}
		seen[k.Value] = true
		f(k, n.Content[i+1])
	}
}

func (d *reader) str(to *string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" || n.Anchor != "" || n.Value == "" {
			d.fail(n, "expected a text")
			return
		}
		*to = n.Value
	}
}

func (d *reader) boolean(to *bool) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.Kind != yaml.ScalarNode || n.Value != "true" && n.Value != "false" {
			d.fail(n, "expected true or false")
			return
		}
		*to = n.Value == "true"
	}
}

func (d *reader) items(n *yaml.Node, f func(*yaml.Node)) {
	if n.Kind != yaml.SequenceNode || n.Anchor != "" || len(n.Content) == 0 {
		d.fail(n, "expected a list")
		return
	}
	for _, c := range n.Content {
		f(c)
	}
}

func (d *reader) list(to *[]string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		d.items(n, func(c *yaml.Node) {
			var s string
			d.str(&s)(c)
			if s != "" && slices.Contains(*to, s) {
				d.fail(c, "%q occurs twice", s)
			}
			*to = append(*to, s)
		})
	}
}

// bytes accepts 1024, 64KiB and 32MiB.
func (d *reader) bytes(to *int) func(*yaml.Node) {
	return func(n *yaml.Node) {
		num, unit := n.Value, 1
		if v, ok := strings.CutSuffix(num, "MiB"); ok {
			num, unit = v, 1<<20
		} else if v, ok := strings.CutSuffix(num, "KiB"); ok {
			num, unit = v, 1<<10
		}
		v, err := strconv.Atoi(num)
		if n.Kind != yaml.ScalarNode || err != nil || v < 1 || v > 1<<30/unit {
			d.fail(n, "expected a size such as 32MiB")
			return
		}
		*to = v * unit
	}
}

// globs accepts a literal with a * at its end or without.
func (d *reader) globs(to *[]string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		d.list(to)(n)
		for _, g := range *to {
			if strings.Contains(strings.TrimSuffix(g, "*"), "*") {
				d.fail(n, "%q has a * before its end", g)
			}
		}
	}
}

func parseService(file string, data []byte) (*Service, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: more than one document", file)
	}
	d := &reader{file: file}
	s := &Service{file: file, sets: map[string][]string{}, bodies: map[string]*bodySpec{}, byName: map[string]int{}}
	s.read(d, doc.Content[0])
	if len(d.errs) == 0 {
		s.check(d, doc.Content[0])
	}
	if err := errors.Join(d.errs...); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Service) read(d *reader, n *yaml.Node) {
	d.fields(n, map[string]func(*yaml.Node){
		"service":     d.str(&s.Name),
		"description": d.str(&s.Description),
		"hosts":       func(n *yaml.Node) { d.items(n, func(c *yaml.Node) { s.readHost(d, c) }) },
		"credential":  func(n *yaml.Node) { s.readCredential(d, n) },
		"headers":     func(n *yaml.Node) { d.items(n, func(c *yaml.Node) { s.readHeader(d, c) }) },
		"sets": func(n *yaml.Node) {
			d.each(n, func(k, v *yaml.Node) {
				var names []string
				d.list(&names)(v)
				s.sets[k.Value] = names
			})
		},
		"bodies": func(n *yaml.Node) {
			d.each(n, func(k, v *yaml.Node) { s.readBody(d, k.Value, v) })
		},
		"operations": func(n *yaml.Node) {
			d.each(n, func(k, v *yaml.Node) { s.readOperation(d, k, v) })
		},
	})
	if s.Name == "" || s.Description == "" || len(s.Endpoints) == 0 || len(s.Operations) == 0 {
		d.fail(n, "service, description, hosts and operations are all needed")
	}
}

// readHost reads "name" (https, 443), "name:port" or "http://name[:port]".
func (s *Service) readHost(d *reader, n *yaml.Node) {
	var text string
	d.str(&text)(n)
	if text == "" {
		return
	}
	e := Endpoint{Scheme: "https", Port: 443}
	if rest, ok := strings.CutPrefix(text, "http://"); ok {
		text, e.Scheme, e.Port = rest, "http", 80
	}
	name, port, ok := strings.Cut(text, ":")
	var err error
	if ok {
		if e.Port, err = hostport.ParsePort(port); err != nil {
			d.fail(n, "%v", err)
		}
	}
	if e.Host, err = hostport.ParseHost(name); err != nil {
		d.fail(n, "%v", err)
		return
	}
	for _, o := range s.Endpoints {
		if o.Host == e.Host && o.Port == e.Port {
			d.fail(n, "%s is listed twice", text)
		}
	}
	s.Endpoints = append(s.Endpoints, e)
}

func (s *Service) readCredential(d *reader, n *yaml.Node) {
	c := &CredentialSpec{shapes: map[string]Shape{}}
	shape := func(to *Shape) func(*yaml.Node) {
		return func(n *yaml.Node) {
			d.str((*string)(to))(n)
			if err := to.check(); err != nil {
				d.fail(n, "placeholder %v", err)
			}
		}
	}
	d.fields(n, map[string]func(*yaml.Node){
		"env":         d.list(&c.Env),
		"required":    d.boolean(&c.Required),
		"placeholder": shape(&c.Placeholder),
		"placeholders": func(n *yaml.Node) {
			d.each(n, func(k, v *yaml.Node) {
				var sh Shape
				shape(&sh)(v)
				c.shapes[k.Value] = sh
			})
		},
		"slots": func(n *yaml.Node) {
			d.items(n, func(m *yaml.Node) {
				var slot Slot
				d.fields(m, map[string]func(*yaml.Node){
					"header": d.str(&slot.Header), "scheme": d.str(&slot.Scheme), "query": d.str(&slot.Query),
				})
				if (slot.Header == "") == (slot.Query == "") || slot.Query != "" && slot.Scheme != "" {
					d.fail(m, "a slot is a header (with a scheme) or a query key")
				}
				if slot.Header != http.CanonicalHeaderKey(slot.Header) {
					d.fail(m, "write the header as %s", http.CanonicalHeaderKey(slot.Header))
				}
				c.Slots = append(c.Slots, slot)
			})
		},
	})
	if len(c.Env) == 0 || c.Placeholder == "" || len(c.Slots) == 0 {
		d.fail(n, "env, placeholder and slots are all needed")
	}
	for env := range c.shapes {
		if !slices.Contains(c.Env, env) {
			d.fail(n, "%s has a placeholder but is not in env", env)
		}
	}
	s.Credential = c
}

func (s *Service) readHeader(d *reader, n *yaml.Node) {
	var h headerRule
	d.fields(n, map[string]func(*yaml.Node){
		"name": d.str(&h.name),
		"pass": d.globs(&h.pass),
		"needs": func(n *yaml.Node) {
			d.items(n, func(m *yaml.Node) {
				var need headerNeed
				d.fields(m, map[string]func(*yaml.Node){"is": d.globs(&need.globs), "any-of": d.list(&need.anyOf)})
				h.needs = append(h.needs, need)
			})
		},
	})
	if h.name == "" || h.name != http.CanonicalHeaderKey(h.name) {
		d.fail(n, "a header needs its canonical name")
	}
	s.headers = append(s.headers, h)
}

func place(s string) []string { return strings.Split(s, ".") }

// readBody reads a body section. "like" and "at" put the places of another
// section below a key, for requests that carry other requests.
func (s *Service) readBody(d *reader, name string, n *yaml.Node) {
	b := &bodySpec{rules: map[string][]bodyRule{}, opaque: map[string][][]string{}}
	var like, at, otherwise string
	var keys, opaque []string
	rule := func(n *yaml.Node) {
		var where, present string
		var free []string
		values := map[string]string{}
		d.fields(n, map[string]func(*yaml.Node){
			"at": d.str(&where), "present": d.str(&present), "free": d.globs(&free),
			"needs": func(n *yaml.Node) {
				d.each(n, func(k, v *yaml.Node) {
					var globs []string
					d.globs(&globs)(v)
					for _, g := range globs {
						if _, dup := values[g]; dup {
							d.fail(v, "%q is listed twice", g)
						}
						values[g] = k.Value
					}
				})
			},
		})
		for _, g := range free {
			if _, dup := values[g]; dup {
				d.fail(n, "%q is listed twice", g)
			}
			values[g] = ""
		}
		p := place(where)
		if where == "" || p[len(p)-1] == "**" || (present == "") == (len(values) == 0) {
			d.fail(n, "a feature needs at: and either present: or free:/needs:")
			return
		}
		r := bodyRule{at: p, present: present, values: values}
		b.rules[p[len(p)-1]] = append(b.rules[p[len(p)-1]], r)
	}
	d.fields(n, map[string]func(*yaml.Node){
		"limit": d.bytes(&b.limit), "like": d.str(&like), "at": d.str(&at),
		"keys": d.list(&keys), "opaque": d.list(&opaque), "otherwise": d.str(&otherwise),
		"features": func(n *yaml.Node) { d.items(n, rule) },
	})
	b.otherwise = otherwise
	b.closed = append(b.closed, closedObject{keys: set(keys)})
	for _, o := range opaque {
		p := place(o)
		b.opaque[p[len(p)-1]] = append(b.opaque[p[len(p)-1]], p)
	}
	if like != "" {
		base := s.bodies[like]
		if base == nil || at == "" {
			d.fail(n, "like: names a body section above, and at: the place below which it holds")
			return
		}
		prefix := place(at)
		below := func(p []string) []string { return slices.Concat(prefix, p) }
		for _, c := range base.closed {
			b.closed = append(b.closed, closedObject{below(c.at), c.keys})
		}
		for k, rs := range base.rules {
			for _, r := range rs {
				r.at = below(r.at)
				b.rules[k] = append(b.rules[k], r)
			}
		}
		for k, ps := range base.opaque {
			for _, p := range ps {
				b.opaque[k] = append(b.opaque[k], below(p))
			}
		}
		if b.otherwise == "" {
			b.otherwise = base.otherwise
		}
		// Keys between the root and the place: everything else is closed too.
		for i := 1; i < len(prefix); i++ {
			b.closed = append(b.closed, closedObject{at: prefix[:i], keys: set(keys)})
		}
	}
	if b.limit == 0 || len(keys) == 0 || s.bodies[name] != nil {
		d.fail(n, "a body section needs limit: and keys:, once")
	}
	b.index()
	s.bodies[name] = b
}

func set(keys []string) map[string]bool {
	m := map[string]bool{}
	for _, k := range keys {
		m[k] = true
	}
	return m
}

func (s *Service) readOperation(d *reader, k, n *yaml.Node) {
	op := Operation{Name: k.Value}
	var routes []route
	d.fields(n, map[string]func(*yaml.Node){
		"also-called": d.list(&op.Aliases), "allows": d.str(&op.Allows), "does-not": d.str(&op.DoesNot),
		"feature-of": d.list(&op.FeatureOf), "resource": d.str(&op.ResourceTemplate),
		"fold-case": d.boolean(&op.fold), "needs-resources": d.boolean(&op.NeedsResources),
		"signed-urls": d.boolean(&op.SignedURLs), "body": d.str(&op.body), "except": d.list(&op.except),
		"match": func(n *yaml.Node) {
			d.items(n, func(c *yaml.Node) {
				var text string
				d.str(&text)(c)
				rt, err := parseRoute(text, s.sets)
				if err != nil {
					d.fail(c, "%v", err)
					return
				}
				if !slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Host == rt.host }) {
					d.fail(c, "%s is not among the hosts", rt.host)
				}
				rt.op = len(s.Operations)
				routes = append(routes, rt)
			})
		},
	})
	switch {
	case op.Name == "" || strings.Trim(op.Name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "":
		d.fail(k, "an operation's name has lower-case letters, digits and - _ . only")
	case op.Allows == "" || op.DoesNot == "":
		d.fail(k, "allows: and does-not: are both needed, for the person who decides")
	case (len(op.FeatureOf) > 0) == (len(routes) > 0):
		d.fail(k, "an operation has either match: or feature-of:")
	case len(op.FeatureOf) > 0 && (op.body != "" || op.ResourceTemplate != ""):
		d.fail(k, "a feature has no body: or resource: of its own")
	case op.NeedsResources && op.ResourceTemplate == "":
		d.fail(k, "needs-resources: needs resource:")
	}
	if op.body != "" {
		b := s.bodies[op.body]
		if b == nil {
			d.fail(k, "there is no body section %q above", op.body)
			return
		}
		op.BodyLimit = b.limit
	}
	for _, name := range append([]string{op.Name}, op.Aliases...) {
		if _, dup := s.byName[name]; dup {
			d.fail(k, "operation %q is named twice", name)
		}
		s.byName[name] = len(s.Operations)
	}
	s.Operations = append(s.Operations, op)
	s.routes = append(s.routes, routes...)
}

// check looks for references into nowhere and for requests that two
// operations would claim.
func (s *Service) check(d *reader, n *yaml.Node) {
	feature := func(name, where string) {
		op, ok := s.Operation(name)
		if !ok || op.Name != name || len(op.FeatureOf) == 0 {
			d.fail(n, "%s: %q is not an operation with feature-of:", where, name)
		}
	}
	for name, b := range s.bodies {
		if b.otherwise != "" {
			feature(b.otherwise, "body "+name)
		}
		for _, rs := range b.rules {
			for _, r := range rs {
				if r.present != "" {
					feature(r.present, "body "+name)
				}
				for _, v := range r.values {
					if v != "" {
						feature(v, "body "+name)
					}
				}
			}
		}
	}
	known := func(names []string, where string) {
		for _, name := range names {
			if op, ok := s.Operation(name); !ok || op.Name != name {
				d.fail(n, "%s: there is no operation %q", where, name)
			}
		}
	}
	for _, h := range s.headers {
		for _, need := range h.needs {
			known(need.anyOf, "header "+h.name)
		}
	}
	for _, op := range s.Operations {
		known(op.FeatureOf, op.Name)
		known(op.except, op.Name)
	}
	for i := range s.routes {
		for j := range i {
			a, b := &s.routes[j], &s.routes[i]
			if a.op == b.op || !a.overlaps(b) {
				continue
			}
			oa, ob := &s.Operations[a.op], &s.Operations[b.op]
			if !slices.Contains(oa.except, ob.Name) && !slices.Contains(ob.except, oa.Name) {
				d.fail(n, "one request could be both %s and %s", oa.Name, ob.Name)
			}
		}
	}
}
