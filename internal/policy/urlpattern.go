package policy

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// URLPattern is the raw form of a grant, "https://host[:port]/path". The host
// may be "*.example.com". In the path, * stands for any characters of one
// segment and a last segment ** for everything below. The path is matched
// decoded; a query is not part of the pattern and always covered. The zero
// URLPattern matches nothing.
type URLPattern struct {
	scheme string
	host   hostport.Pattern
	port   hostport.Port
	path   string
}

// Scheme is "http" or "https".
func (u URLPattern) Scheme() string { return u.scheme }

// Host is the pattern of names.
func (u URLPattern) Host() hostport.Pattern { return u.host }

// Port is the port, the scheme's default where the pattern names none.
func (u URLPattern) Port() hostport.Port { return u.port }

// Path is the path with its wildcards.
func (u URLPattern) Path() string { return u.path }

// String is the canonical form: lower-case host, no default port.
func (u URLPattern) String() string {
	if u.scheme == "" {
		return ""
	}
	port := ""
	if u.port != defaultPorts[u.scheme] {
		port = fmt.Sprintf(":%d", u.port)
	}
	return u.scheme + "://" + u.host.String() + port + u.path
}

var defaultPorts = map[string]hostport.Port{"http": 80, "https": 443}

// ParseURLPattern accepts only what has one meaning.
func ParseURLPattern(s string) (URLPattern, error) {
	u, p := parseURLPattern(s)
	if p != nil {
		return URLPattern{}, fmt.Errorf("%s (%s)", p.msg, p.hint)
	}
	return u, nil
}

func parseURLPattern(s string) (URLPattern, *problem) {
	var u URLPattern
	if len(s) > 2048 {
		return u, &problem{"URL pattern of " + fmt.Sprint(len(s)) + " bytes", "at most 2048"}
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || defaultPorts[scheme] == 0 {
		return u, &problem{quoted(s) + " is not an http or https URL", "write it as https://host/path/**"}
	}
	u.scheme, u.port = scheme, defaultPorts[scheme]
	switch {
	case strings.Contains(rest, "?"):
		return u, &problem{"a URL pattern has no query", "remove everything from ? on; any query is covered"}
	case strings.Contains(rest, "#"):
		return u, &problem{"a URL pattern has no fragment", "remove everything from # on"}
	case strings.Contains(rest, `\`):
		return u, &problem{`a URL pattern has no \`, "write /"}
	}
	authority, path, slash := strings.Cut(rest, "/")
	if strings.Contains(authority, "@") {
		return u, &problem{"a URL pattern has no user or password", "name a credential beside it: credential: NAME"}
	}
	host := authority
	if i := strings.LastIndexByte(authority, ':'); i >= 0 && !strings.HasSuffix(authority, "]") {
		port, err := hostport.ParsePort(authority[i+1:])
		if err != nil {
			return u, &problem{err.Error(), "write it as https://host:8443/path/**"}
		}
		host, u.port = authority[:i], port
	}
	pattern, p := parseHostPattern(host)
	if p != nil {
		return u, p
	}
	u.host = pattern
	if !slash {
		return u, &problem{quoted(s) + " has no path", "add /** for everything on that host"}
	}
	u.path = "/" + path
	return u, checkPathPattern(u.path)
}

func parseHostPattern(s string) (hostport.Pattern, *problem) {
	p, err := hostport.ParsePattern(s)
	if err == nil {
		return p, nil
	}
	hint := "letters, digits, - and dots; *. in front for all names below"
	if strings.Contains(err.Error(), hostport.ErrIPLiteral.Error()) {
		hint = "grants are for names: give it one, and let upstreams say where it lives"
	}
	return p, &problem{err.Error(), hint}
}

func checkPathPattern(path string) *problem {
	for _, r := range path {
		if r == ' ' || r == '%' || !unicode.IsPrint(r) {
			return &problem{fmt.Sprintf("character %q in the path of a URL pattern", r), "paths are matched decoded: write the character itself, or * for what cannot be written"}
		}
	}
	segments := strings.Split(path[1:], "/")
	for i, seg := range segments {
		last := i == len(segments)-1
		switch {
		case seg == "." || seg == "..":
			return &problem{"segment " + seg + " in the path of a URL pattern", "write the path without it"}
		case seg == "" && !last:
			return &problem{"empty segment // in the path of a URL pattern", "write one slash"}
		case strings.Contains(seg, "**") && (seg != "**" || !last):
			return &problem{"** must be the whole last segment", "as in /docs/**; * stands for characters of one segment"}
		}
	}
	return nil
}

// Match reports whether a canonical request is covered. path is decoded, has
// no dot segments and begins with a slash.
func (u URLPattern) Match(scheme string, host hostport.Host, port hostport.Port, path string) bool {
	return u.scheme != "" && u.scheme == scheme && u.port == port && u.host.Match(host) && matchPath(u.path, path)
}

func matchPath(pattern, path string) bool {
	if !strings.HasPrefix(path, "/") {
		return false
	}
	want, have := strings.Split(pattern[1:], "/"), strings.Split(path[1:], "/")
	for i, w := range want {
		if w == "**" {
			return len(have) > i
		}
		if i >= len(have) || !matchSegment(w, have[i]) {
			return false
		}
	}
	return len(want) == len(have)
}

// matchSegment matches * against any run of characters, in linear memory and
// at most len(pattern)·len(s) steps.
func matchSegment(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && pattern[p] == s[i]:
			p, i = p+1, i+1
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
