package capability

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Explanation is the answer to "would this be allowed, and why".
type Explanation struct {
	Decision Decision `json:"decision"`
	// Rules are all rules, in the order of the file, and what each says to it.
	Rules []Evaluated `json:"rules"`
	// Notes say what depends on things that a URL doesn't show.
	Notes []string `json:"notes,omitempty"`
}

// Evaluated is what one rule says to a request.
type Evaluated struct {
	Rule    vocabulary.Position `json:"rule"`
	Result  string              `json:"result"`
	Matches bool                `json:"matches"`
}

// String is for a terminal.
func (x Explanation) String() string {
	var b strings.Builder
	d := x.Decision
	fmt.Fprintf(&b, "%s  %s  %s\n", d.Verdict, d.Action, d.Resource)
	at := ""
	if rule := d.Reason.Rule.String(); rule != "-" {
		at = ", " + rule
	}
	fmt.Fprintf(&b, "  %s (%s%s)\n", d.Reason.Message, d.Reason.Code, at)
	if d.Reason.Remedy != "" {
		fmt.Fprintf(&b, "  to allow it: %s\n", d.Reason.Remedy)
	}
	for _, r := range x.Rules {
		fmt.Fprintf(&b, "  rule %s: %s\n", r.Rule, r.Result)
	}
	for _, n := range x.Notes {
		fmt.Fprintf(&b, "  note: %s\n", n)
	}
	return b.String()
}

// Explain judges a question as the gateway would judge the act, in the same
// order: the name, the connection, then the request without body, headers and
// credential.
//
//	METHOD http(s)://host[:port]/path     a request; WEBSOCKET, or ws: and wss:, for a handshake
//	CONNECT tcp://host:port               a connection
//	RESOLVE dns://host                    a name alone
//	FETCH|PUSH|… ssh://user@host/repo     git over SSH; repo@branch for a ref (also user@host:repo)
//
// The error says what is wrong with the question.
func (s *Set) Explain(method, rawURL string) (Explanation, error) {
	if x, ok, err := s.explainSSH(method, rawURL); ok {
		return x, err
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return Explanation{}, fmt.Errorf("%q is not a URL", rawURL)
	}
	if u.User != nil || u.Opaque != "" || u.Host == "" {
		return Explanation{}, fmt.Errorf("%q is not scheme://host/path", rawURL)
	}
	switch u.Scheme {
	case "ws", "wss":
		if method != http.MethodGet && method != catalog.MethodWebSocket {
			return Explanation{}, fmt.Errorf("the handshake of a WebSocket is a GET, not a %s", method)
		}
		method, u.Scheme = catalog.MethodWebSocket, "http"+strings.TrimPrefix(u.Scheme, "ws")
	case "http", "https", "tcp", "dns":
	default:
		return Explanation{}, fmt.Errorf("%q is none of http, https, ws, wss, ssh, tcp and dns", u.Scheme)
	}
	host, err := hostport.ParseHost(u.Hostname())
	if errors.Is(err, hostport.ErrIPLiteral) {
		return s.explainAddress(u), nil
	}
	if err != nil {
		return Explanation{}, err
	}
	if u.Scheme == "dns" {
		return s.explainName(host), nil
	}
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "https":
		port = "443"
	case u.Scheme == "http":
		port = "80"
	}
	number, err := hostport.ParsePort(port)
	if err != nil {
		return Explanation{}, err
	}
	hp := hostport.HostPort{Host: host, Port: number}
	if u.Scheme == "tcp" {
		return s.explainConnect(hp), nil
	}
	return s.explainRequest(method, rawURL, u, hp)
}

// explainRequest is about one request, and first about the connection that it
// would come on.
func (s *Set) explainRequest(method, rawURL string, u *url.URL, hp hostport.HostPort) (Explanation, error) {
	path, escaped, err := judgedPath(u)
	if err != nil {
		return Explanation{}, fmt.Errorf("the path of %q is not well-formed", rawURL)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Explanation{}, fmt.Errorf("the query of %q is not well-formed", rawURL)
	}
	r := catalog.Request{Scheme: u.Scheme, Host: hp.Host, Port: hp.Port, Method: method, Path: path, Query: query, Header: http.Header{}}
	// The connection comes first, and only one of the right kind carries requests.
	treat, d := s.Connect(hp)
	switch {
	case treat == TreatOpaque:
		x := s.explainConnect(hp)
		x.Notes = append(x.Notes, "the connection is opaque: no request on it is judged")
		return x, nil
	case len(s.about(hp.Host)) == 0 || treat != TreatRefuse && (endpoint{treat: treat}).scheme() == u.Scheme:
		d = s.decide(r, Identity{}, true)
		if escaped != "" {
			d = Decision{Action: d.Action, Resource: d.Resource, Reason: vocabulary.Reason{Code: CodeBadRequest, Message: escaped, Rule: s.whole()}}
		}
	case treat != TreatRefuse:
		d = Decision{Action: d.Action, Resource: d.Resource, Reason: vocabulary.Reason{
			Code: CodeNoGrant, Rule: d.Reason.Rule, Message: "this destination is granted as " + treat.word() + ", not as " + u.Scheme,
		}}
	}
	x := Explanation{Decision: d}
	broken := escaped != "" || malformed(&r) != "" && !s.EscapedSlash(r)
	x.Rules = s.asked(func(c *compiled) Evaluated {
		if broken {
			return Evaluated{Rule: c.Pos, Result: "not asked"}
		}
		e, note := c.evaluate(r)
		if note != "" && !slices.Contains(x.Notes, note) {
			x.Notes = append(x.Notes, note)
		}
		return e
	})
	return x.local(hp.Host), nil
}

// judgedPath decodes a path as the gateway does: an escaped slash stays "%2F",
// except in the scope of npm's names. Ambiguous says what has no canonical form.
func judgedPath(u *url.URL) (path, ambiguous string, err error) {
	raw := strings.ReplaceAll(u.EscapedPath(), "%2f", "%2F")
	if raw == "" {
		return "/", "", nil
	}
	for _, c := range []string{"\\", ";", "?", "#", "%"} {
		if escape := fmt.Sprintf("%%%02X", c[0]); strings.Contains(strings.ToUpper(raw), escape) || c == ";" && strings.Contains(raw, c) {
			return u.Path, "the path has " + c + " or " + escape + ", which servers read in different ways", nil
		}
	}
	if strings.HasPrefix(raw, "/@") {
		return u.Path, "", nil
	}
	parts := strings.Split(raw, "%2F")
	for i := range parts {
		if parts[i], err = url.PathUnescape(parts[i]); err != nil {
			return "", "", err
		}
	}
	return strings.Join(parts, "%2F"), "", nil
}

// explainAddress: no rule can be about an address.
func (s *Set) explainAddress(u *url.URL) Explanation {
	x := Explanation{Decision: Decision{
		Action: "tcp.connect", Resource: vocabulary.Resource(printable(u.Host)),
		Reason: vocabulary.Reason{Code: CodeIPLiteral, Message: "a connection to an address; only names that a grant covers are reachable", Remedy: "use the name, and grant it"},
	}}
	x.Rules = s.asked(func(c *compiled) Evaluated { return Evaluated{Rule: c.Pos, Result: "not asked"} })
	if a, err := netip.ParseAddr(u.Hostname()); err == nil && a.Unmap().IsLoopback() {
		x.Notes = []string{ownLoopback}
	}
	return x
}

const ownLoopback = "inside, the loopback is the sandbox's own: what runs there is reachable there without a grant; a grant is for this port of the host"

// local adds what is true of the one name that is not a server's.
func (x Explanation) local(h hostport.Host) Explanation {
	if h.String() == "localhost" {
		x.Notes = append(x.Notes, ownLoopback)
	}
	return x
}

func (s *Set) explainName(h hostport.Host) Explanation {
	x := Explanation{Decision: s.ResolveName(h)}
	x.Rules = s.asked(func(c *compiled) Evaluated {
		if slices.ContainsFunc(c.endpoints, func(at endpoint) bool { return at.match(h) }) {
			return Evaluated{Rule: c.Pos, Matches: true, Result: "matches: the name gets an address inside"}
		}
		return Evaluated{Rule: c.Pos, Result: anotherHost}
	})
	return x.local(h)
}

func (s *Set) explainConnect(hp hostport.HostPort) Explanation {
	treat, d := s.Connect(hp)
	x := Explanation{Decision: d}
	x.Rules = s.asked(func(c *compiled) Evaluated { return c.evaluateConnect(hp) })
	switch treat {
	case TreatTLS, TreatHTTP:
		x.Notes = append(x.Notes, "only requests over "+treat.word()+" pass; each is decided by itself")
	case TreatSSH:
		x.Notes = append(x.Notes, "only git's commands over ssh pass; each is decided by itself")
	}
	return x.local(hp.Host)
}

func (s *Set) all() []*compiled {
	if s == nil {
		return nil
	}
	return s.rules
}

func (c *compiled) evaluateConnect(hp hostport.HostPort) Evaluated {
	e := Evaluated{Rule: c.Pos, Result: anotherHost}
	for _, at := range c.endpoints {
		switch {
		case !at.match(hp.Host):
		case at.port == hp.Port:
			e.Matches, e.Result = true, "matches, as "+at.treat.word()
			return e
		default:
			e.Result = "host matches, port not granted"
		}
	}
	return e
}

// evaluate compares part by part, with the catalogue's and the pattern's own
// matching; TestExplainAgrees holds it to Cedar's answers.
func (c *compiled) evaluate(r catalog.Request) (e Evaluated, note string) {
	e = Evaluated{Rule: c.Pos, Result: anotherHost}
	if !slices.ContainsFunc(c.endpoints, func(at endpoint) bool { return at.match(r.Host) }) {
		return e, ""
	}
	if !c.at(r.Host, r.Port, r.Scheme) {
		e.Result = "host matches, not over " + r.Scheme + " on port " + strconv.Itoa(int(r.Port))
		return e, ""
	}
	if c.svc == nil {
		switch {
		case !c.pattern.Match(r.Scheme, r.Host, r.Port, r.Path):
			e.Result = "host matches, path not granted"
		case !slices.Contains(c.Methods, r.Method):
			e.Result = "host and path match, method not granted"
		default:
			e.Matches, e.Result = true, "matches"
		}
		return e, ""
	}
	op, resource, err := c.svc.Route(r)
	switch {
	case err != nil:
		e.Result = "host matches, the request is no known operation"
	case !slices.Contains(c.ops, op.Name):
		e.Result = "host matches, operation " + op.Name + " not granted"
	case !c.coversResource(resource):
		e.Result = "operation " + op.Name + " matches, resource " + quote(resource) + " not granted"
	default:
		e.Matches, e.Result = true, "matches: "+op.Name
		if resource != "" {
			e.Result += " on " + quote(resource)
		}
		if c.svc.Need(&op, r.Method).Reads() {
			note = "the body decides as well: server-side features in it are operations of their own"
		}
	}
	return e, note
}
