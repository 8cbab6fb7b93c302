package journal

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

const whatUndo = "undo"

// before returns the version of path from before the session, or from before
// what was done since the last undo.
func (j *Journal) before(path string) (Version, bool) {
	list := j.byPath[path]
	if n := j.base[path]; n < len(list) {
		return j.versions[list[n]], true
	}
	return Version{}, false
}

// UndoOptions narrow an undo.
type UndoOptions struct {
	// Paths, and what lies in them; none: all.
	Paths []string
	// Force overwrites also what somebody changed after the session; a version of
	// it is kept.
	Force bool
}

// Undo brings everything back that the session changed, in one commit. A path at
// which something else stands than the session left is a conflict and stays, and
// so does what holds it.
func (j *Journal) Undo(root *os.File, o UndoOptions) (Report, error) {
	if report, err := j.Recover(root); err != nil {
		return report, err
	}
	u := undo{j: j, root: root, force: o.Force, changes: map[string]Change{}}
	j.mu.Lock()
	paths := slices.Sorted(maps.Keys(j.byPath))
	j.mu.Unlock()
	for _, p := range paths {
		if len(o.Paths) > 0 && !slices.ContainsFunc(o.Paths, func(dir string) bool { return below(p, dir) }) {
			continue
		}
		if err := u.path(p); err != nil {
			return Report{}, err
		}
	}
	if err := u.parents(); err != nil {
		return Report{}, err
	}
	report, err := j.Commit(root, whatUndo, slices.Collect(maps.Values(u.changes)))
	report.Conflicts = append(u.conflicts, report.Conflicts...)
	return report, err
}

// BringBack brings back each file and link that was there before the session and
// whose name is gone, as it was then, but those that may stay gone: in rw-no-delete
// nothing is removed for good. Call it after LeaveAll, or for a session that was cut
// off.
func (j *Journal) BringBack(root *os.File, stays func(path string) bool) (Report, error) {
	if report, err := j.Recover(root); err != nil {
		return report, err
	}
	u := undo{j: j, root: root, force: true, changes: map[string]Change{}}
	for _, v := range j.Versions() {
		if v.Number != 1 || v.Kind != File && v.Kind != Link {
			continue
		}
		now, err := Look(root, v.Path)
		if err != nil && !errors.Is(err, unix.ELOOP) {
			return Report{}, err
		}
		switch why := unkept(v); {
		case err != nil:
			u.conflict(v.Path, "now lies behind a link")
		case now.Kind != Absent || stays(v.Path):
		case why != "":
			u.conflict(v.Path, "can't be brought back: "+why)
		default:
			c := j.changeTo(v)
			c.Was, c.Forget = &now, true
			u.changes[v.Path] = c
		}
	}
	if err := u.parents(); err != nil {
		return Report{}, err
	}
	report, err := j.Commit(root, "bring back", slices.Collect(maps.Values(u.changes)))
	report.Conflicts = append(u.conflicts, report.Conflicts...)
	return report, err
}

// CutOff reports whether the session that keeps the journal ended without LeaveAll,
// and nothing was done about it since.
func (j *Journal) CutOff() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.versions) > 0 && len(j.left) == 0
}

// Restore brings one version back; what is there now becomes another version.
func (j *Journal) Restore(root *os.File, v Version) (Report, error) {
	if report, err := j.Recover(root); err != nil {
		return report, err
	}
	if why := unkept(v); why != "" {
		return Report{}, vocabulary.Exitf(vocabulary.ExitRefused, "version %d of %s can't be brought back: %s", v.Number, tree.Show(v.Path), why)
	}
	u := undo{j: j, root: root, force: true, changes: map[string]Change{v.Path: j.changeTo(v)}}
	if err := u.parents(); err != nil {
		return Report{}, err
	}
	return j.Commit(root, "restore", slices.Collect(maps.Values(u.changes)))
}

func unkept(v Version) string {
	switch {
	case v.Kind == Other:
		return "it was a device, a socket or a FIFO"
	case !v.Kept:
		return "its content was not kept"
	}
	return ""
}

func (j *Journal) changeTo(v Version) Change {
	c := Change{Path: v.Path, Kind: v.Kind, Mode: v.Mode, Target: v.Target, Back: v.Number, owner: &v.State}
	if v.Kind == File {
		c.Mtime = time.Unix(0, v.Mtime)
		c.Content = func() (*os.File, error) { return j.Open(v) }
	}
	return c
}

// undo collects the changes of one.
type undo struct {
	j         *Journal
	root      *os.File
	force     bool
	changes   map[string]Change
	conflicts []Conflict
	gone      []string // paths that are removed with all below
}

func (u *undo) conflict(path, why string) {
	c := Conflict{path, why}
	if !slices.Contains(u.conflicts, c) { // met on its own, and in its folder
		u.conflicts = append(u.conflicts, c)
	}
}

const (
	whyChanged = "was changed after the session; --force overwrites it and keeps a version"
	whyUnknown = "the session was cut off, so it is not known whether somebody changed it later; --force overwrites it and keeps a version"
)

func (u *undo) path(p string) error {
	u.j.mu.Lock()
	v, some := u.j.before(p)
	known, hasLeft := u.j.left[p]
	u.j.mu.Unlock()
	if !some || slices.ContainsFunc(u.gone, func(dir string) bool { return below(p, dir) }) {
		return nil
	}
	now, err := Look(u.root, p)
	if errors.Is(err, unix.ELOOP) {
		now = State{Kind: Absent}
		if err = nil; v.Kind != Absent && !u.becomesFolder(p) {
			u.conflict(p, "now lies behind a link")
			return nil
		}
	}
	if err != nil {
		return err
	}
	if now.Same(v.State) {
		return nil
	}
	own := hasLeft && u.same(p, now, known.State)
	switch why := unkept(v); {
	case why != "":
		u.conflict(p, "can't be brought back: "+why)
		return nil
	case !own && !u.force && hasLeft:
		u.conflict(p, whyChanged)
		return nil
	case !own && !u.force:
		u.conflict(p, whyUnknown)
		return nil
	}
	c := u.j.changeTo(v)
	c.Was, c.Forget, c.Foreign = &now, own, !own
	if v.Kind != Absent || now.Kind != Dir {
		if now.Kind == Dir && v.Kind != Dir {
			if clean, err := u.clean(p, false); err != nil || !clean {
				u.conflict(p, "holds files that were changed after the session")
				return err
			}
			u.gone = append(u.gone, p)
		}
		u.changes[p] = c
		return nil
	}
	_, err = u.clean(p, true)
	return err
}

// same reports whether what is at p is what was left there, or means the same.
func (u *undo) same(p string, now, left State) bool {
	return now.Same(left) || left.Index != "" && meaning(u.root, p, now) == left.Index
}

// becomesFolder reports whether something that holds p becomes a folder again.
func (u *undo) becomesFolder(p string) bool {
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		if u.changes[dir].Kind == Dir {
			return true
		}
	}
	return false
}

// clean reports whether all below the directory p is what the session left. If
// remove is set it removes p, or as much of it as is the session's.
func (u *undo) clean(p string, remove bool) (bool, error) {
	d, err := tree.Dir(u.root, p)
	if err != nil {
		return false, err
	}
	list, err := tree.List(d)
	d.Close()
	if err != nil {
		return false, err
	}
	all := true
	var mine []string
	for _, e := range list {
		at := p + "/" + e.Name
		now, err := Look(u.root, at)
		if err != nil {
			return false, err
		}
		u.j.mu.Lock()
		known, hasLeft := u.j.left[at]
		u.j.mu.Unlock()
		own := u.force || hasLeft && u.same(at, now, known.State)
		if !own && remove {
			u.conflict(at, whyChanged)
		}
		if own && now.Kind == Dir {
			if own, err = u.clean(at, remove); err != nil {
				return false, err
			}
		} else if own {
			mine = append(mine, at)
		}
		all = all && own
	}
	if !remove {
		return all, nil
	}
	if all {
		for c := range u.changes { // the whole goes in one step
			if below(c, p) {
				delete(u.changes, c)
			}
		}
		mine = []string{p}
		u.gone = append(u.gone, p)
	} else {
		u.conflict(p, "holds files that are not the session's")
	}
	for _, at := range mine {
		u.changes[at] = Change{Path: at, Kind: Absent, Forget: !u.force, Back: 1}
	}
	return all, nil
}

// parents adds the folders that are missing on the way.
func (u *undo) parents() error {
	for _, p := range slices.Sorted(maps.Keys(u.changes)) {
		if u.changes[p].Kind == Absent {
			continue
		}
		for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
			if c, ok := u.changes[dir]; ok && c.Kind == Dir {
				break
			}
			now, err := Look(u.root, dir)
			if err == nil && now.Kind == Dir {
				break
			}
			if err != nil && !errors.Is(err, unix.ELOOP) {
				return err
			}
			if err != nil || now.Kind != Absent {
				u.conflict(p, fmt.Sprintf("its folder %s is something else now", tree.Show(dir)))
				delete(u.changes, p)
				break
			}
			c := Change{Path: dir, Kind: Dir, Mode: 0o755}
			u.j.mu.Lock()
			if v, ok := u.j.before(dir); ok && v.Kind == Dir {
				c = u.j.changeTo(v)
			}
			u.j.mu.Unlock()
			u.changes[dir] = c
		}
	}
	return nil
}
