package dial

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
)

func TestJudge(t *testing.T) {
	own := map[netip.Addr]bool{netip.MustParseAddr("93.184.216.34"): true}
	for _, s := range []string{
		"127.0.0.1", "127.255.255.254", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "100.127.255.255",
		"0.0.0.0", "0.1.2.3", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16", "192.88.99.1",
		"::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1",
		"100::1", "2001::1", "2001:0:7f00:1::", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "4000::1", "93.184.216.34", "::ffff:93.184.216.34",
	} {
		if judge(netip.MustParseAddr(s), own) == nil {
			t.Errorf("%s may be dialled", s)
		}
	}
	if judge(netip.Addr{}, nil) == nil {
		t.Error("the zero address may be dialled")
	}
	for _, s := range []string{"8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "192.1.0.1", "198.20.0.1", "2606:4700::1111", "2001:4860:4860::8888", "2a00:1450::1", "::ffff:8.8.8.8"} {
		if err := judge(netip.MustParseAddr(s), own); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestNoPermitNoSocket(t *testing.T) {
	d := New(Config{})
	req, _ := http.NewRequest("GET", "https://api.test:443/", nil)
	if _, err := d.RoundTrip(nil, req); !errors.Is(err, ErrNoPermit) {
		t.Errorf("nil permit: %v", err)
	}
	if _, err := d.RoundTrip(&capability.Permit{}, req); !errors.Is(err, ErrNoPermit) {
		t.Errorf("zero permit: %v", err)
	}
	if _, err := d.Opaque(context.Background(), &capability.Permit{}); !errors.Is(err, ErrNoPermit) {
		t.Errorf("opaque: %v", err)
	}
	if _, err := d.transport.RoundTrip(req); !errors.Is(err, ErrNoPermit) {
		t.Errorf("the pool by itself: %v", err)
	}
}

func FuzzJudge(f *testing.F) {
	f.Add([]byte{127, 0, 0, 1})
	f.Add(netip.MustParseAddr("::ffff:10.0.0.1").AsSlice())
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok || judge(a, nil) != nil {
			return
		}
		p := a.Unmap()
		if p.IsLoopback() || p.IsPrivate() || p.IsLinkLocalUnicast() || p.IsMulticast() || p.IsUnspecified() || p.IsInterfaceLocalMulticast() {
			t.Fatalf("%v may be dialled", a)
		}
	})
}
