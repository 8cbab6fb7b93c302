package catalog

import (
	"net/http"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

func (s *Service) readOperation(d *reader, k, n *yaml.Node) {
	op := Operation{Name: k.Value, CredentialRequired: s.Credential != nil && s.Credential.Required}
	var lines []string
	var nodes []*yaml.Node
	var resourceAt string
	var limit int
	d.fields(n, map[string]func(*yaml.Node){
		"also-called": d.list(&op.Aliases), "allows": d.str(&op.Allows), "does-not": d.str(&op.DoesNot),
		"feature-of": d.list(&op.FeatureOf), "resource": d.str(&op.ResourceTemplate), "resource-at": d.str(&resourceAt),
		"fold-case": d.boolean(&op.fold), "needs-resources": d.boolean(&op.NeedsResources),
		"signed-urls": d.boolean(&op.SignedURLs), "except": d.list(&op.except), "query": d.names(&op.query),
		"credential-required": d.boolean(&op.CredentialRequired),
		"signed-by": func(n *yaml.Node) {
			d.items(n, func(m *yaml.Node) {
				var slot Slot
				d.fields(m, map[string]func(*yaml.Node){"query": d.str(&slot.Query), "header": d.str(&slot.Header), "scheme": d.str(&slot.Scheme)})
				if (slot.Query == "") != (slot.Header == "Authorization" && slot.Scheme != "") || slot.Scheme == "Bearer" || slot.Scheme == "Basic" {
					d.fail(m, "signed-by: is a query key, or Authorization with a scheme of its own")
				}
				op.SignedBy = append(op.SignedBy, slot)
			})
		},
		"body": d.str(&op.body), "body-limit": d.bytes(&limit),
		"websocket": d.boolean(&op.WebSocket), "subprotocols": d.globs(&op.Subprotocols), "messages": d.str(&op.messages),
		"when": func(n *yaml.Node) { op.when = d.conditions(n) },
		"via": func(n *yaml.Node) {
			if n.Kind == yaml.SequenceNode {
				d.list(&op.Via)(n)
				return
			}
			var one string
			d.str(&one)(n)
			op.Via = []string{one}
		},
		"match": func(n *yaml.Node) {
			d.items(n, func(c *yaml.Node) {
				var text string
				d.str(&text)(c)
				lines, nodes = append(lines, text), append(nodes, c)
			})
		},
	})
	op.lines = lines
	for _, v := range op.Via {
		if !slices.Contains(op.FeatureOf, v) {
			op.FeatureOf = append(op.FeatureOf, v)
		}
	}
	if resourceAt != "" {
		op.resourceAt = place(resourceAt)
	}
	if limit > 0 {
		op.bodyLimit = limit
	} else if op.body == "any" {
		op.bodyLimit = 1 << 30
	}
	op.Refs = s.bodies[op.body] != nil && s.bodies[op.body].kind == "git-receive-pack"
	var routes []route
	writes := false
	for i, text := range lines {
		rt, err := parseRoute(text, s.sets)
		if err != nil {
			d.fail(nodes[i], "%v", err)
			continue
		}
		if !slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Host.text == rt.host.text }) {
			d.fail(nodes[i], "%s is not among the hosts", rt.host)
		}
		if op.WebSocket {
			if !slices.Equal(rt.methods, []string{"GET"}) {
				d.fail(nodes[i], "the handshake of a WebSocket is a GET")
			}
			rt.methods = []string{MethodWebSocket}
		}
		rt.op, rt.when = len(s.Operations), op.when
		op.wide = op.wide || slices.ContainsFunc(rt.segs, func(g segment) bool { return g.wide && strings.HasSuffix(op.ResourceTemplate, "{"+g.name+"}") })
		writes = writes || slices.ContainsFunc(rt.methods, func(m string) bool { return !bodyless(m) })
		op.path = op.path || rt.pathName() != "" && strings.HasSuffix(op.ResourceTemplate, "{"+rt.pathName()+"}")
		routes = append(routes, rt)
	}
	op.readTemplate(d, k)
	isFeature := len(op.FeatureOf) > 0
	switch {
	case op.Name == "" || strings.Trim(op.Name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "":
		d.fail(k, "an operation's name has lower-case letters, digits and - _ . only")
	case op.Allows == "" || op.DoesNot == "":
		d.fail(k, "allows: and does-not: are both needed, for the person who decides")
	case isFeature == (len(lines) > 0):
		d.fail(k, "an operation has either match: or feature-of: (via:)")
	case isFeature && (op.body != "" || op.messages != "" || op.when != nil || op.query != nil || op.WebSocket):
		d.fail(k, "a feature has no body:, messages:, when:, query: or websocket: of its own")
	case isFeature && op.ResourceTemplate != "" && op.resourceAt == nil && len(op.Via) == 0:
		d.fail(k, "a feature's resource: is that of its operation, unless it has resource-at: or via:")
	case op.resourceAt != nil && op.ResourceTemplate == "":
		d.fail(k, "resource-at: needs resource:, the form of what stands there")
	case op.resourceAt != nil && op.resourceAt[len(op.resourceAt)-1] == "**":
		d.fail(k, "resource-at: names one field")
	case writes && op.body == "":
		d.fail(k, "%s takes POST, PUT, PATCH, DELETE or the like: say body: SECTION, none or any", op.Name)
	case !writes && op.body != "":
		d.fail(k, "body: belongs to an operation with a method that can have one")
	case limit > 0 && op.body != "any":
		d.fail(k, "body-limit: belongs to body: any; a section has its own limit:")
	case !op.WebSocket && (op.Subprotocols != nil || op.messages != ""):
		d.fail(k, "subprotocols: and messages: need websocket: true")
	case op.SignedBy != nil && !op.SignedURLs:
		d.fail(k, "signed-by: needs signed-urls: true")
	case op.CredentialRequired && s.Credential == nil:
		d.fail(k, "credential-required: needs credential:")
	}
	for _, name := range []string{op.body, op.messages} {
		if b := s.bodies[name]; name != "" && b == nil && (name != "none" && name != "any" || name == op.messages) {
			d.fail(k, "there is no body section %q above", name)
		}
	}
	if b := s.bodies[op.messages]; b != nil && b.kind != "json" {
		d.fail(k, "messages: needs a section of kind json")
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
			d.fail(n, "%s: %q is not an operation with feature-of: or via:", where, name)
		}
	}
	for name, b := range s.bodies {
		b.bindRoots(s)
		if b.otherwise != "" {
			feature(b.otherwise, "body "+name)
		}
		for _, u := range b.unless {
			feature(u.op, "body "+name)
		}
		for _, rs := range b.rules {
			for _, r := range rs {
				for _, name := range r.operations() {
					feature(name, "body "+b.name)
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
	s.checkResources(d, n)
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

// checkResources gives features the resources of their operations, tells body
// sections where resources stand, and holds shared hosts to resources.
func (s *Service) checkResources(d *reader, n *yaml.Node) {
	for i := range s.Operations {
		op := &s.Operations[i]
		if len(op.FeatureOf) == 0 || op.ResourceTemplate != "" {
			continue
		}
		of, _ := s.Operation(op.FeatureOf[0])
		same := !slices.ContainsFunc(op.FeatureOf, func(name string) bool {
			o, _ := s.Operation(name)
			return o.ResourceTemplate != of.ResourceTemplate || o.fold != of.fold || o.path != of.path || o.wide != of.wide || o.Refs != of.Refs
		})
		if same {
			op.ResourceTemplate, op.template, op.fold, op.path, op.wide, op.Refs = of.ResourceTemplate, of.template, of.fold, of.path, of.wide, of.Refs
		} else if op.NeedsResources {
			d.fail(n, "%s: its operations have resources of different forms", op.Name)
		}
	}
	for i := range s.Operations {
		op := &s.Operations[i]
		if op.NeedsResources && op.ResourceTemplate == "" {
			d.fail(n, "%s: needs-resources: needs resource:", op.Name)
		}
		if op.resourceAt == nil {
			continue
		}
		used := false
		for name, b := range s.bodies {
			if name == op.body || name == op.messages || b.mentions(op.Name) {
				used = true
				b.wanted = append(b.wanted, wantedPlace{op, op.resourceAt})
				b.index()
			}
		}
		if !used {
			d.fail(n, "%s: resource-at: is in no body section", op.Name)
		}
	}
	for i := range s.routes {
		rt := &s.routes[i]
		op := &s.Operations[rt.op]
		for _, name := range rt.host.shared() {
			if !slices.Contains(op.template, name) {
				d.fail(n, "%s: anybody can own a name under %s: {%s} must be part of resource:, or come from a set", op.Name, rt.host.Tail(), name)
			}
		}
		if op.ResourceTemplate != "" && op.resourceAt == nil {
			for _, name := range op.template {
				if !slices.ContainsFunc(s.routes, func(o route) bool { return o.op == rt.op && o.captures(name) }) {
					d.fail(n, "%s: no match line captures {%s} of resource:", op.Name, name)
				}
			}
		}
	}
}

// readTemplate splits "{owner}/{repo}".
func (op *Operation) readTemplate(d *reader, n *yaml.Node) {
	if op.ResourceTemplate == "" {
		return
	}
	for part := range strings.SplitSeq(op.ResourceTemplate, "/") {
		name, ok := strings.CutPrefix(part, "{")
		if rest, wide := strings.CutSuffix(name, ":id}"); ok && wide {
			name, op.wide = rest+"}", true
		} else if rest, wide := strings.CutSuffix(name, ":key}"); ok && wide {
			name, op.wide, op.path = rest+"}", true, true
		}
		if name, ok2 := strings.CutSuffix(name, "}"); ok && ok2 && name != "" && !strings.ContainsAny(name, "{}:") {
			op.template = append(op.template, name)
			continue
		}
		d.fail(n, "resource: is {name}/{name}, not %q", op.ResourceTemplate)
		return
	}
}

// conditions reads when:, a mapping of header: and query: to names and globs.
func (d *reader) conditions(n *yaml.Node) []condition {
	var out []condition
	read := func(query bool) func(*yaml.Node) {
		return func(n *yaml.Node) {
			d.each(n, func(k, v *yaml.Node) {
				c := condition{name: k.Value, query: query}
				d.globs(&c.globs)(v)
				if !query && c.name != http.CanonicalHeaderKey(c.name) {
					d.fail(k, "write the header as %s", http.CanonicalHeaderKey(c.name))
				}
				out = append(out, c)
			})
		}
	}
	d.fields(n, map[string]func(*yaml.Node){"header": read(false), "query": read(true)})
	if len(out) == 0 {
		d.fail(n, "when: names a header or a query key, and what its value may be")
	}
	return out
}

// bodyless methods never have a body that anybody reads.
func bodyless(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "PROPFIND", MethodWebSocket:
		return true
	}
	return strings.HasPrefix(method, "GIT-")
}
