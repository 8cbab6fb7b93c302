package capability

import (
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// What stands here runs after Cedar has denied. It finds the nearest rule and
// the words; it can't change the verdict.

// explainDenial is about the feature use, or if that is nil about the operation.
func (s *Set) explainDenial(q *question, use *catalog.Use) Decision {
	if q.violation != "" {
		return q.denyCredential()
	}
	if q.svc == nil {
		return s.denyRaw(q)
	}
	name, where, resource := q.op.Name, "", q.resource
	if use != nil {
		name, where = use.Operation, " (asked for by "+printable(use.Where)+")"
		if use.Own {
			resource = use.Resource
		}
		if name == "" {
			return q.deny(q.rules[0], CodeUnknownOperation, "the request to "+q.svc.Name+" uses something that the catalogue does not know: "+printable(use.Where), "")
		}
	}
	granting := q.granting(name)
	full := q.svc.Name + "." + name
	if len(granting) == 0 {
		remedy := s.typedGrant(q.svc, name, resource, q.rules[0].Credential)
		return q.deny(q.rules[0], CodeOperationNotGranted, full+where+" is not granted", remedy)
	}
	onResource := slices.IndexFunc(granting, func(c *compiled) bool { return c.coversResource(resource) })
	if onResource < 0 {
		what := quote(resource)
		if resource == "" {
			what = "what names no resource"
		}
		return q.deny(granting[0], CodeResourceNotGranted, full+where+" is not granted on "+what, s.typedGrant(q.svc, name, resource, granting[0].Credential))
	}
	return q.deny(granting[onResource], CodeForeignCredential, "the request carries the placeholder of credential "+quote(q.presented)+", which does not belong to the grant for "+full,
		"add credential: "+q.presented+" to the grant at "+granting[onResource].Pos.String())
}

func (c *compiled) coversResource(r string) bool {
	if c.refs {
		return c.coversRef(r)
	}
	return len(c.Resources) == 0 || slices.ContainsFunc(c.Resources, func(have string) bool {
		prefix, wild := strings.CutSuffix(have, "*")
		return have == r || wild && strings.HasPrefix(r, prefix)
	})
}

// coversRef is coversResource for repositories with refs behind them.
func (c *compiled) coversRef(r string) bool {
	repository, ref, _ := strings.Cut(r, "@")
	usual := ref == "" || strings.HasPrefix(ref, "refs/heads/") || strings.HasPrefix(ref, "refs/tags/")
	return len(c.Resources) == 0 && (usual || c.limits) || slices.ContainsFunc(c.Resources, func(have string) bool {
		path, pattern, hasRef := strings.Cut(have, "@")
		prefix, wild := strings.CutSuffix(path, "*")
		return (path == repository || wild && strings.HasPrefix(repository, prefix)) && (!hasRef && usual || hasRef && (ref == "" || matchStar(pattern, ref)))
	})
}

// matchStar matches * against any run of characters.
func matchStar(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	last := len(parts) - 1
	if !strings.HasPrefix(s, parts[0]) || len(s) < len(parts[0])+len(parts[last]) || !strings.HasSuffix(s, parts[last]) {
		return false
	}
	s = s[len(parts[0]) : len(s)-len(parts[last])]
	for _, p := range parts[1:last] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return true
}

func (s *Set) denyRaw(q *question) Decision {
	r := q.request
	for _, c := range q.rules {
		if !c.pattern.Match(r.Scheme, r.Host, r.Port, r.Path) {
			continue
		}
		if !slices.Contains(c.Methods, r.Method) {
			return q.deny(c, CodeMethodNotGranted, r.Method+" is not granted there, only "+strings.Join(c.Methods, ", "), "add "+r.Method+" to methods of the grant at "+c.Pos.String())
		}
		return q.deny(c, CodeForeignCredential, "the request carries the placeholder of credential "+quote(q.presented)+", which does not belong to this grant",
			"add credential: "+q.presented+" to the grant at "+c.Pos.String())
	}
	return q.deny(q.rules[0], CodeNoGrant, "no grant covers "+quote(string(q.name)), s.suggestRaw(r))
}

func (q *question) denyCredential() Decision {
	rule := q.nearest()
	where := q.culprit.String()
	if q.violation == CodePlaceholderMisplaced {
		remedy := "remove it; the grant at " + rule.Pos.String() + " has no credential to replace it with"
		if rule.Credential != "" {
			remedy = "send it in " + slotNames(q.slots) + ", once"
		}
		return q.deny(rule, CodePlaceholderMisplaced, "a placeholder stands in "+where+", where it is never replaced", remedy)
	}
	remedy := "send no credential, or add credential: to the grant at " + rule.Pos.String()
	if rule.Credential != "" {
		remedy = "send the session's placeholder in " + slotNames(q.slots) + ", once, or no credential"
	}
	return q.deny(rule, CodeForeignCredential, where+" holds a credential that is not this session's", remedy)
}

// denyMissing is for an operation that answers nothing without a credential.
func (q *question) denyMissing(rule *compiled) Decision {
	remedy := "add credential: NAME to the grant at " + rule.Pos.String()
	slots := q.slots
	if rule.Credential != "" {
		remedy = "send the session's placeholder in " + slotNames(slots)
	}
	return q.deny(rule, CodeCredentialMissing, q.svc.Name+" answers nothing without a credential, and the request brings none", remedy)
}

// nearest is the rule that a denial of a credential is about: one that would
// cover the request without it, if there is one.
func (q *question) nearest() *compiled {
	r := q.request
	var granting []*compiled
	if q.op != nil {
		granting = q.granting(q.op.Name)
	}
	for _, c := range q.rules {
		if q.svc == nil && c.pattern.Match(r.Scheme, r.Host, r.Port, r.Path) || slices.Contains(granting, c) && c.coversResource(q.resource) {
			return c
		}
	}
	if len(granting) > 0 {
		return granting[0]
	}
	return q.rules[0]
}

func slotNames(slots []catalog.Slot) string {
	var names []string
	for _, s := range slots {
		names = append(names, s.String())
	}
	return strings.Join(names, " or ")
}

func (s *Set) whole() vocabulary.Position {
	if s == nil {
		return vocabulary.Position{}
	}
	return s.spec.Default
}

func (s *Set) nothing(message, remedy string) vocabulary.Reason {
	return vocabulary.Reason{Code: CodeNoGrant, Message: message, Rule: s.whole(), Remedy: remedy}
}

// typedGrant is the YAML that would grant an operation.
func (s *Set) typedGrant(svc *catalog.Service, op, resource, credential string) string {
	var b strings.Builder
	b.WriteString("add under grants: - {service: " + svc.Name + ", operations: [" + op + "]")
	o, ok := svc.Operation(op)
	if ok && o.ResourceTemplate != "" && resource != "" {
		b.WriteString(", resources: [" + yamlText(resource) + "]")
	}
	if credential != "" {
		b.WriteString(", credential: " + yamlText(credential))
	}
	b.WriteString("}")
	return b.String()
}

// suggest is the YAML that would grant a request to a destination without any
// grant: typed if the catalogue knows it.
func (s *Set) suggest(r catalog.Request) string {
	if s == nil {
		return ""
	}
	for _, name := range s.cat.Names() {
		svc, ok := s.cat.Service(name)
		if !ok || !svc.HasHost(r.Scheme, r.Host, r.Port) {
			continue
		}
		if op, resource, err := svc.Route(r); err == nil {
			return s.typedGrant(svc, op.Name, resource, "")
		}
	}
	return s.suggestRaw(r)
}

// suggestHost is suggest where only the name is known.
func (s *Set) suggestHost(h hostport.Host) string {
	if s == nil || h.IsZero() {
		return ""
	}
	for _, name := range s.cat.Names() {
		svc, ok := s.cat.Service(name)
		if ok && slices.ContainsFunc(svc.Endpoints, func(e catalog.Endpoint) bool { return e.Host.Match(h) }) {
			return "add under grants: - {service: " + name + ", operations: [" + svc.Operations[0].Name + "]}"
		}
	}
	return "add under grants: - {http: https://" + h.String() + "/**, methods: [GET, HEAD]}"
}

// suggestRaw is a raw grant that covers the request.
func (s *Set) suggestRaw(r catalog.Request) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._~@+=-"
	path := r.Path
	if i := strings.IndexFunc(path, func(c rune) bool { return !strings.ContainsRune(plain, c) }); i >= 0 || len(path) > 120 {
		if i < 0 || i > 120 {
			i = 120
		}
		path = path[:strings.LastIndexByte(path[:i], '/')+1] + "**"
	}
	port := ""
	if r.Scheme == "https" && r.Port != 443 || r.Scheme == "http" && r.Port != 80 {
		port = ":" + strconv.Itoa(int(r.Port))
	}
	pattern := r.Scheme + "://" + r.Host.String() + port + path
	if _, err := policy.ParseURLPattern(pattern); err != nil || catalog.LooksLikeCredential(path) {
		return ""
	}
	return "add under grants: - {http: " + pattern + ", methods: [" + r.Method + "]}"
}

// yamlText quotes a value unless it is plainly a plain scalar.
func yamlText(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-") == "" && strings.Trim(s[:1], "0123456789-._/") != "" {
		return s
	}
	return strconv.Quote(s)
}

// quote shows a part of a request: bounded, and with nothing in it that a
// terminal would act on.
func quote(s string) string {
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	q := strconv.Quote(s)
	if inner := q[1 : len(q)-1]; inner == s && s != "" && !strings.Contains(s, " ") {
		return s
	}
	return q
}
