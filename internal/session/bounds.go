package session

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/administrator"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/trust"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace"
)

// ActionNarrow is what the policy of a project or of the administrator takes
// away from the user's.
const ActionNarrow vocabulary.Action = "policy.narrow"

// projectPolicy is where a project may bring a policy along.
const projectPolicy = ".bulkhead/policy.yaml"

// administratorPath is another file in this package's own tests.
var administratorPath = administrator.Path

// Administrator reads the policy of this machine's administrator; nil: there is
// none. What can't be believed or has a mistake is an error.
func Administrator() (*policy.Bounds, error) {
	data, err := administrator.Read(administratorPath)
	if data == nil || err != nil {
		return nil, err
	}
	b, err := policy.ParseAdministrator(administratorPath, data)
	if err != nil {
		return nil, err
	}
	// A service of the user's own means what the user says: no limit can rest on
	// one.
	return b, checkBounds(b, catalog.Default())
}

func checkBounds(b *policy.Bounds, cat *catalog.Catalog) error {
	_, err := capability.Compile(capability.FromPolicy(&policy.Policy{Within: []*policy.Bounds{b}}), cat)
	return err
}

// ProjectPolicy parses the policy of a project from the bytes that were scanned,
// which are those that the digest is about; nil: it has none.
func ProjectPolicy(s *trust.Scan, cat *catalog.Catalog) (*policy.Bounds, error) {
	file := filepath.Join(s.Folder, projectPolicy)
	refuse := func(what string) error {
		return vocabulary.Exitf(vocabulary.ExitPolicyInvalid, "the project's policy %s %s\nnothing was started\nmend it, or take the trust back: bulkhead trust remove %s", trust.Show(file), what, trust.Show(s.Folder))
	}
	for _, i := range s.Items {
		switch i.Path {
		case filepath.Dir(projectPolicy):
			if i.Kind == trust.KindLink {
				return nil, refuse("lies behind a link")
			}
		case projectPolicy:
			switch {
			case i.Kind != trust.KindFile:
				return nil, refuse("is not a regular file")
			case i.Size > int64(len(i.Text)):
				return nil, refuse(fmt.Sprintf("has %d bytes, more than a person can review", i.Size))
			}
			b, err := policy.ParseProject(file, i.Text)
			if err != nil {
				return nil, err
			}
			return b, checkBounds(b, cat)
		}
	}
	return nil, nil
}

// Narrow is the policy as a session in the present folder would have it: within
// the administrator's and, if its folder is trusted at this content, within the
// project's. It is for commands that only answer: a folder that was never
// trusted is not looked into.
func Narrow(p *policy.Policy, cat *catalog.Catalog) (*policy.Policy, error) {
	at, err := placesNow()
	if err != nil {
		return nil, err
	}
	admin, err := Administrator()
	if err != nil {
		return nil, err
	}
	if admin != nil {
		if p, err = admin.Narrow(p, at); err != nil {
			return nil, err
		}
		if admin.Trust.Value == policy.TrustNever {
			return p, nil
		}
	}
	dir, there := at.Real(policy.ResolvePath(p.Workspace.Path, at.Home, at.Cwd))
	if !there {
		return p, nil
	}
	store, err := TrustStore()
	if err != nil {
		return nil, err
	}
	before, err := store.Lookup(dir)
	if err != nil || before == nil {
		return p, err
	}
	list, err := TrustList()
	if err != nil {
		return nil, err
	}
	now, err := trust.ScanFolder(dir, list)
	if err != nil {
		return nil, asExit(vocabulary.ExitRefused, err)
	}
	if now.Problem != "" || now.Digest() != before.Digest {
		return p, nil
	}
	project, err := ProjectPolicy(now, cat)
	if project == nil || err != nil {
		return p, err
	}
	return project.Narrow(p, at)
}

func placesNow() (policy.Places, error) {
	who, err := whoami()
	if err != nil {
		return policy.Places{}, err
	}
	cwd, err := os.Getwd()
	if err != nil {
		return policy.Places{}, vocabulary.Exitf(vocabulary.ExitRefused, "the current folder is gone: %v\ncd to a folder that exists", err)
	}
	return places(who, cwd), nil
}

func places(who person, cwd string) policy.Places {
	return policy.Places{Home: who.home, Cwd: cwd, Account: accountHome(who.uid), Real: func(p string) (string, bool) {
		real, err := filepath.EvalSymlinks(p)
		return real, err == nil
	}}
}

// accountHome is the home folder that passwd(5) has for a user, or "". Package
// os/user would answer with HOME where it has none.
func accountHome(uid int) string {
	f, err := os.Open("/etc/passwd")
	if err != nil {
		return ""
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if fields := strings.Split(sc.Text(), ":"); len(fields) == 7 && fields[2] == strconv.Itoa(uid) && filepath.IsAbs(fields[5]) {
			return filepath.Clean(fields[5])
		}
	}
	return ""
}

// narrow puts the session's policy within b.
func (v *view) narrow(b *policy.Bounds) error {
	p, err := b.Narrow(v.opts.Policy, places(v.who, v.cwd))
	if err != nil {
		return err
	}
	v.opts.Policy = p
	v.tellNarrowed(b)
	return nil
}

// maxTold bounds the lines about one policy at the start; policy show has all.
const maxTold = 5

// tellNarrowed says what the user asked for by name and does not get.
func (v *view) tellNarrowed(b *policy.Bounds) {
	told, more := 0, 0
	for _, n := range v.opts.Policy.Narrowed {
		switch {
		case n.By.File != b.File:
		case n.Minor || told == maxTold:
			more++
		default:
			told++
			v.notices = append(v.notices, n.String())
		}
	}
	if more > 0 && told > 0 {
		v.notices = append(v.notices, fmt.Sprintf("and %d more by %s: bulkhead policy show", more, b.By))
	}
}

// tellGrants says which grants never meet: they are refused each time.
func (v *view) tellGrants(set *capability.Set) {
	for _, o := range set.Outside() {
		v.notices = append(v.notices, fmt.Sprintf("%s: nothing of this grant passes: %s has none for it (%s)", o.Rule, o.Whose, o.By))
	}
	for _, o := range set.Idle() {
		if o.Whose == string(policy.ByProject) {
			v.notices = append(v.notices, fmt.Sprintf("%s: %s can only narrow, and your own policy has no grant for this: it stays refused", o.Rule, o.Whose))
		}
	}
}

// mayShow is the last word on a folder that was opened.
func (v *view) mayShow(f workspace.Folder, real string, ws bool) error {
	for _, b := range v.opts.Policy.Within {
		if err := b.MayShow(real, f.Mode, f.Pos, ws, places(v.who, v.cwd)); err != nil {
			return err
		}
	}
	return nil
}

// recordNarrowed writes what other policies took away.
func (s *session) recordNarrowed() error {
	for _, n := range s.opts.Policy.Narrowed {
		if err := s.log.Record(v1.Event{
			Actor: "controller", Action: ActionNarrow, Resource: vocabulary.Resource(n.Of.String()), Verdict: vocabulary.Deny,
			Reason: vocabulary.Reason{Code: capability.CodeNarrowed, Message: n.What, Rule: n.By},
		}); err != nil {
			return vocabulary.Exitf(vocabulary.ExitRefused, "%v\nnothing was started: a session that cannot be recorded does not run", err)
		}
	}
	return nil
}

// boundsInForce are the attributes of session.start.
func (s *session) boundsInForce(attrs map[string]string) {
	for _, b := range s.opts.Policy.Within {
		name := "administrator"
		if b.By == policy.ByProject {
			name = "project"
		}
		attrs[name], attrs[name+"-digest"] = b.File, b.Digest
	}
}

// mayPublish judges a port that is opened while the session runs.
func (s *session) mayPublish(host, inside int) error {
	var errs []error
	for _, b := range s.opts.Policy.Within {
		errs = append(errs, b.MayPublish(host, inside))
	}
	return errors.Join(errs...)
}
