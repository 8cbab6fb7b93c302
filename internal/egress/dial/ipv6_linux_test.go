package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// inFormsOf6 are ways to write an address of IPv4 in one of IPv6.
func inFormsOf6(t *testing.T, v4 string) map[string]netip.Addr {
	t.Helper()
	b := netip.MustParseAddr(v4).As4()
	out := map[string]netip.Addr{}
	for name, f := range map[string]string{
		"mapped": "::ffff:%02x%02x:%02x%02x", "compatible": "::%02x%02x:%02x%02x", "translated": "::ffff:0:%02x%02x:%02x%02x", "NAT64": "64:ff9b::%02x%02x:%02x%02x", "local NAT64": "64:ff9b:1::%02x%02x:%02x%02x",
		"6to4": "2002:%02x%02x:%02x%02x::1", "Teredo server": "2001:0:%02x%02x:%02x%02x::1", "ISATAP": "fe80::5efe:%02x%02x:%02x%02x",
	} {
		a, err := netip.ParseAddr(fmt.Sprintf(f, b[0], b[1], b[2], b[3]))
		if err != nil {
			t.Fatal(err)
		}
		out[name] = a
	}
	// Teredo clients stand there inverted.
	out["Teredo client"] = netip.MustParseAddr(fmt.Sprintf("2001:0:4136:e378:8000:63bf:%02x%02x:%02x%02x", ^b[0], ^b[1], ^b[2], ^b[3]))
	return out
}

// A private address stays one in every form that IPv6 has for it; a public one
// is dialled only in the form that is the address itself.
func TestJudgeEmbedded(t *testing.T) {
	for _, v4 := range []string{"127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "255.255.255.255", "198.18.1.0"} {
		for name, a := range inFormsOf6(t, v4) {
			if judge(a, nil) == nil {
				t.Errorf("%s, %s of %s, may be dialled", a, name, v4)
			}
		}
	}
	for name, a := range inFormsOf6(t, "8.8.8.8") {
		if got := judge(a, nil) == nil; got != (name == "mapped") {
			t.Errorf("%s, %s of 8.8.8.8: may be dialled: %v", a, name, got)
		}
	}
}

// Each address of a name is judged by itself, in both families, and the bad ones
// of one family do not take the other along.
func TestBothFamiliesAreJudged(t *testing.T) {
	const good4, good6 = "8.8.8.8", "2001:4860:4860::8888"
	for _, bad := range []string{"::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b::808:808", "64:ff9b:1::1", "2002:a00:1::1", "2002:808:808::1", "fc00::1", "fd62:756c::2", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "2001:db8::1", "100::1"} {
		for what, c := range map[string]struct{ records, want []string }{
			"alone":               {[]string{bad}, nil},
			"with a private IPv4": {[]string{bad, "192.168.0.1"}, nil},
			"with a public IPv4":  {[]string{bad, good4}, []string{good4}},
			"with a public IPv6":  {[]string{bad, good6}, []string{good6}},
		} {
			d := New(Config{Nameservers: []netip.AddrPort{nameserver(t, answers(c.records))}})
			got, err := d.addresses(t.Context(), host(t, "both.example"), 443)
			if c.want == nil && !errors.Is(err, ErrAddress) || c.want != nil && (err != nil || !slices.Equal(hosts(got), c.want)) {
				t.Errorf("%s %s: %v, %v", bad, what, got, err)
			}
		}
	}
	for _, bad := range []string{"127.0.0.1", "10.0.0.1", "169.254.169.254"} {
		d := New(Config{Nameservers: []netip.AddrPort{nameserver(t, answers([]string{bad, good6}))}})
		if got, err := d.addresses(t.Context(), host(t, "both.example"), 443); err != nil || !slices.Equal(hosts(got), []string{good6}) {
			t.Errorf("%s with a public IPv6: %v, %v", bad, got, err)
		}
	}
	// A and AAAA together, the families in turn; an address of this host is none
	// that a name may lead to, in either family.
	own := []netip.Addr{netip.MustParseAddr("2606:4700::1111")}
	d := New(Config{Own: own, Nameservers: []netip.AddrPort{nameserver(t, answers([]string{good4, "1.1.1.1", good6, "2606:4700::1111", "2a00:1450::1"}))}})
	got, err := d.addresses(t.Context(), host(t, "both.example"), 8443)
	if err != nil || len(got) != 4 || got[0].Addr().Is4() == got[1].Addr().Is4() || got[2].Addr().Is4() == got[3].Addr().Is4() {
		t.Errorf("%v, %v", got, err)
	}
	for _, a := range got {
		if a.Port() != 8443 || a.Addr() == own[0] {
			t.Errorf("%v", a)
		}
	}
}

func answers(records []string) func(dnsmessage.Type) []netip.Addr {
	var out []netip.Addr
	for _, r := range records {
		out = append(out, netip.MustParseAddr(r))
	}
	return func(dnsmessage.Type) []netip.Addr { return out }
}

func hosts(addrs []netip.AddrPort) (out []string) {
	for _, a := range addrs {
		out = append(out, a.Addr().String())
	}
	return out
}

// silent6 is an address of IPv6 that takes no connection and refuses none: a
// listener whose queue is full.
func silent6(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet6{Addr: netip.IPv6Loopback().As16()}); err != nil {
		t.Fatalf("this test needs ::1: %v", err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.IPv6Loopback(), uint16(sa.(*syscall.SockaddrInet6).Port))
	for range 16 {
		c, err := net.DialTimeout("tcp", at.String(), 300*time.Millisecond)
		if err != nil {
			return at
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("a full queue takes connections")
	return at
}

// A dead IPv6 does not hold up a name that has an IPv4 too, and the other way
// round: without the second try, each would last until the kernel gives up,
// which is minutes.
func TestDeadFamily(t *testing.T) {
	listen := func(network, addr string) netip.AddrPort {
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatalf("this test needs ::1 and 127.0.0.1: %v", err)
		}
		t.Cleanup(func() { l.Close() })
		return l.Addr().(*net.TCPAddr).AddrPort()
	}
	four, six := listen("tcp4", "127.0.0.1:0"), listen("tcp6", "[::1]:0")
	silent := silent6(t)
	refusing6 := netip.AddrPortFrom(netip.IPv6Loopback(), four.Port())
	refusing4 := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), six.Port())
	d := New(Config{})
	for name, c := range map[string]struct {
		addrs []netip.AddrPort
		want  netip.AddrPort
	}{
		"silent IPv6":   {[]netip.AddrPort{silent, four}, four},
		"refusing IPv6": {[]netip.AddrPort{refusing6, four}, four},
		"refusing IPv4": {[]netip.AddrPort{refusing4, six}, six},
		"two dead ones": {interleave([]netip.AddrPort{silent, silent, four}), four},
		"only IPv6":     {[]netip.AddrPort{six}, six},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			conn, err := d.race(ctx, c.addrs)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got := conn.RemoteAddr().(*net.TCPAddr).AddrPort(); got != c.want {
				t.Errorf("connected to %v", got)
			}
		})
	}
}

// What listens on ::1 alone is this host's loopback too, and an upstreams entry
// may name an address of IPv6.
func TestLoopbackOfIPv6(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatalf("this test needs ::1: %v", err)
	}
	defer l.Close()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	for name, d := range map[string]*Dialer{
		"localhost":    New(Config{}),
		"corp.example": New(Config{Upstreams: []Upstream{{Host: host(t, "corp.example"), Connect: at}}}),
	} {
		c, err := d.Opaque(t.Context(), permit(t, hostport.HostPort{Host: host(t, name), Port: hostport.Port(at.Port())}.String()))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		c.Close()
	}
	d := New(Config{Nameservers: []netip.AddrPort{nameserver(t, answers([]string{"::1"}))}})
	if _, err := d.Opaque(t.Context(), permit(t, hostport.HostPort{Host: host(t, "corp.example"), Port: hostport.Port(at.Port())}.String())); !errors.Is(err, ErrAddress) {
		t.Errorf("without the entry: %v", err)
	}
}
