package catalog

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/catalog/graphql"
)

// graphSpec is what a section of kind graphql has besides the generic keys.
type graphSpec struct {
	// roots are the known fields of queries and of mutations; "*" of queries is
	// every other one.
	roots   map[bool]map[string]*graphRoot
	regions graphql.Regions
}

// graphRoot says what asking for a root field means.
type graphRoot struct {
	// operation is "" if the field is harmless.
	operation string
	op        *Operation
	// names are the places in the arguments whose texts, joined by slashes, are
	// the resource.
	names [][]string
	// below is the region that may be read below the field, "*" if anything may;
	// beyond is the operation for what lies outside of it, "" refuses it.
	below, beyond string
}

// readRoots reads {query: [{fields, operation, names, below, beyond}], mutation: …}.
func (b *bodySpec) readRoots(d *reader) func(*yaml.Node) {
	return func(n *yaml.Node) {
		kind := func(mutation bool, key string) func(*yaml.Node) {
			return func(n *yaml.Node) {
				d.items(n, func(m *yaml.Node) {
					var fields, names []string
					var r graphRoot
					d.fields(m, map[string]func(*yaml.Node){
						"fields": d.list(&fields), "operation": d.str(&r.operation), "names": d.list(&names),
						"below": d.str(&r.below), "beyond": d.str(&r.beyond),
					})
					for _, place := range names {
						r.names = append(r.names, strings.Split(place, "."))
					}
					if len(fields) == 0 || r.below == "" || r.operation == "" && len(names) > 0 || r.operation == "" && mutation {
						d.fail(m, "a root needs fields: and below:, and a mutation an operation:")
					}
					values := map[string]string{}
					for _, f := range fields {
						if b.graph.roots[mutation][f] != nil || f == "*" && mutation {
							d.fail(m, "%q is listed twice, or is a * among mutations", f)
						}
						b.graph.roots[mutation][f] = &r
						values[f] = r.operation
					}
					// The generic checks see the roots as what stands at query and mutation.
					b.rules[key] = append(b.rules[key], bodyRule{at: []string{key}, values: values})
					if r.beyond != "" {
						b.rules[key] = append(b.rules[key], bodyRule{at: []string{key}, values: map[string]string{"*": r.beyond}})
					}
				})
			}
		}
		d.fields(n, map[string]func(*yaml.Node){"query": kind(false, "query"), "mutation": kind(true, "mutation")})
	}
}

// readRegions reads {NAME: {fields: [names], into: {REGION: [names]}}}.
func (b *bodySpec) readRegions(d *reader) func(*yaml.Node) {
	return func(n *yaml.Node) {
		d.each(n, func(k, v *yaml.Node) {
			fields := map[string]string{}
			add := func(n *yaml.Node, names []string, region string) {
				for _, f := range names {
					if _, dup := fields[f]; dup {
						d.fail(n, "%q is listed twice", f)
					}
					fields[f] = region
				}
			}
			d.fields(v, map[string]func(*yaml.Node){
				"fields": func(n *yaml.Node) {
					var names []string
					d.list(&names)(n)
					add(n, names, "")
				},
				"into": func(n *yaml.Node) {
					d.each(n, func(k, v *yaml.Node) {
						var names []string
						d.list(&names)(v)
						add(v, names, k.Value)
					})
				},
			})
			b.graph.regions[k.Value] = fields
		})
	}
}

func newGraphQL(b *bodySpec) (bodyReader, error) {
	switch {
	case len(b.graph.roots[false])+len(b.graph.roots[true]) == 0 || len(b.closed) > 0 || b.otherwise != "":
		return nil, errors.New("a graphql body has `roots` and `regions`, neither `keys` nor `otherwise`")
	case b.limit > graphql.MaxBody:
		return nil, fmt.Errorf("a graphql body has at most %d bytes", graphql.MaxBody)
	}
	for _, fields := range b.graph.regions {
		for f, into := range fields {
			if into != "" && b.graph.regions[into] == nil {
				return nil, fmt.Errorf("the field %s leads into a region that is not there", f)
			}
		}
	}
	if b.lines != "" {
		b.rules["lines"] = append(b.rules["lines"], bodyRule{at: []string{"lines"}, lines: b.lines})
	}
	for _, roots := range b.graph.roots {
		for f, r := range roots {
			if r.below != "*" && b.graph.regions[r.below] == nil {
				return nil, fmt.Errorf("below %s is a region that is not there", f)
			}
		}
	}
	return graphBody{b}, nil
}

// bindRoots finds the operations of the roots, once all are read.
func (b *bodySpec) bindRoots(s *Service) {
	for _, roots := range b.graph.roots {
		for _, r := range roots {
			i, ok := s.byName[r.operation]
			if !ok {
				continue
			}
			r.op = &s.Operations[i]
			// No match line says whether names have slashes; those of the same
			// resources do.
			r.op.path = r.op.path || slices.ContainsFunc(s.Operations, func(o Operation) bool { return o.path && o.ResourceTemplate == r.op.ResourceTemplate })
		}
	}
}

// graphBody is one GraphQL request. Each root field is a use: of the operation
// that its name belongs to, on the resource that its arguments name; and what
// is read below it outside of its region is a use of another one.
type graphBody struct{ *bodySpec }

func (b graphBody) need() Need { return Need{Whole: b.limit} }

func (b graphBody) features(_ *Operation, _ string, r Request) (Contents, error) {
	if err := b.checkForm(r, "application/json"); err != nil {
		return Contents{}, err
	}
	doc, err := graphql.Parse(r.Body)
	if err != nil {
		return Contents{}, fmt.Errorf("%w: %w", ErrBadBody, err)
	}
	var c Contents
	use := func(u Use) {
		u.Own = true
		if !slices.ContainsFunc(c.Uses, func(o Use) bool { return o.Operation == u.Operation && o.Resource == u.Resource }) {
			c.Uses = append(c.Uses, u)
		}
	}
	kind := "query"
	if doc.Mutation {
		kind = "mutation"
	}
	for _, f := range doc.Roots {
		if f.Name == "__typename" {
			continue
		}
		where := "the " + kind + " field " + safeKey(f.Name)
		root := b.graph.roots[doc.Mutation][f.Name]
		if root == nil {
			root = b.graph.roots[doc.Mutation]["*"]
		}
		if root == nil {
			use(Use{Where: where})
			continue
		}
		if root.operation != "" {
			use(Use{Operation: root.operation, Where: where, Resource: root.resource(f)})
		}
		if root.below == "*" {
			continue
		}
		if outside, ok := f.Within(b.graph.regions, root.below); !ok {
			use(Use{Operation: root.beyond, Where: "the field " + safeKey(outside) + " below " + safeKey(f.Name)})
		}
	}
	if b.lines != "" && doc.Mutation && slices.ContainsFunc(doc.Texts, hasCommand) {
		use(Use{Operation: b.lines, Where: "a text with a line that begins with a slash"})
	}
	return c, nil
}

// hasCommand reports whether a line of the text begins with a slash and a
// letter, by which some servers take commands.
func hasCommand(s string) bool {
	for line := range strings.FieldsFuncSeq(s, func(r rune) bool {
		return r == '\n' || r == '\r' || r == '\u2028' || r == '\u2029' || r == '\u0085' || r == '\v' || r == '\f'
	}) {
		line = strings.TrimLeftFunc(line, unicode.IsSpace)
		if len(line) > 1 && line[0] == '/' && ('a' <= line[1]|0x20 && line[1]|0x20 <= 'z') {
			return true
		}
	}
	return false
}

// resource is what the arguments name, "" if that is not plain text.
func (r *graphRoot) resource(f graphql.Field) string {
	var parts []string
	for _, place := range r.names {
		text, ok := f.Text(place...)
		if !ok {
			return ""
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 || r.op == nil {
		return ""
	}
	return r.op.resourceOf(strings.Join(parts, "/"))
}
