package gitssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/egress/gitssh/hostkeys"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// exchanges are the key exchanges whose answer has one form (witness), without
// those that x/crypto counts as weak.
var exchanges = []string{
	ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519, ssh.KeyExchangeECDHP256, ssh.KeyExchangeECDHP384,
	ssh.KeyExchangeECDHP521, ssh.KeyExchangeDH16SHA512, ssh.KeyExchangeDH14SHA256,
}

// maxOffers bounds the keys that are offered; servers end a connection after
// some attempts (sshd: 6).
const maxOffers = 5

// upstream is an authenticated connection to a git server.
type upstream struct {
	conn net.Conn
	ssh  ssh.Conn
	over chan struct{} // closed when the connection has ended
}

func (u *upstream) Close() error {
	u.conn.Close()
	return u.ssh.Close()
}

// connect dials and authenticates under a decision.
func (c *command) connect(ctx context.Context, d capability.SSHDecision) (*upstream, error) {
	known, ok := c.server.hosts[hostport.HostPort{Host: d.Permit.Host(), Port: d.Permit.Port()}]
	address := hostkeys.Host{Name: d.Permit.Host().String(), Port: uint16(d.Permit.Port())}
	scan := "check its fingerprint, then: ssh-keyscan " + address.Name + " >> ~/.ssh/known_hosts"
	if address.Port != 22 {
		scan = fmt.Sprintf("check its fingerprint, then: ssh-keyscan -p %d %s >> ~/.ssh/known_hosts", address.Port, address.Name)
	}
	scan += " on the host, and start the session again"
	if !ok || !known.Known() {
		return nil, &failure{CodeHostKey, scan, fmt.Errorf("%s is not connected to: %w on this host", address.Address(), hostkeys.ErrUnknown)}
	}
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	use := wire.SignFor{Credential: d.Swap.Credential, Host: address.Name, Port: address.Port, User: d.User}
	keys, err := c.server.Controller.SignKeys(ctx, use)
	if err == nil && len(keys) == 0 {
		err = errors.New("there is no key")
	}
	if err != nil {
		return nil, &failure{CodeNoKey, "", fmt.Errorf("credential %s: %w", d.Swap.Credential, err)}
	}
	raw, err := c.server.Upstream.Opaque(ctx, d.Permit)
	if err != nil {
		return nil, &failure{CodeUpstream, "", err}
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	w := &witness{Conn: raw}
	a := &authentication{ctx: ctx, controller: c.server.Controller, use: use, witness: w}
	signers, err := a.signers(keys)
	if err != nil {
		raw.Close()
		return nil, &failure{CodeNoKey, "", err}
	}
	var refused error
	sc, channels, requests, err := ssh.NewClientConn(w, address.Address(), &ssh.ClientConfig{
		Config:            ssh.Config{KeyExchanges: exchanges},
		User:              d.User,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(signers...)},
		HostKeyAlgorithms: known.Algorithms(),
		ClientVersion:     version,
		BannerCallback:    func(string) error { return nil },
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			refused = known.Verify(key.Marshal(), time.Now())
			return refused
		},
	})
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	switch negotiation := (*ssh.AlgorithmNegotiationError)(nil); {
	case err == nil:
		go rejectAll(channels)
		go ssh.DiscardRequests(requests)
		u := &upstream{raw, sc, make(chan struct{})}
		go func() { sc.Wait(); close(u.over) }()
		return u, nil
	case refused != nil:
		remedy := ""
		if errors.Is(refused, hostkeys.ErrMismatch) {
			remedy = "if it was, remove the old key on the host (ssh-keygen -R '" + address.Address() + "'); " + scan
		}
		err = &failure{CodeHostKey, remedy, fmt.Errorf("%s is not connected to: %w", address.Address(), refused)}
	case errors.As(err, &negotiation):
		err = &failure{CodeHostKey, scan, fmt.Errorf("%s and this host agree on no algorithm, maybe because its known host key is of another kind: %w", address.Address(), err)}
	case a.failed != nil:
		err = &failure{CodeNoKey, "", fmt.Errorf("credential %s: %w", d.Swap.Credential, a.failed)}
	default:
		err = &failure{CodeUpstream, "is the key registered there?", fmt.Errorf("%s did not let %s in with credential %s: %w", address.Address(), d.User, d.Swap.Credential, err)}
	}
	raw.Close()
	return nil, err
}

func rejectAll(channels <-chan ssh.NewChannel) {
	for c := range channels {
		c.Reject(ssh.Prohibited, "")
	}
}

// authentication has the controller sign for one connection.
type authentication struct {
	ctx        context.Context
	controller Controller
	use        wire.SignFor
	witness    *witness
	failed     error
}

func (a *authentication) signers(keys [][]byte) (out []ssh.Signer, err error) {
	for _, b := range keys[:min(len(keys), maxOffers)] {
		key, err := ssh.ParsePublicKey(b)
		if err != nil {
			return nil, errors.New("a public key cannot be read")
		}
		out = append(out, &remoteSigner{a, key})
	}
	return out, nil
}

// remoteSigner is a key that only the controller has.
type remoteSigner struct {
	*authentication
	key ssh.PublicKey
}

func (s *remoteSigner) PublicKey() ssh.PublicKey { return s.key }

// Algorithms is part of ssh.MultiAlgorithmSigner: no RSA over SHA-1.
func (s *remoteSigner) Algorithms() []string {
	if s.key.Type() == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{s.key.Type()}
}

func (s *remoteSigner) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	return s.SignWithAlgorithm(nil, data, "")
}

func (s *remoteSigner) SignWithAlgorithm(_ io.Reader, data []byte, algorithm string) (sig *ssh.Signature, err error) {
	defer func() {
		if err != nil && s.failed == nil {
			s.failed = err
		}
	}()
	u, err := wire.ParseUserauth(data)
	if err != nil {
		return nil, err
	}
	if algorithm != "" && !slices.Contains([]string{algorithm, u.Algorithm}, u.Algorithm) {
		return nil, errors.New("the library asks for two algorithms")
	}
	hostKey, hostSignature, ok := s.witness.proof()
	if !ok {
		return nil, errors.New("the server's answer in the key exchange was not understood")
	}
	b, err := s.controller.Sign(s.ctx, wire.SignRequest{
		SignFor: s.use, Key: s.key.Marshal(), Algorithm: u.Algorithm, SessionID: u.SessionID,
		HostKey: hostKey, HostSignature: hostSignature, Data: data,
	})
	if err != nil {
		return nil, err
	}
	sig = new(ssh.Signature)
	if err := ssh.Unmarshal(b, sig); err != nil {
		return nil, errors.New("the signature cannot be read")
	}
	return sig, nil
}

// running is a command on the upstream.
type running struct {
	stdin          io.WriteCloser
	stdout, stderr io.Reader
	channel        ssh.Channel
	requests       <-chan *ssh.Request
}

// open returns a new channel. It does not rely on OpenChannel's return: in
// x/crypto a channel that is asked for just as the connection ends is waited for
// without end.
func (u *upstream) open() (ssh.Channel, <-chan *ssh.Request, error) {
	type opened struct {
		channel  ssh.Channel
		requests <-chan *ssh.Request
		err      error
	}
	done := make(chan opened, 1)
	go func() {
		ch, requests, err := u.ssh.OpenChannel("session", nil)
		done <- opened{ch, requests, err}
	}()
	answer := time.NewTimer(upstreamTimeout)
	defer answer.Stop()
	select {
	case o := <-done:
		return o.channel, o.requests, o.err
	case <-u.over:
		return nil, nil, errors.New("it hung up")
	case <-answer.C:
		return nil, nil, fmt.Errorf("it did not answer for %v", upstreamTimeout)
	}
}

// start runs a command over a new channel.
func (u *upstream) start(text, protocol string) (*running, error) {
	ch, requests, err := u.open()
	if err != nil {
		return nil, err
	}
	if protocol != "" {
		// A server may refuse it, and then speaks version 0.
		ch.SendRequest("env", false, ssh.Marshal(struct{ Name, Value string }{"GIT_PROTOCOL", protocol}))
	}
	ok, err := ch.SendRequest("exec", true, ssh.Marshal(struct{ Command string }{text}))
	if err == nil && !ok {
		err = errors.New("it refuses to run commands")
	}
	if err != nil {
		ch.Close()
		return nil, err
	}
	return &running{half{ch}, ch, ch.Stderr(), ch, requests}, nil
}

// half closes only our side.
type half struct{ ssh.Channel }

func (h half) Close() error { return h.CloseWrite() }

// wait returns the exit status once the channel is closed.
func (r *running) wait() (int, error) {
	status, known := 0, false
	for req := range r.requests {
		switch req.Type {
		case "exit-status":
			var s struct{ Status uint32 }
			if ssh.Unmarshal(req.Payload, &s) == nil {
				status, known = int(s.Status&0xff), true
			}
		case "exit-signal":
			status, known = failed, true
		}
		if req.WantReply {
			req.Reply(false, nil)
		}
	}
	if !known {
		return 0, io.ErrUnexpectedEOF
	}
	return status, nil
}
