package gitssh

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/catalog/gitwire"
	"github.com/bulkhead-dev/bulkhead/internal/egress/gitssh/hostkeys"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// sshd is a real OpenSSH server on loopback, for a user "git" whose home holds
// the repositories. It runs without privileges: as root's test under another
// user's number.
type sshd struct {
	addr string
	home string
	key  ssh.PublicKey // its host key
	asIs []string      // runs a command as the server's user
}

func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gitssh-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t testing.TB, name string, mode os.FileMode, text string) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return name
}

func newKey(t testing.TB) (ed25519.PrivateKey, ssh.Signer) {
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

func startSSHD(t testing.TB, authorized ssh.PublicKey) *sshd {
	t.Helper()
	dir := tempDir(t)
	s := &sshd{home: filepath.Join(dir, "home")}
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		u, err := user.Lookup("bulkhead-test")
		if err != nil {
			t.Fatalf("%v; scripts/install-deps test makes that user", err)
		}
		uid, _ = strconv.Atoi(u.Uid)
		gid, _ = strconv.Atoi(u.Gid)
		s.asIs = []string{"setpriv", "--reuid", u.Uid, "--regid", u.Gid, "--clear-groups", "--"}
	}
	if err := os.MkdirAll(s.home, 0o755); err != nil {
		t.Fatal(err)
	}
	hostKey, signer := newKey(t)
	s.key = signer.PublicKey()
	block, err := ssh.MarshalPrivateKey(hostKey, "")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(s.addr)
	keyFile := write(t, filepath.Join(dir, "host_key"), 0o600, string(pem.EncodeToMemory(block)))
	keys := write(t, filepath.Join(dir, "authorized"), 0o644, string(ssh.MarshalAuthorizedKey(authorized)))
	passwd := write(t, filepath.Join(dir, "passwd"), 0o644, fmt.Sprintf("git:x:%d:%d::%s:/bin/sh\n", uid, gid, s.home))
	config := write(t, filepath.Join(dir, "config"), 0o644, "ListenAddress 127.0.0.1\nPort "+port+"\nHostKey "+keyFile+"\nAuthorizedKeysFile "+keys+
		"\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\nAcceptEnv GIT_PROTOCOL\nSubsystem sftp internal-sftp\n")
	for _, f := range []string{s.home, keyFile} {
		if err := os.Chown(f, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	args := append(append([]string(nil), s.asIs...), "bwrap", "--dev-bind", "/", "/", "--ro-bind", passwd, "/etc/passwd", "--die-with-parent", "/usr/sbin/sshd", "-D", "-e", "-f", config)
	cmd := exec.Command(args[0], args[1:]...)
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("sshd: %s", said.String())
		}
	})
	for range 200 {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			c.Close()
			return s
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("sshd does not listen: %s", said.String())
	return nil
}

// sh runs a script as the server's user, in its home.
func (s *sshd) sh(t testing.TB, script string) string {
	t.Helper()
	args := append(append([]string(nil), s.asIs...), "sh", "-ec", script)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = s.home
	cmd.Env = gitEnv(s.home)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func gitEnv(home string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "LANG=C",
		"GIT_AUTHOR_NAME=T", "GIT_AUTHOR_EMAIL=t@example.com", "GIT_COMMITTER_NAME=T", "GIT_COMMITTER_EMAIL=t@example.com", "GIT_TERMINAL_PROMPT=0"}
}

func (s *sshd) repository(t testing.TB, name string) {
	t.Helper()
	s.sh(t, fmt.Sprintf(`git init -q --bare -b main %[1]s.git; w=$(mktemp -d ./work.XXXXXX); git init -q -b main $w
		for i in 0 1 2; do git -C $w commit -q --allow-empty -m "%[1]s $i"; done; git -C $w push -q ../%[1]s.git main; rm -rf $w`, name))
}

// desk is the controller of a test: it records, and signs what it has checked.
type desk struct {
	signer ssh.Signer
	server ssh.PublicKey

	mu       sync.Mutex
	events   []v1.Event
	full     bool // no space for events
	signed   int
	noKeys   error
	lastSign wire.SignRequest
}

func (d *desk) Record(e v1.Event) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full && e.Verdict == vocabulary.Allow {
		return errors.New("no space left on device")
	}
	d.events = append(d.events, e)
	return nil
}

func (d *desk) SignKeys(context.Context, wire.SignFor) ([][]byte, error) {
	return [][]byte{d.signer.PublicKey().Marshal()}, d.noKeys
}

func (d *desk) Sign(_ context.Context, r wire.SignRequest) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := r.Check(); err != nil {
		return nil, err
	}
	if err := hostkeys.Signed(r.HostKey, r.SessionID, r.HostSignature); err != nil {
		return nil, err
	}
	if string(r.HostKey) != string(d.server.Marshal()) {
		return nil, errors.New("another server")
	}
	d.signed++
	d.lastSign = r
	sig, err := d.signer.Sign(rand.Reader, r.Data)
	if err != nil {
		return nil, err
	}
	return ssh.Marshal(sig), nil
}

func (d *desk) has(t testing.TB, verdict vocabulary.Verdict, action, resource, code string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.events {
		if e.Verdict == verdict && string(e.Action) == action && strings.Contains(string(e.Resource), resource) && (code == "" || e.Reason.Code == code) {
			return
		}
	}
	t.Errorf("no event %v %s on %s (%s) among %+v", verdict, action, resource, code, d.events)
}

// grants is a decider for two programs on acme/widgets and pushes to agent/*.
type grants struct{ permit *capability.Permit }

func (g grants) DecideSSH(c capability.SSHCommand) capability.SSHDecision {
	action := map[string]vocabulary.Action{"git-upload-pack": "github.fetch", "git-receive-pack": "github.push"}[c.Program]
	d := capability.SSHDecision{User: c.User, Path: c.Path + ".git"}
	d.Action, d.Resource = action, vocabulary.Resource("ssh://git@github.com/"+c.Path)
	d.Reason.Rule = vocabulary.Position{File: "grant.yaml", Line: 3}
	ok := action != "" && c.Path == "acme/widgets" && c.User == "git"
	if c.Head != nil {
		push, _, err := gitwire.ReadPush(c.Head)
		ok = ok && err == nil && c.Credential == "key" // the one that the server has seen
		for _, u := range push.Updates {
			ok = ok && strings.HasPrefix(u.Ref, "refs/heads/agent/")
		}
	}
	if !ok {
		d.Reason.Code, d.Reason.Message, d.Reason.Remedy = "resource-not-granted", "not granted on that", "ask for it"
		return d
	}
	d.Verdict, d.Reason.Code = vocabulary.Allow, "granted"
	d.Permit, d.Swap = g.permit, &capability.Swap{Credential: "key"}
	return d
}

type dialler string

func (a dialler) Opaque(ctx context.Context, p *capability.Permit) (net.Conn, error) {
	if p == nil || !p.Opaque() {
		return nil, errors.New("no permit")
	}
	var nd net.Dialer
	return nd.DialContext(ctx, "tcp", string(a))
}

// bench is a gateway's SSH half between real clients and a real server.
type bench struct {
	*sshd
	desk   *desk
	server *Server
	addr   string
	dir    string // of the client
	key    ssh.Signer
}

var github = hostport.HostPort{Host: must(hostport.ParseHost("github.com")), Port: 22}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newBench(t testing.TB, known func(ssh.PublicKey) hostkeys.Host) *bench {
	t.Helper()
	_, signer := newKey(t)
	b := &bench{sshd: startSSHD(t, signer.PublicKey()), key: signer, dir: tempDir(t)}
	b.desk = &desk{signer: signer, server: b.sshd.key}
	host := hostkeys.Host{Name: "github.com", Port: 22, Keys: [][]byte{b.sshd.key.Marshal()}}
	if known != nil {
		host = known(b.sshd.key)
	}
	own, ownSigner := newKey(t)
	der, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	if b.server, err = New(Config{HostKey: der, Hosts: []hostkeys.Host{host}}); err != nil {
		t.Fatal(err)
	}
	set, err := capability.Compile(capability.Spec{Rules: []capability.Rule{{TCP: "github.com:22"}}}, catalog.Default())
	if err != nil {
		t.Fatal(err)
	}
	_, d := set.Connect(github)
	b.server.Decider, b.server.Controller, b.server.Upstream = grants{d.Permit}, b.desk, dialler(b.sshd.addr)
	b.server.Denied = func(e v1.Event) { b.desk.Record(e) }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	b.addr = l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.server.Serve(c, github)
		}
	}()
	_, port, _ := net.SplitHostPort(b.addr)
	pin := write(t, filepath.Join(b.dir, "known"), 0o644, "github.com "+string(ssh.MarshalAuthorizedKey(ownSigner.PublicKey())))
	write(t, filepath.Join(b.dir, "config"), 0o644, "Host github.com\n HostName 127.0.0.1\n Port "+port+"\n HostKeyAlias github.com\n UserKnownHostsFile "+pin+
		"\n GlobalKnownHostsFile none\n StrictHostKeyChecking yes\n BatchMode yes\n IdentityFile none\n IdentityAgent none\n")
	return b
}

// client runs a program of the sandbox's side.
func (b *bench) client(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = b.dir
	cmd.Env = append(gitEnv(b.dir), "GIT_SSH_COMMAND=ssh -F "+filepath.Join(b.dir, "config"))
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (b *bench) ssh(t testing.TB, args ...string) (string, error) {
	t.Helper()
	return b.client(t, "ssh", append([]string{"-F", filepath.Join(b.dir, "config")}, args...)...)
}

func (b *bench) ok(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := b.client(t, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}
