package gitssh

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/bulkhead-dev/bulkhead/internal/egress/gitssh/hostkeys"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const widgets = "git@github.com:acme/widgets.git"

func TestCloneFetchPush(t *testing.T) {
	b := newBench(t, nil)
	b.sh(t, "mkdir acme")
	b.repository(t, "acme/widgets")
	b.ok(t, "git", "clone", "-q", widgets)
	if out := b.ok(t, "git", "-C", "widgets", "log", "--format=%s"); !strings.HasPrefix(out, "acme/widgets 2\n") {
		t.Errorf("log: %q", out)
	}
	b.desk.has(t, vocabulary.Allow, "github.fetch", "acme/widgets", "granted")
	if b.desk.events[0].Attrs["transport"] != "ssh" {
		t.Errorf("%+v", b.desk.events[0])
	}
	// As a URL, with version 0, and without the suffix.
	b.ok(t, "git", "-c", "protocol.version=0", "ls-remote", "ssh://git@github.com/acme/widgets")
	b.sh(t, "git -C acme/widgets.git branch later main")
	b.ok(t, "git", "-C", "widgets", "fetch", "-q")
	b.ok(t, "git", "-C", "widgets", "rev-parse", "origin/later")
	b.ok(t, "git", "-C", "widgets", "commit", "-q", "--allow-empty", "-m", "by the agent")
	b.ok(t, "git", "-C", "widgets", "push", "-q", "origin", "HEAD:agent/one")
	if got := b.sh(t, "git -C acme/widgets.git log -1 --format=%s agent/one"); got != "by the agent" {
		t.Errorf("pushed: %q", got)
	}
	b.desk.has(t, vocabulary.Allow, "github.push", "acme/widgets", "granted")
	// Nothing to push.
	b.ok(t, "git", "-C", "widgets", "push", "-q", "origin", "HEAD:agent/one")
}

func TestRefused(t *testing.T) {
	b := newBench(t, nil)
	b.sh(t, "mkdir acme")
	b.repository(t, "acme/widgets")
	b.repository(t, "acme/plans")
	b.ok(t, "git", "clone", "-q", widgets)
	b.ok(t, "git", "-C", "widgets", "commit", "-q", "--allow-empty", "-m", "stolen")
	signed := b.desk.signed
	for name, c := range map[string]struct{ args, says []string }{
		"other repository": {[]string{"git", "clone", "git@github.com:acme/plans.git"}, []string{"bulkhead: not granted on that (resource-not-granted)", "rule: grant.yaml:3", "to allow it"}},
		"other user":       {[]string{"git", "ls-remote", "root@github.com:acme/widgets.git"}, []string{"resource-not-granted"}},
		"archive":          {[]string{"git", "archive", "--remote=" + widgets, "HEAD"}, []string{"resource-not-granted"}},
	} {
		out, err := b.client(t, c.args[0], c.args[1:]...)
		if err == nil {
			t.Errorf("%s succeeded", name)
		}
		for _, want := range c.says {
			if !strings.Contains(out, want) {
				t.Errorf("%s says %q, not %q", name, out, want)
			}
		}
	}
	if b.desk.signed != signed {
		t.Error("the user's key was used for what is refused")
	}
	// The second judgement: refs. Both in one push, and a deletion.
	for _, refs := range [][]string{{"HEAD:main"}, {"HEAD:agent/x", "HEAD:stolen"}, {":main"}, {"HEAD:refs/tags/v1"}} {
		out, err := b.client(t, "git", append([]string{"-C", "widgets", "push", "-q", "origin"}, refs...)...)
		if err == nil || !strings.Contains(out, "bulkhead: not granted on that (resource-not-granted)") {
			t.Errorf("push %q: %v %q", refs, err, out)
		}
	}
	b.desk.has(t, vocabulary.Deny, "github.push", "acme/widgets", "resource-not-granted")
	if got := b.sh(t, "git -C acme/widgets.git for-each-ref --format='%(refname)'"); got != "refs/heads/main" {
		t.Errorf("refs upstream: %q", got)
	}
}

func TestNothingButGit(t *testing.T) {
	b := newBench(t, nil)
	b.sh(t, "mkdir acme")
	b.repository(t, "acme/widgets")
	for _, args := range [][]string{
		{"git@github.com"}, {"git@github.com", "id"}, {"git@github.com", "touch proof"},
		{"git@github.com", "git-upload-pack 'acme/widgets.git'; touch proof"}, {"git@github.com", "git-upload-pack 'acme/widgets.git' && touch proof"},
		{"git@github.com", "git-upload-pack '$(touch proof)'"}, {"git@github.com", "git-upload-pack '--upload-pack=touch proof' acme/widgets.git"},
		{"git@github.com", "git-upload-pack acme/../acme/widgets.git"}, {"git@github.com", "git-lfs-authenticate acme/widgets.git upload"},
		{"-s", "git@github.com", "sftp"}, {"-A", "-s", "git@github.com", "agent"},
	} {
		out, err := b.ssh(t, args...)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 128 || !strings.Contains(out, "bulkhead: ") {
			t.Errorf("%q: %v %q", args, err, out)
		}
	}
	if out, _ := b.ssh(t, "git@github.com", "git-lfs-authenticate acme/widgets.git download"); !strings.Contains(out, "hands out a token") {
		t.Errorf("LFS: %q", out)
	}
	if out, err := b.client(t, "scp", "-F", b.dir+"/config", "git@github.com:/etc/passwd", "."); err == nil || !strings.Contains(out, "bulkhead: ") {
		t.Errorf("scp: %v %q", err, out)
	}
	if out, err := b.client(t, "scp", "-O", "-F", b.dir+"/config", "git@github.com:/etc/passwd", "."); err == nil || !strings.Contains(out, "bulkhead: ") {
		t.Errorf("scp -O: %v %q", err, out)
	}
	for _, args := range [][]string{
		{"-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:22", "git@github.com"},
		{"-W", "127.0.0.1:22", "git@github.com"},
		{"-o", "ExitOnForwardFailure=yes", "-N", "-w", "any", "git@github.com"},
	} {
		if out, err := b.ssh(t, args...); err == nil {
			t.Errorf("%q succeeded: %q", args, out)
		}
	}
	b.desk.has(t, vocabulary.Deny, "ssh.forward", "github.com", CodeProtocolRefused)
	b.desk.has(t, vocabulary.Deny, "ssh.exec", "github.com", CodeNotGit)
	if b.desk.signed != 0 {
		t.Error("the upstream was logged in to")
	}
	if got := b.sh(t, "ls"); got != "acme" {
		t.Errorf("the upstream's home has %q", got)
	}
}

func TestHostKeyIsVerified(t *testing.T) {
	_, other := newKey(t)
	for name, c := range map[string]struct {
		known func(ssh.PublicKey) hostkeys.Host
		says  string
	}{
		"unknown": {func(ssh.PublicKey) hostkeys.Host { return hostkeys.Host{Name: "github.com", Port: 22} }, "ssh-keyscan github.com"},
		"other": {func(ssh.PublicKey) hostkeys.Host {
			return hostkeys.Host{Name: "github.com", Port: 22, Keys: [][]byte{other.PublicKey().Marshal()}}
		}, "not the one that is known"},
		"revoked": {func(k ssh.PublicKey) hostkeys.Host {
			return hostkeys.Host{Name: "github.com", Port: 22, Keys: [][]byte{k.Marshal()}, Revoked: [][]byte{k.Marshal()}}
		}, "revoked"},
		"elsewhere": {func(k ssh.PublicKey) hostkeys.Host {
			return hostkeys.Host{Name: "example.com", Port: 22, Keys: [][]byte{k.Marshal()}}
		}, "not known"},
	} {
		b := newBench(t, c.known)
		out, err := b.client(t, "git", "ls-remote", widgets)
		if err == nil || !strings.Contains(out, c.says) || !strings.Contains(out, "("+CodeHostKey+")") {
			t.Errorf("%s: %v %q", name, err, out)
		}
		b.desk.has(t, vocabulary.Deny, "github.fetch", "acme/widgets", CodeHostKey)
		if b.desk.signed != 0 {
			t.Errorf("%s: the key signed for it", name)
		}
	}
}

func TestNoRecordNoAct(t *testing.T) {
	b := newBench(t, nil)
	b.desk.full = true
	if out, err := b.client(t, "git", "ls-remote", widgets); err == nil || !strings.Contains(out, CodeNoRecord) || b.desk.signed != 0 {
		t.Errorf("%v %q", err, out)
	}
}

func TestNoSignatureNoAct(t *testing.T) {
	b := newBench(t, nil)
	b.sh(t, "mkdir acme")
	b.repository(t, "acme/widgets")
	b.desk.noKeys = errors.New("file ~/.ssh/id_ed25519 does not exist any more")
	if out, err := b.client(t, "git", "ls-remote", widgets); err == nil || !strings.Contains(out, "does not exist any more ("+CodeNoKey+")") {
		t.Errorf("%v %q", err, out)
	}
	b.desk.noKeys = nil
	_, b.desk.server = newKeyPair(t)
	if out, err := b.client(t, "git", "ls-remote", widgets); err == nil || !strings.Contains(out, "another server ("+CodeNoKey+")") {
		t.Errorf("%v %q", err, out)
	}
}

func newKeyPair(t *testing.T) (ssh.Signer, ssh.PublicKey) {
	_, s := newKey(t)
	return s, s.PublicKey()
}
