package catalog

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/catalog/graphql"
)

func place(s string) []string { return strings.Split(s, ".") }

// readBody reads a body section. "like" and "at" put the places of another
// section below a key, for requests that carry other requests; "like" alone
// begins with a copy of it.
func (s *Service) readBody(d *reader, name string, n *yaml.Node) {
	b := &bodySpec{name: name, kind: "json", filesLimit: 1 << 30, rules: map[string][]bodyRule{}, opaque: map[string][][]string{}, text: map[string][][]string{}, graph: graphSpec{map[bool]map[string]*graphRoot{false: {}, true: {}}, graphql.Regions{}}}
	var like, at string
	var keys, opaque, text, credentialKeys []string
	rule := func(n *yaml.Node) {
		var where, present, lines string
		var free, unless []string
		values := map[string]string{}
		d.fields(n, map[string]func(*yaml.Node){
			"at": d.str(&where), "present": d.str(&present), "lines": d.str(&lines), "free": d.globs(&free), "unless": d.list(&unless),
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
		if len(unless) > 0 {
			if where != "" || present == "" || lines != "" || len(values) > 0 || b.kind != "json" {
				d.fail(n, "a feature with unless: needs present: and nothing else, in a section of kind: json")
			}
			b.unless = append(b.unless, unlessRule{unless, present})
			return
		}
		p := place(where)
		if where == "" || p[len(p)-1] == "**" || btoi(present != "")+btoi(lines != "")+btoi(len(values) > 0) != 1 {
			d.fail(n, "a feature needs at: and either present:, lines: or free:/needs:")
			return
		}
		b.rules[p[len(p)-1]] = append(b.rules[p[len(p)-1]], bodyRule{at: p, present: present, lines: lines, values: values})
	}
	d.fields(n, map[string]func(*yaml.Node){
		"kind": d.str(&b.kind), "limit": d.bytes(&b.limit), "like": d.str(&like), "at": d.str(&at),
		"keys": d.list(&keys), "opaque": d.list(&opaque), "otherwise": d.str(&b.otherwise),
		"files": d.list(&b.files), "files-limit": d.bytes(&b.filesLimit), "text": d.list(&text), "credential-keys": d.list(&credentialKeys),
		"features": func(n *yaml.Node) { d.items(n, rule) },
		"roots":    b.readRoots(d), "regions": b.readRegions(d), "optional": d.boolean(&b.optional), "lines": d.str(&b.lines),
		"gzip": d.boolean(&b.gzip), "repeat": d.list(&b.repeat),
		"closed": func(n *yaml.Node) {
			d.each(n, func(k, v *yaml.Node) {
				var keys []string
				d.list(&keys)(v)
				if strings.HasSuffix(k.Value, "**") || k.Value == "" {
					d.fail(k, "closed: names places of objects, and the keys that they may have")
				}
				b.closed = append(b.closed, closedObject{place(k.Value), set(keys)})
			})
		},
	})
	b.keys = keys
	for _, p := range credentialKeys {
		b.credentialKeys = append(b.credentialKeys, place(p))
	}
	if len(keys) > 0 {
		b.closed = append(b.closed, closedObject{keys: set(keys)})
	}
	for list, to := range map[*[]string]map[string][][]string{&opaque: b.opaque, &text: b.text} {
		for _, o := range *list {
			p := place(o)
			to[p[len(p)-1]] = append(to[p[len(p)-1]], p)
		}
	}
	if like != "" {
		base := s.bodies[like]
		if base == nil {
			d.fail(n, "like: names a body section above, and at: the place below which it holds")
			return
		}
		if at != "" && len(base.unless) > 0 {
			d.fail(n, "a feature with unless: holds for a whole body, and not at: a place in one")
		}
		b.include(base, at, keys)
	}
	newReader := bodyKinds[b.kind]
	switch {
	case newReader == nil:
		d.fail(n, "there is no kind of body %q", b.kind)
		return
	case b.gzip && b.kind != "json":
		d.fail(n, "gzip: belongs to kind: json")
	case len(b.repeat) > 0 && b.kind != "form" && b.kind != "multipart":
		d.fail(n, "repeat: belongs to kind: form and multipart")
	case name == "none" || name == "any":
		d.fail(n, "a body section can't be called %q, which has a meaning of its own", name)
	case b.limit == 0 || s.bodies[name] != nil:
		d.fail(n, "a body section needs limit: and keys:, once")
	}
	b.index()
	var err error
	if b.reader, err = newReader(b); err != nil {
		d.fail(n, "%v", err)
		return
	}
	s.bodies[name] = b
}

// include takes the places of base over, below the place at if there is one.
func (b *bodySpec) include(base *bodySpec, at string, keys []string) {
	var prefix []string
	if at != "" {
		prefix = place(at)
	}
	below := func(p []string) []string { return slices.Concat(prefix, p) }
	for _, c := range base.closed {
		if at == "" && len(c.at) == 0 {
			// A copy with further keys at the top.
			b.closed = slices.DeleteFunc(b.closed, func(c closedObject) bool { return len(c.at) == 0 })
			merged := set(keys)
			for k := range c.keys {
				merged[k] = true
			}
			b.closed = append(b.closed, closedObject{keys: merged})
			continue
		}
		b.closed = append(b.closed, closedObject{below(c.at), c.keys})
	}
	if at == "" {
		b.unless = append(b.unless, base.unless...)
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
	for k, ps := range base.text {
		for _, p := range ps {
			b.text[k] = append(b.text[k], below(p))
		}
	}
	for _, p := range base.credentialKeys {
		b.credentialKeys = append(b.credentialKeys, below(p))
	}
	if b.otherwise == "" {
		b.otherwise = base.otherwise
	}
	if at == "" && b.limit == 0 {
		b.limit = base.limit
	}
	// Keys between the root and the place: everything else is closed too.
	for i := 1; i < len(prefix); i++ {
		b.closed = append(b.closed, closedObject{at: prefix[:i], keys: set(keys)})
	}
}

func set(keys []string) map[string]bool {
	m := map[string]bool{}
	for _, k := range keys {
		m[k] = true
	}
	return m
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
