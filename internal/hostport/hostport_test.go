package hostport

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestParseHost(t *testing.T) {
	for in, want := range map[string]string{
		"example.com": "example.com", "Example.COM.": "example.com", "a-b.c9": "a-b.c9",
		"localhost": "localhost", "xn--bcher-kva.example": "xn--bcher-kva.example", "0x7f.example": "0x7f.example",
	} {
		h, err := ParseHost(in)
		if err != nil || h.String() != want {
			t.Errorf("ParseHost(%q) = %q, %v; want %q", in, h, err, want)
		}
	}
	for _, in := range []string{
		"", ".", "..", "a..b", ".a", "-a.com", "a-.com", "a_b.com", "a b", "a\x00.com", "bücher.example",
		"a.com..", "user@host", "a/b", "a%2eb", strings.Repeat("a", 64) + ".com", strings.Repeat("a.", 127) + "com",
		"ａ.com", "a。com",
	} {
		if h, err := ParseHost(in); err == nil {
			t.Errorf("ParseHost(%q) = %q, want an error", in, h)
		}
	}
	for _, in := range []string{
		"127.0.0.1", "127.1", "2130706433", "0x7f000001", "0X7F.1", "0177.0.0.1", "127.0.0.1.", "::1", "[::1]",
		"::ffff:127.0.0.1", "1.2.3.4.5", "fe80::1%eth0", "host.123", "1",
	} {
		if _, err := ParseHost(in); !errors.Is(err, ErrIPLiteral) {
			t.Errorf("ParseHost(%q): %v, want ErrIPLiteral", in, err)
		}
	}
}

func TestPattern(t *testing.T) {
	for _, c := range []struct {
		pattern, host string
		want          bool
	}{
		{"example.com", "example.com", true}, {"example.com", "EXAMPLE.com.", true},
		{"example.com", "a.example.com", false}, {"example.com", "badexample.com", false},
		{"*.example.com", "a.example.com", true}, {"*.example.com", "a.b.example.com", true},
		{"*.example.com", "example.com", false}, {"*.example.com", "badexample.com", false},
		{"*.example.com", "a.example.com.evil.test", false},
	} {
		p, err := ParsePattern(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		h, err := ParseHost(c.host)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Match(h); got != c.want {
			t.Errorf("%s matches %s = %v, want %v", c.pattern, c.host, got, c.want)
		}
	}
	for _, in := range []string{"*", "*.com", "*.*.com", "a.*.com", "*example.com", "*.10", "127.0.0.1"} {
		if p, err := ParsePattern(in); err == nil {
			t.Errorf("ParsePattern(%q) = %v, want an error", in, p)
		}
	}
	if (Pattern{}).Match(Host{}) {
		t.Error("the zero pattern matches the zero host")
	}
}

func TestParsePort(t *testing.T) {
	for _, in := range []string{"", "0", "65536", "-1", "+80", "080", " 80", "8O", "99999999999999999999"} {
		if p, err := ParsePort(in); err == nil {
			t.Errorf("ParsePort(%q) = %d, want an error", in, p)
		}
	}
	if p, err := ParsePort("65535"); err != nil || p != 65535 {
		t.Error(p, err)
	}
}

// FuzzParseHost locks three things: canonical names are fixed points, nothing
// accepted reads as an address, and no case or dot variant is another host.
func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"example.com", "A.b.", "127.1", "0x7f.0.0.1", "a\x00b", "xn--a.b", "::1", "1.1.1.1.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := ParseHost(s)
		if err != nil {
			if !h.IsZero() {
				t.Fatal("a refused name has a value")
			}
			return
		}
		again, err := ParseHost(h.String())
		if err != nil || again != h {
			t.Fatalf("%q is not a fixed point: %v %v", h, again, err)
		}
		if _, err := netip.ParseAddr(h.String()); err == nil {
			t.Fatalf("%q is an address", h)
		}
		if h.String() != strings.ToLower(strings.TrimSuffix(s, ".")) {
			t.Fatalf("%q became %q", s, h)
		}
	})
}
