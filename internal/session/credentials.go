package session

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"time"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/broker"
	"github.com/bulkhead-dev/bulkhead/internal/broker/login"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
)

// CredentialInfo is what a person may see of a credential: never its value.
type CredentialInfo struct {
	Name   string `json:"name"`
	Source string `json:"source"`
	// State is "there", "missing", "logged in", "no login", "ended", "unreadable"
	// or "not asked", for sources that can't be looked at without using them.
	State   string     `json:"state"`
	Account string     `json:"account,omitempty"`
	Where   string     `json:"where,omitempty"`
	Expires *time.Time `json:"expires,omitempty"`
	Refresh bool       `json:"refresh,omitempty"`
	Note    string     `json:"note,omitempty"`
	Rule    string     `json:"rule"`
	Used    bool       `json:"used"` // some grant uses it
}

// Credentials lists those of an expanded policy, a line for each source, without
// asking the network, a keyring's owner or a command.
func Credentials(ctx context.Context, p *policy.Policy) ([]CredentialInfo, error) {
	who, err := whoami()
	if err != nil {
		return nil, err
	}
	cwd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	uses := credentialUse(p)
	out := []CredentialInfo{}
	for _, c := range p.Credentials {
		_, used := uses[c.Name]
		for _, at := range append([]policy.Credential{c}, c.Or...) {
			info := CredentialInfo{Name: c.Name, State: "not asked", Rule: c.Pos.String(), Used: used, Source: at.Source()}
			there := func(is bool) {
				if info.State = "missing"; is {
					info.State = "there"
				}
			}
			switch {
			case at.Env != "":
				there(os.Getenv(at.Env) != "")
			case at.File != "":
				_, err := os.Stat(policy.ResolvePath(at.File, who.home, cwd))
				there(err == nil)
			case at.Login != "":
				describeLogin(ctx, at.Login, c.Account, &info)
			}
			out = append(out, info)
		}
	}
	return out, nil
}

func describeLogin(ctx context.Context, name, account string, info *CredentialInfo) {
	spec, err := login.Load(catalogdata.Logins, name)
	if err != nil {
		info.State, info.Note = "unreadable", err.Error()
		return
	}
	l, err := broker.OpenLogin(ctx, spec, login.Options{Account: account}, os.LookupEnv, rand.Reader)
	var none *login.NoLoginError
	switch {
	case errors.As(err, &none):
		info.State, info.Note = "no login", none.Remedy()
		return
	case err != nil:
		info.State, info.Note = "unreadable", err.Error()
		return
	}
	defer l.Close()
	s := l.State()
	info.State, info.Account, info.Where, info.Refresh = "logged in", s.Account, s.Store, s.Refresh
	if !s.Expires.IsZero() {
		info.Expires = &s.Expires
		if time.Now().After(s.Expires) && !s.Refresh {
			info.State, info.Note = "ended", "log in again on the host: "+spec.Again
		}
	}
}
