package catalog

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// route is one line under match: of an operation.
type route struct {
	op      int
	methods []string
	host    hostport.Host
	segs    []segment
	query   [][2]string
}

// segment is one part of a path pattern. rest stands for one or more segments.
type segment struct {
	rest           bool
	any            bool
	name           string // of a capture
	prefix, suffix string // around it; a literal is all prefix with name ""
	oneOf          []string
}

// parseRoute reads "GET,HEAD host/path/{name}/{name:set}/**?key=value".
func parseRoute(s string, sets map[string][]string) (route, error) {
	var rt route
	methods, rest, ok := strings.Cut(s, " ")
	if !ok {
		return rt, fmt.Errorf("%q is not METHOD host/path", s)
	}
	rt.methods = strings.Split(methods, ",")
	for _, m := range rt.methods {
		if m == "" || strings.Trim(m, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			return rt, fmt.Errorf("%q is not a method", m)
		}
	}
	rest, query, hasQuery := strings.Cut(rest, "?")
	if hasQuery {
		for kv := range strings.SplitSeq(query, "&") {
			k, v, ok := strings.Cut(kv, "=")
			if !ok || k == "" {
				return rt, fmt.Errorf("query condition %q is not key=value", kv)
			}
			rt.query = append(rt.query, [2]string{k, v})
		}
	}
	host, path, ok := strings.Cut(rest, "/")
	if !ok {
		return rt, fmt.Errorf("%q has no path", s)
	}
	var err error
	if rt.host, err = hostport.ParseHost(host); err != nil {
		return rt, err
	}
	parts := strings.Split(path, "/")
	for i, p := range parts {
		seg, err := parseSegment(p, sets)
		if err != nil {
			return rt, err
		}
		if seg.rest && i != len(parts)-1 {
			return rt, fmt.Errorf("** may only be the last segment of %q", s)
		}
		rt.segs = append(rt.segs, seg)
	}
	return rt, nil
}

func parseSegment(p string, sets map[string][]string) (segment, error) {
	switch {
	case p == "**":
		return segment{rest: true}, nil
	case p == "*":
		return segment{any: true}, nil
	case strings.Contains(p, "*"):
		return segment{}, fmt.Errorf("segment %q mixes * with text", p)
	}
	i, j := strings.IndexByte(p, '{'), strings.IndexByte(p, '}')
	if i < 0 && j < 0 {
		return segment{prefix: p}, nil
	}
	if i < 0 || j < i || strings.ContainsAny(p[j+1:], "{}") {
		return segment{}, fmt.Errorf("segment %q is not prefix{name}suffix", p)
	}
	name, setName, hasSet := strings.Cut(p[i+1:j], ":")
	if name == "" {
		return segment{}, fmt.Errorf("segment %q has no name", p)
	}
	seg := segment{name: name, prefix: p[:i], suffix: p[j+1:]}
	if hasSet {
		if seg.oneOf = sets[setName]; seg.oneOf == nil {
			return segment{}, fmt.Errorf("there is no set %q above", setName)
		}
	}
	return seg, nil
}

// isCapture says what may stand for a {name}: the letters that names of owners,
// repositories, packages and modules have, never a separator or a wildcard.
func isCapture(s string) bool {
	if s == "" || s == "." || s == ".." || s == "-" {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._~@+!-", c) >= 0) {
			return false
		}
	}
	return true
}

func (g segment) match(s string) (capture string, ok bool) {
	switch {
	case g.any:
		return "", s != ""
	case g.name == "":
		return "", s == g.prefix
	}
	rest, ok := strings.CutPrefix(s, g.prefix)
	if ok {
		rest, ok = strings.CutSuffix(rest, g.suffix)
	}
	if !ok || !isCapture(rest) || g.oneOf != nil && !slices.Contains(g.oneOf, rest) {
		return "", false
	}
	return rest, true
}

func (rt *route) match(s *Service, r Request, segs []string) (resource string, ok bool) {
	if rt.host != r.Host || !slices.Contains(rt.methods, r.Method) {
		return "", false
	}
	all := segs
	var buf [8][2]string
	captures := buf[:0]
	for i, g := range rt.segs {
		if g.rest {
			if len(segs) <= i {
				return "", false
			}
			segs = segs[:len(rt.segs)]
			break
		}
		if i >= len(segs) {
			return "", false
		}
		c, ok := g.match(segs[i])
		if !ok {
			return "", false
		}
		if g.name != "" {
			captures = append(captures, [2]string{g.name, c})
		}
	}
	if len(segs) != len(rt.segs) {
		return "", false
	}
	for _, q := range rt.query {
		if !queryIs(r.Query, q[0], q[1]) {
			return "", false
		}
	}
	op := &s.Operations[rt.op]
	for _, other := range op.except {
		for i := range s.routes {
			if o := &s.routes[i]; s.Operations[o.op].Name == other {
				if _, ok := o.match(s, r, all); ok {
					return "", false
				}
			}
		}
	}
	return expand(op, captures), true
}

// expand fills the resource template; a route without all of its names gives
// no resource.
func expand(op *Operation, captures [][2]string) string {
	if op.ResourceTemplate == "" {
		return ""
	}
	var b strings.Builder
	for i, part := range strings.Split(op.ResourceTemplate, "/") {
		name := strings.Trim(part, "{}")
		at := slices.IndexFunc(captures, func(c [2]string) bool { return c[0] == name })
		if at < 0 {
			return ""
		}
		if i > 0 {
			b.WriteByte('/')
		}
		b.WriteString(captures[at][1])
	}
	if op.fold {
		return strings.ToLower(b.String())
	}
	return b.String()
}

// overlaps reports whether some request could match both routes. It errs on the
// side of yes.
func (rt *route) overlaps(o *route) bool {
	if rt.host != o.host || !slices.ContainsFunc(rt.methods, func(m string) bool { return slices.Contains(o.methods, m) }) {
		return false
	}
	for _, a := range rt.query {
		for _, b := range o.query {
			if a[0] == b[0] && a[1] != b[1] {
				return false
			}
		}
	}
	for i := 0; ; i++ {
		switch {
		case i == len(rt.segs) || i == len(o.segs):
			return len(rt.segs) == len(o.segs)
		case rt.segs[i].rest || o.segs[i].rest:
			return true
		case !rt.segs[i].overlaps(o.segs[i]):
			return false
		}
	}
}

func (g segment) overlaps(o segment) bool {
	for _, pair := range [][2]segment{{g, o}, {o, g}} {
		a, b := pair[0], pair[1]
		if !a.any && a.name == "" {
			_, ok := b.match(a.prefix)
			return ok
		}
		if a.oneOf != nil {
			return slices.ContainsFunc(a.oneOf, func(s string) bool { _, ok := b.match(a.prefix + s + a.suffix); return ok })
		}
	}
	if g.any || o.any {
		return true
	}
	// Two captures: disjoint if one's literal start or end contradicts the other's.
	return (strings.HasPrefix(g.prefix, o.prefix) || strings.HasPrefix(o.prefix, g.prefix)) &&
		(strings.HasSuffix(g.suffix, o.suffix) || strings.HasSuffix(o.suffix, g.suffix))
}
