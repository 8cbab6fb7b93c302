package resolver

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

func testResolver(refused *[]Refusal) *Resolver {
	return &Resolver{
		Table: NewTable(),
		Allowed: func(h hostport.Host) (bool, string) {
			return h.String() == "api.example.com" || strings.HasSuffix(h.String(), ".wild.example"), "no grant covers it"
		},
		Refused: func(r Refusal) { *refused = append(*refused, r) },
	}
}

func query(t testing.TB, name string, typ dnsmessage.Type, class dnsmessage.Class) []byte {
	t.Helper()
	n, err := dnsmessage.NewName(name)
	if err != nil {
		t.Fatal(err)
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 7, RecursionDesired: true})
	b.StartQuestions()
	b.Question(dnsmessage.Question{Name: n, Type: typ, Class: class})
	b.StartAdditionals()
	var rh dnsmessage.ResourceHeader
	rh.SetEDNS0(1232, 0, false)
	b.OPTResource(rh, dnsmessage.OPTResource{})
	out, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func ask(t testing.TB, r *Resolver, name string, typ dnsmessage.Type) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(r.Answer(query(t, name, typ, dnsmessage.ClassINET))); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestBindingIsStableAndReversible(t *testing.T) {
	var refused []Refusal
	r := testResolver(&refused)
	first := ask(t, r, "api.example.com.", dnsmessage.TypeA)
	if len(first.Answers) != 1 {
		t.Fatalf("answers: %v", first.Answers)
	}
	a4 := netip.AddrFrom4(first.Answers[0].Body.(*dnsmessage.AResource).A)
	again := ask(t, r, "API.Example.Com.", dnsmessage.TypeA)
	if got := netip.AddrFrom4(again.Answers[0].Body.(*dnsmessage.AResource).A); got != a4 {
		t.Errorf("another spelling got %v, not %v", got, a4)
	}
	a6 := netip.AddrFrom16(ask(t, r, "api.example.com.", dnsmessage.TypeAAAA).Answers[0].Body.(*dnsmessage.AAAAResource).AAAA)
	other := netip.AddrFrom4(ask(t, r, "x.wild.example.", dnsmessage.TypeA).Answers[0].Body.(*dnsmessage.AResource).A)
	for addr, want := range map[netip.Addr]string{a4: "api.example.com", a6: "api.example.com", other: "x.wild.example"} {
		if h, ok := r.Table.Name(addr); !ok || h.String() != want {
			t.Errorf("%v stands for %q, want %q", addr, h, want)
		}
	}
	for _, addr := range []string{"198.18.0.1", "198.18.0.2", "198.18.1.2", "198.19.255.255", "8.8.8.8", "127.0.0.1", "fd62:756c::1", "fd62:756c::1:0:0:100", "::1"} {
		if h, ok := r.Table.Name(netip.MustParseAddr(addr)); ok {
			t.Errorf("%s stands for %q", addr, h)
		}
	}
	if len(refused) != 0 {
		t.Errorf("refused: %v", refused)
	}
}

func TestOnlyAddressesOfGrantedNames(t *testing.T) {
	var refused []Refusal
	r := testResolver(&refused)
	for _, typ := range []dnsmessage.Type{dnsmessage.TypeTXT, dnsmessage.TypeMX, dnsmessage.TypeNS, dnsmessage.TypeSOA, dnsmessage.TypeCNAME, dnsmessage.TypePTR, dnsmessage.TypeSRV, 10, 64, 65, 255} {
		if m := ask(t, r, "api.example.com.", typ); m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 0 {
			t.Errorf("granted name, type %v: %v with %d answers", typ, m.RCode, len(m.Answers))
		}
	}
	for _, name := range []string{"secret.collector.test.", "api.example.com.evil.test.", "notapi.example.com.", "wild.example.", "1.0.0.127.in-addr.arpa.", "127.0.0.1.", "0x7f000001."} {
		before := len(refused)
		m := ask(t, r, name, dnsmessage.TypeA)
		if m.RCode != dnsmessage.RCodeNameError || len(m.Answers) != 0 {
			t.Errorf("%s: %v, %v", name, m.RCode, m.Answers)
		}
		if len(refused) != before+1 {
			t.Errorf("%s: %d refusals recorded", name, len(refused)-before)
		}
	}
	var m dnsmessage.Message
	if err := m.Unpack(r.Answer(query(t, "version.bind.", dnsmessage.TypeTXT, dnsmessage.ClassCHAOS))); err != nil || m.RCode != dnsmessage.RCodeNotImplemented {
		t.Errorf("CHAOS: %v %v", m.RCode, err)
	}
}

// What deserves no answer is on record all the same.
func TestRubbishIsRecorded(t *testing.T) {
	answer := query(t, "api.example.com.", dnsmessage.TypeA, dnsmessage.ClassINET)
	answer[2] |= 0x80 // "this is an answer"
	for _, rubbish := range [][]byte{nil, {1, 2, 3}, answer, make([]byte, 5000)} {
		var refused []Refusal
		if a := testResolver(&refused).Answer(rubbish); a != nil || len(refused) != 1 || refused[0].Code != "bad-request" {
			t.Errorf("%.20q: answered %q, recorded %v", rubbish, a, refused)
		}
	}
}

func TestRefusalSaysWhy(t *testing.T) {
	var refused []Refusal
	q := query(t, "secret.collector.test.", dnsmessage.TypeA, dnsmessage.ClassINET)
	a := testResolver(&refused).Answer(q)
	if !strings.Contains(string(a), "no grant covers it") {
		t.Errorf("no extended error in %q", a)
	}
	if len(a) > len(q)+64 {
		t.Errorf("answer of %d bytes to a query of %d", len(a), len(q))
	}
}

func TestNoAllowedRefuses(t *testing.T) {
	if m := ask(t, &Resolver{}, "api.example.com.", dnsmessage.TypeA); m.RCode != dnsmessage.RCodeNameError {
		t.Errorf("zero resolver: %v", m.RCode)
	}
}

func TestTableIsBounded(t *testing.T) {
	table := NewTable()
	for i := range MaxNames + 1 {
		h, err := hostport.ParseHost("n" + strings.Repeat("a", i%60) + "." + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676%26)) + ".wild.example")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := table.bind(h); err != nil && len(table.names) < MaxNames {
			t.Fatal(err)
		}
	}
	if len(table.names) > MaxNames {
		t.Error("table grew over its bound")
	}
	if !prefix4.Contains(netip.AddrFrom4(address4(firstIndex + MaxNames))) {
		t.Error("addresses leave the prefix")
	}
}

func TestStream(t *testing.T) {
	var refused []Refusal
	r := testResolver(&refused)
	client, server := net.Pipe()
	go r.Serve(server)
	defer client.Close()
	q := query(t, "api.example.com.", dnsmessage.TypeA, dnsmessage.ClassINET)
	for range 3 {
		client.Write(append([]byte{0, byte(len(q))}, q...))
		buf := make([]byte, 512)
		if n, err := client.Read(buf); err != nil || n < 12 {
			t.Fatalf("%d, %v", n, err)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(query(f, "api.example.com.", dnsmessage.TypeA, dnsmessage.ClassINET))
	f.Add(query(f, "x.test.", 65, dnsmessage.ClassCHAOS))
	f.Add([]byte{0, 1, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0xc0, 0x0c})
	f.Fuzz(func(t *testing.T, q []byte) {
		var refused []Refusal
		r := testResolver(&refused)
		a := r.Answer(q)
		if len(a) > len(q)+256 {
			t.Fatalf("answer of %d bytes to %d", len(a), len(q))
		}
		if len(a) == 0 {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(a); err != nil {
			t.Fatalf("our answer does not parse: %v", err)
		}
		if len(m.Answers) > 0 {
			for _, name := range r.Table.names {
				if ok, _ := r.Allowed(name); !ok {
					t.Fatalf("%q got an address", name)
				}
			}
		}
	})
}
