package capability

import (
	"io"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// A Set can stand within others, which limit it: the policies of a project and
// of an administrator. What the Set allows is put before each of them as well,
// as a whole request and in that policy's own reading of it, and all must allow
// it. Their rules have no credentials: whose credential travels, and that no
// other does, is judged by the Set alone.

// CodeNarrowed is the reason of what a policy grants and one that limits it does
// not.
const CodeNarrowed = "narrowed"

// Within limits a Spec.
type Within struct {
	Rules []Rule              `json:"rules"`
	Pos   vocabulary.Position `json:"pos"` // of the list of grants
	// By says whose policy it is, Remedy who could widen it.
	By     string `json:"by"`
	Remedy string `json:"remedy"`
}

// limit is a compiled Within.
type limit struct {
	*Set
	by, remedy string
}

func fromBounds(b *policy.Bounds) Within {
	w := Within{Pos: b.Grants.Pos, By: string(b.By), Remedy: b.Remedy(), Rules: []Rule{}}
	for _, g := range b.Grants.Items {
		w.Rules = append(w.Rules, Rule{
			Pos: g.Pos, Service: g.Service, Operations: values(g.Operations), Resources: values(g.Resources),
			HTTP: g.HTTP, Methods: g.Methods, TCP: g.TCP, SSH: g.SSH,
		})
	}
	return w
}

// compileWithin also writes out what a rule of a limit leaves open: all
// operations of a service, and its servers for git over SSH.
func compileWithin(w Within, cat *catalog.Catalog, errs *policy.ErrorList) *limit {
	spec := Spec{Default: w.Pos}
	for _, r := range w.Rules {
		r.Credential, r.Header, r.Scheme, r.Exchange, r.SSHKey = "", "", "", "", false
		svc, known := cat.Service(r.Service)
		if known && len(r.Operations) == 0 {
			for _, op := range svc.Operations {
				r.Operations = append(r.Operations, op.Name)
			}
		}
		if over := func(ssh bool) bool {
			return slices.ContainsFunc(svc.Endpoints, func(e catalog.Endpoint) bool { return (e.Scheme == "ssh") == ssh })
		}; !known || over(false) {
			spec.Rules = append(spec.Rules, r)
		}
		if known && slices.ContainsFunc(svc.Endpoints, func(e catalog.Endpoint) bool { return e.Scheme == "ssh" }) {
			r.SSHKey = true
			spec.Rules = append(spec.Rules, r)
		}
	}
	set := &Set{spec: spec, cat: cat, limits: true}
	set.compile(errs)
	return &limit{set, w.By, w.Remedy}
}

// narrowed is the answer to what the Set allows and a limit does not.
func (l *limit) narrowed(own, d Decision) Decision {
	rule := d.Reason.Rule
	if rule.File == "" {
		rule = l.whole()
	}
	return Decision{Action: own.Action, Resource: own.Resource, Reason: vocabulary.Reason{
		Code: CodeNarrowed, Rule: rule, Remedy: l.remedy,
		Message: "your policy grants it at " + own.Reason.Rule.String() + ", " + l.by + " does not: " + d.Reason.Message,
	}}
}

// nameWithin judges a name that the Set resolves.
func (s *Set) nameWithin(h hostport.Host, d Decision, allowed []*compiled) Decision {
	if forExchange(allowed) {
		return d
	}
	for _, l := range s.within {
		if of := l.ResolveName(h); of.Verdict != vocabulary.Allow {
			return l.narrowed(d, of)
		}
	}
	return d
}

// forExchange reports whether a rule is about a login's token endpoint, of which
// nothing leaves but what the controller sends.
func forExchange(allowed []*compiled) bool {
	return slices.ContainsFunc(allowed, func(c *compiled) bool { return c.Exchange != "" })
}

// connectWithin judges a connection that the Set carries. What passes unread
// must be granted so; what is judged may be granted in any way.
func (s *Set) connectWithin(hp hostport.HostPort, treat Treatment, d Decision, allowed []*compiled) (Treatment, Decision) {
	if forExchange(allowed) {
		return treat, d
	}
	for _, l := range s.within {
		t, of := l.Connect(hp)
		if t == treat || t == TreatOpaque {
			continue
		}
		if t != TreatRefuse {
			of.Reason.Message = "it grants " + hp.String() + " as " + t.word() + ", not as " + treat.word()
		}
		return TreatRefuse, l.narrowed(d, of)
	}
	return treat, d
}

// requestWithin judges a request that the Set allows.
func (s *Set) requestWithin(r catalog.Request, d Decision, anyBody bool) Decision {
	if d.Verdict != vocabulary.Allow || d.Exchange != "" {
		return d
	}
	for _, l := range s.within {
		r.Header = rewritten(r, d.Rewrite)
		of := l.covers(r, anyBody)
		if of.Verdict != vocabulary.Allow {
			return l.narrowed(d, of)
		}
		d.join(of, l)
	}
	return d
}

func rewritten(r catalog.Request, with map[string]string) map[string][]string {
	if len(with) == 0 {
		return r.Header
	}
	h := r.Header.Clone()
	for name, value := range with {
		if value == "" {
			h.Del(name)
		} else {
			h.Set(name, value)
		}
	}
	return h
}

// covers reads the request anew, by the limit's own rules.
func (l *limit) covers(r catalog.Request, anyBody bool) Decision {
	hp := hostport.HostPort{Host: r.Host, Port: r.Port}
	name := requestResource(&r)
	treat, best := l.Connect(hp)
	if treat == TreatOpaque {
		return best
	}
	best.Verdict, best.Permit = vocabulary.Deny, nil
	escaped := strings.Contains(r.Path, "%2F")
	for i, g := range l.groups(&r) {
		if escaped && g.svc != nil && !g.svc.EscapedSlash(r) {
			continue
		}
		d := l.judge(g, r, name, Identity{}, anyBody)
		if escaped && g.svc == nil && d.Verdict == vocabulary.Allow {
			// The server may take it for a slash: a pattern has to match either way.
			plain := r
			plain.Path = strings.ReplaceAll(r.Path, "%2F", "/")
			d = l.judge(g, plain, name, Identity{}, anyBody)
		}
		if d.Verdict == vocabulary.Allow {
			return d
		}
		if i == 0 || rank(d.Reason.Code) > rank(best.Reason.Code) {
			best = d
		}
	}
	if best.Reason.Code == CodeGranted || best.Reason.Code == "" {
		best.Reason = l.nothing("no grant covers "+quote(string(name)), "")
	}
	return best
}

// join adds what a limit wants of an allowed request: headers to change, parts
// that are judged as they come.
func (d *Decision) join(of Decision, l *limit) {
	if len(of.Rewrite) > 0 {
		all := map[string]string{}
		for name, value := range d.Rewrite {
			all[name] = value
		}
		for name, value := range of.Rewrite {
			if d.Swap == nil || !strings.EqualFold(d.Swap.Slot.Header, name) {
				all[name] = value
			}
		}
		d.Rewrite, d.Dropped = all, append(slices.Clone(d.Dropped), of.Dropped...)
	}
	mine := Decision{Action: d.Action, Resource: d.Resource, Reason: d.Reason}
	reason := func(err error) error { return l.refusal(mine, err) }
	if first, second := d.Filter, of.Filter; second != nil {
		d.Filter = func(body io.Reader) io.Reader {
			body = refusing{second(body), reason}
			if first != nil {
				body = first(body)
			}
			return body
		}
	}
	if d.WebSocket != nil && of.WebSocket != nil {
		d.WebSocket = joinWebSockets(*d.WebSocket, *of.WebSocket, reason)
	}
}

// refusal is narrowed for what came later.
func (l *limit) refusal(own Decision, err error) error {
	r, ok := err.(*Refusal)
	if !ok {
		return err
	}
	return &Refusal{l.narrowed(own, Decision{Reason: r.Reason}).Reason}
}

// refusing says of a limit's refusal whose it is.
type refusing struct {
	io.Reader
	reason func(error) error
}

func (r refusing) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil {
		err = r.reason(err)
	}
	return n, err
}

func joinWebSockets(a, b WebSocket, reason func(error) error) *WebSocket {
	out := a
	if b.Subprotocol != nil {
		out.Subprotocol = func(name string) bool { return (a.Subprotocol == nil || a.Subprotocol(name)) && b.Subprotocol(name) }
	}
	if b.Message != nil {
		out.Message = func(data []byte) error {
			if a.Message != nil {
				if err := a.Message(data); err != nil {
					return err
				}
			}
			if err := b.Message(data); err != nil {
				return reason(err)
			}
			return nil
		}
		if a.MessageLimit == 0 || b.MessageLimit > 0 && b.MessageLimit < a.MessageLimit {
			out.MessageLimit = b.MessageLimit
		}
	}
	return &out
}

// bodyWithin is what has to be known of a body for all limits as well.
func (s *Set) bodyWithin(r catalog.Request, need catalog.Need) catalog.Need {
	if s == nil {
		return need
	}
	for _, l := range s.within {
		need = bothNeeds(need, l.Body(r))
	}
	return need
}

func bothNeeds(a, b catalog.Need) catalog.Need {
	switch {
	case a.None || b.None:
		return catalog.Need{None: true}
	case a.Whole > 0 && b.Whole > 0:
		a.Whole, a.Gzip = min(a.Whole, b.Whole), a.Gzip || b.Gzip
		return a
	case b.Whole > 0:
		a, b = b, a
		fallthrough
	case a.Whole > 0:
		a.Gzip = a.Gzip || b.Gzip
		a.Whole = int(min(int64(a.Whole), max(b.Stream, int64(b.HeadMax))))
		return a
	case a.Head != nil && b.Head != nil:
		first, second := a.Head, b.Head
		return catalog.Need{
			Head: func(soFar []byte) (bool, error) {
				one, err := first(soFar)
				if err != nil {
					return false, err
				}
				two, err := second(soFar)
				return one && two, err
			},
			HeadMax: max(a.HeadMax, b.HeadMax), Stream: min(a.Stream, b.Stream), Gzip: a.Gzip || b.Gzip, End: a.End && b.End,
		}
	case b.Head != nil:
		a, b = b, a
	}
	a.Stream, a.Gzip = min(a.Stream, b.Stream), a.Gzip || b.Gzip
	return a
}

// sshWithin judges a git command that the Set allows.
func (s *Set) sshWithin(cmd SSHCommand, d SSHDecision) SSHDecision {
	if d.Verdict != vocabulary.Allow {
		return d
	}
	cmd.Credential = ""
	for _, l := range s.within {
		if t, _ := l.Connect(hostport.HostPort{Host: cmd.Host, Port: cmd.Port}); t == TreatOpaque {
			continue
		}
		if of := l.DecideSSH(cmd); of.Verdict != vocabulary.Allow {
			return SSHDecision{Decision: l.narrowed(d.Decision, of.Decision), User: d.User, Path: d.Path}
		}
	}
	return d
}

// asked lists the rules that Explain tells about: the Set's own, and of the
// limits each line once.
func (s *Set) asked(evaluate func(*compiled) Evaluated) []Evaluated {
	var out []Evaluated
	for _, c := range s.all() {
		out = append(out, evaluate(c))
	}
	if s == nil {
		return out
	}
	for _, l := range s.within {
		first := len(out)
		for _, c := range l.rules {
			e := evaluate(c)
			i := slices.IndexFunc(out[first:], func(o Evaluated) bool { return o.Rule == e.Rule })
			switch {
			case i < 0:
				out = append(out, e)
			case !out[first+i].Matches && out[first+i].Result == anotherHost:
				out[first+i] = e
			}
		}
	}
	return out
}

const anotherHost = "another host"

// Outside lists the rules of the Set that no grant of some limit has anything in
// common with: they never pass. It looks at names, not at paths and resources.
func (s *Set) Outside() []Outside {
	var out []Outside
	for _, l := range s.within {
		for _, c := range s.rules {
			if c.Exchange == "" && !slices.ContainsFunc(l.rules, c.mayMeet) {
				out = append(out, Outside{Rule: c.Pos, By: l.whole(), Whose: l.by})
			}
		}
	}
	return out
}

// Idle lists the rules of limits that have nothing in common with the Set: they
// give nothing, because limits can't.
func (s *Set) Idle() []Outside {
	var out []Outside
	for _, l := range s.within {
		for _, c := range l.rules {
			met := slices.ContainsFunc(s.rules, c.mayMeet)
			if !met && !slices.ContainsFunc(out, func(o Outside) bool { return o.Rule == c.Pos }) &&
				!slices.ContainsFunc(l.rules, func(o *compiled) bool { return o.Pos == c.Pos && slices.ContainsFunc(s.rules, o.mayMeet) }) {
				out = append(out, Outside{Rule: c.Pos, By: s.whole(), Whose: l.by})
			}
		}
	}
	return out
}

// Outside is a rule that another policy has nothing for.
type Outside struct {
	Rule, By vocabulary.Position
	Whose    string
}

// mayMeet reports whether two rules can be about the same act.
func (c *compiled) mayMeet(o *compiled) bool {
	if c.svc != nil && c.svc == o.svc && !slices.ContainsFunc(c.ops, func(op string) bool { return slices.Contains(o.ops, op) }) {
		return false
	}
	return slices.ContainsFunc(c.endpoints, func(a endpoint) bool {
		return slices.ContainsFunc(o.endpoints, func(b endpoint) bool { return a.port == b.port && a.overlaps(&b) })
	})
}
