// Package capability turns grants into a set of capabilities and decides, for
// every name, connection and request, whether one of them covers it.
//
// It is pure: no clock, no network, no files, no globals. The controller
// compiles a Spec to check a policy and to explain it; the gateway compiles the
// same Spec and asks the Set about everything that the sandbox sends. A Set is
// immutable, safe for concurrent use, and can only be made narrower.
//
// Every answer is Cedar's (cedar-go): each rule is compiled into permit
// policies, and two built-in forbid policies stand over all of them (a foreign
// credential, a misplaced placeholder). Only the policies that are about the
// request's host and operation are asked, because Cedar's time grows with
// their number. Forbid wins, no match is deny, an error of a policy is no
// match. What is Go's here only prepares the question (Set.ask) or explains
// the answer.
//
// Nothing is allowed by leaving something out: a rule without operations does
// not compile, the zero Decision, Treatment and Permit refuse, and a nil Set
// has no capabilities. Only this package can make a Permit, and the dialler
// demands one.
package capability

import (
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Spec is a capability set before it is compiled. It travels from the
// controller to the gateway as JSON.
type Spec struct {
	Rules []Rule `json:"rules"`
	// Default is the policy as a whole: the position of "no rule matches".
	Default vocabulary.Position `json:"default"`
}

// Rule is one grant. Exactly one of Service, HTTP and TCP is set.
type Rule struct {
	Pos vocabulary.Position `json:"pos"`

	// Typed: operations of a service, on resources (none: on all).
	Service    string   `json:"service,omitempty"`
	Operations []string `json:"operations,omitempty"`
	Resources  []string `json:"resources,omitempty"`

	// Raw: a URL pattern and methods (none: GET and HEAD).
	HTTP    string   `json:"http,omitempty"`
	Methods []string `json:"methods,omitempty"`

	// Opaque: "host:port".
	TCP string `json:"tcp,omitempty"`

	// Credential names the one that may travel with what the rule covers.
	Credential string `json:"credential,omitempty"`
	// Header and Scheme are its slot in a raw rule; Authorization and Bearer
	// if both are empty.
	Header string `json:"header,omitempty"`
	Scheme string `json:"scheme,omitempty"`
}

// FromPolicy takes the grants out of a policy.
func FromPolicy(p *policy.Policy) Spec {
	spec := Spec{Default: vocabulary.Position{File: p.File}}
	for _, g := range p.Grants {
		spec.Rules = append(spec.Rules, Rule{
			Pos: g.Pos, Service: g.Service, Operations: values(g.Operations), Resources: values(g.Resources),
			HTTP: g.HTTP, Methods: g.Methods, TCP: g.TCP, Credential: g.Credential, Header: g.Header, Scheme: g.Scheme,
		})
	}
	return spec
}

func values(list []policy.At[string]) []string {
	var out []string
	for _, at := range list {
		out = append(out, at.Value)
	}
	return out
}

// Identity is what the sandbox holds: the placeholder of each credential. An
// empty placeholder is none.
type Identity struct {
	Placeholders map[string]string
}

// Treatment says how a connection is carried.
type Treatment uint8

// The treatments. The zero Treatment refuses.
const (
	TreatRefuse Treatment = iota
	TreatTLS              // terminate TLS, decide each request
	TreatHTTP             // plain http, decide each request
	TreatOpaque           // copy bytes
)

// Decision is an answer. The zero Decision denies.
type Decision struct {
	Verdict  vocabulary.Verdict  `json:"verdict"`
	Action   vocabulary.Action   `json:"action"`
	Resource vocabulary.Resource `json:"resource"`
	Reason   vocabulary.Reason   `json:"reason"`
	// Permit is set only if the act is allowed and needs a connection of the
	// gateway's: an allowed request, an allowed opaque connection.
	Permit *Permit `json:"-"`
	// Swap says which credential replaces the placeholder; nil: none travels.
	Swap *Swap `json:"swap,omitempty"`
	// Strip are slots to remove before the request is forwarded.
	Strip []catalog.Slot `json:"strip,omitempty"`
	// Rewrite are headers to forward with another value; "" removes them.
	// Dropped are the feature names that are left out by it, for the record.
	Rewrite map[string]string `json:"rewrite,omitempty"`
	Dropped []string          `json:"dropped,omitempty"`
}

// Swap is a placeholder to be replaced: the one that stands in Slot, where it
// is all there is (of Basic: all of the password, or of the user name).
type Swap struct {
	Credential string       `json:"credential"`
	Slot       catalog.Slot `json:"slot"`
}

// Permit is the right to dial one destination. The zero Permit and a nil one
// are for nothing.
type Permit struct {
	host   hostport.Host
	port   hostport.Port
	tls    bool
	opaque bool
	rule   vocabulary.Position
}

// Host is the only name that may be dialled.
func (p *Permit) Host() hostport.Host { return p.host }

// Port is the only port that may be dialled.
func (p *Permit) Port() hostport.Port { return p.port }

// TLS says that the connection must be verified TLS.
func (p *Permit) TLS() bool { return p.tls }

// Opaque says that bytes are copied as they are.
func (p *Permit) Opaque() bool { return p.opaque }

// Rule is the rule that permits.
func (p *Permit) Rule() vocabulary.Position { return p.rule }

// The codes of reasons that this package gives.
const (
	CodeGranted              = "granted"
	CodeNoGrant              = "no-grant"
	CodeMethodNotGranted     = "method-not-granted"
	CodeOperationNotGranted  = "operation-not-granted"
	CodeResourceNotGranted   = "resource-not-granted"
	CodeUnknownOperation     = "unknown-operation"
	CodeForeignCredential    = "foreign-credential"
	CodePlaceholderMisplaced = "placeholder-misplaced"
	CodeBadRequest           = "bad-request"
)
