package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

// The requests about the user's SSH keys. The private keys never leave the
// controller: the gateway learns the public halves, and gets one signature for
// one authentication of one connection.
const (
	SignKeys = "sign-keys" // SignFor → SignKeysReply
	Sign     = "sign"      // SignRequest → SignReply
)

// CodeNoSignature answers a Sign that was refused.
const CodeNoSignature = "no-signature"

// SignFor says on which connection a credential is to be used.
type SignFor struct {
	Credential string `json:"credential"`
	Host       string `json:"host"`
	Port       uint16 `json:"port"`
	User       string `json:"user"`
}

// SignKeysReply are public keys in SSH's wire form (RFC 4253 section 6.6), the
// one to try first in front.
type SignKeysReply struct {
	Keys [][]byte `json:"keys"`
}

// SignRequest asks for the signature over Data, which is nothing but an
// authentication request (RFC 4252 section 7) of the connection whose first
// exchange hash is SessionID. HostKey and HostSignature are what the server
// sent in that key exchange: its signature over the same hash. With it the
// controller need not believe the gateway which server it talks to.
type SignRequest struct {
	SignFor
	Key           []byte `json:"key"`
	Algorithm     string `json:"algorithm"`
	SessionID     []byte `json:"sessionID"`
	HostKey       []byte `json:"hostKey"`
	HostSignature []byte `json:"hostSignature"`
	Data          []byte `json:"data"`
}

// SignReply is the signature in SSH's wire form (RFC 4253 section 6.6).
type SignReply struct {
	Signature []byte `json:"signature"`
}

// Signer is a Controller that has SSH keys. It trusts nothing in a request but
// what it has checked.
type Signer interface {
	SignKeys(context.Context, SignFor) ([][]byte, error)
	Sign(context.Context, SignRequest) ([]byte, error)
}

// Bounds of a request: a public key and a signature of the largest RSA keys
// (16,384 bits) have 2 KiB, a certificate some more.
const (
	maxSignName  = 256
	maxSignBlob  = 16 << 10
	maxSessionID = 64
)

// serveSign answers the requests about keys; handled says whether kind is one.
func serveSign(ctx context.Context, ctrl Controller, kind string, body json.RawMessage) (answer any, handled bool, err error) {
	if kind != SignKeys && kind != Sign {
		return nil, false, nil
	}
	s, ok := ctrl.(Signer)
	if !ok {
		return nil, true, &RemoteError{CodeNoSignature, "this session has no SSH keys"}
	}
	refused := func(err error) error { return &RemoteError{CodeNoSignature, err.Error()} }
	if kind == SignKeys {
		var f SignFor
		if json.Unmarshal(body, &f) != nil || !f.bounded() {
			return nil, true, refused(errors.New("unreadable request for keys"))
		}
		keys, err := s.SignKeys(ctx, f)
		if err != nil {
			return nil, true, refused(err)
		}
		return SignKeysReply{keys}, true, nil
	}
	var r SignRequest
	if json.Unmarshal(body, &r) != nil || !r.bounded() {
		return nil, true, refused(errors.New("unreadable request for a signature"))
	}
	if err := r.Check(); err != nil {
		return nil, true, refused(err)
	}
	sig, err := s.Sign(ctx, r)
	if err != nil {
		return nil, true, refused(err)
	}
	return SignReply{sig}, true, nil
}

func (f SignFor) bounded() bool {
	for _, s := range []string{f.Credential, f.Host, f.User} {
		if s == "" || len(s) > maxSignName || clean(s, maxSignName) != s {
			return false
		}
	}
	return f.Port != 0
}

func (r SignRequest) bounded() bool {
	for _, b := range [][]byte{r.Key, r.HostKey, r.HostSignature, r.Data} {
		if len(b) == 0 || len(b) > maxSignBlob {
			return false
		}
	}
	return r.SignFor.bounded() && r.Algorithm != "" && len(r.Algorithm) <= maxSignName
}

// Check reports why the data is not exactly the authentication request that the
// rest of r describes. It does not know which keys, hosts and users are granted.
func (r SignRequest) Check() error {
	u, err := ParseUserauth(r.Data)
	switch {
	case err != nil:
		return fmt.Errorf("refusing to sign: %w", err)
	case len(r.SessionID) < 20 || len(r.SessionID) > maxSessionID || !bytes.Equal(u.SessionID, r.SessionID):
		return errors.New("refusing to sign: the data belongs to another connection")
	case u.User != r.User:
		return errors.New("refusing to sign: the data is for another user")
	case !bytes.Equal(u.Key, r.Key) || u.Algorithm != r.Algorithm:
		return errors.New("refusing to sign: the data is for another key")
	}
	return nil
}

// Userauth is what a client signs to authenticate with a key.
type Userauth struct {
	SessionID []byte
	User      string
	Algorithm string
	Key       []byte
}

// msgUserauthRequest is SSH_MSG_USERAUTH_REQUEST (RFC 4252 section 6).
const msgUserauthRequest = 50

// ParseUserauth reads the data of RFC 4252 section 7, with nothing before,
// between or behind its fields. It can't be anything else that keys sign: SSHSIG
// data (of git, for files) begins with "SSHSIG", a TLS transcript with spaces.
func ParseUserauth(data []byte) (Userauth, error) {
	if len(data) > maxSignBlob+1024 {
		return Userauth{}, errors.New("the data is too long for an SSH authentication request")
	}
	var u Userauth
	var user, service, method, algorithm []byte
	var kind, signed byte
	rest, ok := sshString(data, &u.SessionID)
	if ok {
		rest, ok = sshByte(rest, &kind)
	}
	for _, to := range []*[]byte{&user, &service, &method} {
		if ok {
			rest, ok = sshString(rest, to)
		}
	}
	if ok {
		rest, ok = sshByte(rest, &signed)
	}
	for _, to := range []*[]byte{&algorithm, &u.Key} {
		if ok {
			rest, ok = sshString(rest, to)
		}
	}
	if !ok || len(rest) != 0 || kind != msgUserauthRequest || signed != 1 ||
		string(service) != "ssh-connection" || string(method) != "publickey" ||
		len(u.SessionID) == 0 || len(u.SessionID) > maxSessionID || len(user) == 0 || len(algorithm) == 0 || len(u.Key) == 0 {
		return Userauth{}, errors.New("the data is no SSH authentication request")
	}
	u.User, u.Algorithm = string(user), string(algorithm)
	return u, nil
}

func sshString(b []byte, to *[]byte) ([]byte, bool) {
	if len(b) < 4 {
		return nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) {
		return nil, false
	}
	*to = b[4 : 4+n]
	return b[4+n:], true
}

func sshByte(b []byte, to *byte) ([]byte, bool) {
	if len(b) == 0 {
		return nil, false
	}
	*to = b[0]
	return b[1:], true
}

// SignKeys asks which public keys there are for a connection.
func (c Client) SignKeys(ctx context.Context, f SignFor) ([][]byte, error) {
	var reply SignKeysReply
	err := c.Conn.Call(ctx, SignKeys, f, &reply, nil)
	return reply.Keys, err
}

// Sign asks for one signature.
func (c Client) Sign(ctx context.Context, r SignRequest) ([]byte, error) {
	var reply SignReply
	err := c.Conn.Call(ctx, Sign, r, &reply, nil)
	return reply.Signature, err
}
