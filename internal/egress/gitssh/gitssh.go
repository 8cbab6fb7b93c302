// Package gitssh stands between a sandbox's ssh and a git server: it is the SSH
// server towards the sandbox and the SSH client towards the upstream, and
// nothing but one git command at a time crosses from one to the other.
//
// It runs in the gateway. In: connections from the sandbox, bound to the name
// and port of a granted server. The session's own host key answers them, and
// no key is asked for: who reaches this connection is the session. Out: for
// each command that the decider grants, one connection under its permit, whose
// host key is checked against what the host's known_hosts files say, and which
// the controller authenticates: it signs, this process never has a key.
// What the upstream is told to run is rebuilt from the parsed command.
//
// A push is judged twice: as such, before the upstream is dialled, and by the
// refs that it changes, which are held back until all are read. Every act is
// recorded before it happens. Refused are shells, terminals, subsystems (sftp),
// variables but GIT_PROTOCOL, and forwarding of ports, agents and X11, in both
// directions.
//
// Figures: MaxConns connections at a time, each with one channel at a time and
// at most maxChannels in its life; handshakeTimeout for the sandbox's side,
// upstreamTimeout for the upstream's with its authentication (a person may have
// to touch a key), idleTimeout without a byte in either direction; maxHead bytes
// for the refs of a push. A channel's window is 2 MiB (x/crypto/ssh), so a
// connection holds at most about 5 MiB.
//
// Known holes: refs and objects that an upstream sends are not looked at, as
// over HTTPS. A client can ask for new key exchanges as fast as it answers them;
// that costs processor time, not memory.
package gitssh

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/egress/gitssh/hostkeys"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// MaxConns bounds the SSH connections of a session.
const MaxConns = 32

const maxChannels = 64

// Variables, so that tests need not wait.
var (
	handshakeTimeout = 15 * time.Second
	upstreamTimeout  = 90 * time.Second
	restTimeout      = 30 * time.Second // between channels
	idleTimeout      = 10 * time.Minute
)

// The codes of refusals that this package decides.
const (
	CodeProtocolRefused = "protocol-refused"
	CodeNotGit          = "not-a-git-command"
	CodeHostKey         = "host-key"
	CodeNoKey           = "no-signature"
	CodeUpstream        = "upstream-failed"
	CodeRevoked         = "revoked"
	CodeNoRecord        = "no-record"
	CodeBusy            = "flow-limit"
)

// Config is what a gateway needs for SSH. The zero Config serves nobody.
type Config struct {
	// HostKey is the session's own host key, PKCS #8; what the sandbox pins.
	HostKey []byte `json:"hostKey,omitempty"`
	// Hosts are the granted servers with what is known of their keys.
	Hosts []hostkeys.Host `json:"hosts,omitempty"`
}

// Decider judges one git command.
type Decider interface {
	DecideSSH(capability.SSHCommand) capability.SSHDecision
}

// Controller records, and signs for one connection.
type Controller interface {
	Record(v1.Event) error
	SignKeys(context.Context, wire.SignFor) ([][]byte, error)
	Sign(context.Context, wire.SignRequest) ([]byte, error)
}

// Upstream opens the connection that a permit is for.
type Upstream interface {
	Opaque(context.Context, *capability.Permit) (net.Conn, error)
}

// Server serves the connections of one session. Its fields are needed; without
// one of them it refuses.
type Server struct {
	Decider    Decider
	Controller Controller
	Upstream   Upstream
	// Denied hears of every refusal before it is answered.
	Denied func(v1.Event)

	hosts   map[hostport.HostPort]hostkeys.Host
	config  *ssh.ServerConfig
	conns   atomic.Int32
	revoked atomic.Bool
	mu      sync.Mutex
	active  map[*context.CancelCauseFunc]struct{}
}

// New reads the configuration.
func New(c Config) (*Server, error) {
	s := &Server{hosts: map[hostport.HostPort]hostkeys.Host{}, active: map[*context.CancelCauseFunc]struct{}{}}
	for _, h := range c.Hosts {
		name, err := hostport.ParseHost(h.Name)
		if err != nil {
			return nil, fmt.Errorf("ssh: %w", err)
		}
		s.hosts[hostport.HostPort{Host: name, Port: hostport.Port(h.Port)}] = h
	}
	if len(c.HostKey) == 0 {
		return s, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(c.HostKey)
	if err != nil {
		return nil, fmt.Errorf("ssh: host key: %w", err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return nil, fmt.Errorf("ssh: host key: %w", err)
	}
	s.config = &ssh.ServerConfig{NoClientAuth: true, MaxAuthTries: 3, ServerVersion: version}
	s.config.AddHostKey(signer)
	return s, nil
}

const version = "SSH-2.0-Bulkhead"

var errRevoked = errors.New("the session's credentials are revoked")

// Revoke ends every command that is under way, and refuses later ones.
func (s *Server) Revoke() {
	s.revoked.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for cancel := range s.active {
		(*cancel)(errRevoked)
	}
}

// track makes ctx end with Revoke, also with one that has been already.
func (s *Server) track(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	s.mu.Lock()
	s.active[&cancel] = struct{}{}
	s.mu.Unlock()
	if s.revoked.Load() {
		cancel(errRevoked)
	}
	return ctx, func() {
		s.mu.Lock()
		delete(s.active, &cancel)
		s.mu.Unlock()
		cancel(nil)
	}
}

// Serve takes over a connection bound to dst and returns when it has ended.
func (s *Server) Serve(conn net.Conn, dst hostport.HostPort) {
	defer conn.Close()
	c := &connection{server: s, dst: dst}
	if s.Decider == nil || s.Controller == nil || s.Upstream == nil || s.config == nil {
		c.refused("ssh.connect", CodeProtocolRefused, "this session has no SSH")
		return
	}
	if s.conns.Add(1) > MaxConns {
		s.conns.Add(-1)
		c.refused("ssh.connect", CodeBusy, fmt.Sprintf("more than %d SSH connections at a time", MaxConns))
		return
	}
	defer s.conns.Add(-1)
	conn.SetDeadline(time.Now().Add(handshakeTimeout))
	sc, channels, requests, err := ssh.NewServerConn(conn, s.config)
	if err != nil {
		c.refused("ssh.connect", CodeProtocolRefused, "no SSH handshake: "+printable(err.Error()))
		return
	}
	defer sc.Close()
	conn.SetDeadline(time.Time{})
	c.user = sc.User()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go c.globals(requests)
	c.serve(ctx, sc, channels)
}

// connection is one authenticated connection of the sandbox.
type connection struct {
	server *Server
	dst    hostport.HostPort
	user   string
	busy   atomic.Bool
}

// globals refuses what is asked of the connection as a whole.
func (c *connection) globals(requests <-chan *ssh.Request) {
	for r := range requests {
		if strings.HasSuffix(r.Type, "tcpip-forward") || strings.HasPrefix(r.Type, "streamlocal-forward") {
			c.refused("ssh.forward", CodeProtocolRefused, "ports are not forwarded: only git commands pass")
		}
		if r.WantReply {
			r.Reply(false, nil)
		}
	}
}

func (c *connection) serve(ctx context.Context, sc *ssh.ServerConn, channels <-chan ssh.NewChannel) {
	rest := time.AfterFunc(restTimeout, func() { sc.Close() })
	defer rest.Stop()
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer sc.Close() // before the wait: nothing of it goes on
	defer cancel()   // who left wants no answer
	for n := 0; ; n++ {
		open, ok := <-channels
		if !ok {
			return
		}
		switch kind := open.ChannelType(); {
		case kind != "session":
			c.refused("ssh.forward", CodeProtocolRefused, "channels of kind "+printable(clip(kind))+" are not opened: only git commands pass")
			open.Reject(ssh.Prohibited, "bulkhead: only git commands pass")
		case n >= maxChannels:
			open.Reject(ssh.ResourceShortage, "bulkhead: too many commands over one connection")
			return
		case !c.busy.CompareAndSwap(false, true):
			open.Reject(ssh.ResourceShortage, "bulkhead: one command at a time over one connection")
		default:
			channel, requests, err := open.Accept()
			if err != nil {
				return
			}
			rest.Stop()
			running.Go(func() {
				(&command{connection: c, channel: channel}).serve(ctx, requests)
				c.busy.Store(false)
				rest.Reset(restTimeout)
			})
		}
	}
}

// refused records a refusal that no rule of the policy is about.
func (c *connection) refused(action vocabulary.Action, code, message string) {
	c.deny(action, vocabulary.Resource("ssh://"+c.dst.String()), vocabulary.Reason{Code: code, Message: message}, nil)
}

func (c *connection) deny(action vocabulary.Action, resource vocabulary.Resource, reason vocabulary.Reason, attrs map[string]string) {
	if c.server.Denied != nil {
		c.server.Denied(v1.Event{Actor: "sandbox", Action: action, Resource: resource, Reason: reason, Attrs: attrs})
	}
}

// say writes a refusal in at most three lines, for ssh's stderr.
func say(w io.Writer, reason vocabulary.Reason) {
	text := "bulkhead: " + reason.Message + " (" + reason.Code + ")\n"
	if rule := reason.Rule.String(); rule != "-" {
		text += "bulkhead: rule: " + rule + "\n"
	}
	if reason.Remedy != "" {
		text += "bulkhead: to allow it: " + reason.Remedy + "\n"
	}
	io.WriteString(w, text)
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// printable keeps a terminal and the record from what a peer may have written.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r == 0xfffd || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, s)
}
