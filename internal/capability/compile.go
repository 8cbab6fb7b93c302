package capability

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
)

// Set is a compiled capability set.
type Set struct {
	spec  Spec
	cat   *catalog.Catalog
	rules []*compiled
	exact map[hostport.Host][]*compiled
	wild  []*compiled
}

// compiled is one rule, checked, with its Cedar policies.
type compiled struct {
	Rule
	id        cedar.PolicyID
	svc       *catalog.Service
	ops       []string // canonical names
	pattern   policy.URLPattern
	endpoints []endpoint
	slots     []catalog.Slot
	reach     *cedar.Policy // dns.resolve and tcp.connect
	use       *cedar.Policy // requests; nil for an opaque rule
}

type endpoint struct {
	host  hostport.Pattern
	port  hostport.Port
	treat Treatment
}

func (e endpoint) scheme() string {
	if e.treat == TreatHTTP {
		return "http"
	}
	return "https"
}

// neverGranted are methods that no rule can grant: they open tunnels or show
// the request, with the credential in it, to its sender.
var neverGranted = []string{"CONNECT", "TRACE", "TRACK"}

// Compile checks every rule against the catalogue and builds the Cedar
// policies. The error is a policy.ErrorList with all errors at once.
func Compile(spec Spec, cat *catalog.Catalog) (*Set, error) {
	s := &Set{spec: spec, cat: cat}
	var errs policy.ErrorList
	for i, r := range spec.Rules {
		c := &compiled{Rule: r, id: cedar.PolicyID(strconv.Itoa(i))}
		before := len(errs)
		c.check(cat, &errs)
		if len(errs) == before {
			c.build()
			s.rules = append(s.rules, c)
		}
	}
	conflicts(s.rules, &errs)
	if err := errs.Err(); err != nil {
		return nil, err
	}
	s.index()
	return s, nil
}

// Attenuate returns a Set with the rules that keep says yes to, and no others.
func (s *Set) Attenuate(keep func(Rule) bool) *Set {
	if s == nil {
		return nil
	}
	n := &Set{cat: s.cat, spec: Spec{Default: s.spec.Default}}
	for _, c := range s.rules {
		if keep(c.Rule) {
			n.spec.Rules = append(n.spec.Rules, c.Rule)
			n.rules = append(n.rules, c)
		}
	}
	n.index()
	return n
}

// Spec returns what the Set was made from.
func (s *Set) Spec() Spec {
	if s == nil {
		return Spec{}
	}
	return Spec{slices.Clone(s.spec.Rules), s.spec.Default}
}

func (s *Set) index() {
	s.exact = map[hostport.Host][]*compiled{}
	for _, c := range s.rules {
		for _, e := range c.endpoints {
			h, ok := e.host.Exact()
			if !ok {
				s.wild = append(s.wild, c)
			} else if !slices.Contains(s.exact[h], c) {
				s.exact[h] = append(s.exact[h], c)
			}
		}
	}
}

// about lists the rules with an endpoint on this host, in the order of the
// file.
func (s *Set) about(h hostport.Host) []*compiled {
	if s == nil || h.IsZero() {
		return nil
	}
	rules := s.exact[h]
	var wild []*compiled
	for _, c := range s.wild {
		if c.endpoints[0].host.Match(h) {
			wild = append(wild, c)
		}
	}
	if len(wild) == 0 {
		return rules
	}
	all := slices.Concat(rules, wild)
	slices.SortFunc(all, func(a, b *compiled) int { return a.index() - b.index() })
	return all
}

func (c *compiled) index() int {
	n, _ := strconv.Atoi(string(c.id))
	return n
}

func (c *compiled) at(host hostport.Host, port hostport.Port, scheme string) bool {
	return slices.ContainsFunc(c.endpoints, func(e endpoint) bool {
		return e.treat != TreatOpaque && e.port == port && e.scheme() == scheme && e.host.Match(host)
	})
}

func (c *compiled) check(cat *catalog.Catalog, errs *policy.ErrorList) {
	add := func(msg, hint string) { *errs = append(*errs, policy.Error{Pos: c.Pos, Msg: msg, Hint: hint}) }
	forms := 0
	for _, f := range []string{c.Service, c.HTTP, c.TCP} {
		if f != "" {
			forms++
		}
	}
	switch {
	case forms != 1:
		add("a grant has one of service, http and tcp", "write one grant for each")
	case c.Service != "":
		c.checkService(cat, add)
	case c.HTTP != "":
		c.checkHTTP(add)
	default:
		c.checkTCP(add)
	}
}

func (c *compiled) checkService(cat *catalog.Catalog, add func(msg, hint string)) {
	svc, ok := cat.Service(c.Service)
	if !ok {
		add("unknown service "+strconv.Quote(c.Service), policy.Suggest(c.Service, cat.Names()))
		return
	}
	c.svc = svc
	for _, e := range svc.Endpoints {
		p, err := hostport.ParsePattern(e.Host.String())
		if err != nil {
			add("service "+c.Service+" has a bad host", err.Error())
			return
		}
		treat := TreatTLS
		if e.Scheme == "http" {
			treat = TreatHTTP
		}
		c.endpoints = append(c.endpoints, endpoint{p, e.Port, treat})
	}
	if len(c.Methods) > 0 {
		add("methods do not belong to a grant with service", "its operations say what may be done")
	}
	if len(c.Operations) == 0 {
		add("the grant for "+c.Service+" names no operations", "name them: operations: ["+svc.Operations[0].Name+", ...]")
		return
	}
	var folded []string
	for _, name := range c.Operations {
		op, ok := svc.Operation(name)
		if !ok {
			add(c.Service+" has no operation "+strconv.Quote(name), policy.Suggest(name, operationNames(svc)))
			continue
		}
		if !slices.Contains(c.ops, op.Name) {
			c.ops = append(c.ops, op.Name)
		}
		if op.NeedsResources && len(c.Resources) == 0 {
			add(c.Service+" "+op.Name+" is only granted for named resources", "add resources: ["+example(op.ResourceTemplate)+"]")
		}
		for _, r := range c.Resources {
			f, err := op.FoldResource(r)
			switch {
			case op.ResourceTemplate == "":
				add(c.Service+" "+op.Name+" has no resources", "write a grant of its own for it, without resources")
			case err != nil:
				add(err.Error(), "as in resources: ["+example(op.ResourceTemplate)+"]")
			case !slices.Contains(folded, f):
				folded = append(folded, f)
			}
			if op.ResourceTemplate == "" {
				break
			}
		}
	}
	c.Resources = folded
	if c.Credential == "" {
		return
	}
	if svc.Credential == nil {
		add(c.Service+" takes no credential", "remove credential: "+c.Credential)
		return
	}
	if slices.ContainsFunc(svc.Endpoints, func(e catalog.Endpoint) bool { return e.Scheme == "http" }) {
		add(c.Service+" also answers over plain http, where a credential would be readable", "remove credential: "+c.Credential)
	}
	c.slots = svc.Credential.Slots
}

// operationNames lists a service's operations and their other names.
func operationNames(svc *catalog.Service) []string {
	var names []string
	for _, op := range svc.Operations {
		names = append(append(names, op.Name), op.Aliases...)
	}
	return names
}

func example(template string) string {
	r := strings.NewReplacer("{owner}", "acme", "{repo}", "widgets", "{package}", "widgets", "{scope}", "'@acme'")
	return r.Replace(template)
}

func (c *compiled) checkHTTP(add func(msg, hint string)) {
	p, err := policy.ParseURLPattern(c.HTTP)
	if err != nil {
		add(err.Error(), "")
		return
	}
	if err := catalog.CheckPath(p.Path()); err != nil {
		add("nothing can match "+quote(c.HTTP)+": "+err.Error(), "such requests are refused before they are decided")
		return
	}
	c.pattern = p
	treat := TreatTLS
	if p.Scheme() == "http" {
		treat = TreatHTTP
	}
	c.endpoints = []endpoint{{p.Host(), p.Port(), treat}}
	if len(c.Operations) > 0 || len(c.Resources) > 0 {
		add("operations and resources belong to a grant with service", "a raw grant has methods and a path")
	}
	if len(c.Methods) == 0 {
		c.Methods = []string{"GET", "HEAD"}
	}
	for _, m := range c.Methods {
		if m == "" || strings.Trim(m, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") != "" || slices.Contains(neverGranted, m) {
			add(strconv.Quote(m)+" is not a method that can be granted", "as in methods: [GET, HEAD]")
		}
	}
	if c.Credential == "" {
		if c.Header != "" || c.Scheme != "" {
			add("header and scheme say where a credential travels, and there is none", "add credential: NAME")
		}
		return
	}
	slot := catalog.Slot{Header: http.CanonicalHeaderKey(c.Header), Scheme: c.Scheme}
	if c.Header == "" && c.Scheme == "" {
		slot = catalog.Slot{Header: "Authorization", Scheme: "Bearer"}
	}
	if slot.Header == "" {
		slot.Header = "Authorization"
	}
	if slot.Scheme != "" {
		slot.Scheme = strings.ToUpper(slot.Scheme[:1]) + strings.ToLower(slot.Scheme[1:])
	}
	c.slots = []catalog.Slot{slot}
	if _, exact := p.Host().Exact(); !exact {
		add("a credential for all names below a domain", "write one grant for each host that may get it")
	}
	if p.Scheme() == "http" {
		add("a credential over plain http would be readable on the way", "grant https, or remove credential: "+c.Credential)
	}
}

func (c *compiled) checkTCP(add func(msg, hint string)) {
	hp, err := hostport.Parse(c.TCP)
	if err != nil {
		add(err.Error(), "as in tcp: db.example.com:5432, with a name")
		return
	}
	p, err := hostport.ParsePattern(hp.Host.String())
	if err != nil {
		add(err.Error(), "")
		return
	}
	c.endpoints = []endpoint{{p, hp.Port, TreatOpaque}}
	if c.Credential != "" || len(c.Methods)+len(c.Operations)+len(c.Resources) > 0 {
		add("a grant with tcp has nothing else", "its bytes can't be judged")
	}
}

// conflicts refuses two rules that would treat one connection in two ways.
func conflicts(rules []*compiled, errs *policy.ErrorList) {
	for i, b := range rules {
		for _, a := range rules[:i] {
			for _, eb := range b.endpoints {
				if j := slices.IndexFunc(a.endpoints, func(ea endpoint) bool {
					return ea.port == eb.port && ea.treat != eb.treat && patternsOverlap(ea.host, eb.host)
				}); j >= 0 {
					*errs = append(*errs, policy.Error{
						Pos:  b.Pos,
						Msg:  "grants " + eb.host.String() + ":" + strconv.Itoa(int(eb.port)) + " as " + eb.treat.word() + ", the grant at " + a.Pos.String() + " as " + a.endpoints[j].treat.word(),
						Hint: "a connection is either opaque or judged by its requests: keep one of the two grants",
					})
					break
				}
			}
		}
	}
}

func (t Treatment) word() string {
	return [...]string{"nothing", "https", "plain http", "opaque tcp"}[t]
}

func patternsOverlap(a, b hostport.Pattern) bool {
	ha, oka := a.Exact()
	hb, okb := b.Exact()
	switch {
	case oka && okb:
		return ha == hb
	case oka:
		return b.Match(ha)
	case okb:
		return a.Match(hb)
	}
	sa, sb := a.String()[1:], b.String()[1:]
	return strings.HasSuffix(sa, sb) || strings.HasSuffix(sb, sa)
}

// The entities of the questions. There is one principal, because a Set belongs
// to one session.
var (
	principal  = types.NewEntityUID("Session", "this")
	actResolve = types.NewEntityUID("Action", "dns.resolve")
	actConnect = types.NewEntityUID("Action", "tcp.connect")
	actRequest = types.NewEntityUID("Action", "http.request")
)

func actOperation(service, op string) types.EntityUID {
	return types.NewEntityUID("Action", types.String(service+"."+op))
}

// build writes the rule as Cedar policies. The conditions say everything that
// the rule says, whatever was sliced before.
func (c *compiled) build() {
	ctx := func(name string) ast.Node { return ast.Context().Access(types.String(name)) }
	var reach, at ast.Node
	for i, e := range c.endpoints {
		host := ctx("host").Equal(ast.String(types.String(e.host.String())))
		if _, exact := e.host.Exact(); !exact {
			host = ctx("host").Like(types.NewPattern(types.Wildcard{}, e.host.String()[1:]))
		}
		port := ctx("port").Equal(ast.Long(int64(e.port)))
		r := host.And(ast.Action().Equal(ast.Value(actResolve)).Or(port))
		a := host.And(port).And(ctx("scheme").Equal(ast.String(types.String(e.scheme()))))
		if i == 0 {
			reach, at = r, a
		} else {
			reach, at = reach.Or(r), at.Or(a)
		}
	}
	c.reach = c.policy(ast.Annotation("id", types.String(c.Pos.String())).Permit().ActionInSet(actResolve, actConnect).When(reach))
	if c.TCP != "" {
		return
	}
	// The request carries no credential, or this rule's.
	own := ctx("presented").Equal(ast.String(types.String(""))).Or(ctx("presented").Equal(ast.String(types.String(c.Credential))))
	p := ast.Annotation("id", types.String(c.Pos.String())).Permit()
	if c.svc == nil {
		methods := make([]ast.Node, len(c.Methods))
		for i, m := range c.Methods {
			methods[i] = ast.String(types.String(m))
		}
		p = p.ActionEq(actRequest).When(at).When(ast.Set(methods...).Contains(ctx("method"))).When(pathCondition(c.pattern.Path()))
	} else {
		actions := make([]types.EntityUID, len(c.ops))
		for i, op := range c.ops {
			actions[i] = actOperation(c.Service, op)
		}
		p = p.ActionInSet(actions...).When(at)
		if len(c.Resources) > 0 {
			p = p.When(resourceCondition(c.Resources))
		}
	}
	c.use = c.policy(p.When(own))
}

func (c *compiled) policy(p *ast.Policy) *cedar.Policy {
	n := cedar.NewPolicyFromAST(p)
	n.SetFilename(c.Pos.File)
	return n
}

func resourceCondition(resources []string) ast.Node {
	var all ast.Node
	for i, r := range resources {
		n := ast.Resource().Equal(ast.Value(types.NewEntityUID("Resource", types.String(r))))
		if prefix, ok := strings.CutSuffix(r, "*"); ok {
			// What stands for a part of a resource has no slash in it.
			n = ast.Context().Access("resource").Like(types.NewPattern(prefix, types.Wildcard{}))
		}
		if i == 0 {
			all = n
		} else {
			all = all.Or(n)
		}
	}
	return all
}

// pathCondition judges the path segment by segment: s0, s1 … and their number,
// depth. Cedar's like knows no segments of its own.
func pathCondition(pattern string) ast.Node {
	segs := strings.Split(pattern[1:], "/")
	depth := ast.Context().Access("depth")
	var n ast.Node
	if segs[len(segs)-1] == "**" {
		n = depth.GreaterThanOrEqual(ast.Long(int64(len(segs))))
		segs = segs[:len(segs)-1]
	} else {
		n = depth.Equal(ast.Long(int64(len(segs))))
	}
	for i, seg := range segs {
		at := ast.Context().Access(segmentName(i))
		if !strings.Contains(seg, "*") {
			n = n.And(at.Equal(ast.String(types.String(seg))))
			continue
		}
		var parts []any
		for j, text := range strings.Split(seg, "*") {
			if j > 0 {
				parts = append(parts, types.Wildcard{})
			}
			if text != "" {
				parts = append(parts, text)
			}
		}
		n = n.And(at.Like(types.NewPattern(parts...)))
	}
	return n
}

func segmentName(i int) types.String { return types.String("s" + strconv.Itoa(i)) }

// forbids are the built-in policies that stand over all rules.
var forbids = sync.OnceValue(func() []*cedar.Policy {
	forbid := func(code string) *cedar.Policy {
		return cedar.NewPolicyFromAST(ast.Annotation("id", types.String("built-in:"+code)).Forbid().When(ast.Context().Access("violation").Equal(ast.String(types.String(code)))))
	}
	return []*cedar.Policy{forbid(CodeForeignCredential), forbid(CodePlaceholderMisplaced)}
})
