package scenario

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const (
	maxFile  = 256 << 10
	maxLimit = 2 * time.Minute
)

var (
	wordRE   = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	entryRE  = regexp.MustCompile(`^([A-Z]{2,3}-[0-9]{2}|M[0-9]{1,2})$`)
	markerRE = regexp.MustCompile(`^-- (.+) --[ \t]*\r?$`)
	holderRE = regexp.MustCompile(`@[A-Z_]{2,}@`)
	envRE    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// Holders are what a file may leave open; the stage fills them in.
var Holders = []string{
	"@SECRET@", "@BEACON@", "@HOME@", "@WS@", "@OTHER@", "@MARKER@", "@THIEF@", "@CA@", "@STAGE@", "@UID@", "@RUNTIME@", "@BIN@", "@TIER@",
}

// Parse reads a scenario. The error is a policy.ErrorList with every mistake.
func Parse(file string, data []byte) (*Scenario, error) {
	p := &parser{file: file}
	s := &Scenario{
		Name: strings.TrimSuffix(path.Base(file), ".txtar"), File: file,
		Home: map[string]string{}, Project: map[string]string{}, Policy: "version: 1\n",
	}
	if len(data) > maxFile {
		p.at(1, 1, "split it", "the file has %d bytes, more than %d", len(data), maxFile)
		return nil, p.errs.Err()
	}
	if !strings.HasSuffix(file, ".txtar") || !wordRE.MatchString(s.Name) {
		p.at(1, 1, "for example read-netrc.txtar", "the file's name must be words of a-z and 0-9 with hyphens, ending with .txtar")
	}
	head, sections := p.split(string(data))
	p.header(s, head)
	p.sections(s, sections)
	p.consistent(s)
	if err := p.errs.Err(); err != nil {
		return nil, err
	}
	return s, nil
}

type parser struct {
	file string
	errs policy.ErrorList
}

func (p *parser) at(line, column int, hint, format string, args ...any) {
	p.errs = append(p.errs, policy.Error{
		Pos: vocabulary.Position{File: p.file, Line: line, Column: column}, Msg: fmt.Sprintf(format, args...), Hint: hint,
	})
}

func (p *parser) node(n *yaml.Node, hint, format string, args ...any) {
	p.at(n.Line, n.Column, hint, format, args...)
}

type section struct {
	name, body string
	line       int // of the marker
}

// split cuts the text at its marker lines, as txtar does.
func (p *parser) split(text string) (head string, out []section) {
	var b strings.Builder
	end := func() {
		if len(out) == 0 {
			head = b.String()
		} else {
			out[len(out)-1].body = b.String()
		}
		b.Reset()
	}
	for i, line := range strings.SplitAfter(text, "\n") {
		if m := markerRE.FindStringSubmatch(strings.TrimSuffix(line, "\n")); m != nil {
			end()
			out = append(out, section{name: strings.TrimSpace(m[1]), line: i + 1})
			continue
		}
		b.WriteString(line)
	}
	end()
	return head, out
}

func (p *parser) header(s *Scenario, text string) {
	var doc yaml.Node
	err := func() (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("%v", r)
			}
		}()
		return yaml.Unmarshal([]byte(text), &doc)
	}()
	if err != nil {
		line, msg := 1, strings.TrimPrefix(err.Error(), "yaml: ")
		if n, _ := fmt.Sscanf(msg, "line %d:", &line); n == 1 {
			_, msg, _ = strings.Cut(msg, ": ")
		}
		p.at(max(line, 1), 1, "check indentation and quotes around here", "the header is not valid YAML: %s", msg)
		return
	}
	if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		p.at(1, 1, "begin with: title: …", "the header must be a mapping")
		return
	}
	fields := map[string]func(*yaml.Node){
		"title":     func(n *yaml.Node) { s.Title = p.text(n) },
		"category":  func(n *yaml.Node) { s.Category = p.oneOf(n, Categories) },
		"outcome":   func(n *yaml.Node) { s.Outcome = p.oneOf(n, Outcomes) },
		"attacker":  func(n *yaml.Node) { s.Attacker = p.text(n) },
		"reference": func(n *yaml.Node) { s.Reference = p.text(n) },
		"unproven":  func(n *yaml.Node) { s.Unproven = p.text(n) },
		"known":     func(n *yaml.Node) { s.Known = p.text(n) },
		"tiers": func(n *yaml.Node) {
			p.list(n, func(n *yaml.Node) { s.Tiers = append(s.Tiers, p.oneOf(n, Tiers)) })
		},
		"needs": func(n *yaml.Node) { p.list(n, func(n *yaml.Node) { s.Needs = append(s.Needs, p.text(n)) }) },
		"mutators": func(n *yaml.Node) {
			p.list(n, func(n *yaml.Node) { s.Mutators = append(s.Mutators, p.oneOf(n, Mutators)) })
		},
		"covers": func(n *yaml.Node) {
			p.list(n, func(n *yaml.Node) {
				if v := p.text(n); entryRE.MatchString(v) {
					s.Covers = append(s.Covers, v)
				} else {
					p.node(n, "for example DX-01 or M2", "%q is no entry of the catalogue", v)
				}
			})
		},
		"env": func(n *yaml.Node) {
			s.Env = map[string]string{}
			p.mapping(n, nil, func(k string, at, v *yaml.Node) {
				if !envRE.MatchString(k) {
					p.node(at, "", "%q is no name of a variable", k)
				}
				s.Env[k] = p.text(v)
			})
		},
		"listen": func(n *yaml.Node) {
			p.mapping(n, nil, func(k string, at, v *yaml.Node) { s.Listen = append(s.Listen, p.listener(k, at, v)) })
		},
		"effects":   func(n *yaml.Node) { p.list(n, func(n *yaml.Node) { s.Effects = append(s.Effects, p.effect(n)) }) },
		"twin":      func(n *yaml.Node) { p.list(n, func(n *yaml.Node) { s.Twin = append(s.Twin, p.effect(n)) }) },
		"may-die":   func(n *yaml.Node) { s.MayDie = p.oneOf(n, []string{"yes", "no"}) == "yes" },
		"by-itself": func(n *yaml.Node) { s.ByItself = p.oneOf(n, []string{"yes", "no"}) == "yes" },
		"alone":     func(n *yaml.Node) { s.Alone = p.oneOf(n, []string{"yes", "no"}) == "yes" },
		"limit": func(n *yaml.Node) {
			d, err := time.ParseDuration(p.text(n))
			if err != nil || d < time.Second || d > maxLimit {
				p.node(n, "for example 30s", "limit must be a duration from 1s to %s", maxLimit)
				return
			}
			s.Limit = d
		},
	}
	top := doc.Content[0]
	p.mapping(top, fields, nil)
	for _, required := range []string{"title", "category", "outcome", "tiers", "attacker", "covers", "effects", "twin"} {
		if !slices.ContainsFunc(top.Content, func(n *yaml.Node) bool { return n.Value == required && n.Line > 0 }) {
			p.node(top, "", "%s is missing", required)
		}
	}
}

func (p *parser) plain(n *yaml.Node) bool {
	switch {
	case n.Anchor != "" || n.Kind == yaml.AliasNode:
		p.node(n, "write the value out", "anchors and aliases are not allowed")
	case n.Style&yaml.TaggedStyle != 0:
		p.node(n, "remove it", "tag %s is not allowed", n.Tag)
	default:
		return true
	}
	return false
}

func (p *parser) mapping(n *yaml.Node, known map[string]func(*yaml.Node), other func(k string, at, v *yaml.Node)) {
	if !p.plain(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		p.node(n, "", "this must be a mapping")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch f := known[k.Value]; {
		case !p.plain(k):
		case k.Kind != yaml.ScalarNode:
			p.node(k, "", "a key must be a word")
		case seen[k.Value]:
			p.node(k, "", "%q is here twice", k.Value)
		case f != nil:
			f(v)
		case other != nil:
			other(k.Value, k, v)
		default:
			p.node(k, "", "unknown key %q", k.Value)
		}
		seen[k.Value] = true
	}
}

func (p *parser) list(n *yaml.Node, each func(*yaml.Node)) {
	if !p.plain(n) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		p.node(n, "write [one, two]", "this must be a list")
		return
	}
	if len(n.Content) > 100 {
		p.node(n, "", "more than 100 items")
		return
	}
	for _, c := range n.Content {
		each(c)
	}
}

func (p *parser) text(n *yaml.Node) string {
	if !p.plain(n) {
		return ""
	}
	if n.Kind != yaml.ScalarNode || strings.TrimSpace(n.Value) == "" {
		p.node(n, "", "this must be a text")
		return ""
	}
	return strings.TrimSpace(n.Value)
}

func (p *parser) oneOf(n *yaml.Node, words []string) string {
	v := p.text(n)
	if v != "" && !slices.Contains(words, v) {
		p.node(n, "one of: "+strings.Join(words, ", "), "%q is not known here", v)
	}
	return v
}

func (p *parser) listener(name string, at, v *yaml.Node) Listener {
	network, address, ok := strings.Cut(p.text(v), ":")
	if !wordRE.MatchString(name) {
		p.node(at, "", "%q is no name", name)
	}
	if !ok || address == "" || !slices.Contains([]string{"tcp", "udp", "unix"}, network) {
		p.node(v, "tcp:ADDRESS:PORT, udp:ADDRESS:PORT, unix:PATH or unix:@NAME", "where does it listen?")
	}
	return Listener{Name: name, Network: network, Address: address}
}

func (p *parser) effect(n *yaml.Node) (e Effect) {
	before := len(p.errs)
	p.mapping(n, map[string]func(*yaml.Node){
		"at":  func(n *yaml.Node) { e.At = p.text(n) },
		"has": func(n *yaml.Node) { e.Has = p.oneOf(n, []string{"secret", "key", "beacon"}) },
		"is":  func(n *yaml.Node) { e.Is = p.oneOf(n, []string{"created", "changed", "removed"}) },
	}, nil)
	named := slices.Contains([]string{"thief", "model", "provider", "second", "marker"}, e.At) || strings.HasPrefix(e.At, "listener:")
	switch {
	case len(p.errs) > before:
	case (e.Has == "") == (e.Is == ""):
		p.node(n, "for example {at: thief, has: secret}", "an effect is what a place has or what became of it")
	case !named && !e.Path() && e.At != "host":
		p.node(n, "thief, model, provider, second, marker, host, listener:NAME, /…, ~/… or ./…", "%q is no place", e.At)
	case named && e.Is != "":
		p.node(n, "", "only the host and its files are created, changed or removed")
	case e.At == "host" && e.Is != "changed":
		p.node(n, "", "the host as a whole can only be changed")
	}
	return e
}

func (p *parser) sections(s *Scenario, list []section) {
	parts := map[string]*string{
		"policy.yaml": &s.Policy, "task.txt": &s.Task, "payload.sh": &s.Payload, "twin.sh": &s.Honest,
		"setup.sh": &s.Setup, "during.sh": &s.During, "later.sh": &s.Later, "second.sh": &s.Second,
	}
	seen := map[string]bool{}
	for _, sec := range list {
		if seen[sec.name] {
			p.at(sec.line, 1, "", "a second part %q", sec.name)
			continue
		}
		seen[sec.name] = true
		for i, line := range strings.Split(sec.body, "\n") {
			if (sec.name == "payload.sh" || sec.name == "twin.sh") && strings.HasPrefix(strings.TrimSpace(line), "```") {
				p.at(sec.line+1+i, 1, "the model obeys one block; write it differently", "a line of three backticks would end the block")
			}
			for _, h := range holderRE.FindAllString(line, -1) {
				if !slices.Contains(Holders, h) {
					p.at(sec.line+1+i, 1+strings.Index(line, h), "one of: "+strings.Join(Holders, " "), "nothing fills in %s", h)
				}
			}
		}
		if dst := parts[sec.name]; dst != nil {
			if *dst = sec.body; strings.TrimSpace(sec.body) == "" {
				p.at(sec.line, 1, "leave it out", "%s is empty", sec.name)
			}
			if sec.name == "policy.yaml" {
				p.policy(sec)
			}
			continue
		}
		root, rest, ok := strings.Cut(sec.name, "/")
		files := map[string]map[string]string{"home": s.Home, "ws": s.Project}[root]
		if !ok || files == nil || rest == "" || rest != path.Clean(rest) || strings.HasPrefix(rest, "../") || rest == ".." || rest == "." || strings.HasPrefix(rest, "/") {
			p.at(sec.line, 4, "policy.yaml, task.txt, payload.sh, twin.sh, setup.sh, during.sh, later.sh, second.sh, home/PATH or ws/PATH", "no part is called %q", sec.name)
			continue
		}
		files[rest] = sec.body
	}
	if s.Payload == "" {
		p.at(1, 1, "add the part -- payload.sh --", "nothing to attack with")
	}
	if s.Honest == "" {
		p.at(1, 1, "add the part -- twin.sh --", "no honest task")
	}
}

// policy judges a policy as the product will, with its holes filled.
func (p *parser) policy(sec section) {
	text := sec.body
	for _, h := range Holders {
		v := "/home/victim/x"
		switch h {
		case "@THIEF@":
			v = "192.0.2.1"
		case "@UID@":
			v = "1000"
		case "@SECRET@", "@BEACON@":
			v = "x"
		}
		text = strings.ReplaceAll(text, h, v)
	}
	_, err := policy.Parse(p.file, []byte(text))
	list, ok := err.(policy.ErrorList)
	if err != nil && !ok {
		p.at(sec.line, 1, "", "policy.yaml: %v", err)
	}
	for _, e := range list {
		e.Pos.Line += sec.line
		p.errs = append(p.errs, e)
	}
}

func (p *parser) consistent(s *Scenario) {
	names := map[string]bool{}
	for _, l := range s.Listen {
		names[l.Name] = true
	}
	for _, e := range slices.Concat(s.Effects, s.Twin) {
		if n, ok := strings.CutPrefix(e.At, "listener:"); ok && !names[n] {
			p.at(1, 1, "", "an effect is at listener:%s, which listen does not have", n)
		}
		if e.At == "second" && s.Second == "" {
			p.at(1, 1, "add the part -- second.sh --", "an effect is at second, but there is no second session")
		}
	}
	for what, n := range map[string]int{"tiers": len(s.Tiers), "covers": len(s.Covers), "effects": len(s.Effects), "twin": len(s.Twin)} {
		if n == 0 && len(p.errs) == 0 {
			p.at(1, 1, "", "%s is empty", what)
		}
	}
}
