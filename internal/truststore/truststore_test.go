package truststore

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"
)

func newCA(t testing.TB) CA {
	t.Helper()
	ca, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func leaf(t testing.TB, ca CA, tmpl *x509.Certificate) (tls.Certificate, *x509.Certificate) {
	t.Helper()
	parent, err := x509.ParseCertificate(ca.CertDER)
	if err != nil {
		t.Fatal(err)
	}
	caKey, err := x509.ParsePKCS8PrivateKey(ca.KeyDER)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl.SerialNumber = big.NewInt(7)
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der, ca.CertDER}, PrivateKey: key}, cert
}

func localhost() *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature}
}

// serve answers over TLS as localhost, with a certificate of the authority.
func serve(t *testing.T, ca CA) (port string) {
	t.Helper()
	cert, _ := leaf(t, ca, localhost())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/repo/info/refs", func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte("8843d7f92416211de9ebb963ff4ce28125932878\trefs/heads/reached\n"))
	})
	mux.HandleFunc("/repo/HEAD", func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("ref: refs/heads/reached\n")) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("reached\n")) })
	srv := &http.Server{Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
	srv.ErrorLog = discard()
	go srv.ServeTLS(ln, "", "")
	t.Cleanup(func() { srv.Close() })
	_, port, _ = net.SplitHostPort(ln.Addr().String())
	return port
}

func TestAuthority(t *testing.T) {
	a, b := newCA(t), newCA(t)
	if bytes.Equal(a.KeyDER, b.KeyDER) {
		t.Fatal("two sessions share a key")
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.PEM)
	_, ok := leaf(t, a, localhost())
	if _, err := ok.Verify(x509.VerifyOptions{Roots: pool, DNSName: "localhost"}); err != nil {
		t.Error(err)
	}
	_, foreign := leaf(t, b, localhost())
	if _, err := foreign.Verify(x509.VerifyOptions{Roots: pool, DNSName: "localhost"}); err == nil {
		t.Error("another session's certificate is accepted")
	}
	// It can't make further authorities.
	sub := &x509.Certificate{Subject: pkix.Name{CommonName: "sub"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	subTLS, subCert := leaf(t, a, sub)
	subKey, _ := x509.MarshalPKCS8PrivateKey(subTLS.PrivateKey)
	_, below := leaf(t, CA{CertDER: subCert.Raw, KeyDER: subKey}, localhost())
	inter := x509.NewCertPool()
	inter.AddCert(subCert)
	if _, err := below.Verify(x509.VerifyOptions{Roots: pool, Intermediates: inter, DNSName: "localhost"}); err == nil {
		t.Error("a second-level authority is accepted")
	}
	now := time.Now()
	for wall, want := range map[time.Duration]time.Duration{0: 30 * 24 * time.Hour, time.Minute: 24 * time.Hour, 48 * time.Hour: 49 * time.Hour} {
		ca, err := newAt(now, wall)
		if err != nil {
			t.Fatal(err)
		}
		c, _ := x509.ParseCertificate(ca.CertDER)
		if got := c.NotAfter.Sub(now.Truncate(time.Second)); got < want-time.Second || got > want+time.Second {
			t.Errorf("wall %v: valid for %v", wall, got)
		}
		if c.Subject.String() != "CN="+CommonName || !c.IsCA || !c.MaxPathLenZero || c.MaxPathLen != 0 {
			t.Errorf("%+v", c.Subject)
		}
	}
}

func TestHashNameIsOpenSSLs(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("no openssl: the hashed name is not compared with OpenSSL's")
	}
	cmd := exec.Command("openssl", "x509", "-noout", "-hash")
	cmd.Stdin = bytes.NewReader(newCA(t).PEM)
	out, err := cmd.Output()
	if err != nil || strings.TrimSpace(string(out))+".0" != hashName() {
		t.Errorf("openssl says %q, we say %q (%v)", out, hashName(), err)
	}
}

func TestJavaStores(t *testing.T) {
	a, b := newCA(t), newCA(t)
	certs := [][]byte{a.CertDER, b.CertDER}
	store := jksMake(certs, time.Now())
	got, err := jksCerts(store)
	if err != nil || len(got) != 2 || !bytes.Equal(got[1], b.CertDER) {
		t.Fatalf("%d certificates, %v", len(got), err)
	}
	for i := range store[:len(store)-20] {
		if _, err := jksCerts(store[:i]); err == nil {
			t.Fatalf("a store cut at %d is accepted", i)
		}
	}
	ac, _ := x509.ParseCertificate(a.CertDER)
	for _, c := range []struct {
		enc      *pkcs12.Encoder
		password string
	}{{pkcs12.Passwordless, ""}, {pkcs12.Modern, "changeit"}, {pkcs12.Legacy, "changeit"}} {
		data, err := c.enc.EncodeTrustStore([]*x509.Certificate{ac}, c.password)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := javaCerts(data); err != nil || len(got) != 1 || !bytes.Equal(got[0], a.CertDER) {
			t.Errorf("PKCS #12: %d certificates, %v", len(got), err)
		}
	}
}

func TestKeytoolReadsTheStore(t *testing.T) {
	keytool, err := exec.LookPath("keytool")
	if err != nil {
		t.Skip("no keytool: the Java store is not read by a real JDK")
	}
	name := filepath.Join(t.TempDir(), "cacerts")
	os.WriteFile(name, jksMake([][]byte{newCA(t).CertDER}, time.Now()), 0o600)
	for _, args := range [][]string{{"-storepass", "changeit"}, {}} {
		cmd := exec.Command(keytool, append([]string{"-list", "-keystore", name}, args...)...)
		cmd.Stdin = strings.NewReader("\n")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "bulkhead-session-ca") {
			t.Errorf("%v\n%s", err, out)
		}
	}
	if out, err := exec.Command(keytool, "-list", "-keystore", name, "-storepass", "wrongone").CombinedOutput(); err == nil {
		t.Errorf("the store's digest is not checked:\n%s", out)
	}
}

func FuzzJavaStore(f *testing.F) {
	ca := newCA(f)
	f.Add(jksMake([][]byte{ca.CertDER}, time.Unix(0, 0)))
	c, _ := x509.ParseCertificate(ca.CertDER)
	p12, _ := pkcs12.Passwordless.EncodeTrustStore([]*x509.Certificate{c}, "")
	f.Add(p12)
	f.Add([]byte("\xfe\xed\xfe\xed\x00\x00\x00\x02\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		certs, err := jksCerts(b)
		total := 0
		for _, c := range certs {
			total += len(c)
		}
		if err == nil && total > len(b) {
			t.Error("more than was given")
		}
		pemCerts(b)
	})
}
