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

// globs accepts a literal with one * in it or without.
func (d *reader) globs(to *[]string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		d.list(to)(n)
		for _, g := range *to {
			if strings.Count(g, "*") > 1 {
				d.fail(n, "%q has more than one *", g)
			}
		}
	}
}

// names accepts plain names, such as query keys.
func (d *reader) names(to *[]string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.Kind == yaml.SequenceNode && len(n.Content) == 0 && n.Anchor == "" {
			*to = []string{} // closed, and nothing in it
			return
		}
		d.globs(to)(n)
	}
}

// headerGlobs accepts canonical header names, with a * at their end or not.
func (d *reader) headerGlobs(to *[]string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		d.globs(to)(n)
		for _, g := range *to {
			name := strings.TrimSuffix(g, "*")
			if len(name) < 2 || http.CanonicalHeaderKey(name) != name {
				d.fail(n, "write the header as %s", http.CanonicalHeaderKey(g))
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
	s.index()
	return s, nil
}

// order is that of the sections: each may refer to the ones before it, however
// the file is ordered.
var order = []string{"service", "description", "sets", "hosts", "credential", "headers", "request-headers", "public-keys", "query", "tokens", "bodies", "operations"}

func (s *Service) read(d *reader, n *yaml.Node) {
	sections := map[string]func(*yaml.Node){
		"service":         d.str(&s.Name),
		"description":     d.str(&s.Description),
		"hosts":           func(n *yaml.Node) { d.items(n, func(c *yaml.Node) { s.readHost(d, c) }) },
		"credential":      func(n *yaml.Node) { s.readCredential(d, n) },
		"headers":         func(n *yaml.Node) { d.items(n, func(c *yaml.Node) { s.readHeader(d, c) }) },
		"request-headers": d.headerGlobs(&s.requestHeaders),
		"public-keys":     func(n *yaml.Node) { d.items(n, func(c *yaml.Node) { s.readPublicKey(d, c) }) },
		"query":           d.names(&s.query),
		"tokens":          func(n *yaml.Node) { d.items(n, func(c *yaml.Node) { s.readTokenPlace(d, c) }) },
		"sets": func(n *yaml.Node) {
			d.each(n, func(k, v *yaml.Node) {
				if slices.Contains([]string{"path", "segments", "id", "key"}, k.Value) {
					d.fail(k, "a set can't be called %q, which has a meaning of its own", k.Value)
				}
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
	}
	found := map[string]*yaml.Node{}
	note := map[string]func(*yaml.Node){}
	for key := range sections {
		note[key] = func(v *yaml.Node) { found[key] = v }
	}
	d.fields(n, note)
	for _, key := range order {
		if v := found[key]; v != nil {
			sections[key](v)
		}
	}
	if s.Name == "" || s.Description == "" || len(s.Endpoints) == 0 || len(s.Operations) == 0 {
		d.fail(n, "service, description, hosts and operations are all needed")
	}
}

// readHost reads "name" (https, 443), "name:port", "http://name[:port]" or
// "ssh://user@name[:port]". A name may capture labels.
func (s *Service) readHost(d *reader, n *yaml.Node) {
	var text string
	d.str(&text)(n)
	if text == "" {
		return
	}
	e := Endpoint{Scheme: "https", Port: 443}
	if rest, ok := strings.CutPrefix(text, "http://"); ok {
		text, e.Scheme, e.Port = rest, "http", 80
	} else if rest, ok := strings.CutPrefix(text, "ssh://"); ok {
		text, e.Scheme, e.Port = rest, "ssh", 22
		if e.User, text, ok = strings.Cut(rest, "@"); !ok || e.User == "" || strings.Trim(e.User, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
			d.fail(n, "an ssh host is written ssh://user@name")
			return
		}
	}
	// A capture's set is named after a colon too.
	if i := strings.LastIndexByte(text, ':'); i > strings.LastIndexByte(text, '}') {
		var err error
		if e.Port, err = hostport.ParsePort(text[i+1:]); err != nil {
			d.fail(n, "%v", err)
		}
		text = text[:i]
	}
	var err error
	if e.Host, err = parseHost(text, s.sets); err != nil {
		d.fail(n, "%v", err)
		return
	}
	for _, o := range s.Endpoints {
		if o.Host.text == e.Host.text && o.Port == e.Port {
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
		"env": d.list(&c.Env), "env-together": d.boolean(&c.together),
		"required":    d.boolean(&c.Required),
		"sign":        d.oneOf(&c.Sign, SignAWS4),
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
					"user": d.str(&slot.User), "prefix": d.str(&slot.Prefix),
				})
				if (slot.Header == "") == (slot.Query == "") || slot.Query != "" && slot.Scheme != "" {
					d.fail(m, "a slot is a header (with a scheme) or a query key")
				}
				if slot.User != "" && (slot.Scheme != "Basic" || strings.ContainsRune(slot.User, ':')) {
					d.fail(m, "user: goes with scheme: Basic, and has no colon")
				}
				if (slot.Prefix != "") != (slot.Header == subprotocolHeader) || slot.Prefix != "" && slot.Scheme != "" {
					d.fail(m, "prefix: goes with header: %s, and needs no scheme", subprotocolHeader)
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
