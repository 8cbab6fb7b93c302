package capability

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func sshSet(t testing.TB, grants string) *Set {
	t.Helper()
	p, err := policy.Parse("p.yaml", []byte("version: 1\ncredentials:\n  key: {from: {ssh: agent}}\n  deploy: {from: {ssh: ~/.ssh/deploy}}\n  token: {from: {env: GITHUB_TOKEN}}\ngrants:\n"+grants))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Compile(FromPolicy(p), catalog.Default())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const sshOid = "1111111111111111111111111111111111111111"

// pushHead writes the head of a push; a ref with - in front is removed.
func pushHead(refs ...string) []byte {
	var b strings.Builder
	for i, r := range refs {
		to := sshOid
		if rest, gone := strings.CutPrefix(r, "-"); gone {
			r, to = rest, strings.Repeat("0", 40)
		}
		text := sshOid + " " + to + " " + r
		if i == 0 {
			text += "\x00report-status"
		}
		fmt.Fprintf(&b, "%04x%s", len(text)+4, text)
	}
	return []byte(b.String() + "0000")
}

func sshCommand(t testing.TB, at, program, path string, refs ...string) SSHCommand {
	t.Helper()
	user, rest, _ := strings.Cut(at, "@")
	if !strings.Contains(rest, ":") {
		rest += ":22"
	}
	hp, err := hostport.Parse(rest)
	if err != nil {
		t.Fatal(err)
	}
	c := SSHCommand{User: user, Host: hp.Host, Port: hp.Port, Program: "git-" + program, Path: strings.TrimPrefix(path, "/"), Absolute: strings.HasPrefix(path, "/")}
	if len(refs) > 0 {
		c.Head = pushHead(refs...)
	}
	return c
}

func (c SSHCommand) at() hostport.HostPort { return hostport.HostPort{Host: c.Host, Port: c.Port} }

func TestDecideSSH(t *testing.T) {
	const typed = `  - {service: github, operations: [fetch], resources: [acme/widgets], credential: key}
  - {service: github, operations: [push], resources: ["acme/widgets@agent/*"], credential: key}
  - {service: github, operations: [fetch], resources: [acme/secret], credential: deploy}
  - {service: github, operations: [fetch], resources: [acme/web], credential: token}
`
	const raw = `  - {ssh: git@git.corp.example, operations: [fetch], resources: [team/repo, "shared/*", /srv/git/app], credential: key}
  - {ssh: git@git.corp.example, operations: [push], resources: ["team/repo@refs/tags/v*", "team/all"], credential: key}
  - {ssh: git@git.corp.example, operations: [push-delete], resources: ["team/all@tmp/*"], credential: key}
  - {ssh: me@git.corp.example:2222, operations: [push], resources: [mine], credential: deploy}
`
	for _, c := range []struct {
		grants, at, program, path string
		refs                      []string
		code                      string // "" is allowed
		action, credential        string
	}{
		{typed, "git@github.com", "upload-pack", "acme/widgets", nil, "", "github.fetch", "key"},
		{typed, "git@github.com", "upload-pack", "/acme/widgets", nil, "", "github.fetch", "key"},
		{typed, "git@github.com", "upload-pack", "ACME/Widgets", nil, "", "github.fetch", "key"},
		{typed, "git@ssh.github.com:443", "upload-pack", "acme/widgets", nil, "", "github.fetch", "key"},
		{typed, "git@github.com", "upload-pack", "acme/secret", nil, "", "github.fetch", "deploy"},
		{typed, "git@github.com", "upload-pack", "acme/web", nil, CodeResourceNotGranted, "github.fetch", ""}, // by token: HTTPS only
		{typed, "git@github.com", "upload-pack", "acme/plans", nil, CodeResourceNotGranted, "github.fetch", ""},
		{typed, "git@github.com", "upload-pack", "acme", nil, CodeUnknownOperation, "", ""},
		{typed, "git@github.com", "upload-pack", "acme/widgets/x", nil, CodeUnknownOperation, "", ""},
		{typed, "root@github.com", "upload-pack", "acme/widgets", nil, CodeNoGrant, "", ""},
		{typed, "git@github.com:2222", "upload-pack", "acme/widgets", nil, CodeNoGrant, "", ""},
		{typed, "git@gitlab.com", "upload-pack", "acme/widgets", nil, CodeNoGrant, "", ""},
		{typed, "git@github.com", "receive-pack", "acme/widgets", nil, "", "github.push", "key"},
		{typed, "git@github.com", "receive-pack", "acme/widgets", []string{"refs/heads/agent/x"}, "", "github.push", "key"},
		{typed, "git@github.com", "receive-pack", "acme/widgets", []string{"refs/heads/agent/x", "refs/heads/agent/y/z"}, "", "github.push", "key"},
		{typed, "git@github.com", "receive-pack", "acme/widgets", []string{"refs/heads/main"}, CodeResourceNotGranted, "github.push", ""},
		{typed, "git@github.com", "receive-pack", "acme/widgets", []string{"refs/heads/agent/x", "refs/heads/main"}, CodeResourceNotGranted, "github.push", ""},
		{typed, "git@github.com", "receive-pack", "acme/widgets", []string{"-refs/heads/agent/x"}, CodeOperationNotGranted, "github.push", ""},
		{typed, "git@github.com", "receive-pack", "acme/secret", nil, CodeResourceNotGranted, "github.push", ""},

		{raw, "git@git.corp.example", "upload-pack", "team/repo", nil, "", "ssh.fetch", "key"},
		{raw, "git@git.corp.example", "upload-pack", "/team/repo", nil, "", "ssh.fetch", "key"}, // named as the rule spells it
		{raw, "git@git.corp.example", "upload-pack", "/srv/git/app", nil, "", "ssh.fetch", "key"},
		{raw, "git@git.corp.example", "upload-pack", "srv/git/app", nil, CodeResourceNotGranted, "ssh.fetch", ""},
		{raw, "git@git.corp.example", "upload-pack", "Team/repo", nil, CodeResourceNotGranted, "ssh.fetch", ""},
		{raw, "git@git.corp.example", "upload-pack", "shared/one", nil, "", "ssh.fetch", "key"},
		{raw, "git@git.corp.example", "upload-pack", "shared/one/two", nil, CodeResourceNotGranted, "ssh.fetch", ""},
		{raw, "git@git.corp.example", "upload-pack", "shared", nil, CodeResourceNotGranted, "ssh.fetch", ""},
		{raw, "git@git.corp.example", "receive-pack", "shared/one", nil, CodeResourceNotGranted, "ssh.push", ""},
		{raw, "git@git.corp.example", "receive-pack", "team/repo", []string{"refs/tags/v1"}, "", "ssh.push", "key"},
		{raw, "git@git.corp.example", "receive-pack", "team/repo", []string{"refs/tags/x1"}, CodeResourceNotGranted, "ssh.push", ""},
		{raw, "git@git.corp.example", "receive-pack", "team/all", []string{"refs/heads/main", "refs/tags/x"}, "", "ssh.push", "key"},
		{raw, "git@git.corp.example", "receive-pack", "team/all", []string{"refs/for/main"}, CodeResourceNotGranted, "ssh.push", ""},
		{raw, "git@git.corp.example", "receive-pack", "team/all", []string{"-refs/heads/tmp/x"}, "", "ssh.push", "key"},
		{raw, "git@git.corp.example", "receive-pack", "team/all", []string{"-refs/heads/main"}, CodeResourceNotGranted, "ssh.push", ""},
		{raw, "git@git.corp.example", "upload-archive", "team/repo", nil, CodeUnknownOperation, "", ""},
		{raw, "git@git.corp.example", "upload-pack", "mine", nil, CodeResourceNotGranted, "ssh.fetch", ""},
		{raw, "me@git.corp.example:2222", "receive-pack", "mine", []string{"refs/heads/x"}, "", "ssh.push", "deploy"},
		{raw, "me@git.corp.example:2222", "upload-pack", "mine", nil, CodeOperationNotGranted, "ssh.fetch", ""},
		{raw, "me@git.corp.example", "receive-pack", "mine", nil, CodeNoGrant, "", ""},
	} {
		cmd := sshCommand(t, c.at, c.program, c.path, c.refs...)
		d := sshSet(t, c.grants).DecideSSH(cmd)
		what := fmt.Sprintf("%s %s %s %q", c.at, c.program, c.path, c.refs)
		if allowed := d.Verdict == vocabulary.Allow; allowed != (c.code == "") || !allowed && d.Reason.Code != c.code {
			t.Errorf("%s: %v %+v, want %q", what, d.Verdict, d.Reason, c.code)
			continue
		}
		if c.action != "" && string(d.Action) != c.action {
			t.Errorf("%s: action %s", what, d.Action)
		}
		if c.code != "" {
			if d.Permit != nil || d.Swap != nil {
				t.Errorf("%s: a denial with a permit", what)
			}
			continue
		}
		if d.Permit == nil || !d.Permit.Opaque() || d.Permit.Host() != cmd.Host || d.Permit.Port() != cmd.Port || d.Swap == nil || d.Swap.Credential != c.credential || d.User != cmd.User {
			t.Errorf("%s: %+v %+v", what, d.Permit, d.Swap)
		}
	}
	// What a plain server is told is what was judged.
	if d := sshSet(t, raw).DecideSSH(sshCommand(t, "git@git.corp.example", "upload-pack", "/team/repo")); d.Path != "team/repo" {
		t.Errorf("path %q", d.Path)
	}
	if d := sshSet(t, raw).DecideSSH(sshCommand(t, "git@git.corp.example", "upload-pack", "/srv/git/app")); d.Path != "/srv/git/app" {
		t.Errorf("path %q", d.Path)
	}
	cmd := sshCommand(t, "git@github.com", "upload-pack", "acme/widgets")
	cmd.Suffix = true
	if d := sshSet(t, typed).DecideSSH(cmd); d.Path != "acme/widgets.git" {
		t.Errorf("path %q", d.Path)
	}
}

// The server sees one key: what several keys are granted for together is not
// granted, nor is what another key is for than the one that it has seen.
func TestSSHOneKey(t *testing.T) {
	s := sshSet(t, `  - {ssh: git@git.corp.example, operations: [push], resources: ["team/r@a"], credential: key}
  - {ssh: git@git.corp.example, operations: [push], resources: ["team/r@b"], credential: deploy}
`)
	for _, c := range []struct {
		refs       []string
		seen, want string
	}{
		{[]string{"refs/heads/a"}, "", "key"}, {[]string{"refs/heads/b"}, "", "deploy"}, {[]string{"refs/heads/a", "refs/heads/b"}, "", ""},
		{[]string{"refs/heads/a"}, "key", "key"}, {[]string{"refs/heads/b"}, "key", ""}, {[]string{"refs/heads/b"}, "deploy", "deploy"}, {[]string{"refs/heads/a"}, "other", ""},
	} {
		cmd := sshCommand(t, "git@git.corp.example", "receive-pack", "team/r", c.refs...)
		cmd.Credential = c.seen
		d := s.DecideSSH(cmd)
		got := ""
		if d.Verdict == vocabulary.Allow {
			got = d.Swap.Credential
		}
		if got != c.want {
			t.Errorf("%q after %q: %q, want %q (%+v)", c.refs, c.seen, got, c.want, d.Reason)
		}
	}
}

// A grant with an SSH key is for SSH, one with a token for HTTPS.
func TestSSHGrantsAreForSSHOnly(t *testing.T) {
	key := sshSet(t, "  - {service: github, operations: [fetch], resources: [acme/widgets], credential: key}\n")
	token := sshSet(t, "  - {service: github, operations: [fetch], resources: [acme/widgets], credential: token}\n")
	github, https := sshCommand(t, "git@github.com", "", "").at(), sshCommand(t, "git@github.com:443", "", "").at()
	if treat, d := key.Connect(github); treat != TreatSSH || d.Verdict != vocabulary.Allow || d.Permit != nil {
		t.Errorf("key, 22: %v %+v", treat, d)
	}
	if treat, _ := key.Connect(https); treat != TreatRefuse {
		t.Errorf("key, 443: %v", treat)
	}
	if treat, d := token.Connect(github); treat != TreatRefuse || !strings.Contains(d.Reason.Remedy, "ssh: agent") {
		t.Errorf("token, 22: %v %+v", treat, d)
	}
	if treat, _ := token.Connect(https); treat != TreatTLS {
		t.Errorf("token, 443: %v", treat)
	}
	if d := token.DecideSSH(sshCommand(t, "git@github.com", "upload-pack", "acme/widgets")); d.Verdict == vocabulary.Allow {
		t.Error("a token lets SSH through")
	}
	if got := token.SSHEndpoints(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	var none *Set
	if d := none.DecideSSH(sshCommand(t, "git@github.com", "upload-pack", "acme/widgets")); d.Verdict == vocabulary.Allow || len(none.SSHEndpoints()) != 0 {
		t.Error("a nil set allows")
	}
	at := key.SSHEndpoints()
	if i := slices.IndexFunc(at, func(e SSHEndpoint) bool { return e.Host.String() == "github.com" && e.Port == 22 && e.User == "git" }); i < 0 || !slices.Equal(at[i].Credentials, []string{"key"}) {
		t.Errorf("%+v", at)
	}
}

func TestSSHRulesThatDoNotCompile(t *testing.T) {
	for name, r := range map[string]Rule{
		"no operations":      {SSH: "git@git.corp.example", Resources: []string{"a/b"}, Credential: "key", SSHKey: true},
		"no resources":       {SSH: "git@git.corp.example", Operations: []string{"fetch"}, Credential: "key", SSHKey: true},
		"no credential":      {SSH: "git@git.corp.example", Operations: []string{"fetch"}, Resources: []string{"a/b"}},
		"unknown operation":  {SSH: "git@git.corp.example", Operations: []string{"shell"}, Resources: []string{"a/b"}, Credential: "key", SSHKey: true},
		"dots":               {SSH: "git@git.corp.example", Operations: []string{"fetch"}, Resources: []string{"a/../b"}, Credential: "key", SSHKey: true},
		"everything":         {SSH: "git@git.corp.example", Operations: []string{"fetch"}, Resources: []string{"*"}, Credential: "key", SSHKey: true},
		"middle star":        {SSH: "git@git.corp.example", Operations: []string{"fetch"}, Resources: []string{"a/*/b"}, Credential: "key", SSHKey: true},
		"a ref that is none": {SSH: "git@git.corp.example", Operations: []string{"push"}, Resources: []string{"a/b@x..y"}, Credential: "key", SSHKey: true},
		"an address":         {SSH: "git@10.0.0.1", Operations: []string{"fetch"}, Resources: []string{"a/b"}, Credential: "key", SSHKey: true},
		"a URL":              {SSH: "ssh://git@git.corp.example", Operations: []string{"fetch"}, Resources: []string{"a/b"}, Credential: "key", SSHKey: true},
		"two forms":          {SSH: "git@git.corp.example", TCP: "git.corp.example:22", Operations: []string{"fetch"}, Resources: []string{"a/b"}, Credential: "key", SSHKey: true},
		"no SSH server":      {Service: "anthropic", Operations: []string{"messages"}, Credential: "key", SSHKey: true},
	} {
		if _, err := Compile(Spec{Rules: []Rule{r}}, catalog.Default()); err == nil {
			t.Errorf("%s compiles", name)
		}
	}
	_, err := Compile(Spec{Rules: []Rule{
		{SSH: "git@git.corp.example", Operations: []string{"fetch"}, Resources: []string{"a/b"}, Credential: "key", SSHKey: true}, {TCP: "git.corp.example:22"},
	}}, catalog.Default())
	if err == nil || !strings.Contains(err.Error(), "git over ssh") {
		t.Errorf("opaque and mediated at once: %v", err)
	}
}
