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
	"golang.org/x/net/publicsuffix"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
)

// Set is a compiled capability set.
type Set struct {
	spec  Spec
	cat   *catalog.Catalog
	rules []*compiled
	// within are limits; limits says that this is one.
	within []*limit
	limits bool
	// exact holds all rules about a host that some rule names, wild the others by
	// the end of their names, known what exact makes of each destination.
	exact map[hostport.Host][]*compiled
	wild  map[string][]*compiled
	known map[destination][]*group
	// exchanges are the rules about token endpoints.
	exchanges []*compiled
}

// compiled is one rule, checked, with its Cedar policies.
type compiled struct {
	Rule
	id        cedar.PolicyID
	limits    bool // it is a limit's
	order     int
	svc       *catalog.Service
	ops       []string // canonical names
	viaOps    []string // operations that some of ops grant for themselves
	refs      bool     // resources name refs behind @
	pattern   policy.URLPattern
	literal   string // what every path begins with that pattern matches
	endpoints []endpoint
	slots     []catalog.Slot
	reach     *cedar.Policy // dns.resolve and tcp.connect
	use       *cedar.Policy // requests; nil for an opaque rule
	through   *cedar.Policy // viaOps; nil if there are none
}

// endpoint is a place that a rule is about: a pattern of a raw rule, or one of
// the catalogue's, which may capture labels.
type endpoint struct {
	raw   hostport.Pattern
	typed catalog.HostPattern
	port  hostport.Port
	treat Treatment
	user  string // of SSH
}

func (e *endpoint) match(h hostport.Host) bool { return e.raw.Match(h) || e.typed.Match(h) }

// exact returns the only host.
func (e *endpoint) exact() (hostport.Host, bool) {
	if h, ok := e.typed.Exact(); ok {
		return h, true
	}
	return e.raw.Exact()
}

func (e *endpoint) name() string {
	if s := e.typed.String(); s != "" {
		return s
	}
	return e.raw.String()
}

func (e *endpoint) overlaps(o *endpoint) bool {
	switch {
	case e.typed.String() != "" && o.typed.String() != "":
		return e.typed.Overlaps(o.typed)
	case e.typed.String() != "":
		return e.typed.OverlapsPattern(o.raw)
	case o.typed.String() != "":
		return o.typed.OverlapsPattern(e.raw)
	}
	return patternsOverlap(e.raw, o.raw)
}

func (e endpoint) scheme() string {
	switch e.treat {
	case TreatHTTP:
		return "http"
	case TreatSSH:
		return "ssh"
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
	s.compile(&errs)
	for _, w := range spec.Within {
		s.within = append(s.within, compileWithin(w, cat, &errs))
	}
	if err := errs.Err(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Set) compile(errs *policy.ErrorList) {
	for i, r := range s.spec.Rules {
		c := &compiled{Rule: r, id: cedar.PolicyID(strconv.Itoa(i)), limits: s.limits}
		before := len(*errs)
		c.check(s.cat, errs)
		if len(*errs) == before {
			c.build()
			s.rules = append(s.rules, c)
		}
	}
	conflicts(s.rules, errs)
	s.index()
}

// Attenuate returns a Set with the rules that keep says yes to, and no others.
func (s *Set) Attenuate(keep func(Rule) bool) *Set {
	if s == nil {
		return nil
	}
	n := &Set{cat: s.cat, spec: Spec{Default: s.spec.Default, Within: s.spec.Within}, within: s.within, limits: s.limits}
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
	return Spec{slices.Clone(s.spec.Rules), s.spec.Default, slices.Clone(s.spec.Within)}
}

func (c *compiled) check(cat *catalog.Catalog, errs *policy.ErrorList) {
	add := func(msg, hint string) { *errs = append(*errs, policy.Error{Pos: c.Pos, Msg: msg, Hint: hint}) }
	forms := 0
	for _, f := range []string{c.Service, c.HTTP, c.TCP, c.SSH, c.Exchange} {
		if f != "" {
			forms++
		}
	}
	switch {
	case forms != 1:
		add("a grant has one of service, http and tcp", "write one grant for each")
	case c.Service != "":
		c.checkService(cat, add)
	case c.SSH != "":
		c.checkSSH(add)
	case c.Exchange != "":
		c.checkExchange(add)
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
		if (e.Scheme == "ssh") != c.SSHKey {
			continue
		}
		treat := TreatTLS
		switch e.Scheme {
		case "http":
			treat = TreatHTTP
		case "ssh":
			treat = TreatSSH
		}
		c.endpoints = append(c.endpoints, endpoint{typed: e.Host, port: e.Port, treat: treat, user: e.User})
	}
	if len(c.endpoints) == 0 {
		add("credential "+c.Credential+" is an SSH key, and "+c.Service+" has no SSH server", "use a token")
		return
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
		for _, v := range op.Via {
			if !slices.Contains(c.viaOps, v) {
				c.viaOps = append(c.viaOps, v)
			}
		}
		c.refs = c.refs || op.Refs
		if op.NeedsResources && len(c.Resources) == 0 && !c.limits {
			add(c.Service+" "+op.Name+" is only granted for named resources", "add resources: ["+example(op.ResourceTemplate)+"]")
		}
		for _, r := range c.Resources {
			f, err := op.FoldResource(r)
			switch {
			case op.ResourceTemplate == "":
				add(c.Service+" "+op.Name+" has no resources", "write a grant of its own for it, without resources")
			case err != nil:
				add(err.Error(), "as in resources: ["+example(op.ResourceTemplate)+"]")
			case strings.Contains(r, "@") && !op.Refs && slices.ContainsFunc(c.Operations, func(name string) bool { o, _ := svc.Operation(name); return o.Refs }):
				add(c.Service+" "+op.Name+" knows no refs, and "+strconv.Quote(r)+" names some", "write a grant of its own for it")
			case !slices.Contains(folded, f):
				folded = append(folded, f)
			}
			if op.ResourceTemplate == "" {
				break
			}
		}
	}
	c.Resources = folded
	if c.Credential == "" || c.SSHKey {
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
	c.literal, _, _ = strings.Cut(p.Path(), "*")
	if _, exact := p.Host().Exact(); !exact {
		tail := strings.TrimPrefix(p.Host().String(), "*.")
		if suffix, icann := publicsuffix.PublicSuffix(tail); icann && suffix == tail {
			add(quote(p.Host().String())+" covers names that anybody can register", "name the domain below "+tail)
		}
	}
	treat := TreatTLS
	if p.Scheme() == "http" {
		treat = TreatHTTP
	}
	c.endpoints = []endpoint{{raw: p.Host(), port: p.Port(), treat: treat}}
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
	c.endpoints = []endpoint{{raw: p, port: hp.Port, treat: TreatOpaque}}
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
					return ea.port == eb.port && ea.treat != eb.treat && ea.overlaps(&eb)
				}); j >= 0 {
					*errs = append(*errs, policy.Error{
						Pos:  b.Pos,
						Msg:  "grants " + eb.name() + ":" + strconv.Itoa(int(eb.port)) + " as " + eb.treat.word() + ", the grant at " + a.Pos.String() + " as " + a.endpoints[j].treat.word(),
						Hint: "a connection is either opaque or judged by its requests: keep one of the two grants",
					})
					break
				}
			}
		}
	}
}

func (t Treatment) word() string {
	return [...]string{"nothing", "https", "plain http", "opaque tcp", "git over ssh"}[t]
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
	var reach ast.Node
	var exact []types.Value
	var places []ast.Node
	for i, e := range c.endpoints {
		host := hostCondition(&e)
		port := ctx("port").Equal(ast.Long(int64(e.port)))
		r := host.And(ast.Action().Equal(ast.Value(actResolve)).Or(port))
		if i == 0 {
			reach = r
		} else {
			reach = reach.Or(r)
		}
		// What names one place is compared with to, which costs least.
		if h, ok := e.exact(); ok && e.treat != TreatSSH {
			exact = append(exact, destination{h, e.port, e.scheme()}.value())
			continue
		}
		a := host.And(port).And(ctx("scheme").Equal(ast.String(types.String(e.scheme()))))
		if e.treat == TreatSSH {
			a = a.And(ctx("user").Equal(ast.String(types.String(e.user))))
		}
		places = append(places, a)
	}
	at := anyOf(exact, "to", places)
	c.reach = c.policy(ast.Annotation("id", types.String(c.Pos.String())).Permit().ActionInSet(actResolve, actConnect).When(reach))
	if c.TCP != "" {
		return
	}
	// The request carries no credential, or this rule's.
	own := ctx("presented").Equal(ast.String(types.String(""))).Or(ctx("presented").Equal(ast.String(types.String(c.Credential))))
	p := ast.Annotation("id", types.String(c.Pos.String())).Permit()
	if c.SSH != "" {
		actions := make([]types.EntityUID, len(c.ops))
		for i, op := range c.ops {
			actions[i] = actOperation("ssh", op)
		}
		p = p.ActionInSet(actions...).When(at).When(repositoryCondition(c.Resources))
	} else if c.svc == nil {
		methods := make([]ast.Node, len(c.Methods))
		for i, m := range c.Methods {
			methods[i] = ast.String(types.String(m))
		}
		act := actRequest
		if c.Exchange != "" {
			act = actExchange
		}
		p = p.ActionEq(act).When(at).When(ast.Set(methods...).Contains(ctx("method"))).When(pathCondition(c.pattern.Path()))
	} else {
		actions := make([]types.EntityUID, len(c.ops))
		for i, op := range c.ops {
			actions[i] = actOperation(c.Service, op)
		}
		p = p.ActionInSet(actions...).When(at)
		switch {
		case c.refs && len(c.Resources) > 0:
			p = p.When(refsCondition(c.Resources))
		case c.refs && !c.limits:
			p = p.When(branchOrTag())
		case len(c.Resources) > 0:
			p = p.When(resourceCondition(c.Resources))
		}
		if len(c.viaOps) > 0 {
			// What carries only features is as granted as they are; each of them is a
			// question of its own, with its resource.
			through := make([]types.EntityUID, len(c.viaOps))
			for i, op := range c.viaOps {
				through[i] = actOperation(c.Service, op)
			}
			t := ast.Annotation("id", types.String(c.Pos.String())).Permit().ActionInSet(through...).When(at).When(ctx("through").Equal(ast.Boolean(true)))
			c.through = c.policy(t.When(own))
		}
	}
	c.use = c.policy(p.When(own))
}

// hostCondition judges a captured name label by label: h0, h1 … from the left,
// and their number, labels. Cedar's like would let one capture take several.
func hostCondition(e *endpoint) ast.Node {
	ctx := func(name string) ast.Node { return ast.Context().Access(types.String(name)) }
	if h, ok := e.exact(); ok {
		return ctx("host").Equal(ast.String(types.String(h.String())))
	}
	labels := e.typed.Labels()
	if labels == nil {
		return ctx("host").Like(types.NewPattern(types.Wildcard{}, e.raw.String()[1:]))
	}
	n := ctx("labels").Equal(ast.Long(int64(len(labels))))
	for i, l := range labels {
		at := ctx(labelName(i))
		switch {
		case !l.Captured:
			n = n.And(at.Equal(ast.String(types.String(l.Prefix))))
		case l.OneOf != nil:
			names := make([]ast.Node, len(l.OneOf))
			for j, name := range l.OneOf {
				names[j] = ast.String(types.String(l.Prefix + name + l.Suffix))
			}
			n = n.And(ast.Set(names...).Contains(at))
		case l.Prefix+l.Suffix != "":
			n = n.And(at.Like(likePattern(l.Prefix + "*" + l.Suffix)))
		}
	}
	return n
}

func labelName(i int) string { return "h" + strconv.Itoa(i) }

// likePattern writes * as Cedar's wildcard.
func likePattern(s string) types.Pattern {
	var parts []any
	for j, text := range strings.Split(s, "*") {
		if j > 0 {
			parts = append(parts, types.Wildcard{})
		}
		if text != "" {
			parts = append(parts, text)
		}
	}
	return types.NewPattern(parts...)
}

func (c *compiled) policy(p *ast.Policy) *cedar.Policy {
	n := cedar.NewPolicyFromAST(p)
	n.SetFilename(c.Pos.File)
	return n
}

func resourceCondition(resources []string) ast.Node {
	var literal []types.Value
	var all []ast.Node
	for _, r := range resources {
		if strings.HasSuffix(r, "*") {
			// What stands for a part of a resource has no slash in it.
			all = append(all, ast.Context().Access("resource").Like(likePattern(r)))
		} else {
			literal = append(literal, types.String(r))
		}
	}
	return anyOf(literal, "resource", all)
}

// refsCondition judges repository, and ref, which is "" where the repository as
// such is asked about. Without refs behind it a repository stands for its
// branches and tags.
func refsCondition(resources []string) ast.Node {
	var literal []types.Value
	var all []ast.Node
	for _, r := range resources {
		repository, ref, hasRef := strings.Cut(r, "@")
		at := ast.Context().Access("repository").Equal(ast.String(types.String(repository)))
		if strings.HasSuffix(repository, "*") {
			at = ast.Context().Access("repository").Like(likePattern(repository))
		}
		if hasRef {
			refs := ast.Context().Access("ref")
			all = append(all, at.And(refs.Equal(ast.String("")).Or(refs.Like(likePattern(ref)))))
		} else if strings.HasSuffix(repository, "*") {
			all = append(all, at.And(branchOrTag()))
		} else {
			literal = append(literal, types.String(repository))
		}
	}
	if len(literal) > 0 {
		all = append(all, anyOf(literal, "repository", nil).And(branchOrTag()))
	}
	return anyOf(nil, "", all)
}

// anyOf is a choice: the attribute is one of the literals, or some node holds.
func anyOf(literal []types.Value, attribute types.String, all []ast.Node) ast.Node {
	if len(literal) == 1 {
		all = append(all, ast.Context().Access(attribute).Equal(ast.Value(literal[0])))
	} else if len(literal) > 1 {
		all = append(all, ast.Value(types.NewSet(literal...)).Contains(ast.Context().Access(attribute)))
	}
	n := all[0]
	for _, o := range all[1:] {
		n = n.Or(o)
	}
	return n
}

func branchOrTag() ast.Node {
	ref := ast.Context().Access("ref")
	return ref.Equal(ast.String("")).Or(ref.Like(likePattern("refs/heads/*"))).Or(ref.Like(likePattern("refs/tags/*")))
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
		n = n.And(at.Like(likePattern(seg)))
	}
	return n
}

func segmentName(i int) types.String { return types.String("s" + strconv.Itoa(i)) }

// forbidden is the built-in policy that stands over all rules: whatever is
// wrong with the credentials of a request, nothing permits it.
var forbidden = sync.OnceValue(func() *cedar.Policy {
	return cedar.NewPolicyFromAST(ast.Annotation("id", "built-in:credentials").Forbid().When(ast.Context().Access("violation").NotEqual(ast.String(""))))
})
