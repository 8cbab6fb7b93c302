package catalog

import (
	"fmt"
	"slices"
	"strings"
)

// route is one line under match: of an operation.
type route struct {
	op      int
	methods []string
	host    HostPattern
	segs    []segment
	many    int // index of the segment that takes several, or -1
	query   [][2]string
	asks    []asked
	when    []condition
}

// asked is a query key that stands there once, with a value of which a part is
// captured: scope=repository:{name:segments}:pull.
type asked struct {
	key   string
	value segment
}

func (a asked) match(s string) (capture string, ok bool) {
	if a.value.many {
		return a.value.matchMany(strings.Split(s, "/"))
	}
	return a.value.match(s)
}

// condition is one further demand on a request: the header or query key stands
// there once, with a value of these.
type condition struct {
	name  string
	query bool
	globs []string
}

func (c condition) holds(r *Request) bool {
	values := r.Header[c.name]
	if c.query {
		values = r.Query[c.name]
	}
	return len(values) == 1 && slices.ContainsFunc(c.globs, func(g string) bool { return globMatch(g, values[0]) })
}

// disjoint: no request meets both.
func (c condition) disjoint(o condition) bool {
	if c.name != o.name || c.query != o.query {
		return false
	}
	for _, a := range c.globs {
		for _, b := range o.globs {
			pa, wa := strings.CutSuffix(a, "*")
			pb, wb := strings.CutSuffix(b, "*")
			if a == b || wa && strings.HasPrefix(pb, pa) || wb && strings.HasPrefix(pa, pb) {
				return false
			}
		}
	}
	return true
}

// segment is one part of a path pattern, or one label of a host pattern.
type segment struct {
	rest           bool   // ** at the end: one or more segments
	any            bool   // *
	path           bool   // {name:path}: one segment that may hold escaped slashes
	many           bool   // {name:segments}: one or more segments
	wide           bool   // {name:id}, and with many {name:key}: any letters; see wide.go
	name           string // of a capture
	prefix, suffix string // around it; a literal is all prefix with name ""
	oneOf          []string
}

// parseRoute reads "GET,HEAD host/path/{name}/{name:set}/**?key=value".
func parseRoute(s string, sets map[string][]string) (route, error) {
	rt := route{many: -1}
	methods, rest, ok := strings.Cut(s, " ")
	if !ok {
		return rt, fmt.Errorf("%q is not METHOD host/path", s)
	}
	rt.methods = strings.Split(methods, ",")
	for _, m := range rt.methods {
		if m == "" || strings.Trim(m, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") != "" || m == MethodWebSocket {
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
			if !strings.Contains(v, "{") {
				rt.query = append(rt.query, [2]string{k, v})
				continue
			}
			// In a query a * is a letter like others.
			value, err := parseSegment(strings.ReplaceAll(v, "*", "\x00"), sets)
			if err != nil {
				return rt, err
			}
			value.suffix = strings.ReplaceAll(value.suffix, "\x00", "*")
			rt.asks = append(rt.asks, asked{k, value})
		}
	}
	host, path, ok := strings.Cut(rest, "/")
	if !ok {
		return rt, fmt.Errorf("%q has no path", s)
	}
	var err error
	if rt.host, err = parseHost(host, sets); err != nil {
		return rt, err
	}
	names := map[string]bool{}
	for _, g := range rt.host.labels {
		names[g.name] = true
	}
	parts := strings.Split(path, "/")
	for i, p := range parts {
		seg, err := parseSegment(p, sets)
		switch {
		case err != nil:
			return rt, err
		case seg.rest && i != len(parts)-1:
			return rt, fmt.Errorf("** may only be the last segment of %q", s)
		case seg.name != "" && names[seg.name]:
			return rt, fmt.Errorf("%q captures %q twice", s, seg.name)
		case (seg.many || seg.rest) && rt.many >= 0:
			return rt, fmt.Errorf("%q has two places that take several segments", s)
		}
		names[seg.name] = seg.name != ""
		if seg.many {
			rt.many = i
		}
		rt.segs = append(rt.segs, seg)
	}
	for _, a := range rt.asks {
		if names[a.value.name] {
			return rt, fmt.Errorf("%q captures %q twice", s, a.value.name)
		}
		names[a.value.name] = true
	}
	return rt, nil
}

// captures reports whether the line captures a part of this name.
func (rt *route) captures(name string) bool {
	named := func(g segment) bool { return g.name == name }
	return slices.ContainsFunc(rt.segs, named) || slices.ContainsFunc(rt.host.labels, named) ||
		slices.ContainsFunc(rt.asks, func(a asked) bool { return named(a.value) })
}

// pathName is the name of the capture that may hold slashes, if there is one.
func (rt *route) pathName() string {
	several := func(g segment) bool { return g.path || g.many }
	if i := slices.IndexFunc(rt.segs, several); i >= 0 {
		return rt.segs[i].name
	}
	if i := slices.IndexFunc(rt.asks, func(a asked) bool { return several(a.value) }); i >= 0 {
		return rt.asks[i].value.name
	}
	return ""
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
	switch {
	case setName == "path" && hasSet:
		seg.path = true
	case setName == "object" && hasSet:
		seg.path, seg.wide = true, true
	case setName == "segments" && hasSet:
		seg.many = true
	case setName == "id" && hasSet:
		seg.wide = true
	case setName == "key" && hasSet:
		seg.wide, seg.many = true, true
	case hasSet:
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

// escapedSlash is how a slash stands in Request.Path that is not a separator.
const escapedSlash = "%2F"

func (g segment) match(s string) (capture string, ok bool) {
	switch {
	case strings.Contains(s, escapedSlash) && !g.path:
		return "", false
	case g.any:
		return "", s != ""
	case g.name == "":
		return "", s == g.prefix
	}
	rest, ok := strings.CutPrefix(s, g.prefix)
	if ok {
		rest, ok = strings.CutSuffix(rest, g.suffix)
	}
	if g.path && g.wide && ok {
		rest = strings.ReplaceAll(rest, escapedSlash, "/")
		return rest, isKey(rest)
	}
	if g.path && ok {
		return capturePath(strings.Split(rest, escapedSlash))
	}
	if g.wide && ok {
		return rest, isWide(rest)
	}
	if !ok || !isCapture(rest) || g.oneOf != nil && !slices.Contains(g.oneOf, rest) {
		return "", false
	}
	return rest, true
}

// capturePath joins parts of which each could be captured by itself.
func capturePath(parts []string) (string, bool) {
	for _, p := range parts {
		if !isCapture(p) {
			return "", false
		}
	}
	return strings.Join(parts, "/"), true
}

// matchMany is match for a segment that stands for all of segs.
func (g segment) matchMany(segs []string) (string, bool) {
	joined, ok := strings.CutPrefix(strings.Join(segs, "/"), g.prefix)
	if ok {
		joined, ok = strings.CutSuffix(joined, g.suffix)
	}
	if !ok || strings.Contains(joined, escapedSlash) {
		return "", false
	}
	if g.wide {
		return joined, isKey(joined)
	}
	return capturePath(strings.Split(joined, "/"))
}

func (rt *route) match(s *Service, r *Request, segs []string) (resource string, ok bool) {
	if !slices.Contains(rt.methods, r.Method) || strings.HasPrefix(r.Method, "GIT-") != (r.Scheme == "ssh") {
		return "", false
	}
	var buf [8][2]string
	captures, ok := rt.host.match(r.Host, buf[:0])
	if !ok {
		return "", false
	}
	all, want := segs, rt.segs
	switch {
	case rt.many >= 0:
		// One segment takes what the others leave.
		n := len(segs) - len(want) + 1
		if n < 1 {
			return "", false
		}
		c, ok := want[rt.many].matchMany(segs[rt.many : rt.many+n])
		if !ok {
			return "", false
		}
		captures = append(captures, [2]string{want[rt.many].name, c})
		if captures, ok = matchSegments(want[:rt.many], segs[:rt.many], captures); !ok {
			return "", false
		}
		want, segs = want[rt.many+1:], segs[rt.many+n:]
	case want[len(want)-1].rest:
		if len(segs) < len(want) || slices.ContainsFunc(segs[len(want)-1:], func(s string) bool { return strings.Contains(s, escapedSlash) }) {
			return "", false
		}
		want = want[:len(want)-1]
		segs = segs[:len(want)]
	}
	if captures, ok = matchSegments(want, segs, captures); !ok {
		return "", false
	}
	for _, q := range rt.query {
		if !queryIs(r.Query, q[0], q[1]) {
			return "", false
		}
	}
	for _, a := range rt.asks {
		values := r.Query[a.key]
		if len(values) != 1 {
			return "", false
		}
		c, ok := a.match(values[0])
		if !ok {
			return "", false
		}
		captures = append(captures, [2]string{a.value.name, c})
	}
	for _, c := range rt.when {
		if !c.holds(r) {
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

// matchSegments compares one to one and appends the captures.
func matchSegments(want []segment, segs []string, captures [][2]string) ([][2]string, bool) {
	if len(want) != len(segs) {
		return nil, false
	}
	for i, g := range want {
		c, ok := g.match(segs[i])
		if !ok {
			return nil, false
		}
		if g.name != "" {
			captures = append(captures, [2]string{g.name, c})
		}
	}
	return captures, true
}

// expand fills the resource template; a route without all of its names gives
// no resource.
func expand(op *Operation, captures [][2]string) string {
	if op.resourceAt != nil || len(op.template) == 0 {
		return ""
	}
	var b strings.Builder
	for i, name := range op.template {
		at := slices.IndexFunc(captures, func(c [2]string) bool { return c[0] == name })
		if at < 0 || strings.Contains(captures[at][1], "/") && i != len(op.template)-1 {
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
	if !slices.ContainsFunc(rt.methods, func(m string) bool { return slices.Contains(o.methods, m) }) || !rt.host.Overlaps(o.host) {
		return false
	}
	for _, a := range rt.query {
		for _, b := range o.query {
			if a[0] == b[0] && a[1] != b[1] {
				return false
			}
		}
	}
	if asksOther(rt, o) || asksOther(o, rt) {
		return false
	}
	for _, a := range rt.when {
		if slices.ContainsFunc(o.when, a.disjoint) {
			return false
		}
	}
	if rt.many >= 0 || o.many >= 0 {
		return overlapsMany(rt.segs, o.segs)
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

// asksOther: no value of some key of a's can be one of b's.
func asksOther(a, b *route) bool {
	for _, x := range a.asks {
		for _, y := range b.asks {
			if x.key == y.key && !x.value.overlaps(y.value) {
				return true
			}
		}
		for _, q := range b.query {
			if _, ok := x.match(q[1]); x.key == q[0] && !ok {
				return true
			}
		}
	}
	return false
}

// overlapsMany compares from both ends up to what takes several segments.
func overlapsMany(a, b []segment) bool {
	several := func(g segment) bool { return g.many || g.rest }
	short := func(s []segment, o []segment) bool { return !slices.ContainsFunc(s, several) && len(s) < len(o) }
	if short(a, b) || short(b, a) || emptyForKey(a, b) || emptyForKey(b, a) {
		return false
	}
	for i := 0; i < min(len(a), len(b)) && !several(a[i]) && !several(b[i]); i++ {
		if !a[i].overlaps(b[i]) {
			return false
		}
	}
	for i := 1; i <= min(len(a), len(b)); i++ {
		x, y := a[len(a)-i], b[len(b)-i]
		if x.rest || y.rest {
			return true
		}
		// The end of several segments is still the end of a segment.
		if x.many || y.many {
			return strings.HasSuffix(x.ending(), y.ending()) || strings.HasSuffix(y.ending(), x.ending())
		}
		if !x.overlaps(y) {
			return false
		}
	}
	return true
}

// ending is the literal end of what the segment matches.
func (g segment) ending() string {
	switch {
	case g.any:
		return ""
	case g.name == "":
		return g.prefix
	}
	return g.suffix
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
