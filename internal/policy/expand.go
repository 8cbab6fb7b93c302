package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Expand returns a policy with its presets merged in, and those that they
// include. Every item keeps its position, "preset:NAME:line:column".
//
// What the policy file itself says comes first: its value for a variable, its
// mode for a path and its source for a credential replace the preset's. Two
// presets that disagree are an error that names both places; what they say
// alike is there once. Grants add up. The error is an ErrorList.
func Expand(p *Policy, lookup func(name string) (*Preset, error)) (*Policy, error) {
	out := *p
	out.Presets, out.Expanded = nil, slices.Clone(p.Expanded)
	out.Mounts, out.EnvPass, out.EnvSet = slices.Clone(p.Mounts), slices.Clone(p.EnvPass), slices.Clone(p.EnvSet)
	out.EnvFiles = slices.Clone(p.EnvFiles)
	out.Grants, out.Credentials = slices.Clone(p.Grants), slices.Clone(p.Credentials)
	out.Upstreams, out.Publish = slices.Clone(p.Upstreams), slices.Clone(p.Publish)
	m := merger{out: &out, lookup: lookup}
	for _, name := range p.Presets {
		m.include(name, nil)
	}
	if len(m.errs) == 0 {
		out.consistency(true, &m.errs)
	}
	if err := m.errs.Err(); err != nil {
		return nil, err
	}
	return &out, nil
}

type merger struct {
	out    *Policy
	lookup func(string) (*Preset, error)
	failed []string
	errs   ErrorList
}

func (m *merger) include(name At[string], chain []string) {
	if slices.Contains(chain, name.Value) {
		m.errs = append(m.errs, Error{name.Pos, "presets include each other: " + strings.Join(append(chain, name.Value), " → "), "remove one of them"})
		return
	}
	if contains(m.out.Expanded, name.Value) || slices.Contains(m.failed, name.Value) {
		return
	}
	preset, err := m.lookup(name.Value)
	if err == nil && preset == nil {
		err = fmt.Errorf("unknown preset %s", quoted(name.Value))
	}
	if err != nil {
		m.failed = append(m.failed, name.Value)
		var list ErrorList
		if errors.As(err, &list) {
			m.errs = append(m.errs, list...)
		} else {
			m.errs = append(m.errs, Error{name.Pos, err.Error(), "see: bulkhead preset list"})
		}
		return
	}
	for _, included := range preset.Presets {
		m.include(included, append(slices.Clone(chain), name.Value))
	}
	m.out.Expanded = append(m.out.Expanded, name)
	m.mounts(preset.Mounts)
	m.environment(preset)
	m.credentials(preset.Credentials)
	for _, port := range preset.Publish {
		if !slices.ContainsFunc(m.out.Publish, func(have Published) bool { return have.Inside == port.Inside }) {
			m.out.Publish = append(m.out.Publish, port)
		}
	}
	for _, g := range preset.Grants {
		if !slices.ContainsFunc(m.out.Grants, func(have Grant) bool { return sameGrant(have, g) }) {
			m.out.Grants = append(m.out.Grants, g)
		}
	}
}

// own reports whether something comes from the policy file, not from a preset.
func own(pos vocabulary.Position) bool { return !strings.HasPrefix(pos.File, "preset:") }

func (m *merger) conflict(pos, first vocabulary.Position, format string, args ...any) {
	m.errs = append(m.errs, Error{pos, fmt.Sprintf(format, args...) + ", but not at " + first.String(), "say in your policy which of the two it is"})
}

func (m *merger) mounts(mounts []Mount) {
	for _, mount := range mounts {
		i := slices.IndexFunc(m.out.Mounts, func(have Mount) bool { return have.Path == mount.Path })
		if i < 0 {
			m.out.Mounts = append(m.out.Mounts, mount)
			continue
		}
		have := &m.out.Mounts[i]
		switch {
		case own(have.Pos):
		case have.Mode != mount.Mode:
			m.conflict(mount.Pos, have.Pos, "%s has mode %s here", quoted(mount.Path), mount.Mode)
		case !mount.Optional:
			*have = mount
		}
	}
}

func (m *merger) environment(preset *Preset) {
	for _, v := range preset.EnvFiles {
		switch have := findVar(m.out.EnvFiles, v.Name); {
		case have == nil:
			m.out.EnvFiles = append(m.out.EnvFiles, v)
		case !own(have.Pos) && have.Value != v.Value:
			m.conflict(v.Pos, have.Pos, "%s has other content here", v.Name)
		}
	}
	for _, name := range preset.EnvPass {
		set := findVar(m.out.EnvSet, name.Value)
		switch {
		case contains(m.out.EnvPass, name.Value), set != nil && own(set.Pos):
		case set != nil:
			m.conflict(name.Pos, set.Pos, "%s is passed here", name.Value)
		default:
			m.out.EnvPass = append(m.out.EnvPass, name)
		}
	}
	for _, v := range preset.EnvSet {
		if have := findVar(m.out.EnvSet, v.Name); have != nil {
			if !own(have.Pos) && have.Value != v.Value {
				m.conflict(v.Pos, have.Pos, "%s is %s here", v.Name, quoted(v.Value))
			}
			continue
		}
		i := slices.IndexFunc(m.out.EnvPass, func(name At[string]) bool { return name.Value == v.Name })
		if i >= 0 {
			switch pos := m.out.EnvPass[i].Pos; {
			case isDefault(pos):
				m.out.EnvPass = slices.Delete(m.out.EnvPass, i, i+1)
			case own(pos):
				continue
			default:
				m.conflict(v.Pos, pos, "%s is set here", v.Name)
				continue
			}
		}
		m.out.EnvSet = append(m.out.EnvSet, v)
	}
}

func (m *merger) credentials(credentials []Credential) {
	for _, c := range credentials {
		i := slices.IndexFunc(m.out.Credentials, func(have Credential) bool { return have.Name == c.Name })
		if i < 0 {
			m.out.Credentials = append(m.out.Credentials, c)
			continue
		}
		have := &m.out.Credentials[i]
		switch {
		case own(have.Pos):
		case !c.beginsLike(*have) && have.beginsLike(c):
			c.Optional = c.Optional && have.Optional
			*have = c
		case !c.beginsLike(*have):
			m.conflict(c.Pos, have.Pos, "credential %s has this source here", c.Name)
		case !c.Optional && have.beginsLike(c):
			*have = c
		case !c.Optional:
			have.Optional = false
		}
	}
}

// sameGrant reports whether two grants say the same, wherever they stand.
func sameGrant(a, b Grant) bool {
	same := func(x, y []At[string]) bool {
		return slices.EqualFunc(x, y, func(v, w At[string]) bool { return v.Value == w.Value })
	}
	return a.Service == b.Service && same(a.Operations, b.Operations) && same(a.Resources, b.Resources) &&
		a.HTTP == b.HTTP && slices.Equal(a.Methods, b.Methods) && a.TCP == b.TCP && a.SSH == b.SSH &&
		a.Credential == b.Credential && a.Header == b.Header && a.Scheme == b.Scheme
}
