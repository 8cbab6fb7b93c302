package policy

import (
	"fmt"
	"slices"
)

// Checks are the judgements that this package cannot make itself. Each is
// called for everything of its kind, whether or not something else is wrong;
// a nil one is not asked. They return nil, or what is wrong: Pos is filled in
// by the caller.
type Checks struct {
	Preset    func(name string) *Error
	Service   func(name string) *Error
	Operation func(service, operation string) *Error
	Resource  func(service, resource string) *Error
	Grant     func(g Grant) *Error // whole grants, for what concerns several of their parts
}

// Check asks the judges about a policy that Parse or Expand has returned. The
// error is an ErrorList.
func (p *Policy) Check(c Checks) error {
	var errs ErrorList
	p.check(c, &errs)
	return errs.Err()
}

func (p *Policy) check(c Checks, errs *ErrorList) {
	add := func(at At[string], e *Error) {
		if e != nil {
			*errs = append(*errs, Error{at.Pos, e.Msg, e.Hint})
		}
	}
	if c.Preset != nil {
		for _, name := range p.Presets {
			add(name, c.Preset(name.Value))
		}
	}
	for _, g := range p.Grants {
		if g.Service != "" {
			if c.Service != nil {
				if e := c.Service(g.Service); e != nil {
					add(At[string]{g.Service, g.Pos}, e)
					continue
				}
			}
			for _, op := range g.Operations {
				if c.Operation != nil {
					add(op, c.Operation(g.Service, op.Value))
				}
			}
			for _, res := range g.Resources {
				if c.Resource != nil {
					add(res, c.Resource(g.Service, res.Value))
				}
			}
		}
		if c.Grant != nil {
			add(At[string]{"", g.Pos}, c.Grant(g))
		}
	}
}

// consistency checks what concerns two parts of a policy. complete says that
// no preset can bring a missing credential any more.
func (p *Policy) consistency(complete bool, errs *ErrorList) {
	add := func(e Error) { *errs = append(*errs, e) }
	for i, m := range p.Mounts {
		for _, first := range p.Mounts[:i] {
			if first.Path == m.Path {
				add(Error{m.Pos, fmt.Sprintf("%s is mounted a second time, the first is at %s", quoted(m.Path), first.Pos), "keep one of the two"})
				break
			}
		}
	}
	names := make([]string, len(p.Credentials))
	for i, c := range p.Credentials {
		names[i] = c.Name
		for _, pass := range p.EnvPass {
			if c.reads(pass.Value) {
				add(Error{pass.Pos, fmt.Sprintf("env.pass would give the sandbox %s, the secret of credential %s at %s", pass.Value, c.Name, c.Pos),
					"remove it; the sandbox gets a placeholder instead"})
			}
		}
	}
	for _, pass := range p.EnvPass {
		if v := findVar(p.EnvSet, pass.Value); v != nil {
			add(Error{v.Pos, fmt.Sprintf("%s is both passed (%s) and set", v.Name, pass.Pos), "keep one of the two"})
		}
	}
	for _, u := range p.Upstreams {
		if complete && u.Credential != "" && !slices.Contains(names, u.Credential) {
			add(Error{u.CredentialPos, fmt.Sprintf("credential %s is not defined", quoted(u.Credential)),
				"add it, with user:password as its value: credentials: {" + u.Credential + ": {from: {keyring: NAME}}}"})
		}
	}
	if complete {
		p.sshConsistency(errs)
	}
	for i, g := range p.Grants {
		if complete && g.Credential != "" && !slices.Contains(names, g.Credential) {
			hint := "add it: credentials: {" + g.Credential + ": {from: {env: NAME}}}"
			if len(names) > 0 {
				hint = Suggest(g.Credential, names)
			}
			add(Error{g.CredentialPos, fmt.Sprintf("credential %s is not defined", quoted(g.Credential)), hint})
		}
		for _, first := range p.Grants[:i] {
			if g.Service != "" && g.Credential != "" && first.Credential != "" && g.Credential != first.Credential && p.sshCredential(g.Credential) == p.sshCredential(first.Credential) && overlap(first, g) {
				add(Error{g.CredentialPos, fmt.Sprintf("credential %s for what has credential %s at %s", g.Credential, first.Credential, first.CredentialPos),
					"keep one; to take a preset's credential from elsewhere, define " + first.Credential + " under credentials"})
				break
			}
		}
	}
}

// overlap reports whether two typed grants cover a common operation on what
// may be a common resource.
func overlap(a, b Grant) bool {
	if a.Service != b.Service {
		return false
	}
	common := func(x, y []At[string]) bool {
		return slices.ContainsFunc(x, func(v At[string]) bool { return contains(y, v.Value) })
	}
	return common(a.Operations, b.Operations) &&
		(len(a.Resources) == 0 || len(b.Resources) == 0 || common(a.Resources, b.Resources))
}

func contains(list []At[string], v string) bool {
	return slices.ContainsFunc(list, func(at At[string]) bool { return at.Value == v })
}

func findVar(set []EnvVar, name string) *EnvVar {
	for i := range set {
		if set[i].Name == name {
			return &set[i]
		}
	}
	return nil
}
