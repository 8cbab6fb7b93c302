package capability

import (
	"errors"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/switches"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// slice is the part of the policies that one question is about.
type slice struct {
	rules []*compiled
	reach bool
	// through are rules that grant what carries only features of theirs.
	through []*compiled
}

// All yields the built-in policy and those of the rules.
func (s slice) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		if !yield("built-in", forbidden()) {
			return
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
		for _, c := range s.through {
			if c.through != nil && !yield("through:"+c.id, c.through) {
				return
			}
		}
	}
}

// ask asks Cedar and returns the rule that permits, the first in the file of
// several; none means deny.
func ask(s slice, action types.EntityUID, resource string, context types.Record) []*compiled {
	decision, diag := cedar.Authorize(s, nil, cedar.Request{
		Principal: principal, Action: action, Resource: types.NewEntityUID("Resource", types.String(resource)), Context: context,
	})
	if decision != cedar.Allow {
		if switches.Off("grants") {
			return s.rules
		}
		return nil
	}
	var allowed []*compiled
	for _, r := range diag.Reasons {
		id, through := strings.CutPrefix(string(r.PolicyID), "through:")
		list := s.rules
		if through {
			list = s.through
		}
		if i := slices.IndexFunc(list, func(c *compiled) bool { return string(c.id) == id }); i >= 0 {
			allowed = append(allowed, list[i])
		}
	}
	slices.SortFunc(allowed, func(a, b *compiled) int { return a.order - b.order })
	return allowed
}

// ResolveName says whether the name may be resolved: whether some grant covers
// something there.
func (s *Set) ResolveName(h hostport.Host) Decision {
	d := Decision{Action: "dns.resolve", Resource: vocabulary.Resource(h.String())}
	allowed := ask(slice{rules: s.about(h), reach: true}, actResolve, h.String(), reachContext(h, 0))
	if len(allowed) == 0 {
		d.Reason = s.nothing("no grant covers the name "+quote(h.String()), s.suggestHost(h))
		return d
	}
	d.Verdict, d.Reason = vocabulary.Allow, granted(allowed[0], "the name is covered by a grant")
	return s.nameWithin(h, d, allowed)
}

// Connect says how a connection to the destination is carried. Only an opaque
// one has a Permit: the others need a decision for each request.
func (s *Set) Connect(hp hostport.HostPort) (Treatment, Decision) {
	d := Decision{Action: "tcp.connect", Resource: vocabulary.Resource(hp.String())}
	about := s.about(hp.Host)
	allowed := ask(slice{rules: about, reach: true}, actConnect, hp.String(), reachContext(hp.Host, hp.Port))
	if len(allowed) == 0 || hp.Port == 0 {
		if len(about) > 0 {
			d.Reason = vocabulary.Reason{
				Code: CodeNoGrant, Rule: about[0].Pos,
				Message: "the grant for " + quote(hp.Host.String()) + " does not cover port " + strconv.Itoa(int(hp.Port)),
				Remedy:  "add under grants: - {tcp: " + hp.String() + "} (opaque), or http: with this port",
			}
			if hp.Port == 22 {
				d.Reason.Remedy = s.suggestSSH(hp.Host, hp.Port)
			}
			return TreatRefuse, d
		}
		d.Reason = s.nothing("no grant covers "+quote(hp.String()), s.suggestHost(hp.Host))
		return TreatRefuse, d
	}
	c := allowed[0]
	// Compile has made sure that all rules for this destination agree.
	i := slices.IndexFunc(c.endpoints, func(e endpoint) bool { return e.port == hp.Port && e.match(hp.Host) })
	if i < 0 {
		d.Reason = s.nothing("no grant covers "+quote(hp.String()), "")
		return TreatRefuse, d
	}
	treat := c.endpoints[i].treat
	d.Verdict, d.Reason = vocabulary.Allow, granted(c, "the connection is granted as "+treat.word())
	if treat == TreatOpaque {
		d.Permit = &Permit{host: hp.Host, port: hp.Port, opaque: true, rule: c.Pos}
	}
	return s.connectWithin(hp, treat, d, allowed)
}

func reachContext(h hostport.Host, port hostport.Port) types.Record {
	m := types.RecordMap{"host": types.String(h.String()), "port": types.Long(port), "violation": types.String("")}
	addLabels(m, h)
	return types.NewRecord(m)
}

// addLabels is for rules whose hosts capture labels (hostCondition).
func addLabels(m types.RecordMap, h hostport.Host) {
	labels := strings.Split(h.String(), ".")
	m["labels"] = types.Long(len(labels))
	for i, l := range labels {
		m[types.String(labelName(i))] = types.String(l)
	}
}

// Body says what of the body must be in Request.Body before Decide. What will
// be denied anyway needs nothing, so that the denial says why.
func (s *Set) Body(r catalog.Request) catalog.Need {
	if s.exchangeFor(r) != nil {
		return catalog.Need{Whole: exchangeBody}
	}
	need := catalog.Need{Stream: catalog.Unlimited}
	refused, open := false, false
	for _, g := range s.groups(&r) {
		if g.svc == nil {
			open = open || g.covers(&r)
			continue
		}
		op, _, err := g.svc.Match(&r)
		if err != nil || len(g.granting(op.Name)) == 0 && len(g.via[op.Name]) == 0 {
			continue
		}
		switch n := g.svc.Need(op, r.Method); {
		case n.None:
			refused = true
		case n.Whole > 0:
			need, open = catalog.Need{Whole: max(n.Whole, need.Whole), Gzip: n.Gzip || need.Gzip}, true
		case need.Whole == 0 && need.Head == nil:
			need, open = n, true
		}
	}
	if refused && !open {
		return catalog.Need{None: true}
	}
	return s.bodyWithin(r, need)
}

// EscapedSlash reports whether r.Path, with its escaped slashes as "%2F", is an
// operation of a granted service that wants them. Only then is such a request
// in canonical form.
func (s *Set) EscapedSlash(r catalog.Request) bool {
	return slices.ContainsFunc(s.groups(&r), func(g *group) bool { return g.svc != nil && g.svc.EscapedSlash(r) })
}

// Decide judges one request. The identity is what the sandbox holds.
func (s *Set) Decide(r catalog.Request, id Identity) Decision { return s.decide(r, id, false) }

// decide with anyBody judges as if the body used no feature and the credential
// were there, for Explain.
func (s *Set) decide(r catalog.Request, id Identity, anyBody bool) Decision {
	return s.requestWithin(r, s.decideAlone(r, id, anyBody), anyBody)
}

func (s *Set) decideAlone(r catalog.Request, id Identity, anyBody bool) Decision {
	resource := requestResource(&r)
	refuse := func(reason vocabulary.Reason) Decision {
		return Decision{Action: "http.request", Resource: resource, Reason: reason}
	}
	groups := s.groups(&r)
	msg := malformed(&r)
	if strings.Contains(r.Path, "%2F") {
		// No other reading of such a path than that of who wants it.
		wanting := slices.DeleteFunc(slices.Clone(groups), func(g *group) bool { return g.svc == nil || !g.svc.EscapedSlash(r) })
		if len(wanting) > 0 {
			groups, msg = wanting, malformedButPath(&r)
		}
	}
	if msg != "" {
		return refuse(vocabulary.Reason{Code: CodeBadRequest, Message: "the request is not in canonical form: " + msg, Rule: s.whole()})
	}
	if d, ok := s.exchange(r); ok {
		return d
	}
	groups, typed := withoutTokens(r, groups)
	if typed != nil && len(groups) == 0 {
		return refuse(tokensOnHost(r, typed))
	}
	if len(groups) == 0 {
		return refuse(s.nothing("no grant covers "+quote(string(resource)), s.suggest(r)))
	}
	var best Decision
	for i, g := range groups {
		if i > 0 && g.svc == nil && !g.covers(&r) {
			continue // it can only deny, and says less than the others
		}
		d := s.judge(g, r, resource, id, anyBody)
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
		CodeBadRequest, CodeCredentialMissing, CodeForeignCredential, CodePlaceholderMisplaced,
	}, code)
}

func malformed(r *catalog.Request) string {
	if err := catalog.CheckPath(r.Path); err != nil {
		return err.Error()
	}
	return malformedButPath(r)
}

func malformedButPath(r *catalog.Request) string {
	switch {
	case r.Scheme != "http" && r.Scheme != "https":
		return "the scheme is neither http nor https"
	case r.Host.IsZero() || r.Port == 0:
		return "it has no destination"
	case !isMethod(r.Method):
		return "the method is not in capital letters"
	case slices.Contains(neverGranted, r.Method):
		return "the method " + r.Method + " is never forwarded"
	}
	return ""
}

func isMethod(m string) bool {
	for i := 0; i < len(m); i++ {
		if c := m[i]; c != '-' && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return m != "" && len(m) <= 32
}

// judge asks Cedar about one reading of the request.
func (s *Set) judge(g *group, r catalog.Request, name vocabulary.Resource, id Identity, anyBody bool) Decision {
	q := &question{group: g, request: r, identity: id, action: "http.request", name: name}
	if g.svc == nil {
		q.credentials(s)
		allowed := ask(slice{rules: g.near(r.Path)}, actRequest, "", q.context(""))
		if len(allowed) == 0 {
			return s.explainDenial(q, nil)
		}
		return s.allow(q, allowed[0])
	}
	op, resource, err := g.svc.Match(&r)
	if err != nil {
		if q.credentials(s); q.violation != "" {
			return q.denyCredential()
		}
		if errors.Is(err, catalog.ErrQuery) {
			return q.deny(g.rules[0], CodeUnknownOperation, err.Error(), s.suggestRaw(r))
		}
		return q.deny(g.rules[0], CodeUnknownOperation, g.svc.Name+" has no known operation "+r.Method+" "+quote(r.Path), s.suggestRaw(r))
	}
	q.op, q.resource = op, resource
	q.action = vocabulary.Action(g.svc.Name + "." + op.Name)
	rules, through := g.granting(op.Name), g.via[op.Name]
	// The body was only asked for if the operation is granted at all.
	var bad error
	if len(rules)+len(through) > 0 && !anyBody {
		q.contents, bad = g.svc.Read(op, resource, r)
		if op.HasResourceAt() {
			q.resource = q.contents.Resource
		}
	}
	q.credentials(s)
	// An operation that only carries features is as granted as they are.
	q.through = len(through) > 0 && (anyBody || bad != nil || slices.ContainsFunc(q.contents.Uses, func(u catalog.Use) bool { return q.carries(u.Operation) }))
	allowed := ask(slice{rules: g.covering(op.Name, q.resource), through: through}, actOperation(g.svc.Name, op.Name), q.resource, q.context(q.resource))
	if len(allowed) == 0 {
		return s.explainDenial(q, nil)
	}
	if bad != nil {
		return q.deny(allowed[0], CodeBadRequest, bad.Error(), "")
	}
	if use := s.firstDenied(q, q.contents.Uses); use != nil {
		return s.explainDenial(q, use)
	}
	if op.CredentialRequired && q.presented == "" && !anyBody && !s.limits {
		return q.denyMissing(allowed[0])
	}
	return s.allow(q, allowed[0])
}

// carries reports whether the feature is one for which the operation need not
// be granted by itself.
func (q *question) carries(feature string) bool {
	f, ok := q.svc.Operation(feature)
	return ok && slices.Contains(f.Via, q.op.Name)
}

// firstDenied asks about each feature and returns the first that is not
// granted.
func (s *Set) firstDenied(q *question, uses []catalog.Use) *catalog.Use {
	if switches.Off("features") {
		return nil
	}
	for i := range uses {
		u := &uses[i]
		resource := q.resource
		if u.Own {
			resource = u.Resource
		}
		if len(ask(slice{rules: q.covering(u.Operation, resource)}, actOperation(q.svc.Name, u.Operation), resource, q.context(resource))) == 0 {
			return u
		}
	}
	return nil
}

// question is a request in one reading, on its way to a decision.
type question struct {
	*group
	request  catalog.Request
	identity Identity
	op       *catalog.Operation // nil if raw
	contents catalog.Contents
	resource string // of the operation
	through  bool   // uses only what carries the operation
	action   vocabulary.Action
	name     vocabulary.Resource // for the record

	presented string        // the credential whose placeholder is in its slot
	issued    bool          // a token of the service stands there instead
	inBody    bool          // that is a field of the body
	slot      catalog.Slot  // where
	violation string        // "" or the code of a violation
	culprit   *catalog.Slot // which slot the violation is about
}

// context is everything that the policies' conditions look at.
func (q *question) context(resource string) types.Record {
	// Few entries: Cedar sorts, copies and hashes them for each question.
	m := make(types.RecordMap, 8)
	m["to"], m["presented"], m["violation"] = q.to, types.String(q.presented), types.String(q.violation)
	if q.wide {
		m["host"], m["port"], m["scheme"] = types.String(q.request.Host.String()), types.Long(q.request.Port), types.String(q.request.Scheme)
	}
	if q.svc == nil {
		m["method"] = types.String(q.request.Method)
		rest := q.request.Path[1:]
		m["depth"] = types.Long(strings.Count(rest, "/") + 1)
		for i, more := 0, true; more && i < q.longest; i++ {
			var seg string
			seg, rest, more = strings.Cut(rest, "/")
			m[segmentName(i)] = types.String(seg)
		}
		return types.NewRecord(m)
	}
	m["resource"] = types.String(resource)
	if q.refs {
		repository, ref, _ := strings.Cut(resource, "@")
		m["repository"], m["ref"] = types.String(repository), types.String(ref)
	}
	if len(q.via) > 0 {
		m["through"] = types.Boolean(q.through)
	}
	if q.captured {
		addLabels(m, q.request.Host)
	}
	return types.NewRecord(m)
}

func (s *Set) allow(q *question, c *compiled) Decision {
	what := string(q.action)
	if q.resource != "" {
		what += " on " + quote(q.resource)
	}
	d := Decision{
		Verdict: vocabulary.Allow, Action: q.action, Resource: q.name,
		Reason: granted(c, what+" is granted"),
		Permit: &Permit{host: q.request.Host, port: q.request.Port, tls: q.request.Scheme == "https", rule: c.Pos},
	}
	if q.presented != "" && !q.inBody || q.issued {
		d.Swap = &Swap{Credential: q.presented, Slot: q.slot, Issued: q.issued}
	}
	if q.svc == nil {
		if q.request.Method == catalog.MethodWebSocket {
			d.WebSocket = &WebSocket{} // messages pass unread
		}
		return d
	}
	if q.svc.IssuesTokens(&q.request) {
		d.Issues = q.svc.Name
	}
	d.Rewrite, d.Dropped = q.svc.RewriteHeaders(q.request, func(op string) bool { return len(q.granting(op)) > 0 })
	if q.op.WebSocket && q.request.Method == catalog.MethodWebSocket {
		d.WebSocket = &WebSocket{Subprotocol: q.op.OffersSubprotocol, MessageLimit: q.svc.MessageLimit(q.op)}
		if d.WebSocket.MessageLimit > 0 {
			d.WebSocket.Message = func(data []byte) error {
				contents, err := q.svc.JudgeMessage(q.op, data)
				if err != nil {
					return &Refusal{vocabulary.Reason{Code: CodeBadRequest, Message: err.Error(), Rule: c.Pos}}
				}
				return s.later(q, contents)
			}
		}
	}
	if filter := q.contents.Filter; filter != nil {
		d.Filter = func(body io.Reader) io.Reader {
			return filter(body, func(contents catalog.Contents) error { return s.later(q, contents) })
		}
	}
	return d
}

// Refusal is why something that follows an allowed request is refused: a
// message of its WebSocket, or a part of its body.
type Refusal struct{ Reason vocabulary.Reason }

func (r *Refusal) Error() string { return r.Reason.Message + " (" + r.Reason.Code + ")" }

// later judges what came after the decision about q, without changing q.
func (s *Set) later(q *question, contents catalog.Contents) error {
	now := *q
	now.contents, now.violation, now.culprit = contents, "", nil
	if !s.limits {
		now.bodyCredentials()
	}
	if now.violation != "" {
		return &Refusal{now.denyCredential().Reason}
	}
	if use := s.firstDenied(&now, contents.Uses); use != nil {
		return &Refusal{s.explainDenial(&now, use).Reason}
	}
	return nil
}

func (q *question) deny(c *compiled, code, message, remedy string) Decision {
	return Decision{Action: q.action, Resource: q.name, Reason: vocabulary.Reason{Code: code, Message: message, Rule: c.Pos, Remedy: remedy}}
}

func granted(c *compiled, message string) vocabulary.Reason {
	return vocabulary.Reason{Code: CodeGranted, Message: message, Rule: c.Pos}
}

// requestResource is the URL without its query. A path that looks like it
// holds a credential is left out of the record.
func requestResource(r *catalog.Request) vocabulary.Resource {
	port := ""
	if r.Scheme == "https" && r.Port != 443 || r.Scheme == "http" && r.Port != 80 {
		port = ":" + strconv.Itoa(int(r.Port))
	}
	path := r.Path
	if catalog.LooksLikeCredential(path) {
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
	plain := true
	for i := 0; i < len(s) && plain; i++ {
		plain = ' ' <= s[i] && s[i] < 0x7f
	}
	if plain {
		return s
	}
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return unicode.ReplacementChar
		}
		return c
	}, s)
}
