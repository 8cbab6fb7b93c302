// Package hostkeys says which keys an SSH server may show: it reads known_hosts
// files (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT) and judges a server's key.
//
// It is pure: bytes in, values out. The controller reads the host's files with
// For; the gateway judges what servers show with Hosts.Verify, and the
// controller judges the same key again before it lets a key of the user sign.
//
// Plain, hashed, negated and wildcard names, ports in brackets,
// @cert-authority and @revoked are understood; a line that is not is left out,
// which can only refuse. A host without a line is unknown and is refused.
package hostkeys

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// Host is what is known about one server. Keys are in SSH's wire form.
type Host struct {
	Name        string   `json:"name"`
	Port        uint16   `json:"port"`
	Keys        [][]byte `json:"keys,omitempty"`
	Authorities [][]byte `json:"authorities,omitempty"`
	Revoked     [][]byte `json:"revoked,omitempty"`
}

// Errors that callers tell apart.
var (
	// ErrUnknown: no file says anything about this server.
	ErrUnknown = errors.New("its host key is not known")
	// ErrMismatch: the server shows another key than the one that is known.
	ErrMismatch = errors.New("its host key is not the one that is known: someone may be in between, or the server was set up anew")
	// ErrRevoked: a file says that this key is not to be trusted any more.
	ErrRevoked = errors.New("its host key is revoked")
)

// maxKeys bounds what is kept for one server.
const maxKeys = 64

// For returns what the files say about a server.
func For(name string, port uint16, files ...[]byte) Host {
	h := Host{Name: name, Port: port}
	for _, rest := range files {
		for len(rest) > 0 {
			// One line at a time: the library gives up a file at the first bad line.
			line, after, _ := bytes.Cut(rest, []byte("\n"))
			rest = after
			marker, hosts, key, _, _, err := ssh.ParseKnownHosts(line)
			if err != nil || !match(hosts, h.Address()) {
				continue
			}
			to := &h.Keys
			switch marker {
			case "":
			case "cert-authority":
				to = &h.Authorities
			case "revoked":
				to = &h.Revoked
			default:
				continue
			}
			if b := key.Marshal(); len(*to) < maxKeys && !contains(*to, b) {
				*to = append(*to, b)
			}
		}
	}
	return h
}

// Address is the server's name as known_hosts spells it.
func (h Host) Address() string {
	if h.Port == 22 {
		return h.Name
	}
	return "[" + h.Name + "]:" + strconv.Itoa(int(h.Port))
}

// Known reports whether there is a key or an authority to verify with.
func (h Host) Known() bool { return len(h.Keys)+len(h.Authorities) > 0 }

// Algorithms lists the host key algorithms to ask the server for, so that it
// shows the kind of key that is known.
func (h Host) Algorithms() []string {
	var out []string
	add := func(names ...string) {
		for _, n := range names {
			if !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	if len(h.Authorities) > 0 {
		add(ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01, ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01)
	}
	for _, b := range h.Keys {
		key, err := ssh.ParsePublicKey(b)
		switch {
		case err != nil:
		case key.Type() == ssh.KeyAlgoRSA:
			add(ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		default:
			add(key.Type())
		}
	}
	return out
}

// Verify says why the server may not show this key, or nil.
func (h Host) Verify(key []byte, now time.Time) error {
	parsed, err := ssh.ParsePublicKey(key)
	if err != nil {
		return fmt.Errorf("its host key cannot be read: %w", err)
	}
	cert, _ := parsed.(*ssh.Certificate)
	for _, b := range h.Revoked {
		if bytes.Equal(b, key) || cert != nil && (bytes.Equal(b, cert.Key.Marshal()) || bytes.Equal(b, cert.SignatureKey.Marshal())) {
			return ErrRevoked
		}
	}
	if !h.Known() {
		return ErrUnknown
	}
	if cert == nil {
		if contains(h.Keys, key) {
			return nil
		}
		return ErrMismatch
	}
	if cert.CertType != ssh.HostCert || !contains(h.Authorities, cert.SignatureKey.Marshal()) {
		return ErrMismatch
	}
	if len(cert.ValidPrincipals) == 0 {
		return errors.New("its host certificate names no host")
	}
	checker := ssh.CertChecker{Clock: func() time.Time { return now }}
	if err := checker.CheckCert(h.Name, cert); err != nil {
		return fmt.Errorf("its host certificate is not valid: %w", err)
	}
	return nil
}

// Signed reports that the server with this key has made this signature: over
// the hash of a key exchange it proves that the exchange was with it.
func Signed(key, hash, signature []byte) error {
	parsed, err := ssh.ParsePublicKey(key)
	if err != nil {
		return errors.New("the host key cannot be read")
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(signature, &sig); err != nil || len(sig.Rest) > 0 {
		return errors.New("the host's signature cannot be read")
	}
	if sig.Format == ssh.KeyAlgoRSA { // over SHA-1
		return errors.New("the host's signature is of a kind that can be forged")
	}
	if err := parsed.Verify(hash, &sig); err != nil {
		return errors.New("the host has not signed this connection")
	}
	return nil
}

func contains(list [][]byte, b []byte) bool {
	return slices.ContainsFunc(list, func(have []byte) bool { return bytes.Equal(have, b) })
}

// match tells whether the first field of a line is about address. A negated
// name that matches decides, wherever it stands.
func match(hosts []string, address string) bool {
	found := false
	for _, pattern := range hosts {
		negated := strings.HasPrefix(pattern, "!")
		pattern = strings.TrimPrefix(pattern, "!")
		ok := false
		if strings.HasPrefix(pattern, "|1|") {
			ok = hashed(pattern, address)
		} else {
			ok = wildcard(strings.ToLower(pattern), address) || strings.EqualFold(pattern, "["+address+"]:22")
		}
		if ok && negated {
			return false
		}
		found = found || ok
	}
	return found
}

// hashed compares |1|salt|HMAC-SHA1(salt, address).
func hashed(pattern, address string) bool {
	parts := strings.Split(pattern, "|")
	if len(parts) != 4 {
		return false
	}
	salt, err := base64.StdEncoding.DecodeString(parts[2])
	want, werr := base64.StdEncoding.DecodeString(parts[3])
	if err != nil || werr != nil || len(want) != sha1.Size {
		return false
	}
	mac := hmac.New(sha1.New, salt)
	mac.Write([]byte(address))
	return hmac.Equal(mac.Sum(nil), want)
}

// wildcard knows * and ?, in time linear in the product of the lengths.
func wildcard(pattern, s string) bool {
	star, mark := -1, 0
	p, i := 0, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
