package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// AgentSource is the Source.SSH that means the user's ssh-agent, with all the
// keys that it has.
const AgentSource = "agent"

// Variables, so that tests need not wait. Signing may have to wait for a person
// who confirms or touches a key.
var (
	agentTimeout = 5 * time.Second
	signTimeout  = 60 * time.Second
)

// sshKey is a source of signatures. A private key is in memory only while it
// signs; one that was removed from its place signs no more.
type sshKey struct {
	source string // AgentSource or a path
	agent  bool   // the agent signs
	// public is the only key that may be used, in wire form; nil: any of the
	// agent's.
	public []byte
	lookup func(string) (string, bool)
}

func openSSH(ctx context.Context, s Source, lookup func(string) (string, bool)) (*sshKey, string, *sourceError) {
	k := &sshKey{source: s.SSH, lookup: lookup}
	if s.SSH == AgentSource {
		k.agent = true
		keys, err := k.agentKeys(ctx)
		if err == nil && len(keys) == 0 {
			err = missing("add one: ssh-add, or write from: {ssh: ~/.ssh/id_ed25519}", "the ssh-agent holds no key")
		}
		return k, "", err
	}
	raw, warning, serr := readFile(s.SSH, lookup)
	defer clear(raw)
	if serr != nil {
		return nil, "", serr
	}
	if key, _, _, rest, err := ssh.ParseAuthorizedKey(raw); err == nil && len(bytes.TrimSpace(rest)) == 0 {
		k.agent, k.public = true, key.Marshal()
		return k, "", k.inAgent(ctx, "file "+s.SSH+" holds the public half, and")
	}
	signer, err := ssh.ParsePrivateKey(raw)
	if locked := (*ssh.PassphraseMissingError)(nil); errors.As(err, &locked) {
		k.agent = true
		if k.public = k.publicHalf(locked); k.public == nil {
			return nil, "", broken("ssh-add "+s.SSH+" on the host, and write from: {ssh: agent}", "the key in file %s has a passphrase", s.SSH)
		}
		return k, warning, k.inAgent(ctx, "the key in file "+s.SSH+" has a passphrase, and")
	}
	if err != nil {
		// The library's words could quote the file.
		return nil, "", broken("name a private key of OpenSSH, such as ~/.ssh/id_ed25519", "file %s holds no SSH key", s.SSH)
	}
	k.public = signer.PublicKey().Marshal()
	return k, warning, nil
}

// publicHalf finds the public key of an encrypted one: in it, or beside it.
func (k *sshKey) publicHalf(locked *ssh.PassphraseMissingError) []byte {
	if locked.PublicKey != nil {
		return locked.PublicKey.Marshal()
	}
	raw, _, serr := readFile(k.source+".pub", k.lookup)
	if serr != nil {
		return nil
	}
	if key, _, _, _, err := ssh.ParseAuthorizedKey(raw); err == nil {
		return key.Marshal()
	}
	return nil
}

func (k *sshKey) inAgent(ctx context.Context, why string) *sourceError {
	keys, err := k.agentKeys(ctx)
	if err != nil {
		return broken("ssh-add "+strings.TrimSuffix(k.source, ".pub")+" on the host, then start the session again", "%s %s", why, err.reason)
	}
	for _, key := range keys {
		if bytes.Equal(key, k.public) {
			return nil
		}
	}
	return broken("ssh-add "+strings.TrimSuffix(k.source, ".pub")+" on the host, then start the session again", "%s the ssh-agent does not hold it", why)
}

// dialAgent connects to the user's agent.
func (k *sshKey) dialAgent(ctx context.Context, patience time.Duration) (net.Conn, *sourceError) {
	path, ok := k.lookup("SSH_AUTH_SOCK")
	if !ok || !filepath.IsAbs(path) {
		return nil, missing("start one: eval $(ssh-agent) && ssh-add; or write from: {ssh: ~/.ssh/id_ed25519}", "no ssh-agent is running: SSH_AUTH_SOCK is not set")
	}
	if ctx.Err() != nil {
		return nil, missing("try again", "the ssh-agent was not waited for")
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, missing("start one: eval $(ssh-agent) && ssh-add", "the ssh-agent does not answer")
	}
	conn.SetDeadline(time.Now().Add(patience))
	return conn, nil
}

func (k *sshKey) agentKeys(ctx context.Context) ([][]byte, *sourceError) {
	conn, serr := k.dialAgent(ctx, agentTimeout)
	if serr != nil {
		return nil, serr
	}
	defer conn.Close()
	list, err := agent.NewClient(conn).List()
	if err != nil {
		return nil, missing("ask it yourself: ssh-add -l", "the ssh-agent does not list its keys")
	}
	var out [][]byte
	for _, key := range list {
		out = append(out, key.Blob)
	}
	return out, nil
}

// keys are the public keys that may be offered.
func (k *sshKey) keys(ctx context.Context) ([][]byte, error) {
	if k.public != nil {
		return [][]byte{k.public}, nil
	}
	keys, err := k.agentKeys(ctx)
	if err != nil {
		return nil, errors.New(err.reason)
	}
	return keys, nil
}

// Binding tells an agent for which connection it signs (the extension
// session-bind@openssh.com of PROTOCOL.agent), so that it can judge as well.
type Binding struct{ HostKey, SessionID, Signature []byte }

func (k *sshKey) sign(ctx context.Context, public []byte, algorithm string, data []byte, b Binding) (*ssh.Signature, error) {
	if k.public != nil && !bytes.Equal(k.public, public) {
		return nil, errors.New("that is not the key of this credential")
	}
	key, err := ssh.ParsePublicKey(public)
	if err != nil {
		return nil, errors.New("the public key cannot be read")
	}
	flags, ok := signatureFlags(key.Type(), algorithm)
	if !ok {
		return nil, fmt.Errorf("a key of kind %s does not sign as %q", key.Type(), algorithm)
	}
	if k.agent {
		return k.agentSign(ctx, key, flags, data, b)
	}
	raw, _, serr := readFile(k.source, k.lookup)
	defer clear(raw)
	if serr != nil {
		return nil, errors.New(serr.reason)
	}
	signer, err := ssh.ParsePrivateKey(raw)
	if err != nil || !bytes.Equal(signer.PublicKey().Marshal(), public) {
		return nil, fmt.Errorf("file %s holds another key than when the session began", k.source)
	}
	as, ok := signer.(ssh.AlgorithmSigner)
	if !ok {
		return nil, errors.New("the key cannot sign")
	}
	sig, err := as.SignWithAlgorithm(nil, data, algorithm)
	if err != nil {
		return nil, errors.New("the key did not sign")
	}
	return sig, nil
}

func (k *sshKey) agentSign(ctx context.Context, key ssh.PublicKey, flags agent.SignatureFlags, data []byte, b Binding) (*ssh.Signature, error) {
	conn, serr := k.dialAgent(ctx, signTimeout)
	if serr != nil {
		return nil, errors.New(serr.reason)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	client := agent.NewClient(conn)
	// Agents that do not know it answer with a failure and go on.
	client.Extension("session-bind@openssh.com", ssh.Marshal(struct {
		HostKey, SessionID, Signature []byte
		Forwarding                    bool
	}{b.HostKey, b.SessionID, b.Signature, false}))
	sig, err := client.SignWithFlags(key, data, flags)
	if err != nil {
		return nil, errors.New("the ssh-agent did not sign: the key is not in it any more, or it was not confirmed")
	}
	return sig, nil
}

// signatureFlags says which algorithm a key may sign with. RSA over SHA-1 is
// never one.
func signatureFlags(kind, algorithm string) (agent.SignatureFlags, bool) {
	switch {
	case kind == ssh.KeyAlgoRSA && algorithm == ssh.KeyAlgoRSASHA256, kind == ssh.CertAlgoRSAv01 && algorithm == ssh.CertAlgoRSASHA256v01:
		return agent.SignatureFlagRsaSha256, true
	case kind == ssh.KeyAlgoRSA && algorithm == ssh.KeyAlgoRSASHA512, kind == ssh.CertAlgoRSAv01 && algorithm == ssh.CertAlgoRSASHA512v01:
		return agent.SignatureFlagRsaSha512, true
	case kind == ssh.KeyAlgoRSA || kind == ssh.CertAlgoRSAv01:
		return 0, false
	}
	return 0, kind == algorithm
}

// PublicKeys lists what may be offered for a credential, in wire form.
func (b *Broker) PublicKeys(ctx context.Context, name string) ([][]byte, error) {
	k, err := b.sshKey(name)
	if err != nil {
		return nil, err
	}
	return k.keys(ctx)
}

// Sign signs data with a key of a credential. What the data is has been checked
// by the caller. The answer is in wire form.
func (b *Broker) Sign(ctx context.Context, name string, public []byte, algorithm string, data []byte, bind Binding) ([]byte, error) {
	k, err := b.sshKey(name)
	if err != nil {
		return nil, err
	}
	sig, err := k.sign(ctx, public, algorithm, data, bind)
	if err != nil {
		return nil, err
	}
	if _, err := b.sshKey(name); err != nil { // revoked while a person was asked
		return nil, err
	}
	return ssh.Marshal(sig), nil
}

func (b *Broker) sshKey(name string) (*sshKey, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if !b.open {
		return nil, ErrRevoked
	}
	k, ok := b.ssh[name]
	if !ok {
		return nil, fmt.Errorf("%q: %w", name, ErrUnknown)
	}
	return k, nil
}
