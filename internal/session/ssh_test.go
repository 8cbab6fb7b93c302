package session

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/bulkhead-dev/bulkhead/internal/broker"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/egress/gitssh/hostkeys"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
	"github.com/bulkhead-dev/bulkhead/internal/event"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
)

func sshSigner(t *testing.T) (ed25519.PrivateKey, ssh.Signer) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, s
}

// A gateway in an attacker's hands gets a signature for nothing but a login to a
// granted server, which that server itself has confirmed.
func TestHostileGatewayGetsNoSignature(t *testing.T) {
	key, signer := sshSigner(t)
	_, host := sshSigner(t)
	_, stranger := sshSigner(t)
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	b, _, err := broker.Open(context.Background(), []broker.Source{{Name: "key", SSH: file}, {Name: "other", SSH: file}}, func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	log, err := event.Create(filepath.Join(t.TempDir(), "ev.jsonl"), "s", false)
	if err != nil {
		t.Fatal(err)
	}
	name, err := hostport.ParseHost("git.example.com")
	if err != nil {
		t.Fatal(err)
	}
	s := &session{log: log, creds: b, opts: Options{Policy: &policy.Policy{File: "p.yaml"}}}
	s.ssh.endpoints = []capability.SSHEndpoint{{User: "git", Host: name, Port: 22, Credentials: []string{"key"}}}
	s.ssh.config.Hosts = []hostkeys.Host{{Name: "git.example.com", Port: 22, Keys: [][]byte{host.PublicKey().Marshal()}}}
	g := (*gatewayController)(s)

	id := bytes.Repeat([]byte{5}, 32)
	proof := func(s ssh.Signer, over []byte) []byte {
		sig, err := s.Sign(rand.Reader, over)
		if err != nil {
			t.Fatal(err)
		}
		return ssh.Marshal(sig)
	}
	good := func() wire.SignRequest {
		return wire.SignRequest{
			SignFor: wire.SignFor{Credential: "key", Host: "git.example.com", Port: 22, User: "git"},
			Key:     signer.PublicKey().Marshal(), Algorithm: "ssh-ed25519", SessionID: id,
			HostKey: host.PublicKey().Marshal(), HostSignature: proof(host, id), Data: []byte("checked by package wire"),
		}
	}
	if _, err := g.Sign(context.Background(), good()); err != nil {
		t.Fatal(err)
	}
	recorded, err := os.ReadFile(log.Path())
	if err != nil || !strings.Contains(string(recorded), string(ActionSign)) {
		t.Errorf("%s %v", recorded, err)
	}
	for what, change := range map[string]func(*wire.SignRequest){
		"another host":       func(r *wire.SignRequest) { r.Host = "evil.example.com" },
		"another port":       func(r *wire.SignRequest) { r.Port = 2222 },
		"another user":       func(r *wire.SignRequest) { r.User = "root" },
		"another credential": func(r *wire.SignRequest) { r.Credential = "other" },
		"another key":        func(r *wire.SignRequest) { r.Key = stranger.PublicKey().Marshal() },
		"another server's key": func(r *wire.SignRequest) {
			r.HostKey, r.HostSignature = stranger.PublicKey().Marshal(), proof(stranger, id)
		},
		"a signature of another":    func(r *wire.SignRequest) { r.HostSignature = proof(stranger, id) },
		"over another session":      func(r *wire.SignRequest) { r.HostSignature = proof(host, id[1:]) },
		"another session":           func(r *wire.SignRequest) { r.SessionID = bytes.Repeat([]byte{6}, 32) },
		"no signature of the host":  func(r *wire.SignRequest) { r.HostSignature = []byte("x") },
		"an algorithm that is weak": func(r *wire.SignRequest) { r.Algorithm = "ssh-rsa" },
	} {
		r := good()
		change(&r)
		if sig, err := g.Sign(context.Background(), r); err == nil {
			t.Errorf("%s: signed %x", what, sig)
		}
	}
	if _, err := g.SignKeys(context.Background(), wire.SignFor{Credential: "other", Host: "git.example.com", Port: 22, User: "git"}); err == nil {
		t.Error("keys without a grant")
	}
	log.Close()
	if _, err := g.Sign(context.Background(), good()); err == nil {
		t.Error("signed without a record")
	}
	b.Revoke()
	if _, err := g.SignKeys(context.Background(), good().SignFor); err == nil {
		t.Error("keys after the revocation")
	}
}
