package egress

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
)

// serve6 is serve on ::1 alone.
func serve6(t testing.TB, h http.Handler, names ...string) *upstream {
	t.Helper()
	u := &upstream{ca: newCA(t, "upstream CA"), names: names}
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatalf("this test needs ::1: %v", err)
	}
	srv := &http.Server{Handler: h, TLSConfig: &tls.Config{Certificates: []tls.Certificate{u.ca.leaf(t, names...)}}}
	go srv.ServeTLS(l, "", "")
	t.Cleanup(func() { srv.Close() })
	u.addr = l.Addr().String()
	return u
}

// An upstream that has only an address of IPv6, and a client inside that uses
// only IPv6: names have a synthetic address in both families, and the
// connection to either is judged alike.
func TestTAPIPv6(t *testing.T) {
	up := &arrivals{}
	s := startTap(t, nil, serve6(t, up, "other.test", "readonly.test"))
	for _, family := range []string{"-4", "-6"} {
		out, ok := s.curl(family + " -o /dev/null -w '%{http_code} %{remote_ip}' https://other.test/x")
		six := strings.HasPrefix(out, "200 "+strings.TrimSuffix(sandbox.LinkGateway6, "1"))
		if !ok || !strings.HasPrefix(out, "200 ") || six != (family == "-6") {
			t.Errorf("%s: %q", family, out)
		}
		if out, _ := s.curl(family + " -o /dev/null -w '%{http_code}' https://readonly.test/secret"); out != "403" {
			t.Errorf("%s, not granted: %q", family, out)
		}
	}
	if got := up.take(); len(got) != 2 {
		t.Errorf("the upstream saw %q", got)
	}
	// The gateway's resolver answers over IPv6 too, and says the same.
	resolv := filepath.Join(s.dir, "resolv6.conf")
	if err := os.WriteFile(resolv, []byte("nameserver "+sandbox.LinkGateway6+"\noptions timeout:2 attempts:1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	both, _ := s.sh("getent ahosts other.test | cut -d' ' -f1 | sort -u")
	over6, ok := s.sh(fmt.Sprintf("mount --bind %s /etc/resolv.conf && getent ahosts other.test | cut -d' ' -f1 | sort -u", resolv))
	if !ok || both != over6 || len(strings.Fields(over6)) != 2 {
		t.Errorf("%q over IPv4, %q over IPv6", both, over6)
	}
	if out, _ := s.curl("-6 -o /dev/null -w '%{http_code}' https://other.test/y"); out != "200" {
		t.Errorf("with a resolver of IPv6: %q", out)
	}
}

// The same upstream over the relay, by every protocol that it speaks.
func TestRelayIPv6Upstream(t *testing.T) {
	up := &arrivals{}
	r := startRelay(t, nil, serve6(t, up, "other.test"))
	if resp, body := get(t, r.client(), "https://other.test/"); resp.StatusCode != 200 || resp.ProtoMajor != 2 {
		t.Errorf("HTTP/2: %s %s", resp.Status, body)
	}
	if answer := r.raw("other.test", "GET / HTTP/1.1\r\nHost: other.test\r\n\r\n"); !strings.Contains(answer, "X-Upstream: yes") {
		t.Errorf("HTTP/1.1: %s", answer)
	}
	if got := up.take(); len(got) != 2 {
		t.Errorf("the upstream saw %q", got)
	}
}

// A name with an address of IPv6 that must not be dialled is refused in words,
// also when the hosts file says it.
func TestIPv6AddressesAreRefused(t *testing.T) {
	for _, addr := range []string{"::", "64:ff9b::a00:1", "2002:a00:1::1", "fe80::1", "ff02::1", "::ffff:192.168.0.1", "fd62:756c::1"} {
		r := startRelay(t, func(c *Config) { c.Hosts = map[string][]string{"rebind.test": {addr, "10.0.0.1"}} })
		resp, body := get(t, r.client(), "https://rebind.test/")
		if resp.StatusCode != 403 || resp.Header.Get("Bulkhead-Denied") != "address-refused" || !strings.Contains(body, "upstreams") {
			t.Errorf("%s: %s %s", addr, resp.Status, body)
		}
		r.gw.Close()
	}
}
