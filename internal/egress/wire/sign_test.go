package wire

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"
)

// userauth is the data of RFC 4252 section 7 as x/crypto writes it.
func userauth(session []byte, kind byte, user, service, method string, signed bool, algorithm string, key []byte) []byte {
	return ssh.Marshal(struct {
		Session []byte
		Kind    byte
		User    string
		Service string
		Method  string
		Signed  bool
		Algo    string
		Key     []byte
	}{session, kind, user, service, method, signed, algorithm, key})
}

var signSession = bytes.Repeat([]byte{7}, 32)

func goodRequest() SignRequest {
	return SignRequest{
		SignFor: SignFor{Credential: "key", Host: "github.com", Port: 22, User: "git"}, Key: []byte("a key"), Algorithm: "ssh-ed25519",
		SessionID: signSession, HostKey: []byte("host"), HostSignature: []byte("signature"),
		Data: userauth(signSession, 50, "git", "ssh-connection", "publickey", true, "ssh-ed25519", []byte("a key")),
	}
}

type signing struct {
	controller
	signed atomic.Int32
	err    error
}

func (s *signing) SignKeys(context.Context, SignFor) ([][]byte, error) {
	return [][]byte{[]byte("a key")}, s.err
}
func (s *signing) Sign(context.Context, SignRequest) ([]byte, error) {
	s.signed.Add(1)
	return []byte("signed"), s.err
}

// Nothing but an authentication request for the very session, user and key gets
// to the signer.
func TestOnlyAuthenticationIsSigned(t *testing.T) {
	s := &signing{}
	_, g := ends(t, s, nil)
	client := Client{g}
	if sig, err := client.Sign(context.Background(), goodRequest()); err != nil || string(sig) != "signed" {
		t.Fatalf("%q %v", sig, err)
	}
	if keys, err := client.SignKeys(context.Background(), goodRequest().SignFor); err != nil || len(keys) != 1 {
		t.Fatalf("%q %v", keys, err)
	}
	key := []byte("a key")
	for name, change := range map[string]func(*SignRequest){
		"a file's signature": func(r *SignRequest) { r.Data = []byte("SSHSIG\x00\x00\x00\x03git") },
		"nothing":            func(r *SignRequest) { r.Data = nil },
		"trailing byte":      func(r *SignRequest) { r.Data = append(r.Data, 0) },
		"cut off":            func(r *SignRequest) { r.Data = r.Data[:len(r.Data)-1] },
		"another message": func(r *SignRequest) {
			r.Data = userauth(signSession, 51, "git", "ssh-connection", "publickey", true, "ssh-ed25519", key)
		},
		"another user": func(r *SignRequest) {
			r.Data = userauth(signSession, 50, "root", "ssh-connection", "publickey", true, "ssh-ed25519", key)
		},
		"another service": func(r *SignRequest) {
			r.Data = userauth(signSession, 50, "git", "ssh-userauth", "publickey", true, "ssh-ed25519", key)
		},
		"another method": func(r *SignRequest) {
			r.Data = userauth(signSession, 50, "git", "ssh-connection", "hostbased", true, "ssh-ed25519", key)
		},
		"not signed": func(r *SignRequest) {
			r.Data = userauth(signSession, 50, "git", "ssh-connection", "publickey", false, "ssh-ed25519", key)
		},
		"another key": func(r *SignRequest) {
			r.Data = userauth(signSession, 50, "git", "ssh-connection", "publickey", true, "ssh-ed25519", []byte("b key"))
		},
		"another algorithm": func(r *SignRequest) {
			r.Data = userauth(signSession, 50, "git", "ssh-connection", "publickey", true, "ssh-rsa", key)
		},
		"another session": func(r *SignRequest) { r.SessionID = bytes.Repeat([]byte{8}, 32) },
		"short session": func(r *SignRequest) {
			r.SessionID = signSession[:8]
			r.Data = userauth(signSession[:8], 50, "git", "ssh-connection", "publickey", true, "ssh-ed25519", key)
		},
		"no host key":        func(r *SignRequest) { r.HostKey = nil },
		"no credential":      func(r *SignRequest) { r.Credential = "" },
		"no port":            func(r *SignRequest) { r.Port = 0 },
		"escape in the host": func(r *SignRequest) { r.Host = "github.com\x1b[2J" },
		"long host":          func(r *SignRequest) { r.Host = strings.Repeat("a", 300) },
		"long data":          func(r *SignRequest) { r.Data = make([]byte, maxSignBlob+1) },
	} {
		r := goodRequest()
		change(&r)
		before := s.signed.Load()
		if _, err := client.Sign(context.Background(), r); !HasCode(err, CodeNoSignature) || s.signed.Load() != before {
			t.Errorf("%s: %v, signed: %v", name, err, s.signed.Load() != before)
		}
	}
	s.err = errors.New("no")
	if _, err := client.SignKeys(context.Background(), goodRequest().SignFor); !HasCode(err, CodeNoSignature) {
		t.Errorf("%v", err)
	}
}

func TestNoSignerNoSignature(t *testing.T) {
	_, g := ends(t, &controller{}, nil)
	if _, err := (Client{g}).Sign(context.Background(), goodRequest()); !HasCode(err, CodeNoSignature) {
		t.Errorf("%v", err)
	}
}

// What is accepted is written back as the very same bytes: there is no second
// reading of it.
func FuzzUserauth(f *testing.F) {
	f.Add(goodRequest().Data)
	f.Add([]byte("SSHSIG"))
	f.Add(userauth(nil, 50, "", "ssh-connection", "publickey", true, "", nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		u, err := ParseUserauth(in)
		if err != nil {
			return
		}
		if out := userauth(u.SessionID, 50, u.User, "ssh-connection", "publickey", true, u.Algorithm, u.Key); !bytes.Equal(in, out) {
			t.Fatalf("%x is read as %x", in, out)
		}
	})
}
