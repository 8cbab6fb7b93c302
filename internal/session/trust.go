package session

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/switches"
	"github.com/bulkhead-dev/bulkhead/internal/trust"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace"
)

// Actions of events about a project's own configuration.
const (
	ActionTrustHidden  vocabulary.Action = "trust.hidden"
	ActionTrustChanged vocabulary.Action = "trust.instructions"
)

// Trust says how a project's own configuration is believed.
type Trust struct {
	// Digest is trusted for this run; a folder at another content is refused.
	Digest string
	// Ask asks the person about a folder that is not trusted, or was at another
	// content (before). Nil: nobody is there, and the answer is no.
	Ask func(now *trust.Scan, before *trust.Record) (bool, error)
}

// TrustStore is where the trusted folders are on record.
func TrustStore() (trust.Store, error) {
	events, err := EventDir()
	return trust.Store{Dir: filepath.Join(filepath.Dir(events), "trust")}, err
}

// TrustList is the embedded list of what has to be trusted.
var TrustList = sync.OnceValues(func() ([]policy.TrustPath, error) {
	list, err := policy.ParseTrust(catalogdata.Trust)
	if err != nil {
		return nil, fmt.Errorf("built-in list of project configuration: %w", err)
	}
	return list, nil
})

// belief is what was decided about the workspace's configuration.
type belief struct {
	state   string // none, trusted, untrusted
	hidden  []workspace.Hidden
	found   []trust.Found // what hidden was made of
	changes []trust.Change
}

// believe looks at the configuration in the workspace and decides what of it the
// sandbox may see.
func (v *view) believe(folder string) error {
	list, err := TrustList()
	if err != nil {
		return err
	}
	now, err := trust.ScanFolder(folder, list)
	if err != nil {
		return asExit(vocabulary.ExitRefused, err)
	}
	v.belief.state = "none"
	how := v.opts.Trust
	by, err := v.mayTrust(how)
	if err != nil {
		return err
	}
	if by == policy.TrustNever {
		how.Ask = nil
	}
	if how.Digest != "" && (now.Problem != "" || now.Digest() != how.Digest) {
		return vocabulary.Exitf(vocabulary.ExitRefused, "%s is not at the content that --trust names, but at %s\nnothing was started\nsee what it is now: bulkhead trust show", trust.Show(folder), orProblem(now))
	}
	store, err := TrustStore()
	if err != nil {
		return err
	}
	before, err := store.Lookup(folder)
	if err != nil {
		return err
	}
	if before != nil {
		v.belief.changes = trust.Compare(before.Items, now.Items, func(c policy.TrustClass) bool { return c == policy.TrustInstructs })
	}
	if !now.Judged() {
		return nil
	}
	trusted := by != policy.TrustNever && now.Problem == "" && (how.Digest != "" || before != nil && before.Digest == now.Digest())
	if !trusted && now.Problem == "" && how.Ask != nil {
		if trusted, err = how.Ask(now, before); err != nil {
			return err
		}
		if trusted {
			again, err := trust.ScanFolder(folder, list)
			if err != nil {
				return asExit(vocabulary.ExitRefused, err)
			}
			if again.Problem != "" || again.Digest() != now.Digest() {
				return vocabulary.Exitf(vocabulary.ExitRefused, "%s changed while you were asked; nothing was started\nrun the command again", trust.Show(folder))
			}
			if err := store.Add(now, time.Now()); err != nil {
				return err
			}
			v.belief.changes = nil
		}
	}
	if trusted {
		v.belief.state = "trusted"
		v.project, err = ProjectPolicy(now, v.opts.Catalog)
		return err
	}
	v.hide(now, before)
	return nil
}

// mayTrust is how the administrator lets folders be trusted.
func (v *view) mayTrust(how Trust) (policy.TrustBy, error) {
	by := policy.TrustDigest
	for _, b := range v.opts.Policy.Within {
		if b.Trust.Value != "" {
			by = b.Trust.Value
			if err := b.MayTrust(how.Digest != ""); how.Digest != "" && err != nil {
				return by, err
			}
		}
	}
	return by, nil
}

func orProblem(s *trust.Scan) string {
	if s.Problem != "" {
		return "one that can't be trusted: " + s.Problem
	}
	return s.Digest()
}

// hide makes what runs or widens invisible, and says so.
func (v *view) hide(now *trust.Scan, before *trust.Record) {
	if switches.Off("trust") {
		return
	}
	v.belief.state = "untrusted"
	count := map[policy.TrustClass]int{}
	example := map[policy.TrustClass]string{}
	for _, f := range now.Found {
		if f.Listed.Class == policy.TrustInstructs {
			continue
		}
		if count[f.Listed.Class]++; count[f.Listed.Class] == 1 {
			example[f.Listed.Class] = trust.Show(f.Path) + " (" + f.Listed.Owner + ": " + f.Listed.Can + ")"
		}
		v.belief.found = append(v.belief.found, f)
		v.belief.hidden = append(v.belief.hidden, workspace.Hidden{
			Path: filepath.Join(now.Folder, f.Path), Empty: trust.Empty(f.Path), Why: f.Listed.Owner + ": " + f.Listed.Can,
		})
	}
	why := "this folder is not trusted"
	switch {
	case v.neverTrusted() != nil:
		why = v.neverTrusted().Error()
	case now.Problem != "":
		why = "this folder can't be trusted (" + now.Problem + ")"
	case before != nil:
		why = "its configuration changed since you trusted this folder"
	}
	for _, class := range []policy.TrustClass{policy.TrustRuns, policy.TrustWidens} {
		if n := count[class]; n > 0 {
			what := fmt.Sprintf("%d places of its configuration, which %s something, are hidden", n, map[policy.TrustClass]string{policy.TrustRuns: "run", policy.TrustWidens: "widen"}[class])
			if n == 1 {
				what = fmt.Sprintf("one place of its configuration, which %s something, is hidden", class)
			}
			v.notices = append(v.notices, why+": "+what+", such as "+example[class])
		}
	}
	if _, err := os.Lstat(filepath.Join(now.Folder, ".git")); err == nil && len(v.belief.hidden) > 0 {
		v.notices = append(v.notices, "those that git tracks look deleted or emptied to git inside: what it commits with -a or add -A records that")
	}
	if v.neverTrusted() == nil {
		v.notices = append(v.notices, "to look at it and to trust it: bulkhead trust add "+trust.Show(now.Folder))
	}
}

// neverTrusted says why no folder can be trusted on this machine, or is nil.
func (v *view) neverTrusted() error {
	for _, b := range v.opts.Policy.Within {
		if b.Trust.Value == policy.TrustNever {
			return fmt.Errorf("no project's configuration is trusted here (%s)", b.Trust.Pos)
		}
	}
	return nil
}

// recordTrust writes what was hidden, and which instructions are not those that
// the person saw.
func (s *session) recordTrust() error {
	b := s.view.belief
	for _, f := range b.found {
		if err := s.log.Record(v1.Event{
			Actor: "controller", Action: ActionTrustHidden, Resource: vocabulary.Resource(filepath.Join(s.view.dir, f.Path)), Verdict: vocabulary.Deny,
			Reason: vocabulary.Reason{Code: "untrusted", Message: f.Listed.Owner + ": " + f.Listed.Can, Rule: f.Listed.Pos, Remedy: "bulkhead trust add " + s.view.dir},
			Attrs:  map[string]string{"class": string(f.Listed.Class)},
		}); err != nil {
			return vocabulary.Exitf(vocabulary.ExitRefused, "%v\nnothing was started: a session that cannot be recorded does not run", err)
		}
	}
	for _, c := range b.changes {
		if err := s.log.Record(v1.Event{
			Actor: "controller", Action: ActionTrustChanged, Resource: vocabulary.Resource(filepath.Join(s.view.dir, c.Path)), Verdict: vocabulary.Allow,
			Reason: vocabulary.Reason{Code: "instructions-changed", Message: "instructions " + c.What + " since the folder was trusted", Rule: vocabulary.Position{File: "trust.yaml"}},
			Attrs:  map[string]string{"change": c.What},
		}); err != nil {
			return vocabulary.Exitf(vocabulary.ExitRefused, "%v\nnothing was started: a session that cannot be recorded does not run", err)
		}
	}
	return nil
}
