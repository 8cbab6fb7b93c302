package capability

import (
	"fmt"
	"net/http"
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
	fmt.Fprintf(&b, "  %s (%s, %s)\n", d.Reason.Message, d.Reason.Code, d.Reason.Rule)
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

// Explain judges METHOD URL without body, headers and credential. "CONNECT
// tcp://host:port" asks about an opaque connection. The error says what is
// wrong with the question.
func (s *Set) Explain(method, rawURL string) (Explanation, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return Explanation{}, fmt.Errorf("%q is not a URL", rawURL)
	}
	port := u.Port()
	switch {
	case u.User != nil || u.Opaque != "" || u.Host == "":
		return Explanation{}, fmt.Errorf("%q is not scheme://host/path", rawURL)
	case port == "" && u.Scheme == "https":
		port = "443"
	case port == "" && u.Scheme == "http":
		port = "80"
	}
	hp, err := hostport.Parse(u.Hostname() + ":" + port)
	if err != nil {
		return Explanation{}, err
	}
	if u.Scheme == "tcp" {
		treat, d := s.Connect(hp)
		x := Explanation{Decision: d}
		for _, c := range s.all() {
			x.Rules = append(x.Rules, c.evaluateConnect(hp))
		}
		if treat == TreatTLS || treat == TreatHTTP {
			x.Notes = append(x.Notes, "only requests over "+treat.word()+" pass; each is decided by itself")
		}
		return x, nil
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return Explanation{}, fmt.Errorf("%q is neither http, https nor tcp", u.Scheme)
	}
	path := u.Path
	if path == "" {
		path = "/"
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Explanation{}, fmt.Errorf("the query of %q is not well-formed", rawURL)
	}
	r := catalog.Request{Scheme: u.Scheme, Host: hp.Host, Port: hp.Port, Method: method, Path: path, Query: query, Header: http.Header{}}
	x := Explanation{Decision: s.decide(r, Identity{}, true)}
	broken := malformed(&r) != "" && !s.EscapedSlash(r)
	for _, c := range s.all() {
		if broken {
			x.Rules = append(x.Rules, Evaluated{Rule: c.Pos, Result: "not asked"})
			continue
		}
		e, note := c.evaluate(r)
		x.Rules = append(x.Rules, e)
		if note != "" && !slices.Contains(x.Notes, note) {
			x.Notes = append(x.Notes, note)
		}
	}
	return x, nil
}

func (s *Set) all() []*compiled {
	if s == nil {
		return nil
	}
	return s.rules
}

func (c *compiled) evaluateConnect(hp hostport.HostPort) Evaluated {
	e := Evaluated{Rule: c.Pos, Result: "another host"}
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
	e = Evaluated{Rule: c.Pos, Result: "another host"}
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
