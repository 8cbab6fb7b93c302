// Package openapi turns an OpenAPI document into a service file of the
// catalogue, as a draft for a person to review.
//
// It is pure and runs in the command line's process, on documents that the user
// names: bytes in, bytes out; references to other files or hosts are not
// followed. In: OpenAPI 3.0 or 3.1, or Swagger 2.0, as YAML or JSON. Out: a
// strict service file with one operation for each operationId, its query keys
// and the top-level keys of its JSON or form body as closed lists. What a
// document can't say is not guessed: whether an operation makes the server
// fetch, call or run something is for the reviewer, and fields whose names
// suggest it are pointed out. The catalogue's loader has the last word on the
// result.
package openapi

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds of a document: of its bytes, of how deep references lead, and of what
// is compared with each other. GitHub's own document has 1,100 operations.
const (
	maxDocument   = 32 << 20
	maxDepth      = 20
	maxOperations = 5000
	maxServers    = 16
	maxKeys       = 2000 // of one body or query
)

// Options of an import.
type Options struct {
	// Name of the service: lower-case letters, digits and hyphens.
	Name string
	// Servers replace those of the document: https://host[:port][/base].
	Servers []string
	// Resource are path parameters that name what an operation is about, in
	// order: a grant can then be for some of them.
	Resource []string
}

// Import returns the service file, and remarks for the reviewer.
func Import(document []byte, o Options) (file []byte, remarks []string, err error) {
	if len(document) > maxDocument {
		return nil, nil, fmt.Errorf("the document has more than %d MiB", maxDocument>>20)
	}
	if o.Name == "" || strings.Trim(o.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return nil, nil, fmt.Errorf("%q is no name for a service: lower-case letters, digits and hyphens", o.Name)
	}
	root, err := parse(document)
	if err != nil {
		return nil, nil, err
	}
	d := &importer{root: root, o: o, byID: map[string]*operation{}}
	if err := d.run(); err != nil {
		return nil, nil, err
	}
	return d.write(), d.remarks, nil
}

// parse reads JSON and YAML alike. Aliases are refused: they can stand for
// more than memory holds.
func parse(document []byte) (root *yaml.Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the document is neither YAML nor JSON: %v", r)
		}
	}()
	var doc yaml.Node
	if err := yaml.NewDecoder(bytes.NewReader(document)).Decode(&doc); err != nil {
		return nil, fmt.Errorf("the document is neither YAML nor JSON: %w", err)
	}
	if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("the document is no OpenAPI document: it is not a mapping")
	}
	if a := firstAlias(doc.Content[0]); a != nil {
		return nil, fmt.Errorf("line %d: the alias *%s: aliases of YAML are not followed, write a $ref or the value itself", a.Line, clip(a.Value))
	}
	return doc.Content[0], nil
}

func firstAlias(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n
	}
	for _, c := range n.Content {
		if a := firstAlias(c); a != nil {
			return a
		}
	}
	return nil
}

type importer struct {
	root    *yaml.Node
	o       Options
	remarks []string

	title   string
	servers []server
	cred    *credential
	bodies  []body
	ops     []*operation
	byID    map[string]*operation
	count   int // of methods at paths
	tooMany bool
}

type server struct{ host, base string }

type credential struct {
	header, scheme, query string
}

type body struct {
	name, kind string
	keys       []string
	files      []string
}

type operation struct {
	id, summary string
	lines       []line
	query       []string
	body        string // section, none, any, or "" for methods without one
	resource    bool
	except      []string
}

type line struct {
	method, host string
	segs         []string // "*" or a literal, or "{name}"
}

func (d *importer) remark(format string, args ...any) {
	if r := fmt.Sprintf(format, args...); len(d.remarks) < 200 && !slices.Contains(d.remarks, r) {
		d.remarks = append(d.remarks, r)
	}
}

var methods = []string{"get", "head", "post", "put", "patch", "delete", "options"}

func (d *importer) run() error {
	version := text(get(d.root, "openapi")) + text(get(d.root, "swagger"))
	if !strings.HasPrefix(version, "3.") && version != "2.0" {
		return fmt.Errorf("the document is no OpenAPI document: openapi is %q (3.0, 3.1 and swagger 2.0 are known)", clip(version))
	}
	d.title = oneLine(text(get(get(d.root, "info"), "title")))
	if err := d.findServers(); err != nil {
		return err
	}
	d.findCredential()
	paths := get(d.root, "paths")
	each(paths, func(path string, item *yaml.Node) {
		item = d.follow(item, 0)
		for _, m := range methods {
			if op := get(item, m); op != nil {
				d.operation(path, m, item, op)
			}
		}
	})
	if len(d.ops) == 0 {
		return errors.New("the document has no operation under `paths`")
	}
	if d.tooMany {
		return fmt.Errorf("the document has more than %d operations; make a service of each part that you need", maxOperations)
	}
	slices.SortFunc(d.ops, func(a, b *operation) int { return strings.Compare(a.id, b.id) })
	d.separate()
	return nil
}

func (d *importer) findServers() error {
	urls := d.o.Servers
	if len(urls) == 0 {
		for _, s := range items(get(d.root, "servers")) {
			u := text(get(s, "url"))
			each(get(s, "variables"), func(name string, v *yaml.Node) {
				u = strings.ReplaceAll(u, "{"+name+"}", text(get(v, "default")))
			})
			urls = append(urls, u)
		}
		if host := text(get(d.root, "host")); host != "" { // Swagger 2.0
			scheme := "https"
			if s := items(get(d.root, "schemes")); len(s) == 1 {
				scheme = text(s[0])
			}
			urls = append(urls, scheme+"://"+host+text(get(d.root, "basePath")))
		}
	}
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.RawQuery != "" || u.User != nil || strings.Contains(u.Path, "{") {
			if len(d.o.Servers) > 0 {
				return fmt.Errorf("%q is not https://host[:port][/base]", clip(raw))
			}
			d.remark("server %q is left out: it is not https://host[:port][/base]", clip(raw))
			continue
		}
		host := strings.TrimSuffix(strings.ToLower(u.Host), ":443")
		if u.Scheme == "http" {
			host = "http://" + strings.TrimSuffix(host, ":80")
			d.remark("server %q is plain http: whoever is on the way reads and changes it", clip(raw))
		}
		s := server{host, strings.Trim(u.Path, "/")}
		if len(d.servers) == maxServers {
			d.remark("of the servers only the first %d are taken", maxServers)
			break
		}
		if !slices.Contains(d.servers, s) {
			d.servers = append(d.servers, s)
		}
	}
	if len(d.servers) == 0 {
		return errors.New("the document names no server with a host; name it with --server https://host/base")
	}
	return nil
}

// findCredential takes the first scheme that the catalogue can express.
func (d *importer) findCredential() {
	schemes := get(get(d.root, "components"), "securitySchemes")
	if schemes == nil {
		schemes = get(d.root, "securityDefinitions")
	}
	each(schemes, func(name string, s *yaml.Node) {
		s = d.follow(s, 0)
		var c credential
		switch kind := text(get(s, "type")); {
		case kind == "http" && strings.EqualFold(text(get(s, "scheme")), "bearer"), kind == "oauth2", kind == "openIdConnect":
			c = credential{header: "Authorization", scheme: "Bearer"}
		case kind == "http" && strings.EqualFold(text(get(s, "scheme")), "basic"), kind == "basic":
			c = credential{header: "Authorization", scheme: "Basic"}
		case kind == "apiKey" && text(get(s, "in")) == "header" && isToken(text(get(s, "name"))):
			c = credential{header: canonical(text(get(s, "name")))}
		case kind == "apiKey" && text(get(s, "in")) == "query" && text(get(s, "name")) != "":
			c = credential{query: text(get(s, "name"))}
		default:
			d.remark("security scheme %q is left out: a credential is sent in a header or the query", clip(name))
			return
		}
		if d.cred != nil {
			if *d.cred != c {
				d.remark("security scheme %q is left out: the first one is used; add its slot by hand if the service needs it", clip(name))
			}
			return
		}
		d.cred = &c
	})
}

func (d *importer) operation(path, method string, item, node *yaml.Node) {
	if d.tooMany = d.tooMany || d.count >= maxOperations; d.tooMany {
		return
	}
	d.count++
	id := slug(text(get(node, "operationId")))
	if id == "" {
		id = slug(method + "-" + path)
		d.remark("%s %s has no operationId; it is called %s", strings.ToUpper(method), clip(path), id)
	}
	summary := text(get(node, "summary"))
	if summary == "" {
		summary = text(get(node, "description"))
	}
	op := &operation{id: id, summary: oneLine(summary), query: []string{}}
	for _, p := range append(items(get(item, "parameters")), items(get(node, "parameters"))...) {
		p = d.follow(p, 0)
		if name := text(get(p, "name")); text(get(p, "in")) == "query" && name != "" && len(op.query) < maxKeys && !slices.Contains(op.query, name) && (d.cred == nil || d.cred.query != name) {
			op.query = append(op.query, name)
			d.suspicious(id, "query key", name)
		}
	}
	slices.Sort(op.query)
	segs, params, ok := segments(path)
	if !ok {
		d.remark("%s is left out: the catalogue can't express the path %q", id, clip(path))
		return
	}
	op.resource = len(d.o.Resource) > 0 && !slices.ContainsFunc(d.o.Resource, func(r string) bool { return !slices.Contains(params, r) })
	for i, s := range segs {
		if name, ok := strings.CutPrefix(s, "{"); ok && !(op.resource && slices.Contains(d.o.Resource, strings.TrimSuffix(name, "}"))) {
			segs[i] = "*"
		}
	}
	for _, s := range d.servers {
		all := segs
		if s.base != "" {
			all = append(strings.Split(s.base, "/"), segs...)
		}
		op.lines = append(op.lines, line{strings.ToUpper(method), strings.TrimPrefix(s.host, "http://"), all})
	}
	if m := method; m != "get" && m != "head" && m != "options" {
		op.body = d.body(op.id, node)
	}
	if first := d.byID[id]; first != nil {
		first.lines = append(first.lines, op.lines...)
		d.remark("two operations are called %s; a grant for it covers both", id)
		return
	}
	d.byID[id] = op
	d.ops = append(d.ops, op)
}

// body makes a section for the request body and returns its name.
func (d *importer) body(id string, node *yaml.Node) string {
	rb := d.follow(get(node, "requestBody"), 0)
	if rb == nil {
		for _, p := range items(get(node, "parameters")) { // Swagger 2.0
			if p = d.follow(p, 0); text(get(p, "in")) == "body" {
				return d.section(id, "json", get(p, "schema"))
			}
		}
		return "none"
	}
	content := get(rb, "content")
	for _, kind := range [][2]string{{"application/json", "json"}, {"application/x-www-form-urlencoded", "form"}, {"multipart/form-data", "multipart"}} {
		if m := get(content, kind[0]); m != nil {
			if len(content.Content) > 2 {
				d.remark("%s takes several kinds of bodies; only %s is let through", id, kind[0])
			}
			return d.section(id, kind[1], get(m, "schema"))
		}
	}
	d.remark("%s takes a body that nobody can look into (%s); it is let through unread", id, clip(firstKey(content)))
	return "any"
}

func (d *importer) section(id, kind string, schema *yaml.Node) string {
	b := body{name: id, kind: kind}
	open := d.properties(schema, &b, map[*yaml.Node]bool{})
	slices.Sort(b.keys)
	if len(b.keys) == 0 {
		d.remark("the body of %s has no keys that the document names; it is let through unread", id)
		return "any"
	}
	if open {
		d.remark("the body of %s may have keys that the document doesn't name; only the named ones are let through", id)
	}
	for _, k := range b.keys {
		d.suspicious(id, "field", k)
	}
	d.bodies = append(d.bodies, b)
	return id
}

// properties collects the top-level keys of a schema and of the schemas that it
// is put together from, each schema once; open says that it allows others.
func (d *importer) properties(schema *yaml.Node, b *body, seen map[*yaml.Node]bool) (open bool) {
	schema = d.follow(schema, 0)
	if schema == nil || seen[schema] {
		return false
	}
	seen[schema] = true
	each(get(schema, "properties"), func(name string, p *yaml.Node) {
		if name != "" && len(b.keys) < maxKeys && !slices.Contains(b.keys, name) {
			b.keys = append(b.keys, name)
			if p = d.follow(p, 0); b.kind == "multipart" && text(get(p, "type")) == "string" && slices.Contains([]string{"binary", "byte"}, text(get(p, "format"))) {
				b.files = append(b.files, name)
			}
		}
	})
	if a := get(schema, "additionalProperties"); a != nil && text(a) != "false" {
		open = true
	}
	for _, part := range []string{"allOf", "oneOf", "anyOf"} {
		for _, s := range items(get(schema, part)) {
			open = d.properties(s, b, seen) || open
		}
	}
	return open
}

// suspicious points out names by which services usually fetch or call what a
// request says.
func (d *importer) suspicious(id, what, name string) {
	n := strings.ToLower(name)
	for _, s := range []string{"url", "uri", "webhook", "callback", "endpoint", "redirect", "import", "script", "command", "fetch", "proxy"} {
		if strings.Contains(n, s) {
			d.remark("review: the %s %q of %s may make the service fetch, call or run something; if so, make it a feature of its own", what, clip(name), id)
			return
		}
	}
}

// separate finds operations that one request could match, and gives it to the
// one that spells more of the path.
func (d *importer) separate() {
	for i, a := range d.ops {
		for _, b := range d.ops[i+1:] {
			switch la, lb, ok := overlap(a, b); {
			case !ok:
			case la == lb:
				d.remark("%s and %s can't be told apart: the loader will refuse them; join them by hand", a.id, b.id)
			case la > lb:
				b.except = append(b.except, a.id)
			default:
				a.except = append(a.except, b.id)
			}
		}
	}
}

func overlap(a, b *operation) (literalsA, literalsB int, ok bool) {
	for _, x := range a.lines {
		for _, y := range b.lines {
			if x.method != y.method || x.host != y.host || len(x.segs) != len(y.segs) {
				continue
			}
			same, nx, ny := true, 0, 0
			for i := range x.segs {
				lx, ly := !wild(x.segs[i]), !wild(y.segs[i])
				if lx && ly && x.segs[i] != y.segs[i] {
					same = false
				}
				// The first place where only one of them is literal decides.
				if lx && !ly && nx == ny {
					nx++
				}
				if ly && !lx && nx == ny {
					ny++
				}
			}
			if same {
				return nx, ny, true
			}
		}
	}
	return 0, 0, false
}

func wild(seg string) bool { return seg == "*" || strings.HasPrefix(seg, "{") }
