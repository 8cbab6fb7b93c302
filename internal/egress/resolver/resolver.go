// Package resolver answers the sandbox's DNS queries without asking anybody.
//
// In: one query message, from hostile code. Out: one answer message. A name
// that Allowed accepts gets synthetic addresses, the same ones for the whole
// session, and Table remembers which name an address stands for: the later
// connection to the address is judged by that name. No query leaves the host.
//
// For an allowed name A and AAAA are answered, every other type (HTTPS, SVCB,
// TXT, MX …) has no data. Any other name does not exist (NXDOMAIN, with the
// reason as an extended error, RFC 8914, for who sent EDNS); other classes and
// opcodes are not implemented. An answer is never longer than the query plus
// what the addresses and the reason take.
//
// Addresses come from 198.18.0.0/15 (RFC 2544) and fd62:756c::/64, above the
// first 256, which the link itself uses. The table holds MaxNames names; the
// names are those that grants cover, so only a wildcard grant can fill it.
package resolver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// MaxNames bounds the table. Each name takes one address of either family.
const MaxNames = 16384

const (
	firstIndex = 256
	ttl        = 600 // seconds; the binding lasts for the session
)

var (
	prefix4 = netip.MustParsePrefix("198.18.0.0/15")
	prefix6 = netip.MustParsePrefix("fd62:756c::/64")
)

// Table binds names to synthetic addresses. Safe for concurrent use.
type Table struct {
	mu    sync.Mutex
	index map[hostport.Host]uint32
	names []hostport.Host // by index - firstIndex
}

// NewTable returns an empty table.
func NewTable() *Table { return &Table{index: map[hostport.Host]uint32{}} }

// ErrFull says that the table has no room for another name.
var ErrFull = errors.New("the session has asked for too many different names")

func (t *Table) bind(h hostport.Host) (uint32, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i, ok := t.index[h]; ok {
		return i, nil
	}
	if len(t.names) == MaxNames {
		return 0, ErrFull
	}
	i := uint32(firstIndex + len(t.names))
	t.names = append(t.names, h)
	t.index[h] = i
	return i, nil
}

// Name returns the name that an address stands for.
func (t *Table) Name(a netip.Addr) (hostport.Host, bool) {
	a = a.Unmap()
	var i uint32
	switch {
	case prefix4.Contains(a):
		b := a.As4()
		base := prefix4.Addr().As4()
		i = binary.BigEndian.Uint32(b[:]) - binary.BigEndian.Uint32(base[:])
	case prefix6.Contains(a):
		b := a.As16()
		if binary.BigEndian.Uint32(b[8:12]) != 0 {
			return hostport.Host{}, false
		}
		i = binary.BigEndian.Uint32(b[12:])
	default:
		return hostport.Host{}, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if i < firstIndex || i-firstIndex >= uint32(len(t.names)) {
		return hostport.Host{}, false
	}
	return t.names[i-firstIndex], true
}

func address4(i uint32) [4]byte {
	base := prefix4.Addr().As4()
	binary.BigEndian.PutUint32(base[:], binary.BigEndian.Uint32(base[:])+i)
	return base
}

func address6(i uint32) [16]byte {
	base := prefix6.Addr().As16()
	binary.BigEndian.PutUint32(base[12:], i)
	return base
}

// Refusal is what was asked and not answered with an address, for the record.
type Refusal struct {
	Name string // as asked; "." if none was
	Type string
	Code string // "no-grant", "bad-request", "protocol-refused"
	// Message says why, if the decider said it.
	Message string
}

// Resolver answers queries. Allowed says whether a grant covers a name, and if
// not, why. Refused hears of every refusal before it is answered. A Resolver
// without Allowed refuses everything.
type Resolver struct {
	Table   *Table
	Allowed func(hostport.Host) (ok bool, why string)
	Refused func(Refusal)
}

const udpMax = 1232 // what fits any path (DNS flag day 2020); ours is far smaller

// Answer returns the answer to one query, or nil if it deserves none.
func (r *Resolver) Answer(query []byte) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil || head.Response || len(query) > 4096 {
		r.refused(Refusal{Name: ".", Code: "bad-request", Message: "not a DNS query"})
		return nil
	}
	reply := dnsmessage.Header{ID: head.ID, Response: true, OpCode: head.OpCode, RecursionDesired: head.RecursionDesired, RecursionAvailable: true}
	if head.OpCode != 0 {
		reply.RCode = dnsmessage.RCodeNotImplemented
		r.refused(Refusal{Name: ".", Code: "protocol-refused", Type: fmt.Sprintf("opcode %d", head.OpCode), Message: "only ordinary queries are answered"})
		return build(reply, nil, nil, "")
	}
	questions, err := p.AllQuestions()
	if err != nil || len(questions) != 1 {
		reply.RCode = dnsmessage.RCodeFormatError
		r.refused(Refusal{Name: ".", Code: "bad-request", Message: "the query is not one question that can be read"})
		return build(reply, nil, nil, "")
	}
	q := questions[0]
	edns := hasEDNS(&p)
	name := q.Name.String()
	if q.Class != dnsmessage.ClassINET {
		reply.RCode = dnsmessage.RCodeNotImplemented
		r.refused(Refusal{Name: name, Type: typeName(q.Type), Code: "protocol-refused", Message: "only the class IN is served"})
		return build(reply, &q, nil, "")
	}
	host, why, ok := r.allowed(name)
	if !ok {
		reply.RCode = dnsmessage.RCodeNameError
		code := "no-grant"
		if host.IsZero() {
			code = "bad-request"
		}
		r.refused(Refusal{Name: name, Type: typeName(q.Type), Code: code, Message: why})
		if !edns {
			why = ""
		}
		return build(reply, &q, nil, why)
	}
	if q.Type != dnsmessage.TypeA && q.Type != dnsmessage.TypeAAAA {
		return build(reply, &q, nil, "")
	}
	i, err := r.Table.bind(host)
	if err != nil {
		reply.RCode = dnsmessage.RCodeServerFailure
		r.refused(Refusal{Name: name, Type: typeName(q.Type), Code: "name-limit", Message: err.Error()})
		return build(reply, &q, nil, "")
	}
	var body dnsmessage.ResourceBody = &dnsmessage.AResource{A: address4(i)}
	if q.Type == dnsmessage.TypeAAAA {
		body = &dnsmessage.AAAAResource{AAAA: address6(i)}
	}
	return build(reply, &q, body, "")
}

func (r *Resolver) allowed(name string) (hostport.Host, string, bool) {
	host, err := hostport.ParseHost(name)
	if err != nil {
		return hostport.Host{}, "not a host name", false
	}
	if r.Allowed == nil || r.Table == nil {
		return host, "no capability set", false
	}
	ok, why := r.Allowed(host)
	return host, why, ok
}

func (r *Resolver) refused(f Refusal) {
	if r.Refused != nil {
		r.Refused(f)
	}
}

func typeName(t dnsmessage.Type) string {
	switch t {
	case 64:
		return "SVCB"
	case 65:
		return "HTTPS"
	}
	s := t.String()
	if len(s) > 4 && s[:4] == "Type" {
		return s[4:]
	}
	return s
}

// hasEDNS looks for an OPT record in the additional section.
func hasEDNS(p *dnsmessage.Parser) bool {
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return false
	}
	for range 8 {
		h, err := p.AdditionalHeader()
		if err != nil {
			return false
		}
		if h.Type == dnsmessage.TypeOPT {
			return true
		}
		if p.SkipAdditional() != nil {
			return false
		}
	}
	return false
}

const (
	optionExtendedError = 15 // RFC 8914
	errorBlocked        = 15 // "Blocked": by a policy of the operator
)

func build(h dnsmessage.Header, q *dnsmessage.Question, answer dnsmessage.ResourceBody, why string) []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, 512), h)
	b.EnableCompression()
	fail := func(err error) bool { return err != nil }
	if fail(b.StartQuestions()) {
		return nil
	}
	if q != nil && fail(b.Question(*q)) {
		return nil
	}
	if fail(b.StartAnswers()) {
		return nil
	}
	if q != nil && answer != nil {
		rh := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: ttl}
		var err error
		switch a := answer.(type) {
		case *dnsmessage.AResource:
			err = b.AResource(rh, *a)
		case *dnsmessage.AAAAResource:
			err = b.AAAAResource(rh, *a)
		}
		if fail(err) {
			return nil
		}
	}
	if why != "" && !fail(b.StartAdditionals()) {
		if len(why) > 200 {
			why = why[:200]
		}
		var rh dnsmessage.ResourceHeader
		data := append([]byte{0, errorBlocked}, why...)
		if rh.SetEDNS0(udpMax, h.RCode, false) == nil {
			if err := b.OPTResource(rh, dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: optionExtendedError, Data: data}}}); err != nil {
				return nil
			}
		}
	}
	out, err := b.Finish()
	if err != nil {
		return nil
	}
	return out
}
