package catalog

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
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

// Route finds the operation and the resource by destination, method, path and
// query alone. The error is ErrUnknownOperation.
func (s *Service) Route(r Request) (Operation, string, error) {
	var op *Operation
	var resource string
	if s.HasHost(r.Scheme, r.Host, r.Port) && CheckPath(r.Path) == nil {
		segs := strings.Split(r.Path[1:], "/")
		for i := range s.routes {
			rt := &s.routes[i]
			if op != nil && op == &s.Operations[rt.op] {
				continue // a later line of the same operation
			}
			res, ok := rt.match(s, r, segs)
			if !ok {
				continue
			}
			if op != nil {
				// Load refuses services for which this can happen.
				return Operation{}, "", fmt.Errorf("%w: both %s and %s would match", ErrUnknownOperation, op.Name, s.Operations[rt.op].Name)
			}
			op, resource = &s.Operations[rt.op], res
		}
	}
	if op == nil {
		return Operation{}, "", fmt.Errorf("%w: %s has none for %s %s", ErrUnknownOperation, s.Name, clip(r.Method, 20), clip(r.Path, 100))
	}
	return *op, resource, nil
}

// Identify returns the one operation that r is, the resource it names (or ""),
// and in Operation.Uses the features that must be granted as well. The error
// is ErrUnknownOperation or ErrBadBody.
func (s *Service) Identify(r Request) (Operation, string, error) {
	op, resource, err := s.Route(r)
	if err != nil {
		return Operation{}, "", err
	}
	if op.body != "" {
		op.Uses, err = s.bodies[op.body].features(r)
		if err != nil {
			return Operation{}, "", err
		}
	}
	return op, resource, nil
}

// NeedsBody says how many bytes must be buffered before Identify can judge r;
// 0 if the body isn't inspected. A longer body must be refused.
func (s *Service) NeedsBody(r Request) int {
	op, _, err := s.Route(r)
	if err != nil {
		return 0
	}
	return op.BodyLimit
}

// FoldResource brings a resource from a policy into the form that Identify
// returns, or says why it can't be one.
func (op Operation) FoldResource(s string) (string, error) {
	if op.ResourceTemplate == "" {
		return "", fmt.Errorf("%s has no resources", op.Name)
	}
	want := strings.Split(op.ResourceTemplate, "/")
	got := strings.Split(s, "/")
	if len(want) != len(got) {
		return "", fmt.Errorf("%q is not of the form %s", s, op.ResourceTemplate)
	}
	for i, part := range got {
		last := i == len(got)-1
		if !(last && i > 0 && part == "*") && !isCapture(part) {
			return "", fmt.Errorf("%q is not of the form %s (a * may only stand for the last part)", s, op.ResourceTemplate)
		}
	}
	if op.fold {
		s = strings.ToLower(s)
	}
	return s, nil
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
// operations that it belongs to.
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
	return rewrite, dropped
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

// globMatch knows one form of pattern: a literal, with a * at its end or not.
func globMatch(glob, s string) bool {
	if prefix, ok := strings.CutSuffix(glob, "*"); ok {
		return strings.HasPrefix(s, prefix)
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
