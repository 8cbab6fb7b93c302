package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// YAML renders the policy in canonical form: every value written out, each
// item with a comment that says where it comes from. Parse reads it back as
// the same policy.
func (p *Policy) YAML() []byte {
	w := &writer{}
	if len(p.Expanded) > 0 {
		var names []string
		for _, name := range p.Expanded {
			names = append(names, fmt.Sprintf("%s (%s)", printable(name.Value), origin(name.Pos)))
		}
		w.line(0, "# with the presets "+strings.Join(names, ", "), vocabulary.Position{})
	}
	w.line(0, "version: 1", vocabulary.Position{})
	w.line(0, "profile: "+plain(string(p.Profile)), p.ProfilePos)
	w.line(0, "isolation: "+plain(string(p.Isolation)), p.IsolationPos)
	if p.Image.Where != "" {
		w.line(0, "image: "+plain(p.Image.String()), p.Image.Pos)
	}
	if len(p.Presets) > 0 {
		w.list(0, "presets", p.Presets)
	}
	w.line(0, "workspace:", p.Workspace.Pos)
	w.line(1, "path: "+plain(p.Workspace.Path), vocabulary.Position{})
	w.line(1, "mode: "+plain(string(p.Workspace.Mode)), vocabulary.Position{})
	if len(p.Workspace.Writable) > 0 {
		w.list(1, "writable", p.Workspace.Writable)
	}
	w.mounts(p.Mounts)
	w.line(0, "env:", vocabulary.Position{})
	w.list(1, "pass", p.EnvPass)
	if len(p.EnvSet) > 0 {
		w.line(1, "set:", vocabulary.Position{})
		for _, v := range p.EnvSet {
			w.line(2, plain(v.Name)+": "+doubleQuoted(v.Value), v.Pos)
		}
	}
	if len(p.EnvFiles) > 0 {
		w.line(1, "files:", vocabulary.Position{})
		for _, v := range p.EnvFiles {
			if !strings.HasSuffix(v.Value, "\n") {
				w.line(2, doubleQuoted(v.Name)+": "+doubleQuoted(v.Value), v.Pos)
				continue
			}
			w.line(2, doubleQuoted(v.Name)+":", v.Pos)
			for line := range strings.SplitSeq(strings.TrimSuffix(v.Value, "\n"), "\n") {
				w.line(3, "- "+doubleQuoted(line), vocabulary.Position{})
			}
		}
	}
	w.grants(p.Grants)
	w.credentials(p.Credentials)
	if len(p.Upstreams) > 0 {
		w.line(0, "upstreams:", vocabulary.Position{})
		for _, u := range p.Upstreams {
			w.line(1, plain(u.Host)+":", u.Pos)
			if u.Connect != "" {
				w.line(2, "connect: "+plain(u.Connect), vocabulary.Position{})
			}
			if u.Proxy != "" {
				w.line(2, "proxy: "+plain(u.Proxy), vocabulary.Position{})
			}
			if u.Credential != "" {
				w.line(2, "credential: "+plain(u.Credential), vocabulary.Position{})
			}
			if u.CA != "" {
				w.line(2, "ca: "+plain(u.CA), vocabulary.Position{})
			}
		}
	}
	if len(p.Publish) > 0 {
		w.line(0, "publish:", vocabulary.Position{})
		for _, port := range p.Publish {
			w.line(1, fmt.Sprintf(`- "%d:%d"`, port.Host, port.Inside), port.Pos)
		}
	}
	w.limits(p.Limits)
	w.within(p)
	return []byte(w.b.String())
}

// within says as comments what a policy cannot say of itself: what narrowed it,
// and which grants have to agree with its own.
func (w *writer) within(p *Policy) {
	comment := func(text string) { w.line(0, "# "+printable(text), vocabulary.Position{}) }
	for _, b := range p.Within {
		comment("within " + string(b.By) + ", " + b.File)
		for _, n := range p.Narrowed {
			if n.By.File == b.File {
				comment("  " + n.String())
			}
		}
		if !b.Grants.Given() {
			continue
		}
		comment("  " + origin(b.Grants.Pos) + ": of the grants above passes only what these grant as well:")
		g := &writer{}
		g.grants(b.Grants.Items)
		for line := range strings.Lines(g.b.String()) {
			comment("    " + strings.TrimSuffix(line, "\n"))
		}
	}
}

type writer struct{ b strings.Builder }

// line writes one line, with its origin when there is one.
func (w *writer) line(indent int, text string, pos vocabulary.Position) {
	w.b.WriteString(strings.Repeat("  ", indent))
	w.b.WriteString(text)
	if pos.File != "" {
		w.b.WriteString("  # from " + origin(pos))
	}
	w.b.WriteByte('\n')
}

// origin is file:line, in characters that cannot end a comment.
func origin(pos vocabulary.Position) string {
	pos.Column = 0
	return printable(pos.String())
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

func (w *writer) list(indent int, key string, values []At[string]) {
	if len(values) == 0 {
		w.line(indent, key+": []", vocabulary.Position{})
		return
	}
	w.line(indent, key+":", vocabulary.Position{})
	for _, v := range values {
		w.line(indent+1, "- "+plain(v.Value), v.Pos)
	}
}

func (w *writer) mounts(mounts []Mount) {
	if len(mounts) == 0 {
		return
	}
	w.line(0, "mounts:", vocabulary.Position{})
	for _, m := range mounts {
		w.line(1, "- path: "+plain(m.Path), m.Pos)
		w.line(2, "mode: "+plain(string(m.Mode)), vocabulary.Position{})
		if m.Optional {
			w.line(2, "optional: true", vocabulary.Position{})
		}
	}
}

func (w *writer) grants(grants []Grant) {
	if len(grants) == 0 {
		w.line(0, "grants: []", vocabulary.Position{})
		return
	}
	w.line(0, "grants:", vocabulary.Position{})
	for _, g := range grants {
		none := vocabulary.Position{}
		switch {
		case g.Service != "":
			w.line(1, "- service: "+plain(g.Service), g.Pos)
			if len(g.Operations) > 0 {
				w.line(2, "operations: "+flow(values(g.Operations)), none)
			}
			if len(g.Resources) > 0 {
				w.line(2, "resources: "+flow(values(g.Resources)), none)
			}
		case g.SSH != "":
			w.line(1, "- ssh: "+plain(g.SSH), g.Pos)
			w.line(2, "operations: "+flow(values(g.Operations)), none)
			w.line(2, "resources: "+flow(values(g.Resources)), none)
		case g.HTTP != "":
			w.line(1, "- http: "+plain(g.HTTP), g.Pos)
			w.line(2, "methods: "+flow(g.Methods), none)
		default:
			w.line(1, "- tcp: "+plain(g.TCP), g.Pos)
			w.line(2, "# weak: nothing in it can be inspected", none)
		}
		if g.Credential != "" {
			w.line(2, "credential: "+plain(g.Credential), none)
			if g.HTTP != "" {
				w.line(2, "header: "+plain(g.Header), none)
				if g.Scheme != "" {
					w.line(2, "scheme: "+plain(g.Scheme), none)
				}
			}
		}
	}
}

func (w *writer) credentials(credentials []Credential) {
	if len(credentials) == 0 {
		return
	}
	w.line(0, "credentials:", vocabulary.Position{})
	for _, c := range credentials {
		w.line(1, plain(c.Name)+":", c.Pos)
		w.line(2, "from: "+c.from(), vocabulary.Position{})
		if c.Account != "" {
			w.line(2, "account: "+plain(c.Account), vocabulary.Position{})
		}
		if c.AllowLogin {
			w.line(2, "allow-login: true", vocabulary.Position{})
		}
		if c.Optional {
			w.line(2, "optional: true", vocabulary.Position{})
		}
	}
}

func (w *writer) limits(l Limits) {
	var lines []func()
	add := func(set bool, text string, pos vocabulary.Position) {
		if set {
			lines = append(lines, func() { w.line(1, text, pos) })
		}
	}
	add(l.Memory != 0, "memory: "+sizeString(l.Memory), l.Pos.Memory)
	add(l.PIDs != 0, "pids: "+strconv.Itoa(l.PIDs), l.Pos.PIDs)
	add(l.CPUs != 0, "cpus: "+strconv.FormatFloat(l.CPUs, 'f', -1, 64), l.Pos.CPUs)
	add(l.Wall != 0, "wall: "+wallString(l.Wall), l.Pos.Wall)
	for _, a := range l.amounts() {
		add(a.of.Value != 0, a.key+": "+a.show(a.of.Value), a.of.Pos)
	}
	if len(lines) == 0 {
		return
	}
	w.line(0, "limits:", vocabulary.Position{})
	for _, write := range lines {
		write()
	}
}

func values(list []At[string]) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = v.Value
	}
	return out
}

func flow(list []string) string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = plain(v)
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// plainWords are what YAML 1.1 readers take for something else than text.
var plainWords = []string{"null", "true", "false", "yes", "no", "on", "off", "y", "n"}

// plain quotes a text unless every YAML reader takes it as that text without
// quotes, in blocks and in brackets.
func plain(s string) string {
	rest := s
	for _, prefix := range []string{"~/", "/", "./", "../"} {
		if after, ok := strings.CutPrefix(s, prefix); ok {
			rest = after
			break
		}
	}
	safe := made(rest, lower+upper, alnum+"_./~@*:+-", 4096) && !strings.HasSuffix(rest, ":") &&
		!slices.ContainsFunc(plainWords, func(word string) bool { return strings.EqualFold(word, s) })
	if safe || s == "." {
		return s
	}
	return doubleQuoted(s)
}

// doubleQuoted is a double-quoted YAML scalar. Values hold printable
// characters only (document.walk), so two escapes are enough; the others are
// for policies that were built by hand.
func doubleQuoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
