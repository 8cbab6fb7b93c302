package intercept

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

const (
	maxLeaves = 1024
	leafLife  = 7 * 24 * time.Hour
	backdate  = time.Hour // clocks inside may lag
)

// Authority issues the certificates that the sandbox sees. Safe for concurrent
// use. All leaves of a session share one key, which never leaves the process.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	leaf *ecdsa.PrivateKey
	kid  []byte

	mu      sync.Mutex
	configs map[hostport.Host]*issued
}

type issued struct {
	config *tls.Config
	until  time.Time
}

// NewAuthority takes the session's CA: a certificate and its ECDSA key (PKCS #8
// or SEC 1), both DER.
func NewAuthority(certDER, keyDER []byte) (*Authority, error) {
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, fmt.Errorf("session CA: %w", err)
	}
	var key *ecdsa.PrivateKey
	if k, err := x509.ParsePKCS8PrivateKey(keyDER); err == nil {
		key, _ = k.(*ecdsa.PrivateKey)
	} else if k, err := x509.ParseECPrivateKey(keyDER); err == nil {
		key = k
	}
	if key == nil {
		return nil, errors.New("session CA: the key is no ECDSA key")
	}
	if !cert.IsCA || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("session CA: certificate and key do not belong together")
	}
	leaf, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("session CA: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&leaf.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("session CA: %w", err)
	}
	kid := sha256.Sum256(spki)
	return &Authority{cert: cert, key: key, leaf: leaf, kid: kid[:20], configs: map[hostport.Host]*issued{}}, nil
}

// config returns the server configuration for one name.
func (a *Authority) config(h hostport.Host) (*tls.Config, error) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if c, ok := a.configs[h]; ok && now.Before(c.until) {
		return c.config, nil
	}
	var serial [16]byte
	rand.Read(serial[:])
	serial[0] &= 0x7f
	until := now.Add(leafLife)
	if until.After(a.cert.NotAfter) {
		until = a.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:]),
		Subject:      pkix.Name{Organization: []string{"Bulkhead session"}},
		NotBefore:    now.Add(-backdate), NotAfter: until,
		DNSNames:     []string{h.String()},
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		SubjectKeyId: a.kid, BasicConstraintsValid: true,
	}, a.cert, &a.leaf.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("issuing a certificate for %s: %w", h, err)
	}
	cfg := &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: a.leaf}},
		MinVersion:   tls.VersionTLS12,
		// A link within this host's memory has no quantum computer to fear, and
		// ML-KEM is a seventh of what a new connection costs.
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384},
		NextProtos:       []string{"h2", "http/1.1", "http/1.0"},
	}
	if len(a.configs) >= maxLeaves {
		clear(a.configs)
	}
	a.configs[h] = &issued{cfg, until.Add(-backdate)}
	return cfg, nil
}
