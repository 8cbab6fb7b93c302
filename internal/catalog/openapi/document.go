package openapi

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

func get(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func each(n *yaml.Node, f func(key string, value *yaml.Node)) {
	if n == nil || n.Kind != yaml.MappingNode {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		f(n.Content[i].Value, n.Content[i+1])
	}
}

func items(n *yaml.Node) []*yaml.Node {
	if n == nil || n.Kind != yaml.SequenceNode {
		return nil
	}
	return n.Content
}

func text(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode {
		return ""
	}
	return n.Value
}

func firstKey(n *yaml.Node) (key string) {
	each(n, func(k string, _ *yaml.Node) {
		if key == "" {
			key = k
		}
	})
	return key
}

// follow resolves references within the document.
func (d *importer) follow(n *yaml.Node, depth int) *yaml.Node {
	ref := text(get(n, "$ref"))
	if n == nil || ref == "" {
		return n
	}
	path, ok := strings.CutPrefix(ref, "#/")
	if !ok || depth > maxDepth {
		d.remark("the reference %q is not followed: it leads out of the document, or in circles", clip(ref))
		return nil
	}
	to := d.root
	for part := range strings.SplitSeq(path, "/") {
		part = strings.NewReplacer("~1", "/", "~0", "~").Replace(part)
		to = get(to, part)
	}
	return d.follow(to, depth+1)
}

// segments splits a path template; parameters that fill only part of a segment
// make the whole segment one.
func segments(path string) (segs, params []string, ok bool) {
	path, _, _ = strings.Cut(path, "?")
	for seg := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		open, end := strings.IndexByte(seg, '{'), strings.LastIndexByte(seg, '}')
		switch {
		case open < 0 && end < 0:
			if strings.ContainsAny(seg, "*?#% \\") || seg == "." || seg == ".." {
				return nil, nil, false
			}
		case open == 0 && end == len(seg)-1 && strings.Count(seg, "{") == 1:
			params = append(params, seg[1:end])
		case open >= 0 && end > open:
			seg = "*"
		default:
			return nil, nil, false
		}
		segs = append(segs, seg)
	}
	return segs, params, true
}

// slug makes a name of an operation: Repos/GetContent, getUserByID.
func slug(s string) string {
	var b strings.Builder
	var last rune
	for i, r := range s {
		switch {
		case r < unicode.MaxASCII && (unicode.IsLower(r) || unicode.IsDigit(r)):
			b.WriteRune(r)
		case r < unicode.MaxASCII && unicode.IsUpper(r):
			if i > 0 && (unicode.IsLower(last) || unicode.IsDigit(last)) {
				b.WriteByte('-')
			}
			b.WriteRune(unicode.ToLower(r))
		default:
			b.WriteByte('-')
		}
		last = r
	}
	out := b.String()
	for strings.Contains(out, "--") {
		out = strings.ReplaceAll(out, "--", "-")
	}
	if len(out) > 80 {
		out = out[:80]
	}
	return strings.Trim(out, "-")
}

func isToken(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") == ""
}

func canonical(s string) string { return http.CanonicalHeaderKey(s) }

// oneLine is the first sentence of a text, for a person.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if i := strings.Index(s, ". "); i > 0 {
		s = s[:i]
	}
	if r := []rune(s); len(r) > 160 {
		s = string(r[:160]) + "…"
	}
	return strings.TrimSuffix(s, ".")
}

func clip(s string) string {
	if r := []rune(s); len(r) > 80 {
		s = string(r[:80]) + "…"
	}
	return s
}

// write prints the service file.
func (d *importer) write() []byte {
	var b strings.Builder
	w := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	w("# Draft, made from an OpenAPI document. Read every allows: and does-not: before you grant anything; make what lets")
	w("# the service fetch, call, run or store something a feature of its own (feature-of:).")
	w("service: %s", d.o.Name)
	title := d.title
	if title == "" {
		title = d.o.Name
	}
	w("description: %s", quote(title+"."))
	var hosts []string
	for _, s := range d.servers {
		if h := quote(s.host); !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	w("hosts: [%s]", strings.Join(hosts, ", "))
	if d.cred != nil {
		env := strings.ToUpper(strings.ReplaceAll(d.o.Name, "-", "_")) + "_TOKEN"
		w("credential:\n  env: [%s]\n  placeholder: %s\n  slots:", env, quote(d.o.Name+"-{base62:40}"))
		switch {
		case d.cred.query != "":
			w("    - {query: %s}", quote(d.cred.query))
		case d.cred.scheme != "":
			w("    - {header: %s, scheme: %s}", d.cred.header, d.cred.scheme)
		default:
			w("    - {header: %s}", d.cred.header)
		}
	}
	if len(d.bodies) > 0 {
		w("bodies:")
		for _, s := range d.bodies {
			w("  %s:\n    kind: %s\n    limit: 4MiB\n    keys: [%s]", s.name, s.kind, list(s.keys))
			if len(s.files) > 0 {
				w("    files: [%s]", list(s.files))
			}
		}
	}
	w("operations:")
	for _, op := range d.ops {
		allows := op.summary
		if allows == "" {
			allows = op.id + " (the document doesn't say what it does)"
		}
		w("  %s:\n    allows: %s\n    does-not: %s", op.id, quote(allows+"."), quote("Do anything else of "+d.o.Name+"; what the service does with it, the document doesn't say."))
		w("    match:")
		for _, l := range op.lines {
			w("      - %s", quote(l.method+" "+l.host+"/"+strings.Join(l.segs, "/")))
		}
		w("    query: [%s]", list(op.query))
		if op.body != "" {
			w("    body: %s", op.body)
		}
		if op.resource {
			var parts []string
			for _, r := range d.o.Resource {
				parts = append(parts, "{"+r+"}")
			}
			w("    resource: %s", quote(strings.Join(parts, "/")))
		}
		if len(op.except) > 0 {
			w("    except: [%s]", list(op.except))
		}
	}
	return []byte(b.String())
}

func list(words []string) string {
	var out []string
	for _, s := range words {
		out = append(out, quote(s))
	}
	return strings.Join(out, ", ")
}

// quote makes a YAML scalar; the escapes of strconv that remain for printable
// text are YAML's as well.
func quote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/") == "" && !strings.ContainsAny(s[:1], "0123456789.-_/") &&
		!slices.Contains([]string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}, strings.ToLower(s)) {
		return s
	}
	return strconv.QuoteToGraphic(strings.ToValidUTF8(s, "?"))
}
