package capability

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/catalog/gitwire"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// sshPrograms are the words for what git runs on a server.
var sshPrograms = map[string]string{
	"FETCH": "git-upload-pack", "CLONE": "git-upload-pack", "PULL": "git-upload-pack", "GIT-UPLOAD-PACK": "git-upload-pack",
	"PUSH": "git-receive-pack", "PUSH-DELETE": "git-receive-pack", "GIT-RECEIVE-PACK": "git-receive-pack",
	"ARCHIVE": "git-upload-archive", "GIT-UPLOAD-ARCHIVE": "git-upload-archive",
}

// explainSSH answers questions about ssh://user@host[:port]/repository and
// user@host:repository; ok says whether it is one. Behind the last @ of the
// repository stands a branch or a whole ref, as in a grant's resources.
func (s *Set) explainSSH(method, target string) (x Explanation, ok bool, err error) {
	cmd, ref, ok, err := readSSHTarget(target)
	if !ok || err != nil {
		return Explanation{}, ok, err
	}
	if cmd.Program = sshPrograms[method]; cmd.Program == "" {
		return Explanation{}, true, fmt.Errorf("%q is nothing that git does over ssh: fetch, clone, push, push-delete, archive", method)
	}
	deletes := method == "PUSH-DELETE"
	switch {
	case ref == "" && deletes:
		return Explanation{}, true, errors.New("push-delete is about one ref: …/repository@branch")
	case ref != "" && cmd.Program != "git-receive-pack":
		return Explanation{}, true, errors.New("only a push is about a ref: leave out what stands behind the @")
	case ref != "":
		cmd.Head = pushOf(ref, deletes)
	}
	hp := hostport.HostPort{Host: cmd.Host, Port: cmd.Port}
	treat, d := s.Connect(hp)
	if treat == TreatOpaque {
		x = s.explainConnect(hp)
		x.Notes = append(x.Notes, "the connection is opaque: no command on it is judged")
		return x, true, nil
	}
	if treat == TreatSSH || len(s.about(cmd.Host)) == 0 {
		d = s.DecideSSH(cmd).Decision
	} else if treat != TreatRefuse {
		d = Decision{Action: d.Action, Resource: d.Resource, Reason: vocabulary.Reason{
			Code: CodeNoGrant, Rule: d.Reason.Rule, Message: "this destination is granted as " + treat.word() + ", not as git over ssh", Remedy: s.suggestSSH(cmd.Host, cmd.Port),
		}}
	}
	x.Decision = d
	matches := false
	x.Rules = s.asked(func(c *compiled) Evaluated {
		e := s.evaluateSSH(c, cmd)
		matches = matches || e.Matches && !c.limits
		return e
	})
	if i := slices.IndexFunc(x.Rules, func(e Evaluated) bool { return e.Rule == d.Reason.Rule }); !matches && i >= 0 && d.Verdict == vocabulary.Allow {
		x.Rules[i].Matches, x.Rules[i].Result = true, "matches, together with other rules"
	}
	if cmd.Program == "git-receive-pack" && ref == "" {
		x.Notes = append(x.Notes, "the refs of a push are judged as well: ask about …@BRANCH")
	}
	return x, true, nil
}

// readSSHTarget reads a server and a repository as git writes them.
func readSSHTarget(target string) (cmd SSHCommand, ref string, ok bool, err error) {
	var path, port string
	if strings.HasPrefix(target, "ssh://") {
		u, perr := url.Parse(target)
		if perr != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return cmd, "", true, fmt.Errorf("%q is not ssh://user@host/repository", target)
		}
		cmd.User, path, port = u.User.Username(), u.Path, u.Port()
		if _, has := u.User.Password(); has {
			return cmd, "", true, errors.New("an ssh URL has no password")
		}
		cmd.Host, err = hostport.ParseHost(u.Hostname())
	} else {
		at, rest, found := strings.Cut(target, ":")
		user, host, named := strings.Cut(at, "@")
		if !found || !named || strings.Contains(at, "/") || strings.HasPrefix(rest, "//") {
			return cmd, "", false, nil // another kind of question
		}
		cmd.User, path = user, rest
		cmd.Host, err = hostport.ParseHost(host)
	}
	if err != nil {
		return cmd, "", true, err
	}
	if cmd.Port = 22; port != "" {
		if cmd.Port, err = hostport.ParsePort(port); err != nil {
			return cmd, "", true, err
		}
	}
	if cmd.User == "" {
		return cmd, "", true, fmt.Errorf("%q names no user: git@…", target)
	}
	path, ref, _ = strings.Cut(path, "@")
	c, err := gitwire.ReadCommand("git-upload-pack '" + path + "'")
	if err != nil {
		return cmd, "", true, err
	}
	cmd.Path, cmd.Absolute = c.Path, strings.HasPrefix(path, "/")
	cmd.Suffix = strings.HasSuffix(strings.TrimSuffix(path, "/"), ".git")
	if ref != "" && !strings.HasPrefix(ref, "refs/") {
		ref = "refs/heads/" + ref
	}
	if ref != "" && !gitwire.IsRef(ref) {
		return cmd, "", true, fmt.Errorf("%q is no branch or ref", ref)
	}
	return cmd, ref, true, nil
}

// pushOf is how a client announces one update or removal of a ref
// (gitprotocol-pack, "Reference Update Request").
func pushOf(ref string, deletes bool) []byte {
	from, to := strings.Repeat("1", 40), strings.Repeat("2", 40)
	if deletes {
		to = strings.Repeat("0", 40)
	}
	line := from + " " + to + " " + ref + "\x00report-status"
	return fmt.Appendf(nil, "%04x%s0000", len(line)+4, line)
}

// evaluateSSH asks about one rule alone what DecideSSH asks about all.
func (s *Set) evaluateSSH(c *compiled, cmd SSHCommand) Evaluated {
	e := Evaluated{Rule: c.Pos, Result: anotherHost}
	if !slices.ContainsFunc(c.endpoints, func(at endpoint) bool { return at.match(cmd.Host) }) {
		return e
	}
	if !c.at(cmd.Host, cmd.Port, "ssh") {
		e.Result = "host matches, not for git over ssh on this port"
		return e
	}
	one := *c // index numbers the rules of its set
	alone := &Set{cat: s.cat, spec: s.spec, rules: []*compiled{&one}}
	alone.index()
	d := alone.DecideSSH(cmd)
	if d.Verdict == vocabulary.Allow {
		e.Matches, e.Result = true, "matches: "+string(d.Action)
		return e
	}
	e.Result = "host matches, " + d.Reason.Message
	return e
}
