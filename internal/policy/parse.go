package policy

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Parse reads a policy file. file is only used in positions. The error is an
// ErrorList; then there is no policy.
func Parse(file string, data []byte) (*Policy, error) { return ParseWith(file, data, Checks{}) }

// ParseWith is Parse with more judges, whose errors join the list.
func ParseWith(file string, data []byte, checks Checks) (*Policy, error) {
	r := &reader{document: document{file: file}}
	p := r.policy(data)
	p.check(checks, &r.errs)
	if err := r.errs.Err(); err != nil {
		return nil, err
	}
	return p, nil
}

// ParsePreset reads a preset. Its positions have the file "preset:NAME".
func ParsePreset(name string, data []byte) (*Preset, error) {
	r := &reader{document: document{file: "preset:" + name}, preset: true}
	p := r.presetFile(name, data)
	if err := r.errs.Err(); err != nil {
		return nil, err
	}
	return p, nil
}

// reader knows the grammar.
type reader struct {
	document
	preset   bool
	limiting Author // whose bounds are read, or empty
}

// report adds a problem at a node, if there is one.
func (r *reader) report(n *yaml.Node, p *problem) bool {
	if p != nil {
		r.errorf(n, p.hint, "%s", p.msg)
	}
	return p == nil
}

// missing reports a key that is not there.
func (r *reader) missing(n *yaml.Node, t table, key, msg, hint string) {
	if t.missing(key) {
		r.errorf(n, hint, "%s", msg)
	}
}

var policyKeys = []string{"version", "profile", "isolation", "image", "presets", "workspace", "mounts", "env", "grants", "credentials", "upstreams", "publish", "limits"}

func (r *reader) policy(data []byte) *Policy {
	p := Default(vocabulary.Developer)
	root := r.root(data)
	if root == nil {
		return p
	}
	t, ok := r.table(root, "a policy", policyKeys...)
	if !ok {
		return p
	}
	r.version(root, t)
	if n := t.get("profile"); n != nil {
		if v, ok := r.str(n, "profile"); ok {
			profile, problem := parseProfile(v.Value)
			if r.report(n, problem) {
				p = Default(profile)
				p.ProfilePos = v.Pos
			}
		}
	}
	p.File = r.file
	if n := t.get("isolation"); n != nil {
		if v, ok := r.str(n, "isolation"); ok {
			isolation, problem := parseIsolation(v.Value)
			if r.report(n, problem) {
				p.Isolation, p.IsolationPos = isolation, v.Pos
			}
		}
	}
	if n := t.get("image"); n != nil {
		if v, ok := r.str(n, "image"); ok {
			image, problem := parseImage(v.Value)
			if r.report(n, problem) {
				image.Pos = v.Pos
				p.Image = image
			}
		}
	}
	p.Presets = r.presets(t.get("presets"))
	if n := t.get("workspace"); n != nil {
		r.workspace(n, t.key("workspace"), &p.Workspace)
	}
	p.Mounts = r.mounts(t.get("mounts"))
	env := r.env(t.get("env"))
	p.EnvSet, p.EnvFiles = env.set, env.files
	if env.hasPass {
		p.EnvPass = env.pass
	} else {
		p.EnvPass = withoutSet(p.EnvPass, env.set)
	}
	p.Grants = r.grants(t.get("grants"))
	p.Credentials = r.credentials(t.get("credentials"))
	p.Upstreams = r.upstreams(t.get("upstreams"))
	p.Publish = r.publish(t.get("publish"))
	r.limits(t.get("limits"), &p.Limits)
	p.consistency(len(p.Presets) == 0, &r.errs)
	return p
}

// withoutSet drops the default names that the file sets itself.
func withoutSet(pass []At[string], set []EnvVar) []At[string] {
	var out []At[string]
	for _, name := range pass {
		if findVar(set, name.Value) == nil {
			out = append(out, name)
		}
	}
	return out
}

var presetKeys = []string{"description", "commands", "presets", "mounts", "env", "grants", "credentials", "publish"}

func (r *reader) presetFile(name string, data []byte) *Preset {
	p := &Preset{Name: name}
	root := r.root(data)
	if root == nil {
		return p
	}
	t, ok := r.table(root, "a preset", presetKeys...)
	if !ok {
		return p
	}
	if n := t.get("description"); n == nil {
		r.missing(root, t, "description", "description is missing", "one sentence: what it lets code do")
	} else if v, ok := r.str(n, "description"); ok {
		p.Description = v.Value
	}
	if n := t.get("commands"); n != nil {
		for _, v := range r.strs(n, "commands", nil) {
			p.Commands = append(p.Commands, v.Value)
		}
	}
	p.Presets = r.presets(t.get("presets"))
	p.Mounts = r.mounts(t.get("mounts"))
	env := r.env(t.get("env"))
	p.EnvPass, p.EnvSet, p.EnvFiles = env.pass, env.set, env.files
	p.Grants = r.grants(t.get("grants"))
	p.Credentials = r.credentials(t.get("credentials"))
	p.Publish = r.publish(t.get("publish"))
	as := &Policy{Mounts: p.Mounts, EnvPass: p.EnvPass, EnvSet: p.EnvSet, Grants: p.Grants, Credentials: p.Credentials}
	as.consistency(len(p.Presets) == 0, &r.errs)
	return p
}

func (r *reader) version(root *yaml.Node, t table) {
	n := t.get("version")
	switch {
	case t.missing("version"):
		r.errorf(root, "begin the file with: version: 1", "version is missing")
	case n == nil || !r.kind(n, yaml.ScalarNode, "version"):
	case n.Tag != "!!int":
		r.errorf(n, "write it without quotes: version: 1", "version must be a number")
	case n.Value != "1":
		r.errorf(n, "this Bulkhead reads version: 1", "version %s is not supported", quoted(n.Value))
	}
}

func (r *reader) presets(n *yaml.Node) []At[string] {
	if n == nil {
		return nil
	}
	return r.strs(n, "presets", func(n *yaml.Node, v string) bool {
		if !isWord(v) {
			r.errorf(n, "a name of: bulkhead preset list", "%s is not the name of a preset", quoted(v))
			return false
		}
		return true
	})
}

func (r *reader) path(n *yaml.Node, what string) (At[string], bool) {
	v, ok := r.str(n, what)
	if !ok {
		return v, false
	}
	clean, problem := cleanPath(v.Value)
	v.Value = clean
	return v, r.report(n, problem)
}

func (r *reader) mode(n *yaml.Node, staged bool) (vocabulary.MountMode, bool) {
	v, ok := r.str(n, "mode")
	if !ok {
		return "", false
	}
	m, problem := parseMode(v.Value, staged)
	return m, r.report(n, problem)
}

func (r *reader) workspace(n, key *yaml.Node, w *Workspace) {
	t, ok := r.table(n, "workspace", "path", "mode", "writable")
	if !ok {
		return
	}
	w.Pos = r.pos(key)
	if n := t.get("path"); n != nil {
		if v, ok := r.path(n, "path"); ok {
			w.Path = v.Value
		}
	}
	if n := t.get("mode"); n != nil {
		if m, ok := r.mode(n, true); ok {
			w.Mode = m
		}
	}
	w.Writable = r.writable(t.get("writable"))
}

func (r *reader) writable(n *yaml.Node) []At[string] {
	return r.strs(n, "writable", func(n *yaml.Node, v string) bool {
		if v != Environments {
			r.errorf(n, Suggest(v, []string{Environments}), "no protected files are called %s", quoted(v))
		}
		return v == Environments
	})
}

func (r *reader) mounts(n *yaml.Node) []Mount {
	var out []Mount
	for _, item := range r.items(n, "mounts") {
		t, ok := r.table(item, "a mount", "path", "mode", "optional")
		if !ok {
			continue
		}
		m := Mount{Mode: vocabulary.ReadOnly, Optional: r.preset, Pos: r.pos(item)}
		if n := t.get("mode"); n != nil {
			m.Mode, _ = r.mode(n, false)
		}
		if n := t.get("optional"); n != nil {
			m.Optional, _ = r.boolean(n, "optional")
		}
		if n := t.get("path"); n == nil {
			r.missing(item, t, "path", "a mount has no path", "write {path: ~/folder, mode: ro}")
		} else if v, ok := r.path(n, "path"); ok {
			m.Path = v.Value
			if r.preset && m.Path[0] != '~' && m.Path[0] != '/' {
				r.errorf(n, "begin it with / or ~/", "a preset does not know the current directory")
			}
			out = append(out, m)
		}
	}
	return out
}

type environment struct {
	pass    []At[string]
	hasPass bool
	set     []EnvVar
	files   []EnvVar
}

func (r *reader) env(n *yaml.Node) (e environment) {
	if n == nil {
		return e
	}
	t, ok := r.table(n, "env", "pass", "set", "files")
	if !ok {
		return e
	}
	if n := t.get("pass"); n != nil {
		e.hasPass = n.Kind == yaml.SequenceNode
		e.pass = r.strs(n, "env.pass", func(n *yaml.Node, v string) bool { return r.report(n, checkEnvName(v)) })
	}
	if n := t.get("set"); n != nil {
		for _, entry := range r.entries(n, "env.set") {
			value, ok := r.anyText(entry.value, "the value of "+quoted(entry.key))
			ok = r.report(entry.node, checkEnvName(entry.key)) && ok
			if ok && r.report(entry.value, checkEnvValue(value.Value)) {
				e.set = append(e.set, EnvVar{entry.key, value.Value, r.pos(entry.node)})
			}
		}
	}
	if n := t.get("files"); n != nil {
		for _, entry := range r.entries(n, "env.files") {
			value, ok := r.content(entry.value, "the content of "+quoted(entry.key))
			path, problem := checkHomeFile(entry.key)
			ok = r.report(entry.node, problem) && ok
			if ok && r.report(entry.value, checkContent(value)) {
				e.files = append(e.files, EnvVar{path, value, r.pos(entry.node)})
			}
		}
	}
	return e
}

// content is a text, or a list of lines.
func (r *reader) content(n *yaml.Node, what string) (string, bool) {
	if n == nil || n.Kind != yaml.SequenceNode {
		v, ok := r.str(n, what)
		return v.Value, ok
	}
	var b strings.Builder
	all := true
	for _, item := range r.items(n, what) {
		v, ok := r.anyText(item, "a line of "+what)
		all = all && ok
		b.WriteString(v.Value + "\n")
	}
	return b.String(), all
}

var grantKeys = []string{"service", "operations", "resources", "http", "methods", "tcp", "ssh", "credential", "header", "scheme"}

// grantForms says which keys belong to which form of a grant.
var grantForms = []struct {
	form string
	keys []string
}{
	{"service", []string{"operations", "resources", "credential"}},
	{"http", []string{"methods", "credential", "header", "scheme"}},
	{"tcp", nil},
	{"ssh", []string{"operations", "resources", "credential"}},
}

func (r *reader) grants(n *yaml.Node) []Grant {
	var out []Grant
	for _, item := range r.items(n, "grants") {
		t, ok := r.table(item, "a grant", grantKeys...)
		if !ok {
			continue
		}
		if g, ok := r.grant(item, t); ok {
			out = append(out, g)
		}
	}
	return out
}

func (r *reader) grant(item *yaml.Node, t table) (Grant, bool) {
	g := Grant{Pos: r.pos(item)}
	form := ""
	for _, f := range grantForms {
		if t.key(f.form) == nil {
			continue
		}
		if form != "" {
			r.errorf(t.key(f.form), "write two grants", "a grant has both %s and %s", form, f.form)
			return g, false
		}
		form = f.form
	}
	if form == "" {
		if t.tried["service"] || t.tried["http"] || t.tried["tcp"] || t.tried["ssh"] {
			return g, false
		}
		r.errorf(item, "begin it with service:, http:, tcp: or ssh:", "a grant says nothing that it grants")
		return g, false
	}
	for _, f := range grantForms {
		if f.form != form {
			continue
		}
		for key, e := range t.entries {
			belongs := key == form
			for _, k := range f.keys {
				belongs = belongs || key == k
			}
			if !belongs {
				r.errorf(e.node, "it takes: "+strings.Join(append([]string{form}, f.keys...), ", "), "%s does not belong to a grant with %s", key, form)
			}
		}
	}
	before := len(r.errs)
	if r.limiting != "" {
		for _, key := range []string{"credential", "header", "scheme"} {
			if k := t.key(key); k != nil {
				r.errorf(k, "remove it; what travels is what the limited policy says", "a grant of %s has no credential", r.limiting)
				delete(t.entries, key)
			}
		}
	}
	if n := t.get("credential"); n != nil {
		if v, ok := r.str(n, "credential"); ok {
			g.Credential, g.CredentialPos = v.Value, v.Pos
		}
	}
	switch form {
	case "service":
		r.serviceGrant(item, t, &g)
	case "http":
		r.httpGrant(t, &g)
	case "tcp":
		r.tcpGrant(t, &g)
	case "ssh":
		r.sshGrant(item, t, &g)
	}
	return g, len(r.errs) == before
}

func (r *reader) serviceGrant(item *yaml.Node, t table, g *Grant) {
	n := t.get("service")
	if v, ok := r.str(n, "service"); ok {
		if g.Service = v.Value; !isWord(v.Value) {
			r.errorf(n, "lower-case letters, digits and -", "%s is not the name of a service", quoted(v.Value))
		}
	}
	if n := t.get("operations"); n == nil {
		switch {
		case r.limiting == "":
			r.missing(item, t, "operations", "a grant for a service names no operations", "name them: operations: [...]")
		case t.get("resources") != nil:
			r.errorf(t.key("resources"), "name them: operations: [...]", "resources without the operations that they are for")
		}
	} else {
		g.Operations = r.someStrs(n, "operations", "name the operations or remove the grant", func(n *yaml.Node, v string) bool {
			// A feature's name has its operation's in front: messages.mcp.
			if name, feature, dotted := strings.Cut(v, "."); isWord(name) && (!dotted || isWord(feature)) {
				return true
			}
			hint := "lower-case letters, digits, - and _"
			if strings.Contains(v, "*") {
				hint = "operations are granted by name, one by one"
			}
			r.errorf(n, hint, "%s is not the name of an operation", quoted(v))
			return false
		})
	}
	if n := t.get("resources"); n != nil {
		g.Resources = r.someStrs(n, "resources", "name the resources, or remove the key for all of them", func(n *yaml.Node, v string) bool {
			if isResource(v) {
				return true
			}
			r.errorf(n, "as in: acme/widgets or acme/*", "%s is not a resource", quoted(v))
			return false
		})
	}
}

func (r *reader) httpGrant(t table, g *Grant) {
	n := t.get("http")
	var u URLPattern
	if v, ok := r.str(n, "http"); ok {
		var problem *problem
		u, problem = parseURLPattern(v.Value)
		if r.report(n, problem) {
			g.HTTP = u.String()
		}
	}
	if n := t.get("methods"); n == nil {
		g.Methods = []string{"GET", "HEAD"}
	} else {
		for _, v := range r.someStrs(n, "methods", "remove the key for GET and HEAD", func(n *yaml.Node, v string) bool {
			for _, m := range knownMethods {
				if v == m {
					return true
				}
			}
			r.errorf(n, Suggest(v, knownMethods), "%s is not a method that can be granted", quoted(v))
			return false
		}) {
			g.Methods = append(g.Methods, v.Value)
		}
	}
	r.slot(t, g, u)
}

// slot reads where the credential of a raw grant travels.
func (r *reader) slot(t table, g *Grant, u URLPattern) {
	cred, header, scheme := t.get("credential"), t.get("header"), t.get("scheme")
	if cred == nil {
		for _, key := range []string{"header", "scheme"} {
			if k := t.key(key); k != nil {
				r.errorf(k, "add credential: NAME", "%s without a credential", key)
			}
		}
		return
	}
	if u.scheme == "http" {
		r.errorf(t.key("credential"), "use https", "a credential would travel unencrypted")
	}
	if _, exact := u.host.Exact(); u.scheme != "" && !exact {
		r.errorf(t.key("credential"), "write one grant for each host that may get it", "a credential for all names below a domain")
	}
	g.Header = "authorization"
	if header != nil {
		if v, ok := r.str(header, "header"); ok {
			if g.Header = strings.ToLower(v.Value); !isHeader(g.Header) || refusedHeaders[g.Header] {
				r.errorf(header, "as in: header: authorization, or x-api-key", "no credential can travel in header %s", quoted(v.Value))
			}
		}
	}
	if g.Header == "authorization" {
		g.Scheme = "Bearer"
	}
	if scheme != nil {
		if v, ok := r.str(scheme, "scheme"); ok {
			switch {
			case g.Header != "authorization":
				r.errorf(t.key("scheme"), "remove it", "scheme belongs to header authorization")
			case v.Value == "Bearer" || v.Value == "Basic":
				g.Scheme = v.Value
			default:
				r.errorf(scheme, Suggest(v.Value, []string{"Bearer", "Basic"}), "unknown scheme %s", quoted(v.Value))
			}
		}
	}
}

func (r *reader) tcpGrant(t table, g *Grant) {
	n := t.get("tcp")
	v, ok := r.str(n, "tcp")
	if !ok {
		return
	}
	hp, err := hostport.Parse(v.Value)
	if err == nil {
		g.TCP = hp.String()
		return
	}
	hint := "write it as host:port: db.example.com:5432"
	switch {
	case strings.Contains(v.Value, "*"):
		hint = "an opaque grant is for one name and one port"
	case strings.Contains(v.Value, "://"):
		hint = "for a URL use http:, for an opaque connection host:port"
	case strings.Contains(err.Error(), hostport.ErrIPLiteral.Error()):
		hint = "grants are for names: give it one, and let upstreams say where it lives"
	}
	r.errorf(n, hint, "%s", err)
}

func (r *reader) credentials(n *yaml.Node) []Credential {
	if n == nil {
		return nil
	}
	var out []Credential
	for _, e := range r.entries(n, "credentials") {
		c := Credential{Name: e.key, Pos: r.pos(e.node)}
		if !isCredentialName(e.key) {
			r.errorf(e.node, "letters, digits, . - and _", "%s is not a name for a credential", quoted(e.key))
		}
		if t, ok := r.table(e.value, "a credential", append([]string{"from", "optional"}, loginKeys...)...); ok {
			if n := t.get("optional"); n != nil {
				c.Optional, _ = r.boolean(n, "optional")
			}
			if from := t.get("from"); from != nil {
				r.sources(from, &c)
			} else {
				r.missing(e.node, t, "from", "credential "+quoted(e.key)+" has no source", "write {from: {env: NAME}}")
			}
			r.loginOptions(t, &c)
		}
		out = append(out, c) // a broken one too: what names it is not a second mistake
	}
	return out
}

var sourceKeys = append([]string{"env", "file", "command", "keyring", "ssh", "login"}, cloudKeys...)

func (r *reader) source(from *yaml.Node, c *Credential) {
	t, ok := r.table(from, "from", sourceKeys...)
	if !ok {
		return
	}
	if len(t.entries) == 0 && len(t.tried) > 0 {
		return
	}
	if len(t.entries) != 1 {
		r.errorf(from, "one of: "+strings.Join(sourceKeys, ", "), "a credential has exactly one source, not %d", len(t.entries))
		return
	}
	if n := t.get("env"); n != nil {
		if v, ok := r.str(n, "env"); ok {
			if c.Env = v.Value; !isEnvName(v.Value) {
				r.errorf(n, "the name of the variable, not the secret itself", "this is not a name of an environment variable")
			}
		}
	}
	if n := t.get("file"); n != nil {
		v, _ := r.path(n, "file")
		c.File = v.Value
	}
	r.cloudSource(t, c)
	r.sshSource(t, c)
	r.loginSource(t, c)
	if n := t.get("keyring"); n != nil {
		v, _ := r.str(n, "keyring")
		c.Keyring = v.Value
	}
	if n := t.get("command"); n != nil {
		if n.Kind == yaml.SequenceNode {
			for _, item := range r.items(n, "command") {
				v, _ := r.str(item, "an entry of command")
				c.Command = append(c.Command, v.Value)
			}
			if len(n.Content) == 0 && !r.broken[n] {
				r.errorf(n, "write the program and its arguments", "the command is empty")
			}
		} else if v, ok := r.str(n, "command"); ok {
			argv, problem := parseCommand(v.Value)
			r.report(n, problem)
			c.Command = argv
		}
	}
}

// maxPIDs is the kernel's PID_MAX_LIMIT on 64 bits (include/linux/threads.h).
const maxPIDs = 4 << 20

func (r *reader) limits(n *yaml.Node, l *Limits) {
	if n == nil {
		return
	}
	t, ok := r.table(n, "limits", "memory", "pids", "cpus", "wall", "upload", "download", "upload-each", "download-each",
		"disk", "inodes", "descriptors", "idle", "root")
	if !ok {
		return
	}
	if n := t.get("memory"); n != nil && r.kind(n, yaml.ScalarNode, "memory") {
		size, problem := parseMemory(n.Value)
		r.report(n, problem)
		l.Memory, l.Pos.Memory = size, r.pos(n)
	}
	if n := t.get("pids"); n != nil && r.kind(n, yaml.ScalarNode, "pids") {
		pids, err := strconv.Atoi(n.Value)
		if err != nil || n.Tag != "!!int" || strconv.Itoa(pids) != n.Value || pids < 1 || pids > maxPIDs {
			r.errorf(n, "a whole number from 1 to 4194304; for no limit remove the key", "pids is %s", quoted(n.Value))
		}
		l.PIDs, l.Pos.PIDs = pids, r.pos(n)
	}
	if n := t.get("cpus"); n != nil && r.kind(n, yaml.ScalarNode, "cpus") {
		cpus, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || n.Tag != "!!int" && n.Tag != "!!float" || !isDecimal(n.Value) || cpus < 0.01 {
			r.errorf(n, "a number from 0.01 on: 2 or 0.5", "cpus is %s", quoted(n.Value))
		}
		l.CPUs, l.Pos.CPUs = cpus, r.pos(n)
	}
	if n := t.get("wall"); n != nil && r.kind(n, yaml.ScalarNode, "wall") {
		wall, problem := parseWall(n.Value)
		r.report(n, problem)
		l.Wall, l.Pos.Wall = wall, r.pos(n)
	}
	for _, a := range l.amounts() {
		if n := t.get(a.key); n != nil && r.kind(n, yaml.ScalarNode, a.key) {
			value, problem := a.read(n)
			r.report(n, problem)
			*a.of = At[int64]{value, r.pos(n)}
		}
	}
}
