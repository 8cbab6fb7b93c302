package policy

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Logins lists the programs whose login on the host a credential can be.
func Logins() []string {
	entries, _ := catalogdata.Logins.ReadDir("logins")
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".yaml"); ok {
			names = append(names, name)
		}
	}
	return names
}

// LoginEndpoints lists the token endpoints of all known logins: https URLs.
var LoginEndpoints = sync.OnceValue(func() []string {
	var all []string
	for _, name := range Logins() {
		data, err := catalogdata.Logins.ReadFile("logins/" + name + ".yaml")
		if err != nil {
			continue
		}
		var spec struct {
			Endpoint struct {
				URL    string   `yaml:"url"`
				Also   []string `yaml:"also"`
				Device string   `yaml:"device"`
			} `yaml:"endpoint"`
		}
		if yaml.Unmarshal(data, &spec) == nil {
			all = append(append(all, spec.Endpoint.URL, spec.Endpoint.Device), spec.Endpoint.Also...)
		}
	}
	return slices.DeleteFunc(all, func(u string) bool { return u == "" })
})

// loginSource reads from: {login: NAME}.
func (r *reader) loginSource(t table, c *Credential) {
	n := t.get("login")
	if n == nil {
		return
	}
	v, ok := r.str(n, "login")
	if c.Login = v.Value; ok && !slices.Contains(Logins(), v.Value) {
		r.errorf(n, Suggest(v.Value, Logins()), "no login of %s is known", quoted(v.Value))
	}
}

// loginKeys are keys of a credential that only a login has.
var loginKeys = []string{"allow-login", "account"}

func (r *reader) loginOptions(t table, c *Credential) {
	if n := t.get("allow-login"); n != nil {
		c.AllowLogin, _ = r.boolean(n, "allow-login")
	}
	if n := t.get("account"); n != nil {
		v, ok := r.str(n, "account")
		if c.Account = v.Value; ok && (len(v.Value) > 256 || strings.ContainsAny(v.Value, " \t")) {
			r.errorf(n, "as the service names it: you@example.com", "%s is not an account", quoted(v.Value))
		}
	}
	for _, key := range loginKeys {
		if k := t.key(key); k != nil && !c.hasLogin() {
			r.errorf(k, "write {from: {login: NAME}}", "%s belongs to a credential from a login", key)
		}
	}
}

// BeginsLogin says whether a login that is begun inside may complete: the
// credential says so, or a grant that uses it names the operation login.
func (p *Policy) BeginsLogin(c Credential) bool {
	return c.AllowLogin || slices.ContainsFunc(p.Grants, func(g Grant) bool {
		return g.Credential == c.Name && g.Service != "" && slices.ContainsFunc(g.Operations, func(op At[string]) bool {
			return op.Value == "login" || strings.HasSuffix(op.Value, ".login")
		})
	})
}

// SetAllowLogin is what --allow-login does.
func (p *Policy) SetAllowLogin(name string) error {
	i := slices.IndexFunc(p.Credentials, func(c Credential) bool { return c.Name == name })
	if i < 0 || !p.Credentials[i].hasLogin() {
		return fmt.Errorf("no credential %s of this policy comes from a login", quoted(name))
	}
	p.Credentials[i].AllowLogin = true
	return nil
}

func (c Credential) hasLogin() bool {
	return c.Login != "" || slices.ContainsFunc(c.Or, Credential.hasLogin)
}

// sources reads one source, or a list of those to be tried in turn.
func (r *reader) sources(from *yaml.Node, c *Credential) {
	if from.Kind != yaml.SequenceNode {
		r.source(from, c)
		return
	}
	items := r.items(from, "from")
	if len(items) == 0 && !r.broken[from] {
		r.errorf(from, "write {from: {env: NAME}}", "credential %s has no source", quoted(c.Name))
	}
	if len(items) > maxSources {
		r.errorf(from, "", "more than %d sources", maxSources)
		return
	}
	for i, item := range items {
		if i == 0 {
			r.source(item, c)
			continue
		}
		o := Credential{Name: c.Name, Pos: r.pos(item)}
		r.source(item, &o)
		c.Or = append(c.Or, o)
	}
}

const maxSources = 8

// beginsLike says whether every source of c is, in this order, one of o's first:
// then o says the same, and where to look next.
func (c Credential) beginsLike(o Credential) bool {
	mine, other := c.flat(), o.flat()
	return len(mine) <= len(other) && reflect.DeepEqual(mine, other[:len(mine)]) && (c.Account == "" || c.Account == o.Account) && (!c.AllowLogin || o.AllowLogin)
}

// flat lists the sources without what is not about them.
func (c Credential) flat() []Credential {
	all := append([]Credential{c}, c.Or...)
	for i := range all {
		s := &all[i]
		s.Name, s.Optional, s.Pos, s.Or, s.Account, s.AllowLogin = "", false, vocabulary.Position{}, nil, "", false
	}
	return all
}

// Source names the credential's first source, for people; never a value.
func (c Credential) Source() string {
	c.Or = nil
	if len(c.Command) > 0 {
		return "command " + c.Command[0]
	}
	return strings.ReplaceAll(strings.Trim(c.from(), "{}"), ": ", " ")
}

// from writes the source as the file has it.
func (c Credential) from() string {
	one := "env: " + plain(c.Env)
	switch {
	case c.File != "":
		one = "file: " + plain(c.File)
	case len(c.Command) > 0:
		one = "command: " + flow(c.Command)
	case c.Keyring != "":
		one = "keyring: " + plain(c.Keyring)
	case c.SSH != "":
		one = "ssh: " + plain(c.SSH)
	case c.Login != "":
		one = "login: " + plain(c.Login)
	case c.AWS != "" || c.Google != "" || c.Azure != "":
		key, value := c.cloud()
		one = key + ": " + plain(value)
	}
	one = "{" + one + "}"
	if len(c.Or) == 0 {
		return one
	}
	all := []string{one}
	for _, o := range c.Or {
		all = append(all, o.from())
	}
	return "[" + strings.Join(all, ", ") + "]"
}
