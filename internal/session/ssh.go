package session

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/broker"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/egress/gitssh"
	"github.com/bulkhead-dev/bulkhead/internal/egress/gitssh/hostkeys"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/connect"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// ActionSign is a use of the user's SSH key.
const ActionSign vocabulary.Action = "ssh.sign"

// sshSide is what a session knows of git over SSH. The zero value: nothing.
type sshSide struct {
	config    gitssh.Config
	endpoints []capability.SSHEndpoint
}

// Where programs inside find what they need for SSH.
const (
	sshDir        = "/run/bulkhead-ssh"
	sshKnownHosts = sshDir + "/known_hosts"
	sshConfigFile = "/etc/ssh/ssh_config"
	whySSH        = "git over SSH to the granted servers"
)

// resolveSSH makes the source of an SSH key absolute; the agent stays.
func (v *view) resolveSSH(source string) string {
	if source == policy.SSHAgent {
		return broker.AgentSource
	}
	return v.resolve(source)
}

// openSSH prepares the granted SSH servers, if there are any: the session's own
// host key, the host's known keys, and a client configuration inside that
// trusts the one and reaches the gateway.
func (s *session) openSSH() error {
	set, err := capability.Compile(s.view.spec, s.opts.Catalog)
	if err != nil {
		return err
	}
	endpoints := set.SSHEndpoints()
	if len(endpoints) == 0 {
		return nil
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return err
	}
	s.ssh = sshSide{gitssh.Config{HostKey: der}, endpoints}
	clear(private)
	files := append(hostKnownHosts(), catalogdata.KnownHosts)
	var pins, config bytes.Buffer
	for _, e := range endpoints {
		h := hostkeys.For(e.Host.String(), uint16(e.Port), files...)
		if slices.ContainsFunc(s.ssh.config.Hosts, func(o hostkeys.Host) bool { return o.Name == h.Name && o.Port == h.Port }) {
			continue
		}
		s.ssh.config.Hosts = append(s.ssh.config.Hosts, h)
		fmt.Fprintf(&pins, "%s %s", h.Address(), ssh.MarshalAuthorizedKey(key))
		if !h.Known() {
			scan := "ssh-keyscan " + h.Name
			if h.Port != 22 {
				scan = fmt.Sprintf("ssh-keyscan -p %d %s", h.Port, h.Name)
			}
			s.view.notices = append(s.view.notices, "the host key of "+h.Address()+" is not known on this host; git over SSH to it will be refused\ncheck its fingerprint, then: "+scan+" >> ~/.ssh/known_hosts")
		}
	}
	s.view.sshConfig(&config, endpoints)
	data := func(target string, b []byte) {
		s.view.mounts = append(s.view.mounts, vocabulary.Mount{Kind: vocabulary.Data, Target: target, Data: b, Perm: 0o444, Why: whySSH})
	}
	data(sshKnownHosts, pins.Bytes())
	if s.view.network == sandbox.NetRelay {
		s.view.mounts = append(s.view.mounts, vocabulary.Mount{Kind: vocabulary.Symlink, Source: guest.Path, Target: sshDir + "/" + childproc.Argv0(connect.Child), Why: whySSH})
	}
	// A file can only be covered where there is one. A home without it gets one.
	target := filepath.Join(s.view.who.home, ".ssh/config")
	if real, err := filepath.EvalSymlinks(sshConfigFile); err == nil && visibleReadOnly(real, s.view.mounts) {
		target = real
	}
	data(target, config.Bytes())
	s.view.env.set("SSH_KNOWN_HOSTS", sshKnownHosts) // of clients written in Go
	return nil
}

// sshConfig writes ssh_config(5). It replaces the host's, whose included files
// would have owners that ssh refuses inside.
func (v *view) sshConfig(w io.Writer, endpoints []capability.SSHEndpoint) {
	var names []string
	for _, e := range endpoints {
		if !slices.Contains(names, e.Host.String()) {
			names = append(names, e.Host.String())
		}
	}
	fmt.Fprintf(w, "# Connections to these servers end at the session's gateway, which shows this\n# key, asks for none, and lets granted git commands through.\nHost %s\n", strings.Join(names, " "))
	fmt.Fprintf(w, "  GlobalKnownHostsFile %s\n  UserKnownHostsFile none\n  StrictHostKeyChecking yes\n  UpdateHostKeys no\n  CheckHostIP no\n  IdentityFile none\n  IdentityAgent none\n  BatchMode yes\n  ForwardAgent no\n", sshKnownHosts)
	if v.network == sandbox.NetRelay {
		fmt.Fprintf(w, "  ProxyCommand %s/%s %%h %%p\n", sshDir, childproc.Argv0(connect.Child))
	}
}

// hostKnownHosts reads the files that ssh on the host goes by.
func hostKnownHosts() [][]byte {
	names := []string{"/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"}
	if home, ok := os.LookupEnv("HOME"); ok && filepath.IsAbs(home) {
		names = append(names, filepath.Join(home, ".ssh/known_hosts"), filepath.Join(home, ".ssh/known_hosts2"))
	}
	var out [][]byte
	for _, name := range names {
		f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			if b, err := io.ReadAll(io.LimitReader(f, 8<<20)); err == nil {
				out = append(out, b)
			}
		}
		f.Close()
	}
	return out
}

var errNoSSHGrant = errors.New("no grant uses this key there")

// granted checks what the gateway says about a connection against the policy.
func (s *sshSide) granted(f wire.SignFor) (hostkeys.Host, error) {
	host, err := hostport.ParseHost(f.Host)
	if err != nil {
		return hostkeys.Host{}, errNoSSHGrant
	}
	if !slices.ContainsFunc(s.endpoints, func(e capability.SSHEndpoint) bool {
		return e.Host == host && uint16(e.Port) == f.Port && e.User == f.User && slices.Contains(e.Credentials, f.Credential)
	}) {
		return hostkeys.Host{}, errNoSSHGrant
	}
	i := slices.IndexFunc(s.config.Hosts, func(h hostkeys.Host) bool { return h.Name == host.String() && h.Port == f.Port })
	if i < 0 {
		return hostkeys.Host{}, errNoSSHGrant
	}
	return s.config.Hosts[i], nil
}

// SignKeys answers the gateway with public keys.
func (g *gatewayController) SignKeys(ctx context.Context, f wire.SignFor) ([][]byte, error) {
	if _, err := g.ssh.granted(f); err != nil {
		return nil, err
	}
	return g.creds.PublicKeys(ctx, f.Credential)
}

// Sign has the user's key sign for one connection: to a server, user and key
// that the policy names, as that server itself has confirmed with its signature
// over the session's id. r.Check has been asked already.
func (g *gatewayController) Sign(ctx context.Context, r wire.SignRequest) ([]byte, error) {
	known, err := g.ssh.granted(r.SignFor)
	if err != nil {
		return nil, err
	}
	if err := known.Verify(r.HostKey, time.Now()); err != nil {
		return nil, fmt.Errorf("refusing to sign for %s: %w", known.Address(), err)
	}
	if err := hostkeys.Signed(r.HostKey, r.SessionID, r.HostSignature); err != nil {
		return nil, fmt.Errorf("refusing to sign for %s: %w", known.Address(), err)
	}
	keys, err := g.creds.PublicKeys(ctx, r.Credential)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, r.Key) }) {
		return nil, errors.New("refusing to sign: that key is not the credential's")
	}
	fingerprint := ""
	if key, err := ssh.ParsePublicKey(r.Key); err == nil {
		fingerprint = ssh.FingerprintSHA256(key)
	}
	if err := g.log.Record(v1.Event{
		Actor: "controller", Action: ActionSign, Resource: vocabulary.Resource("ssh://" + r.User + "@" + known.Address()), Verdict: vocabulary.Allow,
		Reason: vocabulary.Reason{Code: "session", Rule: vocabulary.Position{File: g.opts.Policy.File}},
		Attrs:  map[string]string{"credential": r.Credential, "key": fingerprint},
	}); err != nil {
		return nil, errors.New("the use of the key could not be recorded")
	}
	return g.creds.Sign(ctx, r.Credential, r.Key, r.Algorithm, r.Data, broker.Binding{HostKey: r.HostKey, SessionID: r.SessionID, Signature: r.HostSignature})
}
