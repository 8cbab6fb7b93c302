package catalog

import (
	"errors"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

func TestIdentifySSH(t *testing.T) {
	cat := embedded(t)
	for _, c := range []struct{ service, to, user, command, want string }{
		{"github", "github.com:22", "git", "git-upload-pack 'acme/widgets.git'", "fetch acme/widgets"},
		{"github", "github.com:22", "git", "git-upload-pack '/Acme/Widgets.git'", "fetch acme/widgets"},
		{"github", "ssh.github.com:443", "git", "git receive-pack 'acme/widgets'", "push acme/widgets"},
		{"gitlab", "gitlab.com:22", "git", "git-receive-pack 'acme/tools/widgets.git'", "push acme/tools/widgets"},
		{"gitlab", "altssh.gitlab.com:443", "git", "git-upload-archive 'acme/widgets.git'", "fetch acme/widgets"},
		{"github", "github.com:22", "root", "git-upload-pack 'acme/widgets.git'", "!"},
		{"github", "github.com:443", "git", "git-upload-pack 'acme/widgets.git'", "!"},
		{"github", "gist.github.com:22", "git", "git-upload-pack 'abc.git'", "!"},
		{"github", "evil.example:22", "git", "git-upload-pack 'acme/widgets.git'", "!"},
		{"github", "github.com:22", "git", "git-upload-archive 'acme/widgets.git'", "!"},
		{"github", "github.com:22", "git", "git-upload-pack 'acme/widgets/more.git'", "!"},
		{"github", "github.com:22", "git", "git-lfs-authenticate 'acme/widgets.git' upload", "!"},
		{"gitlab", "gitlab.com:22", "git", "git-lfs-authenticate 'acme/widgets.git' download", "!"},
		{"github", "github.com:22", "git", "git-upload-pack 'acme/widgets.git'; id", "!"},
		{"github", "github.com:22", "git", "", "!"},
		{"npm", "registry.npmjs.org:22", "git", "git-upload-pack 'acme/widgets.git'", "!"},
	} {
		svc, ok := cat.Service(c.service)
		hp, err := hostport.Parse(c.to)
		if !ok || err != nil {
			t.Fatal(c, err)
		}
		op, resource, err := svc.IdentifySSH(hp.Host, hp.Port, c.user, c.command)
		got := op.Name + " " + resource
		if errors.Is(err, ErrUnknownOperation) {
			got = "!"
		}
		if got != c.want {
			t.Errorf("%s@%s %q: got %s, %v, want %s", c.user, c.to, c.command, got, err, c.want)
		}
	}
}

func TestPushUses(t *testing.T) {
	svc, _ := embedded(t).Service("github")
	hp, _ := hostport.Parse("github.com:22")
	op, resource, err := svc.IdentifySSH(hp.Host, hp.Port, "git", "git-receive-pack 'acme/widgets.git'")
	if err != nil {
		t.Fatal(err)
	}
	a, b := strings.Repeat("1", 40), strings.Repeat("0", 40)
	line := b + " " + a + " refs/heads/x\x00report-status"
	head := "0070" + line + "0000"
	if len(line)+4 != 0x70 {
		t.Fatal(len(line) + 4)
	}
	uses, err := svc.PushUses(&op, resource, []byte(head))
	if err != nil || len(uses) != 1 || uses[0].Resource != "acme/widgets@refs/heads/x" || uses[0].Operation != "push" {
		t.Errorf("%v, %v", uses, err)
	}
	if uses, err := svc.PushUses(&op, resource, []byte(head[:50])); err == nil || len(uses) > 0 {
		t.Error("half a head is judged")
	}
	fetch, _ := svc.Operation("fetch")
	if _, err := svc.PushUses(&fetch, resource, []byte(head)); err == nil {
		t.Error("a fetch takes a push")
	}
}

func TestHasCommand(t *testing.T) {
	for s, want := range map[string]bool{
		"": false, "a/b": false, "see /usr/bin": false, "/": false, "//x": false, "/ x": false, "/1": false, "https://x.example": false,
		"/merge": true, "a\n/merge": true, "a\r/Merge": true, "a\r\n \t/merge": true, "a\u2028/merge": true, "\u00a0/merge": true, "> /merge": false,
	} {
		if hasCommand(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}
