package capability

import (
	"slices"

	"github.com/cedar-policy/cedar-go/types"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// A rule with Exchange is about the token endpoint of a login that the policy
// names as a credential's source. Nothing is sent there from the gateway: the
// decision has no Permit, and the controller answers.

// ActionExchange is a request to such an endpoint.
const ActionExchange vocabulary.Action = "login.exchange"

// exchangeBody is above any token request.
const exchangeBody = 32 << 10

var actExchange = types.NewEntityUID("Action", types.String(ActionExchange))

func (c *compiled) checkExchange(add func(msg, hint string)) {
	p, err := policy.ParseURLPattern(c.Exchange)
	if err != nil {
		add(err.Error(), "")
		return
	}
	if _, exact := p.Host().Exact(); !exact || p.Scheme() != "https" || catalog.CheckPath(p.Path()) != nil || slices.Contains([]byte(p.Path()), '*') {
		add("a token endpoint is one https URL, not "+quote(c.Exchange), "")
		return
	}
	if c.Credential == "" {
		add("a token endpoint belongs to a credential", "")
	}
	c.pattern = p
	c.Methods = []string{"POST"}
	c.endpoints = []endpoint{{raw: p.Host(), port: p.Port(), treat: TreatTLS}}
}

// exchangeFor finds the endpoint that a request is for.
func (s *Set) exchangeFor(r catalog.Request) *compiled {
	if s == nil {
		return nil
	}
	for _, c := range s.exchanges {
		if c.at(r.Host, r.Port, r.Scheme) && r.Method == "POST" && c.pattern.Match(r.Scheme, r.Host, r.Port, r.Path) {
			return c
		}
	}
	return nil
}

// tokenEndpoint reports whether a request would end or renew a known login.
func tokenEndpoint(r catalog.Request) bool {
	return r.Scheme == "https" && r.Port == 443 && slices.Contains(policy.LoginEndpoints(), "https://"+r.Host.String()+r.Path)
}

// withoutTokens leaves out what a service would allow at a token endpoint: the
// answer there is a real token, which must not come inside. A raw grant of the
// very URL stays the user's own word.
func withoutTokens(r catalog.Request, groups []*group) (left []*group, typed *group) {
	if !tokenEndpoint(r) {
		return groups, nil
	}
	for _, g := range groups {
		if g.svc == nil {
			left = append(left, g)
		} else if typed == nil {
			typed = g
		}
	}
	return left, typed
}

func tokensOnHost(r catalog.Request, typed *group) vocabulary.Reason {
	return vocabulary.Reason{
		Code: CodeOperationNotGranted, Rule: typed.rules[0].Pos,
		Message: "token requests to " + r.Host.String() + " are answered on the host, and no credential of this session is a login there",
		Remedy:  "give the grant a credential with from: {login: NAME}",
	}
}

// exchange decides about a request to a token endpoint; ok says whether it is
// one. What the body asks for is the controller's to judge.
func (s *Set) exchange(r catalog.Request) (d Decision, ok bool) {
	c := s.exchangeFor(r)
	if c == nil {
		return Decision{}, false
	}
	q := question{group: &group{rules: []*compiled{c}}, request: r, action: ActionExchange, name: requestResource(&r)}
	q.to = destination{r.Host, r.Port, r.Scheme}.value()
	q.index()
	if len(r.Query) > 0 {
		return q.deny(c, CodeBadRequest, "a token request has no query", ""), true
	}
	if len(ask(slice{rules: q.rules}, actExchange, "", q.context(""))) == 0 {
		return q.deny(c, CodeNoGrant, "no grant covers "+quote(string(q.name)), ""), true
	}
	return Decision{
		Verdict: vocabulary.Allow, Action: ActionExchange, Resource: q.name, Exchange: c.Credential,
		Reason: granted(c, "token requests of the credential "+quote(c.Credential)+" are answered on the host"),
	}, true
}
