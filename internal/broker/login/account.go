package login

import (
	"path/filepath"
	"slices"
	"strings"
)

// Account tells one account from another. The zero Account is unknown.
type Account struct {
	ID   []string // in the order of the description; "" is unknown
	Name string
	File string // the program's own word for it, as its file has it
}

// same: the first value is known to both and equal, and none that both know
// differs. An account in another organisation is another account.
func (a Account) same(b Account) bool {
	if len(a.ID) == 0 || len(b.ID) == 0 || a.ID[0] == "" || !strings.EqualFold(a.ID[0], b.ID[0]) {
		return false
	}
	for i := range min(len(a.ID), len(b.ID)) {
		if a.ID[i] != "" && b.ID[i] != "" && !strings.EqualFold(a.ID[i], b.ID[i]) {
			return false
		}
	}
	return true
}

// is: a person means this account.
func (a Account) is(name string) bool {
	return name != "" && (strings.EqualFold(a.Name, name) || slices.ContainsFunc(a.ID, func(id string) bool { return strings.EqualFold(id, name) }))
}

func accountAt(m map[string]any, at []Place, name int) Account {
	if m == nil || len(at) == 0 {
		return Account{}
	}
	a := Account{ID: make([]string, len(at))}
	for i, p := range at {
		a.ID[i] = text(m, p)
	}
	if a.ID[0] == "" {
		return Account{}
	}
	if name < len(a.ID) {
		a.Name = a.ID[name]
	}
	if a.Name == "" {
		a.Name = a.ID[0]
	}
	return a
}

// accountOf finds the account in an id token's claims or in a token answer; nil
// for what there is not. With neither it looks at the host's further file.
func (l *Login) accountOf(id, answer map[string]any, file string) Account {
	s := l.spec.Account
	a := accountAt(id, s.Claims, s.Name)
	if a.ID == nil {
		a = accountAt(answer, s.Answer, s.Name)
	}
	if a.ID == nil && answer == nil && s.File != "" {
		name := expand(s.File, l.host.Home)
		if v, ok := l.host.Lookup(s.Env); ok && s.Env != "" && filepath.IsAbs(v) {
			name = filepath.Join(v, filepath.Base(name))
		}
		if data, err := readAtMost(name, maxAccountFile); err == nil {
			if m, err := object(data); err == nil {
				a = accountAt(m, s.FileAt, s.Name)
			}
		}
	}
	a.File = file
	return a
}

// maxAccountFile: Claude Code's file holds its settings of every project too.
const maxAccountFile = 8 << 20
