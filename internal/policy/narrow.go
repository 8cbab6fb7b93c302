package policy

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Narrowing is one thing that bounds have changed in a policy.
type Narrowing struct {
	By   vocabulary.Position // the line that narrows
	Of   vocabulary.Position // the line that is narrowed
	What string              // such as "workspace mode is ro, not rw"
	// Minor: a default is narrowed that nobody asked for by name.
	Minor bool
}

// String is a line for a person.
func (n Narrowing) String() string {
	return fmt.Sprintf("%s: %s (%s)", n.By, n.What, n.Of)
}

// Places say what a path of a policy means on this host.
type Places struct {
	Home, Cwd string
	// Account is the home folder that the system's accounts name, in which a "~/"
	// of the administrator's is meant: HOME is the user's to set.
	Account string
	// Real follows the links of an absolute path; false: there is nothing there.
	Real func(string) (string, bool)
}

// Narrow returns the policy within bounds: of two values the stricter one. What
// has no stricter form is left out; where that would take away what the user
// asked for by name against the administrator's word, the error is an ExitError
// that names both lines.
func (b *Bounds) Narrow(p *Policy, at Places) (*Policy, error) {
	out := *p
	out.Within = append(slices.Clone(p.Within), b)
	out.Narrowed = slices.Clone(p.Narrowed)
	note := func(by, of vocabulary.Position, format string, args ...any) {
		out.Narrowed = append(out.Narrowed, Narrowing{By: by, Of: of, What: fmt.Sprintf(format, args...)})
	}
	minor := func(by, of vocabulary.Position, format string, args ...any) {
		out.Narrowed = append(out.Narrowed, Narrowing{by, of, fmt.Sprintf(format, args...), isDefault(of)})
	}
	if least := b.Isolation; least.Value != "" && weaker(p.Isolation, least.Value) {
		note(least.Pos, p.IsolationPos, "isolation is %s, not %s", least.Value, p.Isolation)
		out.Isolation, out.IsolationPos = least.Value, least.Pos
	}
	if err := b.narrowWorkspace(&out, at, note); err != nil {
		return nil, err
	}
	if err := b.narrowMounts(&out, at, note); err != nil {
		return nil, err
	}
	if b.EnvPass.Given() {
		out.EnvPass = kept(p.EnvPass, func(v At[string]) bool {
			ok := slices.ContainsFunc(b.EnvPass.Items, func(have At[string]) bool { return have.Value == v.Value })
			if !ok {
				minor(b.EnvPass.Pos, v.Pos, "%s is not passed", v.Value)
			}
			return ok
		})
	}
	out.Publish = kept(p.Publish, func(v Published) bool {
		err := b.MayPublish(v.Host, v.Inside)
		if err != nil {
			note(b.Publish.Pos, v.Pos, "port %d is not published", v.Inside)
		}
		return err == nil
	})
	b.narrowLimits(&out.Limits, Default(p.Profile).ProfilePos, minor)
	for _, u := range p.Upstreams {
		if b.Upstreams.Given() && !slices.ContainsFunc(b.Upstreams.Items, u.leadsLike) {
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "the upstream of %s (%s) is not one that %s allows\n  rule: %s\n  do:   %s", quoted(u.Host), u.Pos, b.By, b.Upstreams.Pos, b.Remedy())
		}
	}
	return &out, nil
}

// leadsLike reports whether two upstreams lead the same name to the same place.
func (u Upstream) leadsLike(o Upstream) bool {
	u.Pos, u.Credential, u.CredentialPos = o.Pos, o.Credential, o.CredentialPos
	return u == o
}

func kept[T any](list []T, keep func(T) bool) []T {
	var out []T
	for _, v := range list {
		if keep(v) {
			out = append(out, v)
		}
	}
	return out
}

// isolations and modes are in the order of strength. A staged workspace reaches
// the real folder only when a person applies it, so it is stricter than any mode
// that writes.
var (
	isolations = []vocabulary.Isolation{vocabulary.Process, vocabulary.Container, vocabulary.VM}
	modes      = []vocabulary.MountMode{vocabulary.ReadWrite, vocabulary.RWNoDelete, vocabulary.StagedWrites, vocabulary.ReadOnly, NoMount}
)

// weaker reports whether an isolation does not give what is asked for at least.
// What auto comes to is known when the backend is chosen (AtLeast).
func weaker(i, least vocabulary.Isolation) bool {
	return i != vocabulary.Auto && slices.Index(isolations, i) < slices.Index(isolations, least)
}

func stricter(a, b vocabulary.MountMode) vocabulary.MountMode {
	if slices.Index(modes, a) > slices.Index(modes, b) {
		return a
	}
	return b
}

// AllGrants are the policy's grants and those of the bounds that it is within.
func (p *Policy) AllGrants() []Grant {
	all := slices.Clone(p.Grants)
	for _, b := range p.Within {
		all = append(all, b.Grants.Items...)
	}
	return all
}

// AtLeast judges the isolation that a session really has.
func (p *Policy) AtLeast(i vocabulary.Isolation) error {
	for _, b := range p.Within {
		if least := b.Isolation; least.Value != "" && weaker(i, least.Value) {
			return vocabulary.Exitf(vocabulary.ExitNoIsolation, "the isolation here is %s; %s asks for %s at least\n  rule: %s\n  do:   install what it needs (see: bulkhead doctor), or %s", i, b.By, least.Value, least.Pos, b.Remedy())
		}
	}
	return nil
}

// MayTrust judges a way of trusting a folder: by a digest that a command names,
// or by a person who is asked.
func (b *Bounds) MayTrust(byDigest bool) error {
	switch {
	case b.Trust.Value == TrustNever:
		return vocabulary.Exitf(vocabulary.ExitRefused, "no project's configuration may be trusted on this machine\n  rule: %s\n  do:   %s", b.Trust.Pos, b.Remedy())
	case b.Trust.Value == TrustAsk && byDigest:
		return vocabulary.Exitf(vocabulary.ExitRefused, "a folder may only be trusted by a person who is asked, not by a digest on the command line\n  rule: %s\n  do:   bulkhead trust add DIR, on a terminal", b.Trust.Pos)
	}
	return nil
}

// MayPublish judges one port.
func (b *Bounds) MayPublish(host, inside int) error {
	if !b.Publish.Given() || slices.ContainsFunc(b.Publish.Items, func(p Published) bool { return p.Host == host && p.Inside == inside }) {
		return nil
	}
	return vocabulary.Exitf(vocabulary.ExitRefused, "port %d of this host for port %d inside is not among those of %s\n  rule: %s\n  do:   %s", host, inside, b.By, b.Publish.Pos, b.Remedy())
}

func (b *Bounds) narrowLimits(l *Limits, of vocabulary.Position, note func(by, of vocabulary.Position, format string, args ...any)) {
	lower := func(name string, exceeds bool, show func(Limits) string, set func(), by vocabulary.Position, was *vocabulary.Position) {
		if by.File == "" || !exceeds {
			return
		}
		from := *was
		if from.File == "" {
			from = of
		}
		before := show(*l)
		set()
		*was = by
		note(by, from, "%s is %s, not %s", name, show(*l), before)
	}
	text := func(set bool, s string) string {
		if !set {
			return "without a limit"
		}
		return s
	}
	m := b.Limits
	lower("limits.memory", l.Memory == 0 || l.Memory > m.Memory, func(l Limits) string { return text(l.Memory != 0, sizeString(l.Memory)) }, func() { l.Memory = m.Memory }, m.Pos.Memory, &l.Pos.Memory)
	lower("limits.pids", l.PIDs == 0 || l.PIDs > m.PIDs, func(l Limits) string { return text(l.PIDs != 0, strconv.Itoa(l.PIDs)) }, func() { l.PIDs = m.PIDs }, m.Pos.PIDs, &l.Pos.PIDs)
	lower("limits.cpus", l.CPUs == 0 || l.CPUs > m.CPUs, func(l Limits) string { return text(l.CPUs != 0, strconv.FormatFloat(l.CPUs, 'f', -1, 64)) }, func() { l.CPUs = m.CPUs }, m.Pos.CPUs, &l.Pos.CPUs)
	lower("limits.wall", l.Wall == 0 || l.Wall > m.Wall, func(l Limits) string { return text(l.Wall != 0, wallString(l.Wall)) }, func() { l.Wall = m.Wall }, m.Pos.Wall, &l.Pos.Wall)
	own, most := l.amounts(), m.amounts()
	for i, b := range own {
		most := most[i].of
		show := func(Limits) string { return text(b.of.Value != 0, b.show(b.of.Value)) }
		lower("limits."+b.key, b.of.Value == 0 || b.of.Value > most.Value, show, func() { b.of.Value = most.Value }, most.Pos, &b.of.Pos)
	}
}

func (b *Bounds) narrowWorkspace(p *Policy, at Places, note func(by, of vocabulary.Position, format string, args ...any)) error {
	w := &p.Workspace
	lower := func(most At[vocabulary.MountMode]) {
		if s := stricter(w.Mode, most.Value); s != w.Mode {
			note(most.Pos, w.Pos, "workspace mode is %s, not %s", s, w.Mode)
			w.Mode, w.Pos = s, most.Pos
		}
	}
	if b.Workspace.Value != "" {
		lower(b.Workspace)
	}
	if b.Writable.Given() {
		w.Writable = kept(w.Writable, func(v At[string]) bool {
			ok := slices.ContainsFunc(b.Writable.Items, func(have At[string]) bool { return have.Value == v.Value })
			if !ok {
				note(b.Writable.Pos, v.Pos, "%s are not writable", v.Value)
			}
			return ok
		})
	}
	if !b.Workspaces.Given() {
		return nil
	}
	real, there := at.real(w.Path)
	if !there {
		return nil // refused as missing, or judged when it is opened
	}
	most, err := b.most(b.Workspaces, at, real)
	if err != nil {
		return err
	}
	if most.Value == NoMount {
		return b.refuse("workspace", real, w.Pos, most.Pos)
	}
	lower(most)
	return nil
}

func (b *Bounds) narrowMounts(p *Policy, at Places, note func(by, of vocabulary.Position, format string, args ...any)) error {
	if !b.Mounts.Given() {
		return nil
	}
	var out []Mount
	for _, m := range p.Mounts {
		real, there := at.real(m.Path)
		if !there {
			out = append(out, m) // refused as missing, or judged when it is opened
			continue
		}
		most, err := b.most(b.Mounts, at, real)
		if err != nil {
			return err
		}
		switch s := stricter(m.Mode, most.Value); {
		case s == NoMount && b.By == ByAdministrator && !m.Optional:
			return b.refuse("mount", real, m.Pos, most.Pos)
		case s == NoMount:
			note(most.Pos, m.Pos, "%s is not mounted", m.Path)
			continue
		case s != m.Mode:
			if s == vocabulary.StagedWrites { // no mode of a mount
				s = vocabulary.ReadOnly
			}
			note(most.Pos, m.Pos, "%s is mounted %s, not %s", m.Path, s, m.Mode)
			m.Mode, m.Pos = s, most.Pos
		}
		out = append(out, m)
	}
	p.Mounts = out
	return nil
}

func (b *Bounds) refuse(what, real string, of, by vocabulary.Position) error {
	return vocabulary.Exitf(vocabulary.ExitRefused, "%s %s (%s) is not allowed by %s\n  rule: %s\n  do:   %s", what, strconv.Quote(real), of, b.By, by, b.Remedy())
}

// MayShow judges a folder that was opened, by its real path: the last word,
// after Narrow. workspace says which list counts.
func (b *Bounds) MayShow(real string, mode vocabulary.MountMode, of vocabulary.Position, workspace bool, at Places) error {
	what, list := "mount", b.Mounts
	if workspace {
		what, list = "workspace", b.Workspaces
	}
	if !list.Given() {
		return nil
	}
	most, err := b.most(list, at, real)
	if err != nil {
		return err
	}
	if mode == "" {
		mode = vocabulary.ReadWrite
	}
	if stricter(mode, most.Value) != mode {
		return b.refuse(what, real, of, most.Pos)
	}
	return nil
}

// most is the mode that a real path may have at most: that of the narrowest entry
// at or above it, and not more than any entry below it says, for they would be
// open with it. An entry whose own path leads through links counts at its end as
// well, but only to forbid: who can change the link must gain nothing.
func (b *Bounds) most(list AtMost[FolderBound], at Places, real string) (At[vocabulary.MountMode], error) {
	most := At[vocabulary.MountMode]{NoMount, list.Pos}
	depth := -1
	var caps []FolderBound
	for _, f := range list.Items {
		home := at.Home
		if b.By == ByAdministrator {
			home = at.Account
		}
		if home == "" && strings.HasPrefix(f.Path, "~") {
			return most, vocabulary.Exitf(vocabulary.ExitRefused, "%s is about your home, and this system's accounts do not say where that is\n  rule: %s\n  do:   let the administrator write the whole path", quoted(f.Path), f.Pos)
		}
		elements, ended := entryElements(f.Path, home, at)
		n, is := under(elements, real)
		switch {
		case is && n > depth, is && n == depth && stricter(f.Mode, most.Value) == f.Mode:
			depth, most = n, At[vocabulary.MountMode]{f.Mode, f.Pos}
		case !is && n > 0:
			caps = append(caps, f)
		}
		if ended != nil {
			if n, is := under(ended, real); is || n > 0 {
				caps = append(caps, f)
			}
		}
	}
	for _, f := range caps {
		if stricter(most.Value, f.Mode) != most.Value {
			most = At[vocabulary.MountMode]{f.Mode, f.Pos}
		}
	}
	return most, nil
}

// entryElements splits an entry's path, and that of where it leads to, if that is
// another one.
func entryElements(p, home string, at Places) (elements, ended []string) {
	if rest, ok := strings.CutPrefix(p, "~"); ok {
		if real, there := at.Real(home); there {
			home = real // above the home folder nothing is the user's
		}
		p = path.Join(home, rest)
	}
	elements = split(p)
	literal := slices.IndexFunc(elements, func(e string) bool { return strings.ContainsAny(e, `*?[\`) })
	if literal < 0 {
		literal = len(elements)
	}
	head := "/" + strings.Join(elements[:literal], "/")
	if real, there := at.Real(head); there && real != head {
		ended = append(split(real), elements[literal:]...)
	}
	return elements, ended
}

func split(p string) []string {
	if p = strings.Trim(p, "/"); p == "" {
		return []string{}
	}
	return strings.Split(p, "/")
}

// under compares element by element. is: the path is at or below the entry,
// n elements deep. Not is, and n > 0: the entry lies below the path.
func under(entry []string, real string) (n int, is bool) {
	have := split(real)
	for i := range min(len(entry), len(have)) {
		if ok, _ := path.Match(entry[i], have[i]); !ok {
			return 0, false
		}
	}
	if len(entry) <= len(have) {
		return len(entry), true
	}
	return len(entry), false
}

// real is where a path of the policy leads to.
func (at Places) real(p string) (string, bool) {
	return at.Real(ResolvePath(p, at.Home, at.Cwd))
}

// None lists the places that may not be shown at all, for this host.
func (b *Bounds) None(at Places) []FolderBound {
	var out []FolderBound
	for _, f := range b.Mounts.Items {
		if f.Mode == NoMount {
			f.Path = ResolvePath(f.Path, at.Account, "/")
			out = append(out, f)
		}
	}
	return out
}
