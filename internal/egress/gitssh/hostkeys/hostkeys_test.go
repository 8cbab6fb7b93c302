package hostkeys

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
)

func newSigner(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func line(hosts string, key ssh.PublicKey) string {
	return hosts + " " + string(ssh.MarshalAuthorizedKey(key))
}

func certificate(t testing.TB, authority ssh.Signer, key ssh.PublicKey, change func(*ssh.Certificate)) []byte {
	t.Helper()
	c := &ssh.Certificate{Key: key, CertType: ssh.HostCert, ValidPrincipals: []string{"git.example.com"}, ValidAfter: 0, ValidBefore: ssh.CertTimeInfinity}
	if change != nil {
		change(c)
	}
	if err := c.SignCert(rand.Reader, authority); err != nil {
		t.Fatal(err)
	}
	return c.Marshal()
}

func TestFor(t *testing.T) {
	a, b, c := newSigner(t).PublicKey(), newSigner(t).PublicKey(), newSigner(t).PublicKey()
	file := []byte("# a comment\nbroken line\n" +
		line("Git.example.com,10.0.0.1", a) +
		line(knownhosts.HashHostname("git.example.com"), b) +
		line(knownhosts.HashHostname("other.example.com"), c) +
		line("*.example.com,!git.example.com", c) +
		line("[git.example.com]:2222", c) +
		"@revoked " + line("*", c) +
		"@cert-authority " + line("*.example.com", c) +
		"@unknown " + line("git.example.com", c))
	h := For("git.example.com", 22, file)
	if len(h.Keys) != 2 || !contains(h.Keys, a.Marshal()) || !contains(h.Keys, b.Marshal()) || len(h.Revoked) != 1 || len(h.Authorities) != 1 {
		t.Errorf("%d keys, %d revoked, %d authorities", len(h.Keys), len(h.Revoked), len(h.Authorities))
	}
	if h := For("git.example.com", 2222, file); len(h.Keys) != 1 || !contains(h.Keys, c.Marshal()) {
		t.Errorf("port: %d keys", len(h.Keys))
	}
	if h := For("a.example.com", 22, file); len(h.Keys) != 1 || len(h.Authorities) != 1 {
		t.Errorf("wildcard: %+v", h)
	}
	if h := For("example.org", 22, file); h.Known() {
		t.Errorf("unknown: %+v", h)
	}
}

// The real ssh-keygen finds in a real file what For finds.
func TestForAgreesWithSSHKeygen(t *testing.T) {
	key := newSigner(t).PublicKey()
	file := filepath.Join(t.TempDir(), "known")
	text := line("plain.example.com,second.example.com", key) + line("[port.example.com]:2222", key) + line("hash.example.com", key) + line("w?ld*.example.com,!wildest.example.com", key)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name string
			port uint16
		}{{"plain.example.com", 22}, {"second.example.com", 22}, {"third.example.com", 22}, {"port.example.com", 2222}, {"port.example.com", 22}, {"hash.example.com", 22},
			{"wild.example.com", 22}, {"wolder.example.com", 22}, {"wildest.example.com", 22}, {"hash.example.com", 23}} {
			h := Host{Name: c.name, Port: c.port}
			want := exec.Command("ssh-keygen", "-F", h.Address(), "-f", file).Run() == nil
			if got := For(c.name, c.port, data).Known(); got != want {
				t.Errorf("%s, %s: %v, ssh-keygen: %v", when, h.Address(), got, want)
			}
		}
	}
	check("plain")
	if out, err := exec.Command("ssh-keygen", "-H", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	check("hashed")
}

func TestVerify(t *testing.T) {
	ca, other := newSigner(t), newSigner(t)
	key, wrong := newSigner(t).PublicKey(), newSigner(t).PublicKey()
	now := time.Now()
	plain := Host{Name: "git.example.com", Port: 22, Keys: [][]byte{key.Marshal()}}
	authority := Host{Name: "git.example.com", Port: 22, Authorities: [][]byte{ca.PublicKey().Marshal()}}
	for name, c := range map[string]struct {
		host  Host
		shown []byte
		want  error // nil: good; errors.ErrUnsupported: any
	}{
		"known":          {plain, key.Marshal(), nil},
		"another key":    {plain, wrong.Marshal(), ErrMismatch},
		"nothing known":  {Host{Name: "git.example.com", Port: 22}, key.Marshal(), ErrUnknown},
		"revoked":        {Host{Name: "git.example.com", Port: 22, Keys: plain.Keys, Revoked: plain.Keys}, key.Marshal(), ErrRevoked},
		"no key":         {plain, []byte("x"), errors.ErrUnsupported},
		"certificate":    {authority, certificate(t, ca, key, nil), nil},
		"other CA":       {authority, certificate(t, other, key, nil), ErrMismatch},
		"user":           {authority, certificate(t, ca, key, func(c *ssh.Certificate) { c.CertType = ssh.UserCert }), ErrMismatch},
		"other name":     {authority, certificate(t, ca, key, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"x.example.com"} }), errors.ErrUnsupported},
		"no name":        {authority, certificate(t, ca, key, func(c *ssh.Certificate) { c.ValidPrincipals = nil }), errors.ErrUnsupported},
		"expired":        {authority, certificate(t, ca, key, func(c *ssh.Certificate) { c.ValidBefore = 1 }), errors.ErrUnsupported},
		"plain of CA":    {authority, key.Marshal(), ErrMismatch},
		"CA is revoked":  {Host{Name: "git.example.com", Port: 22, Authorities: authority.Authorities, Revoked: authority.Authorities}, certificate(t, ca, key, nil), ErrRevoked},
		"key is revoked": {Host{Name: "git.example.com", Port: 22, Authorities: authority.Authorities, Revoked: plain.Keys}, certificate(t, ca, key, nil), ErrRevoked},
	} {
		err := c.host.Verify(c.shown, now)
		if c.want == nil && err != nil || c.want != nil && err == nil || c.want != nil && c.want != errors.ErrUnsupported && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestSigned(t *testing.T) {
	s, other := newSigner(t), newSigner(t)
	hash := []byte("an exchange hash of some length.")
	sig, err := s.Sign(rand.Reader, hash)
	if err != nil {
		t.Fatal(err)
	}
	if err := Signed(s.PublicKey().Marshal(), hash, ssh.Marshal(sig)); err != nil {
		t.Error(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaSigner, err := ssh.NewSignerFromKey(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	rsaSign := func(algorithm string) []byte {
		sig, err := rsaSigner.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, hash, algorithm)
		if err != nil {
			t.Fatal(err)
		}
		return ssh.Marshal(sig)
	}
	if err := Signed(rsaSigner.PublicKey().Marshal(), hash, rsaSign(ssh.KeyAlgoRSASHA256)); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"other hash": Signed(s.PublicKey().Marshal(), hash[1:], ssh.Marshal(sig)),
		"other key":  Signed(other.PublicKey().Marshal(), hash, ssh.Marshal(sig)),
		"garbage":    Signed(s.PublicKey().Marshal(), hash, []byte("x")),
		"no key":     Signed(nil, hash, ssh.Marshal(sig)),
		"more":       Signed(s.PublicKey().Marshal(), hash, append(ssh.Marshal(sig), 0)),
		"SHA-1":      Signed(rsaSigner.PublicKey().Marshal(), hash, rsaSign(ssh.KeyAlgoRSA)),
	} {
		if err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// The keys that ship are those whose fingerprints the owners publish.
func TestShippedKeys(t *testing.T) {
	want := map[string][]string{
		"github.com": {"SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU", "SHA256:p2QAMXNIC1TJYWeIOttrVc98/R1BUFWu3/LiyKgUfQM", "SHA256:uNiVztksCsDhcc0u9e8BujQXVUpKZIDTMczCvj3tD2s"},
		"gitlab.com": {"SHA256:eUXGGm1YGsMAS7vkcx6JOJdOGHPem5gQp4taiCfCLB8", "SHA256:HbW3g8zUjNSksFbqTiUWPWg2Bq1x8xdGUrliXFzSnUw", "SHA256:ROQFvPThGrW4RuWLoL9tq9I9zJ42fK4XywyRtbOz/EQ"},
	}
	for name, prints := range want {
		h := For(name, 22, catalogdata.KnownHosts)
		var got []string
		for _, b := range h.Keys {
			key, err := ssh.ParsePublicKey(b)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, ssh.FingerprintSHA256(key))
		}
		if strings.Join(got, " ") != strings.Join(prints, " ") {
			t.Errorf("%s: %q", name, got)
		}
		if a := strings.Join(h.Algorithms(), " "); a != "ssh-ed25519 ecdsa-sha2-nistp256 rsa-sha2-512 rsa-sha2-256" {
			t.Errorf("%s: %s", name, a)
		}
	}
}

func FuzzFor(f *testing.F) {
	f.Add([]byte("git.example.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl\n"))
	f.Add([]byte("|1|x|y ssh-rsa AAAA\n@revoked * x\n!*,a* b c\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		h := For("git.example.com", 22, in)
		h.Algorithms()
		for _, k := range h.Keys {
			if err := h.Verify(k, time.Unix(0, 0)); err != nil && !errors.Is(err, ErrRevoked) && !errors.Is(err, ErrMismatch) {
				t.Errorf("a known key: %v", err)
			}
		}
	})
}
