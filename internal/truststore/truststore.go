// Package truststore makes a session's own certificate authority and the
// mounts and variables by which programs inside accept it without being
// configured.
//
// It runs in the controller. The key goes to the gateway only; of what this
// package puts into the sandbox nothing but the certificate is new. Nothing on
// the host is changed. In: the mount plan, to know which trust stores a
// program inside would see. Out: mounts to append to that plan, in order.
//
// Covered: the system bundles of the large distributions and the OpenSSL
// directory of hashed names (curl, git, Python, Go, Ruby, Perl, wget and all
// that use OpenSSL, GnuTLS or Go), the cacerts file of every JDK in a usual
// place, and the variables by which runtimes with a list of their own (Node,
// Deno, Bun, certifi, conda, cargo, the AWS and Google tools) are told.
//
// Known gaps: Chromium, Firefox and other users of an NSS database, programs
// that pin certificates, a JDK in an unusual place, and a program that clears
// its environment and brings its own list.
//
// Figures (BenchmarkFor and BenchmarkNew, two shared cores, 144 roots, two JDKs):
// 1 ms for all mounts, 0.15 ms for New.
package truststore

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// CommonName is the subject of every session's authority; the keys differ.
//
// Its ending is chosen so that OpenSSL's hash of the subject is that of "GTS
// Root R4" (valid until 2036, in every distribution's list): OpenSSL finds a
// certificate in a directory by a file named after the hash, a sandbox can put
// a file only where the host has one, and so ours goes into that root's file,
// beside it. The hash is only the file's name; certificates are compared by
// the whole subject. Without it, /etc/ssl/certs had to be rebuilt in the
// sandbox, link by link: 300 links, 4 ms at every start.
const CommonName = "Bulkhead session CA edyqq1"

// CA is a session's authority.
type CA struct {
	CertDER []byte
	KeyDER  []byte // PKCS#8; for the gateway only
	PEM     []byte // the certificate
}

// New makes an authority for a session whose length is not limited. It is
// valid for 30 days, because a session left open over a weekend must go on
// working; the key dies with the gateway's memory in any case.
func New() (CA, error) { return NewFor(0) }

// NewFor makes an authority for a session of at most wall, valid for at least
// a day. It begins an hour early, for guests whose clock is behind.
func NewFor(wall time.Duration) (CA, error) { return newAt(time.Now(), wall) }

func newAt(now time.Time, wall time.Duration) (CA, error) {
	valid := 30 * 24 * time.Hour
	if wall > 0 {
		valid = max(24*time.Hour, wall+time.Hour)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return CA{}, fmt.Errorf("session CA: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return CA{}, fmt.Errorf("session CA: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)),
		Subject:               pkix.Name{CommonName: CommonName},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(valid),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return CA{}, fmt.Errorf("session CA: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return CA{}, fmt.Errorf("session CA: %w", err)
	}
	return CA{der, keyDER, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

// hashName is what OpenSSL looks up in a directory for our subject: the first
// four bytes, little-endian, of the SHA-1 of the canonical name
// (X509_NAME_hash(3)). Canonical: each value a UTF8String in lower case with
// single spaces, and no outer SEQUENCE.
func hashName() string {
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value string `asn1:"utf8"`
	}
	rdn, err := asn1.MarshalWithParams([]attribute{{asn1.ObjectIdentifier{2, 5, 4, 3}, strings.ToLower(CommonName)}}, "set")
	if err != nil {
		panic(err) // constant input
	}
	sum := sha1.Sum(rdn)
	return fmt.Sprintf("%08x.0", binary.LittleEndian.Uint32(sum[:4]))
}
