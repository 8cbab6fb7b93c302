package catalog

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// MaxPath is the length that a canonical path may have, and MaxSegments the
// number of its segments; longer ones are refused. Common servers stop at 8 KiB
// for the whole request line.
const (
	MaxPath     = 8 << 10
	MaxSegments = 256
)

// CheckPath reports why a decoded path is not canonical: it doesn't start with
// "/", has empty, "." or ".." segments (also with ";parameters" behind them), a
// backslash, a control character, invalid UTF-8, or a percent escape that a
// second decoding would change.
func CheckPath(p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return errors.New("the path doesn't start with /")
	case len(p) > MaxPath || strings.Count(p, "/") > MaxSegments:
		return errors.New("the path is too long")
	case !utf8.ValidString(p):
		return errors.New("the path is not UTF-8")
	}
	for i := 0; i < len(p); i++ {
		switch c := p[i]; {
		case c < 0x20 || c == 0x7f || c == '\\':
			return errors.New("the path has a control character or a backslash")
		case c == '%' && i+2 < len(p) && isHex(p[i+1]) && isHex(p[i+2]):
			return errors.New("the path is percent-encoded twice")
		case c == '/' && i+1 < len(p) && p[i+1] == '/':
			return errors.New("the path has an empty segment")
		}
	}
	for seg := range strings.SplitSeq(p[1:], "/") {
		name, _, _ := strings.Cut(seg, ";")
		if name == "." || name == ".." {
			return errors.New("the path has a dot segment")
		}
	}
	return nil
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// EscapedSlash reports whether r.Path, with its escaped slashes as "%2F", is an
// operation whose match line has a {name:path} for each of them. Nobody else
// may see such a path: a raw grant and other services read it differently.
func (s *Service) EscapedSlash(r Request) bool {
	_, _, err := s.Match(&r)
	return err == nil && strings.Contains(r.Path, escapedSlash)
}

// checkPath is CheckPath, but escaped slashes may stand where an operation
// wants them.
func checkPath(p string) error {
	if strings.Contains(p, escapedSlash) {
		// What would be a dot segment behind the slash is judged as one.
		return CheckPath(strings.ReplaceAll(p, escapedSlash, "/"))
	}
	return CheckPath(p)
}

// Match finds the operation and the resource by destination, method, path,
// query and the headers of when: alone. The error is ErrUnknownOperation.
func (s *Service) Match(r *Request) (*Operation, string, error) {
	if !s.HasHost(r.Scheme, r.Host, r.Port) || checkPath(r.Path) != nil {
		return nil, "", s.unknown(r)
	}
	var op *Operation
	var resource string
	segs := strings.Split(r.Path[1:], "/")
	for _, list := range [2][]*route{s.exact[routeKey{r.Host, r.Method}], s.captured} {
		for _, rt := range list {
			if op != nil && op == &s.Operations[rt.op] {
				continue // a later line of the same operation
			}
			res, ok := rt.match(s, r, segs)
			if !ok {
				continue
			}
			if op != nil {
				// Load refuses services for which this can happen.
				return nil, "", fmt.Errorf("%w: both %s and %s would match", ErrUnknownOperation, op.Name, s.Operations[rt.op].Name)
			}
			op, resource = &s.Operations[rt.op], res
		}
	}
	if op == nil {
		return nil, "", s.unknown(r)
	}
	if op.Refs && strings.Contains(resource, "@") {
		// Behind the @ of a resource stand refs; no host has repositories with one.
		return nil, "", s.unknown(r)
	}
	if err := s.checkQuery(op, r); err != nil {
		return nil, "", err
	}
	return op, resource, nil
}

func (s *Service) unknown(r *Request) error {
	return fmt.Errorf("%w: %s has none for %s %s", ErrUnknownOperation, s.Name, clip(r.Method, 20), clip(r.Path, 100))
}

// routeKey finds the lines of exact hosts.
type routeKey struct {
	host   hostport.Host
	method string
}

// index prepares Match.
func (s *Service) index() {
	s.exact = map[routeKey][]*route{}
	for i := range s.routes {
		rt := &s.routes[i]
		for _, c := range rt.when {
			if !c.query {
				s.whenHeaders = append(s.whenHeaders, c.name)
			}
		}
		h, ok := rt.host.Exact()
		if !ok {
			s.captured = append(s.captured, rt)
			continue
		}
		for _, m := range rt.methods {
			key := routeKey{h, m}
			s.exact[key] = append(s.exact[key], rt)
		}
	}
}

// checkQuery holds the query to the closed list, if the file has one. Keys of
// the operation's own match lines and of credential slots belong to it.
func (s *Service) checkQuery(op *Operation, r *Request) error {
	if s.query == nil && op.query == nil {
		return nil
	}
	for key := range r.Query {
		if !s.takesQuery(op, key) {
			return fmt.Errorf("%w %s is not among those that %s.%s takes", ErrQuery, safeKey(key), s.Name, op.Name)
		}
	}
	return nil
}

func (s *Service) takesQuery(op *Operation, key string) bool {
	listed := func(g string) bool { return globMatch(g, key) }
	if slices.ContainsFunc(op.query, listed) || slices.ContainsFunc(s.query, listed) || op.SignedURLs && isSignatureQuery(key) ||
		slices.ContainsFunc(op.SignedBy, func(slot Slot) bool { return slot.Query == key }) {
		return true
	}
	if s.Credential != nil && slices.ContainsFunc(s.Credential.Slots, func(slot Slot) bool { return slot.Query == key }) {
		return true
	}
	if slices.ContainsFunc(op.when, func(c condition) bool { return c.query && c.name == key }) {
		return true
	}
	for i := range s.routes {
		rt := &s.routes[i]
		if &s.Operations[rt.op] == op && (slices.ContainsFunc(rt.query, func(q [2]string) bool { return q[0] == key }) ||
			slices.ContainsFunc(rt.asks, func(a asked) bool { return a.key == key })) {
			return true
		}
	}
	return false
}

// Signs reports whether f is part of the signature by which the operation's host
// knows what the service handed out, and so no credential.
func (op *Operation) Signs(f Found) bool {
	return op.SignedURLs && (f.Kind == Signed || slices.Contains(op.SignedBy, f.Slot))
}

// Route is Match for callers that keep a copy.
func (s *Service) Route(r Request) (Operation, string, error) {
	op, resource, err := s.Match(&r)
	if err != nil {
		return Operation{}, "", err
	}
	return *op, resource, nil
}

// Need says what must be in Request.Body before Read can judge it. op is what
// Match found for this method.
func (s *Service) Need(op *Operation, method string) Need {
	switch {
	case bodyless(method) || op.body == "" || op.body == "none":
		return Need{None: true}
	case op.body == "any":
		return Need{Stream: int64(op.bodyLimit)}
	}
	return s.bodies[op.body].reader.need()
}

// Read judges the body of a request that Match found to be op on resource. The
// error is ErrBadBody.
func (s *Service) Read(op *Operation, resource string, r Request) (Contents, error) {
	hasBody := r.HasBody || len(r.Body) > 0
	switch {
	case bodyless(r.Method) || op.body == "" || op.body == "none":
		if hasBody {
			return Contents{}, fmt.Errorf("%w: %s.%s takes none", ErrBadBody, s.Name, op.Name)
		}
		return Contents{}, nil
	case op.body == "any", !hasBody && (r.Method == "DELETE" || s.bodies[op.body].optional):
		return Contents{}, nil
	}
	return s.bodies[op.body].reader.features(op, resource, r)
}

// JudgeMessage judges one message of an operation's WebSocket like a body.
// Binary messages are judged too: servers parse them alike.
func (s *Service) JudgeMessage(op *Operation, message []byte) (Contents, error) {
	if op.messages == "" {
		return Contents{}, nil
	}
	b := s.bodies[op.messages]
	if len(message) > b.limit {
		return Contents{}, fmt.Errorf("%w: the message has more than %d bytes", ErrBadBody, b.limit)
	}
	return b.scan(message, op)
}

// MessageLimit is the size that a judged message may have; 0: messages are not
// read.
func (s *Service) MessageLimit(op *Operation) int {
	if op.messages == "" {
		return 0
	}
	return s.bodies[op.messages].limit
}

// Identify returns the one operation that r is, the resource it names (or ""),
// in Operation.Uses the features that must be granted as well, and in
// Operation.Credentials what the body holds of them. The error is
// ErrUnknownOperation or ErrBadBody.
func (s *Service) Identify(r Request) (Operation, string, error) {
	op, resource, err := s.Match(&r)
	if err != nil {
		return Operation{}, "", err
	}
	contents, err := s.Read(op, resource, r)
	if err != nil {
		return Operation{}, "", err
	}
	out := *op
	out.Uses, out.Credentials = contents.Uses, contents.Credentials
	if op.resourceAt != nil {
		resource = contents.Resource
	}
	return out, resource, nil
}

// HasResourceAt says that Contents.Resource is the resource of a request.
func (op *Operation) HasResourceAt() bool { return op.resourceAt != nil }

// OffersSubprotocol reports whether a WebSocket handshake of op may offer this
// subprotocol.
func (op *Operation) OffersSubprotocol(name string) bool {
	return slices.ContainsFunc(op.Subprotocols, func(g string) bool { return globMatch(g, name) })
}

// FoldResource brings a resource from a policy into the form that Identify
// returns, or says why it can't be one. Of a ref-aware operation the ref
// pattern behind @ is made whole: "o/r@agent/*" is "o/r@refs/heads/agent/*".
func (op Operation) FoldResource(s string) (string, error) {
	if op.ResourceTemplate == "" {
		return "", fmt.Errorf("%s has no resources", op.Name)
	}
	whole, ref, hasRef := s, "", false
	if op.Refs {
		if s, ref, hasRef = strings.Cut(s, "@"); hasRef {
			var err error
			if ref, err = foldRef(ref); err != nil {
				return "", fmt.Errorf("%q: %w", whole, err)
			}
		}
	}
	if op.wide {
		return op.foldWide(s)
	}
	got := strings.Split(s, "/")
	if len(got) != len(op.template) && !(op.path && len(got) > len(op.template)) {
		return "", fmt.Errorf("%q is not of the form %s", whole, op.ResourceTemplate)
	}
	for i, part := range got {
		last := i == len(got)-1
		if !(last && i > 0 && part == "*") && !isCapture(part) {
			return "", fmt.Errorf("%q is not of the form %s (a * may only stand for the last part)", whole, op.ResourceTemplate)
		}
	}
	if op.fold {
		s = strings.ToLower(s)
	}
	if hasRef {
		s += "@" + ref
	}
	return s, nil
}

// foldRef completes a pattern of refs: what isn't written in full is a branch.
func foldRef(ref string) (string, error) {
	if !strings.HasPrefix(ref, "refs/") {
		ref = "refs/heads/" + ref
	}
	if !IsRef(strings.ReplaceAll(ref, "*", "x/x")) {
		return "", errors.New("what stands behind @ is no branch or ref, as in @agent/* or @refs/tags/v*")
	}
	return ref, nil
}

// IsRef reports whether s can be the full name of a ref (git-check-ref-format).
func IsRef(s string) bool {
	if !strings.HasPrefix(s, "refs/") || len(s) > 1024 || strings.HasSuffix(s, "/") || strings.HasSuffix(s, ".") ||
		strings.Contains(s, "..") || strings.Contains(s, "@{") || !utf8.ValidString(s) {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c == 0x7f || strings.IndexByte(`~^:?*[\`, c) >= 0 {
			return false
		}
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || part[0] == '.' || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	return strings.Count(s, "/") >= 2
}

// resourceOf is what a value in a body names, "" if it can't be a resource.
func (op *Operation) resourceOf(value string) string {
	if strings.Contains(value, "*") {
		return ""
	}
	r, err := op.FoldResource(op.valueOf(value))
	if err != nil || op.Refs {
		return ""
	}
	return r
}

// headerRule is a header that turns on features by a list of names.
type headerRule struct {
	name  string
	pass  []string
	needs []headerNeed
}

type headerNeed struct {
	globs []string
	anyOf []string
}

// RewriteHeaders returns, for every feature-enabling header whose names are not
// all granted, the value that may be forwarded instead ("" to remove the
// header), and the names that were left out, for the record. A name passes if
// the catalogue lists it as harmless or if granted says yes to one of the
// operations that it belongs to. Headers that the service doesn't list are left
// out and named as well.
func (s *Service) RewriteHeaders(r Request, granted func(operation string) bool) (rewrite map[string]string, dropped []string) {
	for _, h := range s.headers {
		values := r.Header.Values(h.name)
		if len(values) == 0 {
			continue
		}
		var keep []string
		n := 0
		for name := range strings.SplitSeq(strings.Join(values, ","), ",") {
			name = strings.TrimSpace(name)
			if name == "" {
				continue
			}
			n++
			if h.passes(name, granted) {
				keep = append(keep, name)
			} else {
				dropped = append(dropped, clip(name, 60))
			}
		}
		if len(keep) != n || len(values) > 1 {
			if rewrite == nil {
				rewrite = map[string]string{}
			}
			rewrite[h.name] = strings.Join(keep, ",")
		}
	}
	for name := range r.Header {
		if !s.takesHeader(name) {
			if rewrite == nil {
				rewrite = map[string]string{}
			}
			rewrite[name] = ""
			dropped = append(dropped, clip(name, 60))
		}
	}
	slices.Sort(dropped)
	return rewrite, dropped
}

// ordinary are the request headers that say how, never what: any service may
// get them. Prefixes end with *.
var ordinaryHeaders = map[string]bool{
	"Accept": true, "User-Agent": true, "Range": true, "Cache-Control": true, "Pragma": true, "Date": true, "Origin": true, "Priority": true,
	"Idempotency-Key": true, "X-Request-Id": true, "X-Client-Request-Id": true, "X-Correlation-Id": true, "Traceparent": true,
	"Tracestate": true, "Te": true, "Dnt": true, "Upgrade-Insecure-Requests": true, "Prefer": true,
}

var ordinaryPrefixes = []string{"Accept-", "Content-", "If-", "Sec-", "X-Stainless-"}

// takesHeader reports whether the service gets this header of a request.
func (s *Service) takesHeader(name string) bool {
	if ordinaryHeaders[name] || slices.ContainsFunc(ordinaryPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }) ||
		slices.ContainsFunc(s.requestHeaders, func(g string) bool { return globMatch(g, name) }) || s.publicKeyHeader(name) ||
		slices.ContainsFunc(s.headers, func(h headerRule) bool { return h.name == name }) {
		return true
	}
	if s.Credential != nil && slices.ContainsFunc(s.Credential.Slots, func(slot Slot) bool { return slot.Header == name }) {
		return true
	}
	return slices.Contains(s.whenHeaders, name)
}

func (h headerRule) passes(name string, granted func(string) bool) bool {
	if slices.ContainsFunc(h.pass, func(g string) bool { return globMatch(g, name) }) {
		return true
	}
	for _, n := range h.needs {
		if slices.ContainsFunc(n.globs, func(g string) bool { return globMatch(g, name) }) {
			return slices.ContainsFunc(n.anyOf, granted)
		}
	}
	return false
}

// globMatch knows one form of pattern: a literal, with one * in it or without.
func globMatch(glob, s string) bool {
	prefix, suffix, wild := strings.Cut(glob, "*")
	if wild {
		return len(s) >= len(prefix)+len(suffix) && strings.HasPrefix(s, prefix) && strings.HasSuffix(s, suffix)
	}
	return glob == s
}

func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}

// queryIs reports that key occurs exactly once, with this value.
func queryIs(q url.Values, key, value string) bool {
	return len(q[key]) == 1 && q[key][0] == value
}
