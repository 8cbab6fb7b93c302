package egress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// issue makes a certificate under parent; edit is what is wrong with it.
func (a authority) issue(t testing.TB, edit func(*x509.Certificate)) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "api.test"}, DNSNames: []string{"api.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	edit(c)
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func (a authority) chain(more ...authority) tls.Certificate {
	c := tls.Certificate{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key}
	for _, m := range more {
		c.Certificate = append(c.Certificate, m.cert.Raw)
	}
	return c
}

// Whatever a server shows that is no valid proof of its name: the client gets a
// clear error in time, the session one event, and the server neither the request
// nor the credential.
func TestUpstreamsThatLieAboutThemselves(t *testing.T) {
	ca := newCA(t, "upstream CA")
	right := func(*x509.Certificate) {}
	middle := ca.issue(t, func(c *x509.Certificate) { c.IsCA, c.KeyUsage, c.DNSNames = true, x509.KeyUsageCertSign, nil })
	held := ca.issue(t, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.DNSNames, c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = true, x509.KeyUsageCertSign, nil, []string{"other.test"}, true
	})
	plain := ca.issue(t, right)
	self := newCA(t, "api.test")
	with := func(c tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{c}} }
	one := func(edit func(*x509.Certificate)) *tls.Config { return with(ca.issue(t, edit).chain()) }
	writes := func(s string) func(net.Conn) { return func(c net.Conn) { io.WriteString(c, s) } }
	for what, c := range map[string]struct {
		config *tls.Config
		speak  func(net.Conn) // instead of TLS
		fine   bool
		broken bool // no certificate comes to be judged
	}{
		"a right one":                          {config: one(right), fine: true},
		"with its intermediate":                {config: with(middle.issue(t, right).chain(middle)), fine: true},
		"without its intermediate":             {config: with(middle.issue(t, right).chain())},
		"expired":                              {config: one(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })},
		"not valid yet":                        {config: one(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour / 2) })},
		"for another name":                     {config: one(func(c *x509.Certificate) { c.DNSNames = []string{"other.test"} })},
		"for names below":                      {config: one(func(c *x509.Certificate) { c.DNSNames = []string{"*.api.test"} })},
		"for a whole domain":                   {config: one(func(c *x509.Certificate) { c.DNSNames = []string{"*"} })},
		"the name in the subject only":         {config: one(func(c *x509.Certificate) { c.DNSNames = nil })},
		"a NUL in the name":                    {config: one(func(c *x509.Certificate) { c.DNSNames = []string{"api.test\x00.evil.test"} })},
		"for the address":                      {config: one(func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, []net.IP{net.IPv4(127, 0, 0, 1)} })},
		"for clients":                          {config: one(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })},
		"for code":                             {config: one(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} })},
		"made by one that is no CA":            {config: with(plain.issue(t, right).chain(plain))},
		"made by a CA of other names":          {config: with(held.issue(t, right).chain(held))},
		"its own":                              {config: with(self.chain())},
		"of an unknown CA":                     {config: with(newCA(t, "upstream CA").leaf(t, "api.test"))},
		"of an unknown CA, with the right one": {config: with(newCA(t, "upstream CA").issue(t, right).chain(ca))},
		"another's key":                        {config: with(tls.Certificate{Certificate: [][]byte{plain.cert.Raw}, PrivateKey: self.key}), broken: true},
		"TLS 1.1":                              {config: &tls.Config{Certificates: []tls.Certificate{plain.chain()}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, broken: true},
		"no TLS":                               {speak: writes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")},
		"an alert":                             {speak: writes("\x15\x03\x03\x00\x02\x02\x28")},
		"an endless record":                    {speak: writes("\x16\x03\x03\xff\xff" + strings.Repeat("a", 1<<20))},
		"nothing":                              {speak: func(net.Conn) {}},
		"silence":                              {speak: func(c net.Conn) { io.Copy(io.Discard, c) }},
	} {
		t.Run(strings.ReplaceAll(what, " ", "_"), func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			heard := make(chan string, 16)
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer conn.Close()
						conn.SetDeadline(time.Now().Add(20 * time.Second))
						if c.speak != nil {
							c.speak(conn)
							return
						}
						tc := tls.Server(conn, c.config)
						b := make([]byte, 4096)
						if n, err := tc.Read(b); err == nil {
							heard <- string(b[:n])
							io.WriteString(tc, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
						}
						tc.Close()
					}()
				}
			}()
			r := startRelay(t, nil, &upstream{ca: ca, addr: l.Addr().String(), names: []string{"api.test"}})
			start := time.Now()
			resp, body := get(t, r.client(), "https://api.test/", bearer(placeholder))
			if took := time.Since(start); took > 15*time.Second {
				t.Errorf("after %v", took)
			}
			if c.fine {
				if got := <-heard; resp.StatusCode != 200 || !strings.Contains(got, realSecret) {
					t.Errorf("control: %s %s, the server heard %q", resp.Status, body, got)
				}
				return
			}
			if (resp.StatusCode != 502 && resp.StatusCode != 504) || !strings.HasPrefix(resp.Header.Get("Bulkhead-Denied"), "upstream-") || !strings.HasPrefix(body, "bulkhead: ") {
				t.Errorf("%s %v %s", resp.Status, resp.Header, body)
			}
			if c.speak == nil && !c.broken && resp.Header.Get("Bulkhead-Denied") != "upstream-tls" {
				t.Errorf("the reason is %s: %s", resp.Header.Get("Bulkhead-Denied"), body)
			}
			e := r.rec.wait(t, resp.Header.Get("Bulkhead-Denied"))
			if n := len(r.rec.denied()); n != 1 || strings.Contains(fmt.Sprint(e), realSecret) {
				t.Errorf("%d events, %v", n, e)
			}
			select {
			case got := <-heard:
				t.Errorf("the server heard %q", got)
			default:
			}
		})
	}
}

// descriptors counts the gateway's, or returns -1 if this user may not.
func descriptors(pid int) int {
	all, err := os.ReadDir(filepath.Join("/proc", fmt.Sprint(pid), "fd"))
	if err != nil {
		return -1
	}
	return len(all)
}

// returnsTo fails unless the gateway has no more descriptors and threads of its
// connections than before, a while after all is over.
func (r *rig) returnsTo(t testing.TB, before int) {
	t.Helper()
	if before < 0 {
		t.Logf("uid %d cannot list the gateway's descriptors; not proven in this run: none is left open", os.Getuid())
		return
	}
	now := descriptors(r.gw.PID())
	for end := time.Now().Add(30 * time.Second); now > before && time.Now().Before(end); now = descriptors(r.gw.PID()) {
		time.Sleep(100 * time.Millisecond)
	}
	if now > before {
		t.Errorf("%d descriptors were open before, %d are still", before, now)
	}
}
