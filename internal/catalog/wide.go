package catalog

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// Captures of kind {name:id} and {name:key} take more letters than names have:
// ids of models and topics have colons, keys of object stores have anything.
// A key is one or more segments and may end with a slash; {name:object} is one
// whose slashes are escaped.

// isWide says what may stand for one segment of such a capture.
func isWide(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, `*%\/`) && !strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar })
}

// isKey is isWide for several segments.
func isKey(s string) bool {
	parts := strings.Split(s, "/")
	for i, p := range parts {
		if !isWide(p) && !(p == "" && i == len(parts)-1 && i > 0) {
			return false
		}
	}
	return true
}

// foldWide is FoldResource where the last part of the resource is wide: it may
// end with a * after other letters, and of keys it may be left out: all keys.
func (op *Operation) foldWide(s string) (string, error) {
	n := len(op.template)
	parts := strings.SplitN(s, "/", n)
	if op.path && len(parts) == n-1 {
		parts = append(parts, "*")
	}
	bad := fmt.Errorf("%q is not of the form %s (a * may only stand at the end)", s, op.ResourceTemplate)
	if len(parts) != n {
		return "", bad
	}
	for i, p := range parts {
		if i < n-1 {
			if !isCapture(p) {
				return "", bad
			}
			continue
		}
		stem := strings.TrimSuffix(p, "*")
		switch {
		case stem == "" && p == "*" && n > 1:
		case op.path && isKey(stem), isWide(stem):
		default:
			return "", bad
		}
	}
	return strings.Join(parts, "/"), nil
}

// valueOf takes away what no resource of a policy begins with: of a resource of
// two parts in a URL the host (SQS names a queue by https://HOST/ACCOUNT/NAME), of
// a key the first slash (/aws/lambda/x).
func (op *Operation) valueOf(value string) string {
	if rest, ok := strings.CutPrefix(value, "https://"); ok && op.wide && len(op.template) == 2 {
		_, value, _ = strings.Cut(rest, "/")
	}
	if op.wide && op.path {
		value = strings.TrimPrefix(value, "/")
	}
	return value
}

// SignAWS4: the slot holds a signature of AWS's version 4 that is made with the
// credential, a pair of key id and secret key; see package sigv4. The pair's
// halves are the two variables of env:, in this order.
const SignAWS4 = "aws4"

func (d *reader) oneOf(to *string, values ...string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		d.str(to)(n)
		if !slices.Contains(values, *to) {
			d.fail(n, "expected one of: %s", strings.Join(values, ", "))
		}
	}
}

// emptyForKey: where b has a key, all that a has is an empty segment, and no key
// is empty.
func emptyForKey(a, b []segment) bool {
	k := slices.IndexFunc(b, func(g segment) bool { return g.many })
	return k >= 0 && len(a) == len(b) && a[k].literal() && a[k].prefix == ""
}

func (g segment) literal() bool { return !g.rest && !g.any && !g.many && g.name == "" }
