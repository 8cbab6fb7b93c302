package policy

import (
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// SSHAgent is the Credential.SSH that means the user's ssh-agent.
const SSHAgent = "agent"

// SSHOperations are what a raw ssh grant can permit.
var SSHOperations = []string{"fetch", "push", "push-delete"}

// SSHTarget is where a raw ssh grant leads: USER@HOST[:PORT].
type SSHTarget struct {
	User string
	hostport.HostPort
}

// String is the canonical form, without the port 22.
func (t SSHTarget) String() string {
	if t.Port == 22 {
		return t.User + "@" + t.Host.String()
	}
	return t.User + "@" + t.HostPort.String()
}

// ParseSSHTarget reads USER@HOST[:PORT] and nothing that git would read in
// another way: no scheme, no path, no address.
func ParseSSHTarget(s string) (SSHTarget, error) {
	t, p := parseSSHTarget(s)
	if p != nil {
		return SSHTarget{}, Error{Msg: p.msg, Hint: p.hint}
	}
	return t, nil
}

func parseSSHTarget(s string) (t SSHTarget, _ *problem) {
	const hint = "as in: git@git.corp.example, or git@git.corp.example:2222"
	user, rest, ok := strings.Cut(s, "@")
	switch {
	case strings.Contains(s, "://") || strings.Contains(s, "/"):
		return t, &problem{quoted(s) + " is a URL or has a path", hint + "; the repositories stand under resources"}
	case !ok || !made(user, lower+"_", lower+digits+"_-", 32):
		return t, &problem{quoted(s) + " has no user in front of an @", hint}
	}
	if !strings.Contains(rest, ":") {
		rest += ":22"
	}
	hp, err := hostport.Parse(rest)
	if err != nil {
		h := hint
		if strings.Contains(err.Error(), hostport.ErrIPLiteral.Error()) {
			h = "grants are for names: give it one, and let upstreams say where it lives"
		}
		return t, &problem{err.Error(), h}
	}
	return SSHTarget{user, hp}, nil
}

func (r *reader) sshGrant(item *yaml.Node, t table, g *Grant) {
	n := t.get("ssh")
	if v, ok := r.str(n, "ssh"); ok {
		target, problem := parseSSHTarget(v.Value)
		if r.report(n, problem) {
			g.SSH = target.String()
		}
	}
	if n := t.get("operations"); n == nil {
		r.missing(item, t, "operations", "a grant for an SSH server names no operations", "name them: operations: [fetch]")
	} else {
		g.Operations = r.someStrs(n, "operations", "name the operations or remove the grant", func(n *yaml.Node, v string) bool {
			for _, op := range SSHOperations {
				if v == op {
					return true
				}
			}
			r.errorf(n, Suggest(v, SSHOperations), "%s is not an operation of git over SSH", quoted(v))
			return false
		})
	}
	if n := t.get("resources"); n == nil {
		r.missing(item, t, "resources", "a grant for an SSH server names no repositories", "name them: resources: [team/repo]")
	} else {
		g.Resources = r.someStrs(n, "resources", "name the repositories", func(n *yaml.Node, v string) bool {
			if isResource(strings.TrimPrefix(v, "/")) {
				return true
			}
			r.errorf(n, "as in: team/repo, team/* or team/repo@agent/*", "%s is not a repository", quoted(v))
			return false
		})
	}
	if t.get("credential") == nil && r.limiting == "" {
		r.missing(item, t, "credential", "a grant for an SSH server has no credential", "add credential: NAME, with credentials: {NAME: {from: {ssh: agent}}}")
	}
}

// sshSource reads from: {ssh: agent} and from: {ssh: PATH}.
func (r *reader) sshSource(t table, c *Credential) {
	n := t.get("ssh")
	if n == nil {
		return
	}
	if v, ok := r.str(n, "ssh"); ok && v.Value == SSHAgent {
		c.SSH = SSHAgent
		return
	}
	if v, ok := r.path(n, "ssh"); ok {
		// ./agent is how a file of that name is written.
		c.SSH = v.Value
		if v.Value == SSHAgent {
			c.SSH = "./" + SSHAgent
		}
	}
}

// sshCredential reports whether the named credential is an SSH key: then a grant
// with it is for SSH.
func (p *Policy) sshCredential(name string) bool {
	for _, c := range p.Credentials {
		if c.Name == name {
			return c.SSH != ""
		}
	}
	return false
}

// OverSSH reports whether a grant is for git over SSH.
func (p *Policy) OverSSH(g Grant) bool {
	return g.SSH != "" || g.Service != "" && p.sshCredential(g.Credential)
}

// sshConsistency checks that SSH keys and SSH grants belong together. Whether a
// credential is an SSH key is known once all presets are in.
func (p *Policy) sshConsistency(errs *ErrorList) {
	for _, g := range p.Grants {
		if g.Credential == "" || !p.defines(g.Credential) {
			continue
		}
		key := p.sshCredential(g.Credential)
		switch {
		case g.SSH != "" && !key:
			*errs = append(*errs, Error{g.CredentialPos, "credential " + quoted(g.Credential) + " is no SSH key", "define one: credentials: {NAME: {from: {ssh: agent}}}"})
		case g.HTTP != "" && key:
			*errs = append(*errs, Error{g.CredentialPos, "credential " + quoted(g.Credential) + " is an SSH key, which cannot travel in a header", "use a token here"})
		}
	}
}

func (p *Policy) defines(name string) bool {
	for _, c := range p.Credentials {
		if c.Name == name {
			return true
		}
	}
	return false
}
