// Package capability turns grants into a set of capabilities and decides, for
// every name, connection and request, whether one of them covers it.
//
// It is pure: no clock, no network, no files, no globals. The controller
// compiles a Spec to check a policy and to explain it; the gateway compiles the
// same Spec and asks the Set about everything that the sandbox sends. A Set is
// immutable, safe for concurrent use, and can only be made narrower.
//
// Every answer is Cedar's (cedar-go): each rule is compiled into permit
// policies, and a built-in forbid policy stands over all of them (a foreign
// credential, a misplaced placeholder). Each feature of a request is a question
// of its own, with its own resource. Only the policies that are about the
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
	"io"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Spec is a capability set before it is compiled. It travels from the
// controller to the gateway as JSON.
type Spec struct {
	Rules []Rule `json:"rules"`
	// Default is the policy as a whole: the position of "no rule matches".
	Default vocabulary.Position `json:"default"`
	// Within are limits: what they do not allow as well is refused.
	Within []Within `json:"within,omitempty"`
}

// Rule is one grant. Exactly one of Service, HTTP, TCP, SSH and
// Exchange is set.
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

	// Exchange is the token endpoint of Credential's login: an https URL.
	Exchange string `json:"exchange,omitempty"`

	// Git over SSH: "user@host[:port]", with Operations and Resources. SSHKey says
	// that Credential is an SSH key: then a rule with Service is about its SSH
	// servers, otherwise about the others.
	SSH    string `json:"ssh,omitempty"`
	SSHKey bool   `json:"sshKey,omitempty"`

	// Credential names the one that may travel with what the rule covers.
	Credential string `json:"credential,omitempty"`
	// Header and Scheme are its slot in a raw rule; Authorization and Bearer
	// if both are empty.
	Header string `json:"header,omitempty"`
	Scheme string `json:"scheme,omitempty"`
}

// FromPolicy takes the grants out of a policy, and those of the bounds that it
// stands within.
func FromPolicy(p *policy.Policy) Spec {
	spec := Spec{Default: vocabulary.Position{File: p.File}}
	for _, g := range p.Grants {
		spec.Rules = append(spec.Rules, Rule{
			Pos: g.Pos, Service: g.Service, Operations: values(g.Operations), Resources: values(g.Resources),
			HTTP: g.HTTP, Methods: g.Methods, TCP: g.TCP, SSH: g.SSH, SSHKey: p.OverSSH(g), Credential: g.Credential, Header: g.Header, Scheme: g.Scheme,
		})
	}
	for _, b := range p.Within {
		if b.Grants.Given() {
			spec.Within = append(spec.Within, fromBounds(b))
		}
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
	// Issued knows the stand-ins of tokens that the sandbox was given in this
	// session at a service's own token endpoint (Decision.Issues), and names the
	// credential under which it asked, "" if under none. Nil knows none.
	Issued func(service string, value secret.Value) (credential string, ok bool)
}

// Treatment says how a connection is carried.
type Treatment uint8

// The treatments. The zero Treatment refuses.
const (
	TreatRefuse Treatment = iota
	TreatTLS              // terminate TLS, decide each request
	TreatHTTP             // plain http, decide each request
	TreatOpaque           // copy bytes
	TreatSSH              // git over SSH, decide each command
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
	// Rewrite are headers to forward with another value; "" removes them.
	// Dropped are the feature names that are left out by it, for the record.
	Rewrite map[string]string `json:"rewrite,omitempty"`
	Dropped []string          `json:"dropped,omitempty"`
	// WebSocket is set only if the request is an upgrade and the upgrade is
	// granted; without it an upgrade is refused.
	WebSocket *WebSocket `json:"-"`
	// Filter, if not nil, is what the body must pass through on its way: parts of
	// it are only judged as they come. It fails with a *Refusal, and then the
	// request must break off. Length and bytes stay as they are.
	Filter func(io.Reader) io.Reader `json:"-"`
	// Exchange names the credential whose login answers the request, in the
	// controller; then there is no Permit.
	Exchange string `json:"exchange,omitempty"`
	// Issues names the service whose tokens an allowed request is answered with;
	// the sandbox gets stand-ins for them, and may use them there alone.
	Issues string `json:"issues,omitempty"`
}

// WebSocket bounds what may pass over a granted WebSocket.
type WebSocket struct {
	// Subprotocol says whether a name may be offered to the upstream; the others
	// are left out. Nil: any that does not look like a credential.
	Subprotocol func(name string) bool
	// Message judges each whole message of the sandbox, of text or bytes; its
	// error says in words why one is refused. Nil: messages pass unread.
	Message func([]byte) error
	// MessageLimit is the size that a judged message may have; 0: the gateway's.
	MessageLimit int
}

// Swap is a placeholder to be replaced: the one that stands in Slot, where it
// is all there is (of Basic: all of the password, or of the user name).
type Swap struct {
	Credential string       `json:"credential"`
	Slot       catalog.Slot `json:"slot"`
	// Issued: what stands there is not the credential's placeholder but a
	// stand-in that Identity.Issued knows; Credential may be empty then.
	Issued bool `json:"issued,omitempty"`
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
	CodeCredentialMissing    = "credential-missing"
	CodeIPLiteral            = "ip-literal"
)
