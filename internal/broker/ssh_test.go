package broker

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// keygen makes a key with OpenSSH's own tool.
func keygen(t *testing.T, kind, passphrase string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "id")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return file
}

func publicOf(t *testing.T, file string) []byte {
	t.Helper()
	raw, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	return key.Marshal()
}

// startAgent runs a real ssh-agent.
func startAgent(t *testing.T, keys ...string) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent-") // a socket's name is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	cmd := exec.Command("ssh-agent", "-D", "-a", socket)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 2000 {
		// That the file is there does not mean that anybody listens yet.
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, k := range keys {
		add(t, socket, k)
	}
	return socket
}

func add(t *testing.T, socket string, args ...string) {
	t.Helper()
	cmd := exec.Command("ssh-add", append([]string{"-q"}, args...)...)
	cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func sshEnv(socket string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		if name == "SSH_AUTH_SOCK" && socket != "" {
			return socket, true
		}
		return "", false
	}
}

func openKey(t *testing.T, source, socket string) (*Broker, error) {
	t.Helper()
	b, _, err := Open(context.Background(), []Source{{Name: "key", SSH: source}}, sshEnv(socket))
	return b, err
}

func verify(t *testing.T, public, signature, data []byte) {
	t.Helper()
	key, err := ssh.ParsePublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(signature, &sig); err != nil {
		t.Fatal(err)
	}
	if err := key.Verify(data, &sig); err != nil {
		t.Error(err)
	}
	if sig.Format == ssh.KeyAlgoRSA {
		t.Error("signed with SHA-1")
	}
}

func TestSSHKeysSign(t *testing.T) {
	ctx, data := context.Background(), []byte("what is signed")
	for kind, algorithm := range map[string]string{"ed25519": "ssh-ed25519", "ecdsa": "ecdsa-sha2-nistp256", "rsa": "rsa-sha2-512"} {
		file := keygen(t, kind, "")
		locked := keygen(t, kind, "a passphrase")
		socket := startAgent(t, file)
		for name, source := range map[string]string{"file": file, "agent": AgentSource, "public half": file + ".pub"} {
			b, err := openKey(t, source, socket)
			if err != nil {
				t.Errorf("%s %s: %v", kind, name, err)
				continue
			}
			keys, err := b.PublicKeys(ctx, "key")
			if err != nil || len(keys) != 1 || !bytes.Equal(keys[0], publicOf(t, file)) {
				t.Fatalf("%s %s: %d keys, %v", kind, name, len(keys), err)
			}
			sig, err := b.Sign(ctx, "key", keys[0], algorithm, data, Binding{})
			if err != nil {
				t.Errorf("%s %s: %v", kind, name, err)
				continue
			}
			verify(t, keys[0], sig, data)
			for _, wrong := range []string{"ssh-rsa", "ssh-dss", ""} {
				if _, err := b.Sign(ctx, "key", keys[0], wrong, data, Binding{}); err == nil {
					t.Errorf("%s %s signs as %q", kind, name, wrong)
				}
			}
			if _, err := b.Sign(ctx, "key", publicOf(t, locked), algorithm, data, Binding{}); err == nil {
				t.Errorf("%s %s signs with another key", kind, name)
			}
			if _, err := b.Credential("key", "", ""); !errors.Is(err, ErrUnknown) {
				t.Errorf("%s %s: the key itself is handed out: %v", kind, name, err)
			}
			b.Revoke()
			if _, err := b.Sign(ctx, "key", keys[0], algorithm, data, Binding{}); !errors.Is(err, ErrRevoked) {
				t.Errorf("%s %s after the revocation: %v", kind, name, err)
			}
			if _, err := b.PublicKeys(ctx, "key"); !errors.Is(err, ErrRevoked) {
				t.Errorf("%s %s after the revocation: %v", kind, name, err)
			}
		}
	}
}

// What cannot be used is refused at the start, with what to do.
func TestSSHKeysThatCannotBeUsed(t *testing.T) {
	file, locked := keygen(t, "ed25519", ""), keygen(t, "ed25519", "a passphrase")
	old := filepath.Join(t.TempDir(), "old")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "rsa", "-m", "PEM", "-N", "a passphrase", "-f", old).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Remove(old + ".pub"); err != nil {
		t.Fatal(err)
	}
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("SECRETWORD no key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := startAgent(t)
	for name, c := range map[string]struct{ source, socket, says, do string }{
		"locked, no agent":    {locked, "", "has a passphrase", "ssh-add " + locked},
		"locked, empty agent": {locked, empty, "has a passphrase", "ssh-add " + locked},
		"old format":          {old, "", "has a passphrase", "ssh-add " + old},
		"public, no agent":    {file + ".pub", "", "SSH_AUTH_SOCK", "ssh-add " + file},
		"no agent":            {AgentSource, "", "SSH_AUTH_SOCK is not set", "ssh-agent"},
		"empty agent":         {AgentSource, empty, "holds no key", "ssh-add"},
		"dead agent":          {AgentSource, "/nonexistent/socket", "does not answer", "ssh-agent"},
		"no file":             {"/nonexistent/id", "", "does not exist", ""},
		"garbage":             {garbage, "", "holds no SSH key", "id_ed25519"},
	} {
		_, err := openKey(t, c.source, c.socket)
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), c.do) || strings.Contains(err.Error(), "SECRETWORD") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// With an agent that holds it, an encrypted file is as good as the agent.
	socket := startAgent(t, file)
	unlocked := keygen(t, "ed25519", "")
	for _, f := range []string{unlocked} {
		add(t, socket, f)
		if out, err := exec.Command("ssh-keygen", "-q", "-p", "-P", "", "-N", "later", "-f", f).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		b, err := openKey(t, f, socket)
		if err != nil {
			t.Fatal(err)
		}
		// Only that key, not the others of the agent.
		keys, err := b.PublicKeys(context.Background(), "key")
		if err != nil || len(keys) != 1 || !bytes.Equal(keys[0], publicOf(t, f)) {
			t.Errorf("%d keys, %v", len(keys), err)
		}
		if _, err := b.Sign(context.Background(), "key", publicOf(t, file), "ssh-ed25519", []byte("x"), Binding{}); err == nil {
			t.Error("another key of the agent signs")
		}
	}
}

// A key that is taken away signs no more: there is no copy of it.
func TestSSHKeyRemoved(t *testing.T) {
	ctx, file := context.Background(), keygen(t, "ed25519", "")
	public := publicOf(t, file)
	socket := startAgent(t, file)
	byFile, err := openKey(t, file, "")
	if err != nil {
		t.Fatal(err)
	}
	byAgent, err := openKey(t, AgentSource, socket)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(keygen(t, "ed25519", ""))
	if err != nil {
		t.Fatal(err)
	}
	add(t, socket, "-D")
	if err := os.WriteFile(file, other, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := byFile.Sign(ctx, "key", public, "ssh-ed25519", []byte("x"), Binding{}); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("exchanged: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*Broker{"file": byFile, "agent": byAgent} {
		if _, err := b.Sign(ctx, "key", public, "ssh-ed25519", []byte("x"), Binding{}); err == nil {
			t.Errorf("the %s still signs", name)
		}
	}
}

// The agent is told for which connection it signs. One whose key is bound to a
// server (ssh-add -h) signs for that server only.
func TestAgentJudgesToo(t *testing.T) {
	ctx, file := context.Background(), keygen(t, "ed25519", "")
	host, hostSigner := keygen(t, "ed25519", ""), ssh.Signer(nil)
	raw, err := os.ReadFile(host)
	if err != nil {
		t.Fatal(err)
	}
	if hostSigner, err = ssh.ParsePrivateKey(raw); err != nil {
		t.Fatal(err)
	}
	known := filepath.Join(t.TempDir(), "known")
	if err := os.WriteFile(known, append([]byte("git.example.com "), ssh.MarshalAuthorizedKey(hostSigner.PublicKey())...), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := startAgent(t)
	add(t, socket, "-H", known, "-h", "git@git.example.com", file)
	b, err := openKey(t, AgentSource, socket)
	if err != nil {
		t.Fatal(err)
	}
	session := bytes.Repeat([]byte{9}, 32)
	data := ssh.Marshal(struct {
		Session               []byte
		Kind                  byte
		User, Service, Method string
		Signed                bool
		Algorithm             string
		Key                   []byte
	}{session, 50, "git", "ssh-connection", "publickey", true, "ssh-ed25519", publicOf(t, file)})
	proof := func(s ssh.Signer) Binding {
		sig, err := s.Sign(nil, session)
		if err != nil {
			t.Fatal(err)
		}
		return Binding{s.PublicKey().Marshal(), session, ssh.Marshal(sig)}
	}
	sig, err := b.Sign(ctx, "key", publicOf(t, file), "ssh-ed25519", data, proof(hostSigner))
	if err != nil {
		t.Fatal(err)
	}
	verify(t, publicOf(t, file), sig, data)
	stranger, err := os.ReadFile(keygen(t, "ed25519", ""))
	if err != nil {
		t.Fatal(err)
	}
	strangerSigner, err := ssh.ParsePrivateKey(stranger)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Sign(ctx, "key", publicOf(t, file), "ssh-ed25519", data, proof(strangerSigner)); err == nil {
		t.Error("signed for another server")
	}
}
