package policy

import (
	"strings"
	"testing"
)

const sshPolicy = `version: 1
credentials:
  agent-key: {from: {ssh: agent}}
  own-key: {from: {ssh: ~/.ssh/id_ed25519}}
  token: {from: {env: GITHUB_TOKEN}}
grants:
  - {service: github, operations: [fetch], resources: [acme/widgets], credential: agent-key}
  - {service: github, operations: [fetch], resources: [acme/widgets], credential: token}
  - {ssh: git@GIT.corp.example, operations: [fetch, push-delete], resources: [team/repo, "tools/*", /srv/git/app, "team/x@agent/*"], credential: own-key}
  - {ssh: me_2@git.corp.example:2222, operations: [push], resources: [a], credential: agent-key}
`

func TestSSHPolicy(t *testing.T) {
	p, err := Parse("p.yaml", []byte(sshPolicy))
	if err != nil {
		t.Fatal(err)
	}
	if p.Credentials[0].SSH != SSHAgent || p.Credentials[1].SSH != "~/.ssh/id_ed25519" {
		t.Errorf("%+v", p.Credentials)
	}
	for i, want := range []bool{true, false, true, true} {
		if p.OverSSH(p.Grants[i]) != want {
			t.Errorf("grant %d over SSH: %v", i, !want)
		}
	}
	if p.Grants[2].SSH != "git@git.corp.example" || p.Grants[3].SSH != "me_2@git.corp.example:2222" {
		t.Errorf("%q %q", p.Grants[2].SSH, p.Grants[3].SSH)
	}
	again, err := Parse("p.yaml", p.YAML())
	if err != nil || string(again.YAML()) != string(p.YAML()) && len(again.Grants) != 4 {
		t.Fatalf("%v\n%s", err, p.YAML())
	}
	if again.Credentials[0].SSH != SSHAgent || again.Grants[2].SSH != p.Grants[2].SSH || len(again.Grants[2].Resources) != 4 {
		t.Errorf("rendered: %s", p.YAML())
	}
}

func TestSSHPolicyRejected(t *testing.T) {
	for what, c := range map[string]struct{ grant, says string }{
		"a URL":             {`{ssh: "ssh://git@h.example", operations: [fetch], resources: [a/b], credential: k}`, "is a URL or has a path"},
		"a path":            {`{ssh: "git@h.example:a/b", operations: [fetch], resources: [a/b], credential: k}`, "is a URL or has a path"},
		"no user":           {`{ssh: h.example, operations: [fetch], resources: [a/b], credential: k}`, "has no user"},
		"an option":         {`{ssh: "-oProxyCommand=x@h.example", operations: [fetch], resources: [a/b], credential: k}`, "has no user"},
		"an address":        {`{ssh: git@10.0.0.1, operations: [fetch], resources: [a/b], credential: k}`, "address"},
		"a wildcard":        {`{ssh: "git@*.example.com", operations: [fetch], resources: [a/b], credential: k}`, ""},
		"no operations":     {`{ssh: git@h.example, resources: [a/b], credential: k}`, "names no operations"},
		"no resources":      {`{ssh: git@h.example, operations: [fetch], credential: k}`, "names no repositories"},
		"no credential":     {`{ssh: git@h.example, operations: [fetch], resources: [a/b]}`, "has no credential"},
		"a token":           {`{ssh: git@h.example, operations: [fetch], resources: [a/b], credential: t}`, "is no SSH key"},
		"a key in a header": {`{http: https://h.example/**, credential: k}`, "cannot travel in a header"},
		"an operation":      {`{ssh: git@h.example, operations: [shell], resources: [a/b], credential: k}`, "is not an operation of git over SSH"},
		"a resource":        {`{ssh: git@h.example, operations: [fetch], resources: [a/../b], credential: k}`, "is not a repository"},
		"a key that is not": {`{ssh: git@h.example, methods: [GET], operations: [fetch], resources: [a/b], credential: k}`, "does not belong"},
		"two forms":         {`{ssh: git@h.example, tcp: h.example:22}`, "has both"},
		"two keys on one":   {`{service: github, operations: [fetch], resources: [a/b], credential: k}, {service: github, operations: [fetch], resources: [a/b], credential: k2}`, "for what has credential"},
	} {
		_, err := Parse("p.yaml", []byte("version: 1\ncredentials: {k: {from: {ssh: agent}}, k2: {from: {ssh: ~/k2}}, t: {from: {env: T}}}\ngrants: ["+c.grant+"]\n"))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
