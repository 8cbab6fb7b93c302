package capability

import (
	"iter"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// slice is the part of the policies that one question is about.
type slice struct {
	rules []*compiled
	reach bool
}

// All yields the built-in policies and those of the rules.
func (s slice) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for _, p := range forbids() {
			if !yield("built-in", p) {
				return
			}
		}
		for _, c := range s.rules {
			p := c.use
			if s.reach {
				p = c.reach
			}
			if p != nil && !yield(c.id, p) {
				return
			}
		}
	}
}

// ask asks Cedar and returns the rules that permit, first in the file first;
// none means deny.
func ask(s slice, action types.EntityUID, resource string, context types.Record) []*compiled {
	decision, diag := cedar.Authorize(s, nil, cedar.Request{
		Principal: principal, Action: action, Resource: types.NewEntityUID("Resource", types.String(resource)), Context: context,
	})
	if decision != cedar.Allow {
		return nil
	}
	var allowed []*compiled
	for _, r := range diag.Reasons {
		if i := slices.IndexFunc(s.rules, func(c *compiled) bool { return c.id == r.PolicyID }); i >= 0 {
			allowed = append(allowed, s.rules[i])
		}
	}
	slices.SortFunc(allowed, func(a, b *compiled) int { return a.index() - b.index() })
	return allowed
}

// ResolveName says whether the name may be resolved: whether some grant covers
// something there.
func (s *Set) ResolveName(h hostport.Host) Decision {
	d := Decision{Action: "dns.resolve", Resource: vocabulary.Resource(h.String())}
	allowed := ask(slice{s.about(h), true}, actResolve, h.String(), reachContext(h, 0))
	if len(allowed) == 0 {
		d.Reason = s.nothing("no grant covers the name "+quote(h.String()), s.suggestHost(h))
		return d
	}
	d.Verdict, d.Reason = vocabulary.Allow, granted(allowed[0], "the name is covered by a grant")
	return d
}

// Connect says how a connection to the destination is carried. Only an opaque
// one has a Permit: the others need a decision for each request.
func (s *Set) Connect(hp hostport.HostPort) (Treatment, Decision) {
	d := Decision{Action: "tcp.connect", Resource: vocabulary.Resource(hp.String())}
	about := s.about(hp.Host)
	allowed := ask(slice{about, true}, actConnect, hp.String(), reachContext(hp.Host, hp.Port))
	if len(allowed) == 0 || hp.Port == 0 {
		if len(about) > 0 {
			d.Reason = vocabulary.Reason{
				Code: CodeNoGrant, Rule: about[0].Pos,
				Message: "the grant for " + quote(hp.Host.String()) + " does not cover port " + strconv.Itoa(int(hp.Port)),
				Remedy:  "add under grants: - {tcp: " + hp.String() + "} (opaque), or http: with this port",
			}
			return TreatRefuse, d
		}
		d.Reason = s.nothing("no grant covers "+quote(hp.String()), s.suggestHost(hp.Host))
		return TreatRefuse, d
	}
	c := allowed[0]
	// Compile has made sure that all rules for this destination agree.
	i := slices.IndexFunc(c.endpoints, func(e endpoint) bool { return e.port == hp.Port && e.host.Match(hp.Host) })
	if i < 0 {
		d.Reason = s.nothing("no grant covers "+quote(hp.String()), "")
		return TreatRefuse, d
	}
	treat := c.endpoints[i].treat
	d.Verdict, d.Reason = vocabulary.Allow, granted(c, "the connection is granted as "+treat.word())
	if treat == TreatOpaque {
		d.Permit = &Permit{host: hp.Host, port: hp.Port, opaque: true, rule: c.Pos}
	}
	return treat, d
}

func reachContext(h hostport.Host, port hostport.Port) types.Record {
	return types.NewRecord(types.RecordMap{
		"host": types.String(h.String()), "port": types.Long(port), "violation": types.String(""),
	})
}

// Body says how many bytes of the body must be in Request.Body before Decide;
// 0: none. A longer body must be refused.
func (s *Set) Body(r catalog.Request) int {
	need := 0
	for _, g := range s.groups(r) {
		if g.svc == nil {
			continue
		}
		op, _, err := g.svc.Route(r)
		if err == nil && op.BodyLimit > need && len(g.granting(op.Name)) > 0 {
			need = op.BodyLimit
		}
	}
	return need
}

// group is one reading of a request: as an operation of a service, or raw with
// a credential in one slot.
type group struct {
	svc   *catalog.Service
	slots []catalog.Slot
	rules []*compiled
}

func (g *group) granting(op string) []*compiled {
	var out []*compiled
	for _, c := range g.rules {
		if slices.Contains(c.ops, op) {
			out = append(out, c)
		}
	}
	return out
}

// groups sorts the rules about the request's destination, typed ones first.
func (s *Set) groups(r catalog.Request) []*group {
	var typed, raw []*group
	for _, c := range s.about(r.Host) {
		if !c.at(r.Host, r.Port, r.Scheme) {
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
	return append(typed, raw...)
}

// Decide judges one request. The identity is what the sandbox holds.
func (s *Set) Decide(r catalog.Request, id Identity) Decision { return s.decide(r, id, false) }

// decide with anyBody judges as if the body used no feature, for Explain.
func (s *Set) decide(r catalog.Request, id Identity, anyBody bool) Decision {
	resource := requestResource(r)
	refuse := func(reason vocabulary.Reason) Decision {
		return Decision{Action: "http.request", Resource: resource, Reason: reason}
	}
	if msg := malformed(r); msg != "" {
		return refuse(vocabulary.Reason{Code: CodeBadRequest, Message: "the request is not in canonical form: " + msg, Rule: s.whole()})
	}
	groups := s.groups(r)
	if len(groups) == 0 {
		return refuse(s.nothing("no grant covers "+quote(string(resource)), s.suggest(r)))
	}
	var best Decision
	for i, g := range groups {
		d := s.judge(g, r, id, anyBody)
		if d.Verdict == vocabulary.Allow {
			return d
		}
		if i == 0 || rank(d.Reason.Code) > rank(best.Reason.Code) {
			best = d
		}
	}
	return best
}

// rank orders denials: the one that came closest to an allow is reported.
func rank(code string) int {
	return slices.Index([]string{
		CodeNoGrant, CodeUnknownOperation, CodeMethodNotGranted, CodeOperationNotGranted, CodeResourceNotGranted,
		CodeBadRequest, CodeForeignCredential, CodePlaceholderMisplaced,
	}, code)
}

func malformed(r catalog.Request) string {
	if err := catalog.CheckPath(r.Path); err != nil {
		return err.Error()
	}
	switch {
	case r.Scheme != "http" && r.Scheme != "https":
		return "the scheme is neither http nor https"
	case r.Host.IsZero() || r.Port == 0:
		return "it has no destination"
	case r.Method == "" || len(r.Method) > 32 || strings.Trim(r.Method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") != "":
		return "the method is not in capital letters"
	case slices.Contains(neverGranted, r.Method):
		return "the method " + r.Method + " is never forwarded"
	}
	return ""
}

// judge asks Cedar about one reading of the request.
func (s *Set) judge(g *group, r catalog.Request, id Identity, anyBody bool) Decision {
	q := question{group: g, request: r, action: "http.request", name: requestResource(r)}
	entities := []types.EntityUID{actRequest}
	rules := [][]*compiled{g.rules}
	if g.svc != nil {
		op, resource, err := g.svc.Route(r)
		if err != nil {
			return q.deny(g.rules[0], CodeUnknownOperation, g.svc.Name+" has no known operation "+r.Method+" "+quote(r.Path), s.suggestRaw(r))
		}
		q.op, q.resource = op, resource
		q.action = vocabulary.Action(g.svc.Name + "." + op.Name)
		entities[0], rules[0] = actOperation(g.svc.Name, op.Name), g.granting(op.Name)
		// The body was only asked for if the operation is granted at all.
		if len(rules[0]) > 0 && op.BodyLimit > 0 && !anyBody {
			if q.op, _, err = g.svc.Identify(r); err != nil {
				return q.deny(rules[0][0], CodeBadRequest, err.Error(), "")
			}
		}
		for _, u := range q.op.Uses {
			entities = append(entities, actOperation(g.svc.Name, u.Operation))
			rules = append(rules, g.granting(u.Operation))
		}
	}
	q.credentials(id)
	context := q.context(rules)
	var allowed []*compiled
	for i, entity := range entities {
		permits := ask(slice{rules: rules[i]}, entity, q.resource, context)
		if len(permits) == 0 {
			return s.explainDenial(&q, i)
		}
		if i == 0 {
			allowed = permits
		}
	}
	return q.allow(allowed[0])
}

// question is a request in one reading, on its way to a decision.
type question struct {
	*group
	request  catalog.Request
	op       catalog.Operation
	resource string // of the operation
	action   vocabulary.Action
	name     vocabulary.Resource // for the record

	presented string        // the credential whose placeholder is in its slot
	slot      catalog.Slot  // where
	violation string        // "" or the code of a built-in forbid
	culprit   *catalog.Slot // which slot the violation is about
	strip     []catalog.Slot
}

// context is everything that the policies' conditions look at.
func (q *question) context(rules [][]*compiled) types.Record {
	m := types.RecordMap{
		"host": types.String(q.request.Host.String()), "port": types.Long(q.request.Port), "scheme": types.String(q.request.Scheme),
		"method": types.String(q.request.Method), "resource": types.String(q.resource),
		"presented": types.String(q.presented), "violation": types.String(q.violation),
	}
	if q.svc == nil {
		segs := strings.Split(q.request.Path[1:], "/")
		m["depth"] = types.Long(len(segs))
		longest := 0
		for _, c := range rules[0] {
			longest = max(longest, strings.Count(c.pattern.Path(), "/"))
		}
		for i := range min(len(segs), longest) {
			m[segmentName(i)] = types.String(segs[i])
		}
	}
	return types.NewRecord(m)
}

func (q *question) allow(c *compiled) Decision {
	what := string(q.action)
	if q.resource != "" {
		what += " on " + quote(q.resource)
	}
	d := Decision{
		Verdict: vocabulary.Allow, Action: q.action, Resource: q.name,
		Reason: granted(c, what+" is granted"),
		Permit: &Permit{host: q.request.Host, port: q.request.Port, tls: q.request.Scheme == "https", rule: c.Pos},
		Strip:  q.strip,
	}
	if q.presented != "" {
		d.Swap = &Swap{Credential: q.presented, Slot: q.slot}
	}
	if q.svc != nil {
		d.Rewrite, d.Dropped = q.svc.RewriteHeaders(q.request, func(op string) bool { return len(q.granting(op)) > 0 })
	}
	return d
}

func (q *question) deny(c *compiled, code, message, remedy string) Decision {
	return Decision{Action: q.action, Resource: q.name, Reason: vocabulary.Reason{Code: code, Message: message, Rule: c.Pos, Remedy: remedy}}
}

func granted(c *compiled, message string) vocabulary.Reason {
	return vocabulary.Reason{Code: CodeGranted, Message: message, Rule: c.Pos}
}

// requestResource is the URL without its query. A path that looks like it
// holds a credential is left out of the record.
func requestResource(r catalog.Request) vocabulary.Resource {
	port := ""
	if r.Scheme == "https" && r.Port != 443 || r.Scheme == "http" && r.Port != 80 {
		port = ":" + strconv.Itoa(int(r.Port))
	}
	path := r.Path
	if slices.ContainsFunc(catalog.Credentials(catalog.Request{Path: path}), func(catalog.Found) bool { return true }) {
		path = "/"
	}
	if len(path) > 512 {
		path = strings.ToValidUTF8(path[:512], "") + "…"
	}
	return vocabulary.Resource(printable(r.Scheme + "://" + r.Host.String() + port + path))
}

// printable keeps what a malformed request could do to a terminal out of the
// record.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return unicode.ReplacementChar
		}
		return c
	}, s)
}
