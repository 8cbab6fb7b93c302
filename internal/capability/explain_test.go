package capability

import (
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const sshGrants = `  - {service: github, operations: [fetch], resources: [acme/widgets], credential: key}
  - {service: github, operations: [push], resources: ["acme/widgets@agent/*"], credential: key}
  - {service: github, operations: [fetch], resources: [acme/web], credential: token}
  - {ssh: git@git.corp.example, operations: [fetch], resources: [team/repo, /srv/git/app], credential: key}
  - {ssh: git@git.corp.example, operations: [push], resources: [team/repo, "team/old@refs/tags/v*"], credential: key}
  - {ssh: git@git.corp.example, operations: [push-delete], resources: ["team/repo@tmp/*"], credential: key}
  - tcp: opaque.example:22
  - http: https://docs.example/**
`

// TestExplainSSH: what git would ask for over SSH, by the words of people, has
// the verdict and the rule that the gateway's decision has (DecideSSH).
func TestExplainSSH(t *testing.T) {
	s := sshSet(t, sshGrants)
	for _, c := range []struct {
		method, target string
		line           int // of the rule, counted in sshGrants; 0 for the policy as a whole
		code           string
	}{
		{"CLONE", "ssh://git@github.com/acme/widgets.git", 1, CodeGranted},
		{"FETCH", "git@github.com:acme/widgets", 1, CodeGranted},
		{"FETCH", "git@github.com:/Acme/Widgets.git", 1, CodeGranted},
		{"GIT-UPLOAD-PACK", "ssh://git@ssh.github.com:443/acme/widgets", 1, CodeGranted},
		{"FETCH", "git@github.com:acme/plans", 1, CodeResourceNotGranted},
		{"FETCH", "git@github.com:acme/web", 1, CodeResourceNotGranted}, // by token, so over HTTPS
		{"PUSH", "git@github.com:acme/widgets.git", 2, CodeGranted},
		{"PUSH", "git@github.com:acme/widgets.git@agent/one", 2, CodeGranted},
		{"PUSH", "ssh://git@github.com/acme/widgets@refs/heads/agent/one", 2, CodeGranted},
		{"PUSH", "git@github.com:acme/widgets@main", 2, CodeResourceNotGranted},
		{"PUSH", "git@github.com:acme/widgets@refs/tags/agent/one", 2, CodeResourceNotGranted},
		{"PUSH-DELETE", "git@github.com:acme/widgets@agent/one", 2, CodeOperationNotGranted},
		{"PUSH", "root@github.com:acme/widgets", 1, CodeNoGrant},
		{"PUSH", "ssh://git@github.com:2222/acme/widgets", 1, CodeNoGrant},
		{"FETCH", "git@git.corp.example:team/repo.git", 4, CodeGranted},
		{"FETCH", "ssh://git@git.corp.example/srv/git/app", 4, CodeGranted},
		{"FETCH", "git@git.corp.example:srv/git/app", 4, CodeResourceNotGranted},
		{"PUSH", "git@git.corp.example:team/repo@main", 5, CodeGranted},
		{"PUSH", "git@git.corp.example:team/old@refs/tags/v1", 5, CodeGranted},
		{"PUSH", "git@git.corp.example:team/old@main", 5, CodeResourceNotGranted},
		{"PUSH-DELETE", "git@git.corp.example:team/repo@tmp/x", 5, CodeGranted},
		{"PUSH-DELETE", "git@git.corp.example:team/repo@main", 6, CodeResourceNotGranted},
		{"ARCHIVE", "git@git.corp.example:team/repo", 4, CodeUnknownOperation},
		{"FETCH", "git@opaque.example:team/repo", 7, CodeGranted},
		{"FETCH", "git@docs.example:team/repo", 8, CodeNoGrant},
		{"FETCH", "git@nowhere.example:team/repo", 0, CodeNoGrant},
	} {
		x, err := s.Explain(c.method, c.target)
		if err != nil {
			t.Errorf("%s %s: %v", c.method, c.target, err)
			continue
		}
		line := 0
		if x.Decision.Reason.Rule.Line > 0 {
			line = x.Decision.Reason.Rule.Line - s.rules[0].Pos.Line + 1
		}
		allowed := x.Decision.Verdict == vocabulary.Allow
		if x.Decision.Reason.Code != c.code || line != c.line || allowed != (c.code == CodeGranted) {
			t.Errorf("%s %s: grant %d, %s\n%s", c.method, c.target, line, x.Decision.Reason.Code, x)
		}
		matches := false
		for _, e := range x.Rules {
			matches = matches || e.Matches
		}
		if matches != allowed || len(x.Rules) != len(s.rules) {
			t.Errorf("%s %s: the rules say something else\n%s", c.method, c.target, x)
		}
	}
	for _, bad := range [][2]string{
		{"FETCH", "git@github.com:acme/widgets@main"}, {"PUSH-DELETE", "git@github.com:acme/widgets"}, {"GET", "ssh://git@github.com/acme/widgets"},
		{"FETCH", "ssh://github.com/acme/widgets"}, {"FETCH", "ssh://git:pw@github.com/acme/widgets"}, {"FETCH", "ssh://git@github.com/"},
		{"FETCH", "git@github.com:~user/x"}, {"FETCH", "git@github.com:a/../b"}, {"PUSH", "git@github.com:acme/widgets@a..b"},
		{"FETCH", "git@10.0.0.1:a/b"}, {"FETCH", "ssh://git@github.com:0/a/b"}, {"FETCH", "ssh://git@github.com/a/b?x#y"}, {"FETCH", "git@github.com:a'b"},
	} {
		if x, err := s.Explain(bad[0], bad[1]); err == nil {
			t.Errorf("%s %s: %s", bad[0], bad[1], x)
		}
	}
}

// TestExplainDestinations: names, addresses and the loopback have answers, and
// what the connection would not carry is not allowed by a path that would match.
func TestExplainDestinations(t *testing.T) {
	s := sshSet(t, `  - http: https://docs.example/3/**
  - http: http://localhost:3000/api/**
  - tcp: localhost:5432
  - http: https://*.wide.example/**
    methods: [WEBSOCKET]
  - tcp: db.example:5432
`)
	for _, c := range []struct {
		method, target, code, say string
	}{
		{"RESOLVE", "dns://docs.example", CodeGranted, "the name gets an address inside"},
		{"RESOLVE", "dns://a.b.wide.example", CodeGranted, ""},
		{"RESOLVE", "dns://wide.example", CodeNoGrant, ""},
		{"RESOLVE", "dns://db.example", CodeGranted, ""},
		{"GET", "http://docs.example/3/x", CodeNoGrant, "does not cover port 80"},
		{"GET", "https://docs.example:8443/3/x", CodeNoGrant, "does not cover port 8443"},
		{"GET", "http://docs.example:443/3/x", CodeNoGrant, "granted as https, not as http"},
		{"GET", "https://10.0.0.1/", CodeIPLiteral, "use the name"},
		{"GET", "https://[::1]:3000/", CodeIPLiteral, "the sandbox's own"},
		{"CONNECT", "tcp://0x7f000001:80", CodeIPLiteral, ""},
		{"GET", "http://localhost:3000/api/x", CodeGranted, "the sandbox's own"},
		{"GET", "http://localhost:3000/x", CodeNoGrant, "the sandbox's own"},
		{"GET", "http://localhost:8080/", CodeNoGrant, "the sandbox's own"},
		{"CONNECT", "tcp://localhost:5432", CodeGranted, "opaque"},
		{"GET", "http://db.example:5432/x", CodeGranted, "no request on it is judged"},
		{"GET", "wss://a.wide.example/x", CodeGranted, ""},
		{"GET", "https://a.wide.example/x", CodeMethodNotGranted, ""},
		{"WEBSOCKET", "https://docs.example/3/x", CodeMethodNotGranted, ""},
		{"GET", "https://docs.example/3/a%2Fb", CodeBadRequest, ""},
		{"GET", "https://docs.example/3/a%3bb", CodeBadRequest, "which servers read in different ways"},
		{"GET", "https://docs.example/3/%252e", CodeBadRequest, ""},
	} {
		x, err := s.Explain(c.method, c.target)
		if err != nil || x.Decision.Reason.Code != c.code || (x.Decision.Verdict == vocabulary.Allow) != (c.code == CodeGranted) || !strings.Contains(x.String(), c.say) {
			t.Errorf("%s %s: %v\n%s", c.method, c.target, err, x)
		}
	}
	for _, bad := range [][2]string{{"POST", "wss://a.wide.example/x"}, {"RESOLVE", "dns:docs.example"}, {"GET", "ftp://docs.example/"}} {
		if _, err := s.Explain(bad[0], bad[1]); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}
