package capability

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/catalog/gitwire"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// A rule with SSHKey is about the SSH servers of its service and nothing else;
// a rule with SSH about one server that the catalogue does not know, where the
// operations are those of policy.SSHOperations on a repository's path.

// SSHCommand is one git command that a client asks an SSH server to run.
type SSHCommand struct {
	User string
	Host hostport.Host
	Port hostport.Port
	// Program is git-upload-pack, git-receive-pack or git-upload-archive.
	Program string
	// Path is the repository without a slash in front and without ".git"
	// (gitwire.ReadCommand); Absolute and Suffix say that they were there.
	Path             string
	Absolute, Suffix bool
	// Head is the list of refs of a push (gitwire.ReadPush), once it was read;
	// nil asks whether the program may be started at all.
	Head []byte
	// Credential is the one that the server has seen already; empty: none yet.
	Credential string
}

// SSHDecision is the answer. Permit and Swap are set if the command is allowed;
// Swap names the credential whose key signs.
type SSHDecision struct {
	Decision
	User string
	// Path is what to name to the server.
	Path string
}

// SSHEndpoint is a server that some rule grants git commands on.
type SSHEndpoint struct {
	User        string
	Host        hostport.Host
	Port        hostport.Port
	Credentials []string
}

// SSHEndpoints lists the granted servers, each user of one by itself.
func (s *Set) SSHEndpoints() []SSHEndpoint {
	var out []SSHEndpoint
	for _, c := range s.all() {
		for _, e := range c.endpoints {
			h, exact := e.exact()
			if e.treat != TreatSSH || !exact {
				continue
			}
			i := slices.IndexFunc(out, func(o SSHEndpoint) bool { return o.User == e.user && o.Host == h && o.Port == e.port })
			if i < 0 {
				i = len(out)
				out = append(out, SSHEndpoint{User: e.user, Host: h, Port: e.port})
			}
			if !slices.Contains(out[i].Credentials, c.Credential) {
				out[i].Credentials = append(out[i].Credentials, c.Credential)
			}
		}
	}
	return out
}

func (c *compiled) checkSSH(add func(msg, hint string)) {
	target, err := policy.ParseSSHTarget(c.SSH)
	if err != nil {
		add(err.Error(), "")
		return
	}
	p, err := hostport.ParsePattern(target.Host.String())
	if err != nil {
		add(err.Error(), "")
		return
	}
	c.endpoints = []endpoint{{raw: p, port: target.Port, treat: TreatSSH, user: target.User}}
	if len(c.Operations) == 0 || len(c.Resources) == 0 || c.Credential == "" && !c.limits {
		add("a grant for an SSH server names operations, resources and a credential", "as in operations: [fetch], resources: [team/repo]")
	}
	for _, op := range c.Operations {
		if !slices.Contains(policy.SSHOperations, op) {
			add(strconv.Quote(op)+" is not an operation of git over SSH", policy.Suggest(op, policy.SSHOperations))
		}
	}
	c.ops = slices.Clone(c.Operations)
	var all []string
	for _, r := range c.Resources {
		f, err := foldRepository(r)
		if err != nil {
			add(err.Error(), "as in resources: [team/repo], or [team/repo@agent/*]")
			continue
		}
		all = append(all, f)
	}
	c.Resources = all
}

// foldRepository brings a repository of a raw ssh rule into the form of the
// questions: no ".git", and behind @ the whole name of a ref.
func foldRepository(s string) (string, error) {
	path, ref, hasRef := strings.Cut(s, "@")
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, part := range parts {
		if !(part == "*" && i == len(parts)-1 && i > 0) && (part == "." || part == ".." || part[:min(1, len(part))] == "-" || part == "" || strings.Trim(part, repositoryLetters) != "") {
			return "", errors.New(quote(s) + " is no repository's path (a * may only stand for the last part)")
		}
	}
	path = strings.TrimSuffix(path, ".git")
	if !hasRef {
		return path, nil
	}
	if !strings.HasPrefix(ref, "refs/") {
		ref = "refs/heads/" + ref
	}
	if !gitwire.IsRefPattern(ref) {
		return "", errors.New(quote(s) + " names no branch or ref behind the @")
	}
	return path + "@" + ref, nil
}

const repositoryLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-"

// repositoryCondition judges path, its number of parts, and ref ("" for the
// repository as such). A repository without refs behind it stands for its
// branches and tags.
func repositoryCondition(resources []string) ast.Node {
	ctx := func(name string) ast.Node { return ast.Context().Access(types.String(name)) }
	var all ast.Node
	for i, r := range resources {
		path, ref, hasRef := strings.Cut(r, "@")
		at := ctx("repository").Equal(ast.String(types.String(path)))
		if strings.HasSuffix(path, "*") {
			at = ctx("repository").Like(likePattern(path)).And(ctx("parts").Equal(ast.Long(int64(strings.Count(path, "/")))))
		}
		refs := ctx("ref").Equal(ast.String("")).Or(ctx("ref").Like(likePattern("refs/heads/*"))).Or(ctx("ref").Like(likePattern("refs/tags/*")))
		if hasRef {
			refs = ctx("ref").Equal(ast.String("")).Or(ctx("ref").Like(likePattern(ref)))
		}
		if n := at.And(refs); i == 0 {
			all = n
		} else {
			all = all.Or(n)
		}
	}
	return all
}

// DecideSSH judges one git command: who runs it as, what it is, on which
// repository, and with Head which refs it changes.
func (s *Set) DecideSSH(cmd SSHCommand) SSHDecision { return s.sshWithin(cmd, s.decideSSH(cmd)) }

func (s *Set) decideSSH(cmd SSHCommand) SSHDecision {
	d := SSHDecision{User: cmd.User, Path: cmd.Path}
	name := sshName(cmd)
	d.Action, d.Resource = "ssh.exec", vocabulary.Resource(printable(name))
	rules := slices.DeleteFunc(slices.Clone(s.about(cmd.Host)), func(c *compiled) bool { return !c.at(cmd.Host, cmd.Port, "ssh") })
	if len(rules) == 0 {
		d.Reason = s.nothing("no grant covers git over SSH at "+quote(cmd.Host.String()), s.suggestSSH(cmd.Host, cmd.Port))
		return d
	}
	users := slices.DeleteFunc(slices.Clone(rules), func(c *compiled) bool {
		return !slices.ContainsFunc(c.endpoints, func(e endpoint) bool {
			return e.treat == TreatSSH && e.user == cmd.User && e.port == cmd.Port && e.match(cmd.Host)
		})
	})
	if len(users) == 0 {
		d.Reason = vocabulary.Reason{Code: CodeNoGrant, Rule: rules[0].Pos, Message: "the grant is not for the user " + quote(cmd.User) + " at " + cmd.Host.String(), Remedy: "use " + rules[0].endpointUser() + "@" + cmd.Host.String()}
		return d
	}
	var best *SSHDecision
	for _, g := range sshReadings(users) {
		for _, path := range g.paths(cmd) {
			r := s.judgeSSH(g, cmd, path)
			if r.Verdict == vocabulary.Allow {
				return r
			}
			if best == nil || rank(r.Reason.Code) > rank(best.Reason.Code) {
				best = &r
			}
		}
	}
	return *best
}

// sshReading are the rules that read a command in one way: as an operation of a
// service, or of no service.
type sshReading struct {
	svc   *catalog.Service
	rules []*compiled
}

func (g *sshReading) granting(op string) []*compiled {
	var out []*compiled
	for _, c := range g.rules {
		if slices.Contains(c.ops, op) {
			out = append(out, c)
		}
	}
	return out
}

func sshReadings(rules []*compiled) []*sshReading {
	var out []*sshReading
	for _, c := range rules {
		i := slices.IndexFunc(out, func(g *sshReading) bool { return g.svc == c.svc })
		if i < 0 {
			i = len(out)
			out = append(out, &sshReading{svc: c.svc})
		}
		out[i].rules = append(out[i].rules, c)
	}
	return out
}

// paths are the repositories that a command can mean. Services take a path with
// and without a slash in front for the same. A plain server does not: there the
// path is what the rule spells, so that what is judged is what is named.
func (g *sshReading) paths(cmd SSHCommand) []string {
	if g.svc == nil && cmd.Absolute {
		return []string{"/" + cmd.Path, cmd.Path}
	}
	return []string{cmd.Path}
}

// sshQuestion is a command in one reading.
type sshQuestion struct {
	cmd    SSHCommand
	prefix string // of its operations' names
	asks   []sshAsk
}

// sshAsk is one thing that must be granted for it.
type sshAsk struct{ op, resource, where string }

// read finds out what a command needs.
func (g *sshReading) read(cmd SSHCommand, path string) (q sshQuestion, code string, err error) {
	q = sshQuestion{cmd: cmd, prefix: "ssh"}
	if g.svc == nil {
		op := map[string]string{"git-upload-pack": "fetch", "git-receive-pack": "push"}[cmd.Program]
		q.asks = []sshAsk{{op, path, ""}}
		if cmd.Head == nil {
			return q, "", nil
		}
		push, _, err := gitwire.ReadPush(cmd.Head)
		if err != nil {
			return q, CodeBadRequest, err
		}
		for _, u := range push.Updates {
			need := sshAsk{"push", path + "@" + u.Ref, " (the update of " + quote(u.Ref) + ")"}
			if u.Deletes() {
				need.op, need.where = "push-delete", " (the removal of "+quote(u.Ref)+")"
			}
			q.asks = append(q.asks, need)
		}
		if len(push.Options) > 0 {
			q.asks = append(q.asks, sshAsk{"", path, " (a push option)"})
		}
		return q, "", nil
	}
	q.prefix = g.svc.Name
	op, resource, err := g.svc.IdentifySSH(cmd.Host, cmd.Port, cmd.User, cmd.Program+" '"+path+"'")
	if err != nil {
		return q, CodeUnknownOperation, err
	}
	q.asks = []sshAsk{{op.Name, resource, ""}}
	if cmd.Head == nil {
		return q, "", nil
	}
	uses, err := g.svc.PushUses(&op, resource, cmd.Head)
	if err != nil {
		return q, CodeBadRequest, err
	}
	for _, u := range uses {
		need := sshAsk{u.Operation, resource, " (asked for by " + u.Where + ")"}
		if u.Own {
			need.resource = u.Resource
		}
		q.asks = append(q.asks, need)
	}
	return q, "", nil
}

func (s *Set) judgeSSH(g *sshReading, cmd SSHCommand, path string) SSHDecision {
	d := SSHDecision{User: cmd.User, Path: path}
	if cmd.Suffix {
		d.Path += ".git"
	}
	d.Action, d.Resource = "ssh.exec", vocabulary.Resource(printable(sshName(cmd)))
	refuse := func(c *compiled, code, message, remedy string) SSHDecision {
		d.Reason = vocabulary.Reason{Code: code, Message: message, Rule: c.Pos, Remedy: remedy}
		return d
	}
	q, code, err := g.read(cmd, path)
	if err != nil {
		return refuse(g.rules[0], code, err.Error(), "")
	}
	if q.asks[0].op == "" {
		return refuse(g.rules[0], CodeUnknownOperation, cmd.Program+" is no operation of an SSH grant", "")
	}
	d.Action = vocabulary.Action(q.prefix + "." + q.asks[0].op)
	granting := g.granting(q.asks[0].op)
	if len(granting) == 0 {
		return refuse(g.rules[0], CodeOperationNotGranted, string(d.Action)+" is not granted over SSH", s.sshGrant(g, q.asks[0], g.rules[0]))
	}
	// All that a command needs must be granted with one key: the server sees one.
	failed := 0
	for i, c := range granting {
		if slices.ContainsFunc(granting[:i], func(o *compiled) bool { return o.Credential == c.Credential }) ||
			cmd.Credential != "" && cmd.Credential != c.Credential {
			continue
		}
		n, allowed := q.ask(g, c.Credential)
		if n == len(q.asks) {
			d.Verdict = vocabulary.Allow
			d.Reason = granted(allowed, string(d.Action)+" on "+quote(q.asks[0].resource)+" is granted")
			d.Permit = &Permit{host: cmd.Host, port: cmd.Port, opaque: true, rule: allowed.Pos}
			d.Swap = &Swap{Credential: allowed.Credential}
			return d
		}
		failed = max(failed, n)
	}
	need := q.asks[failed]
	rule := granting[0]
	full := q.prefix + "." + need.op
	switch of := g.granting(need.op); {
	case need.op == "":
		return refuse(rule, CodeUnknownOperation, "the push uses something that cannot be granted"+need.where, "")
	case len(of) == 0:
		return refuse(rule, CodeOperationNotGranted, full+need.where+" is not granted over SSH", s.sshGrant(g, need, rule))
	default:
		return refuse(of[0], CodeResourceNotGranted, full+" is not granted on "+quote(need.resource), s.sshGrant(g, need, of[0]))
	}
}

// ask asks Cedar about everything that is needed, with one credential. It
// returns how many were granted, and the rule of the first.
func (q sshQuestion) ask(g *sshReading, credential string) (n int, first *compiled) {
	for i, need := range q.asks {
		rules := g.granting(need.op)
		path, ref, _ := strings.Cut(need.resource, "@")
		allowed := ask(slice{rules: rules}, actOperation(q.prefix, need.op), need.resource, types.NewRecord(types.RecordMap{
			"host": types.String(q.cmd.Host.String()), "port": types.Long(q.cmd.Port), "scheme": types.String("ssh"),
			"user": types.String(q.cmd.User), "method": types.String(q.cmd.Program), "resource": types.String(need.resource),
			"presented": types.String(credential), "violation": types.String(""),
			"repository": types.String(path), "parts": types.Long(strings.Count(path, "/")), "ref": types.String(ref),
		}))
		if len(allowed) == 0 {
			return i, first
		}
		if i == 0 {
			first = allowed[0]
		}
	}
	return len(q.asks), first
}

// sshName is the repository as a URL, for the record.
func sshName(cmd SSHCommand) string {
	port := ""
	if cmd.Port != 22 {
		port = ":" + strconv.Itoa(int(cmd.Port))
	}
	return "ssh://" + quote(cmd.User) + "@" + cmd.Host.String() + port + "/" + cmd.Path
}

func (c *compiled) endpointUser() string {
	for _, e := range c.endpoints {
		if e.treat == TreatSSH {
			return e.user
		}
	}
	return ""
}

// sshGrant is the YAML that would grant an operation.
func (s *Set) sshGrant(g *sshReading, need sshAsk, rule *compiled) string {
	if g.svc != nil {
		return s.typedGrant(g.svc, need.op, need.resource, rule.Credential)
	}
	return "add under grants: - {ssh: " + rule.SSH + ", operations: [" + need.op + "], resources: [" + yamlText(need.resource) + "], credential: " + yamlText(rule.Credential) + "}"
}

// suggestSSH is what would grant SSH to a server that no rule is about.
func (s *Set) suggestSSH(h hostport.Host, port hostport.Port) string {
	if s == nil || h.IsZero() {
		return ""
	}
	const key = "; NAME is a credential {from: {ssh: agent}}"
	for _, name := range s.cat.Names() {
		svc, ok := s.cat.Service(name)
		if ok && slices.ContainsFunc(svc.Endpoints, func(e catalog.Endpoint) bool { return e.Scheme == "ssh" && e.Port == port && e.Host.Match(h) }) {
			return "add under grants: - {service: " + name + ", operations: [fetch], credential: NAME}" + key
		}
	}
	target := policy.SSHTarget{User: "git", HostPort: hostport.HostPort{Host: h, Port: port}}
	return "add under grants: - {ssh: " + target.String() + ", operations: [fetch], resources: [TEAM/REPO], credential: NAME}" + key
}
