package capability

import (
	"slices"
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go/types"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// The index finds the few rules that a question is about, so that Cedar is
// asked about those alone. It only leaves out: what it finds is still judged.

// destination is where a request goes.
type destination struct {
	host   hostport.Host
	port   hostport.Port
	scheme string
}

// value is the destination as one word, for the policies.
func (d destination) value() types.String {
	b := make([]byte, 0, 64)
	b = append(append(append(b, d.scheme...), "://"...), d.host.String()...)
	return types.String(strconv.AppendUint(append(b, ':'), uint64(d.port), 10))
}

func (s *Set) index() {
	s.exact, s.wild, s.known = map[hostport.Host][]*compiled{}, map[string][]*compiled{}, map[destination][]*group{}
	s.exchanges = nil
	for i, c := range s.rules {
		c.order = i
		if c.Exchange != "" {
			s.exchanges = append(s.exchanges, c)
		}
		for j := range c.endpoints {
			e := &c.endpoints[j]
			if h, ok := e.exact(); ok {
				if !slices.Contains(s.exact[h], c) {
					s.exact[h] = append(s.exact[h], c)
				}
			} else if tail := e.tail(); !slices.Contains(s.wild[tail], c) {
				s.wild[tail] = append(s.wild[tail], c)
			}
		}
	}
	for h := range s.exact {
		s.exact[h] = s.search(h)
	}
	for h, rules := range s.exact {
		for _, c := range rules {
			for _, e := range c.endpoints {
				at := destination{h, e.port, e.scheme()}
				if _, done := s.known[at]; !done && e.match(h) {
					s.known[at] = grouped(rules, at)
				}
			}
		}
	}
}

// tail is the end that all names have which a pattern covers, from a dot on.
func (e *endpoint) tail() string {
	if t := e.typed.Tail(); t != "" {
		return t
	}
	return e.raw.String()[1:]
}

// about lists the rules with an endpoint on this host, in the order of the
// file.
func (s *Set) about(h hostport.Host) []*compiled {
	if s == nil || h.IsZero() {
		return nil
	}
	if rules, ok := s.exact[h]; ok {
		return rules
	}
	return s.search(h)
}

func (s *Set) search(h hostport.Host) []*compiled {
	found := slices.Clone(s.exact[h])
	if len(s.wild) == 0 {
		return found
	}
	name := h.String()
	for i := range len(name) {
		if name[i] != '.' {
			continue
		}
		for _, c := range s.wild[name[i:]] {
			if !slices.Contains(found, c) && slices.ContainsFunc(c.endpoints, func(e endpoint) bool { return e.match(h) }) {
				found = append(found, c)
			}
		}
	}
	slices.SortFunc(found, func(a, b *compiled) int { return a.order - b.order })
	return found
}

func (c *compiled) at(host hostport.Host, port hostport.Port, scheme string) bool {
	for i := range c.endpoints {
		if e := &c.endpoints[i]; e.treat != TreatOpaque && e.port == port && e.scheme() == scheme && e.match(host) {
			return true
		}
	}
	return false
}

// group is one reading of a request: as an operation of a service, or raw with
// a credential in one slot. Groups of known destinations are shared.
type group struct {
	svc   *catalog.Service
	slots []catalog.Slot
	rules []*compiled

	// byOp are the rules of a typed group by operation; via those that grant an
	// operation for the features that they name.
	byOp, via map[string][]*compiled
	// byResource are the rules of byOp by each resource that they name, the ones
	// with a pattern or without resources under "".
	byResource map[string]map[string][]*compiled
	// bySegment are the rules of a raw group by the first segment of their path
	// if that is literal, open the others.
	bySegment map[string][]*compiled
	open      []*compiled
	to        types.String // the destination
	wide      bool         // some rule's host is a pattern
	captured  bool         // some rule's host captures labels
	refs      bool         // some rule's resources name refs
	longest   int          // segments of the longest pattern
}

// groups sorts the rules about the request's destination, typed ones first.
func (s *Set) groups(r *catalog.Request) []*group {
	if s == nil || r.Host.IsZero() {
		return nil
	}
	at := destination{r.Host, r.Port, r.Scheme}
	if _, ok := s.exact[r.Host]; ok {
		return s.known[at]
	}
	return grouped(s.search(r.Host), at)
}

func grouped(rules []*compiled, at destination) []*group {
	var typed, raw []*group
	for _, c := range rules {
		if c.Exchange != "" || c.SSH != "" || !c.at(at.host, at.port, at.scheme) {
			continue
		}
		list := &raw
		if c.svc != nil {
			list = &typed
		}
		i := slices.IndexFunc(*list, func(g *group) bool {
			if c.svc != nil {
				return g.svc == c.svc
			}
			return c.Credential == "" || slices.Equal(g.slots, c.slots) || g.slots == nil
		})
		if i < 0 {
			g := &group{svc: c.svc}
			*list, i = append(*list, g), len(*list)
		}
		g := (*list)[i]
		g.rules = append(g.rules, c)
		if g.slots == nil {
			g.slots = c.slots
		}
	}
	all := append(typed, raw...)
	for _, g := range all {
		g.to = at.value()
		g.index()
	}
	return all
}

func (g *group) index() {
	g.byOp, g.via, g.bySegment = map[string][]*compiled{}, map[string][]*compiled{}, map[string][]*compiled{}
	g.byResource = map[string]map[string][]*compiled{}
	for _, c := range g.rules {
		g.wide = g.wide || slices.ContainsFunc(c.endpoints, func(e endpoint) bool { _, ok := e.exact(); return !ok })
		g.captured = g.captured || slices.ContainsFunc(c.endpoints, func(e endpoint) bool { return e.typed.Labels() != nil })
		g.refs = g.refs || c.refs
		if g.svc == nil {
			path := c.pattern.Path()
			g.longest = max(g.longest, strings.Count(path, "/"))
			if first, _, _ := strings.Cut(path[1:], "/"); strings.Contains(first, "*") {
				g.open = append(g.open, c)
			} else {
				g.bySegment[first] = append(g.bySegment[first], c)
			}
			continue
		}
		for _, op := range c.ops {
			g.byOp[op] = append(g.byOp[op], c)
			if g.byResource[op] == nil {
				g.byResource[op] = map[string][]*compiled{}
			}
			for _, r := range c.places() {
				g.byResource[op][r] = append(g.byResource[op][r], c)
			}
		}
		for _, op := range c.viaOps {
			g.via[op] = append(g.via[op], c)
		}
	}
}

// granting lists the rules that name the operation.
func (g *group) granting(op string) []*compiled {
	if g.byOp == nil {
		g.index()
	}
	return g.byOp[op]
}

// few is how many rules are not worth looking at before Cedar does.
const few = 8

// near lists the raw rules that could cover the path.
func (g *group) near(path string) []*compiled {
	if len(g.rules) <= few || path == "" {
		return g.rules
	}
	first, _, _ := strings.Cut(path[1:], "/")
	literal := g.bySegment[first]
	out := make([]*compiled, 0, len(g.open)+4)
	for _, list := range [2][]*compiled{literal, g.open} {
		for _, c := range list {
			if strings.HasPrefix(path, c.literal) {
				out = append(out, c)
			}
		}
	}
	slices.SortFunc(out, func(a, b *compiled) int { return a.order - b.order })
	return out
}

// covers reports whether a raw rule is about the request.
func (g *group) covers(r *catalog.Request) bool {
	return slices.ContainsFunc(g.near(r.Path), func(c *compiled) bool {
		return slices.Contains(c.Methods, r.Method) && c.pattern.Match(r.Scheme, r.Host, r.Port, r.Path)
	})
}

// places are the literal resources that a rule names, and "" if there may be
// others.
func (c *compiled) places() []string {
	var out []string
	for _, r := range c.Resources {
		if c.refs {
			r, _, _ = strings.Cut(r, "@")
		}
		if strings.HasSuffix(r, "*") {
			r = ""
		}
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	if out == nil {
		return []string{""}
	}
	return out
}

// covering is granting without, of many rules, those for other resources.
func (g *group) covering(op, resource string) []*compiled {
	rules := g.granting(op)
	if len(rules) <= few {
		return rules
	}
	if g.refs {
		resource, _, _ = strings.Cut(resource, "@")
	}
	out := slices.Clone(g.byResource[op][resource])
	if resource == "" {
		return out
	}
	for _, c := range g.byResource[op][""] {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b *compiled) int { return a.order - b.order })
	return out
}
