package journal

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

// step is one change of a commit as the log knows it. What shall stand at path is
// made in the commit's own folder first, as slot; afterwards slot holds what was
// at path.
type step struct {
	path string
	slot int
	was  State
	is   State
	back int

	change *Change
}

func (s *step) name() string { return strconv.Itoa(s.slot) }

// chmods reports whether the step only gives a directory another mode.
func (s *step) chmods() bool { return s.was.Kind == Dir && s.is.Kind == Dir }

// Commit makes all changes, or none: if one fails, or the process dies, those made
// are taken back, at once or by the next Recover. what names it in the log. Before
// anything in the workspace changes, all new contents stand ready in a folder of
// the workspace's own filesystem, and the versions that Undo needs are on the disk.
//
// A change that finds something else than Change.Was, a path on another filesystem,
// a link on the way or a missing parent is an error. Recover must have been called.
func (j *Journal) Commit(root *os.File, what string, changes []Change) (Report, error) {
	steps, err := plan(root, changes)
	if err != nil || len(steps) == 0 {
		return Report{}, err
	}
	for i := range steps {
		if err := j.keepFor(root, &steps[i]); err != nil {
			return Report{}, err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	c := &commit{number: j.commits + 1, what: what, steps: steps}
	if err := j.write(false, &entry{Type: typePrepare, At: time.Now().UnixNano(), Commit: c.number, What: what}); err != nil {
		return Report{}, err
	}
	j.commits, j.last = c.number, c
	err = j.prepare(root, c)
	if err == nil && j.Witness != nil {
		err = j.Witness(what, c.paths())
	}
	if err == nil {
		err = j.begin(root, c)
	}
	if err != nil {
		if rerr := j.removeFolder(root, c); rerr != nil {
			err = fmt.Errorf("%w (and %v)", err, rerr)
		}
		return Report{}, nothing(err)
	}
	if err = j.act(root, c); err == nil {
		err = j.write(true, &entry{Type: typeDone, Commit: c.number})
	}
	if err != nil {
		report, rerr := j.takeBack(root, c)
		if rerr != nil {
			return report, fmt.Errorf("%w\nwhat was changed could not be taken back: %v", err, rerr)
		}
		return report, nothing(err)
	}
	c.ended = typeDone
	j.settle(c)
	return Report{Changed: c.paths()}, j.removeFolder(root, c)
}

func (c *commit) paths() (out []string) {
	for _, s := range c.steps {
		out = append(out, s.path)
	}
	return out
}

func nothing(err error) error {
	code := vocabulary.ExitBulkheadFailed
	var coded *vocabulary.ExitError
	if errors.As(err, &coded) {
		code = coded.Code
	}
	remedy := ""
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		remedy = "\nfree space on the disk, and try again"
	case errors.Is(err, unix.EROFS):
		remedy = "\nthe workspace is on a filesystem that can only be read"
	case errors.Is(err, fs.ErrPermission):
		remedy = "\nchange its mode, owner or attributes (lsattr), or name other paths"
	}
	return vocabulary.Exitf(code, "%w\nnothing was changed%s", err, remedy)
}

// plan checks changes against what is there and puts them in order.
func plan(root *os.File, changes []Change) ([]step, error) {
	var at unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &at); err != nil {
		return nil, err
	}
	changes = slices.Clone(changes)
	slices.SortFunc(changes, func(a, b Change) int { return cmp.Compare(a.Path, b.Path) })
	becomes := make(map[string]Kind, len(changes))
	parents := map[string]bool{} // folders found
	fresh := map[string]bool{}   // folders made by these changes
	var steps []step
	for i := range changes {
		c := &changes[i]
		refuse := func(format string, args ...any) ([]step, error) {
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "%s %s\nnothing was changed", tree.Show(c.Path), fmt.Sprintf(format, args...))
		}
		was := State{Kind: Absent}
		if !inside(fresh, c.Path) {
			var err error
			if was, err = Look(root, c.Path); errors.Is(err, unix.ELOOP) {
				return refuse("lies behind a link")
			} else if err != nil {
				return nil, err
			}
		}
		if _, twice := becomes[c.Path]; twice {
			return refuse("is to be changed twice")
		}
		becomes[c.Path] = c.Kind
		if c.Was != nil && !was.Same(*c.Was) {
			return refuse("changed while it was looked at")
		}
		for dir := path.Dir(c.Path); dir != "."; dir = path.Dir(dir) {
			if k, ok := becomes[dir]; ok && k != Dir {
				return refuse("lies in %s, which is to become something else", tree.Show(dir))
			}
		}
		if c.Kind == Absent && was.Kind == Absent || c.Kind == Dir && was.Kind == Dir && was.Mode == c.mode(was) {
			continue
		}
		if dir := path.Dir(c.Path); !parents[dir] && becomes[dir] != Dir {
			if dir != "." {
				st, ok, err := tree.Lstat(root, dir)
				if err != nil || !ok || st.Mode&unix.S_IFMT != unix.S_IFDIR {
					return refuse("has no folder to lie in")
				}
				if st.Dev != at.Dev {
					return refuse("lies on another filesystem than the workspace")
				}
			}
			parents[dir] = true
		}
		s := step{path: c.Path, slot: len(steps) + 1, was: was, is: State{Kind: c.Kind, Mode: c.mode(was)}, back: c.Back, change: c}
		if s.chmods() {
			s.is.Inode = was.Inode
		} else if s.is.Kind == Dir {
			fresh[c.Path] = true
		}
		steps = append(steps, s)
	}
	return steps, nil
}

// mode is what shall stand there: the bits beyond the permissions are never a
// file's, and a folder's only if it had them.
func (c *Change) mode(was State) uint32 {
	switch {
	case c.Kind == Dir && c.Back > 0:
		return c.Mode & 0o7777
	case c.Kind == Dir && was.Kind == Dir:
		return c.Mode&0o777 | was.Mode&0o7000
	}
	return c.Mode & 0o777
}

// inside reports whether p lies in one of the folders.
func inside(fresh map[string]bool, p string) bool {
	for dir := path.Dir(p); len(fresh) > 0 && dir != "."; dir = path.Dir(dir) {
		if fresh[dir] {
			return true
		}
	}
	return false
}

func (j *Journal) keepFor(root *os.File, s *step) error {
	if s.change.Forget && j.meta.Mode == vocabulary.StagedWrites {
		return nil // the layer has it
	}
	var err error
	switch {
	case s.was.Kind == Absent: // perhaps because its folder is not there yet
		_, err = j.keep(s.path, true, s.change.Foreign, func() (Version, error) { return absentVersion(s.path), nil })
	case s.was.Kind == Dir && s.is.Kind != Dir:
		err = j.keepTree(root, s.path, true, s.change.Foreign)
	default:
		_, err = j.keepNow(root, s.path, true, s.change.Foreign)
	}
	if s.change.Forget && errors.Is(err, ErrBudget) {
		return nil
	}
	if err != nil {
		return nothing(err)
	}
	return nil
}

const folderPrefix = ".bulkhead-"

// folderName is the commit's own folder in the workspace; it is there only while
// the commit is under way.
func (j *Journal) folderName(c *commit) string {
	return folderPrefix + string(j.meta.Session) + "-" + strconv.Itoa(c.number)
}

// SessionOf returns whose commit is under way, or broke off, if a workspace holds
// something of that name. Anybody can make the name.
func SessionOf(name string) (vocabulary.SessionID, bool) {
	rest, ok := strings.CutPrefix(name, folderPrefix)
	cut := strings.LastIndexByte(rest, '-')
	if !ok || cut < 0 {
		return "", false
	}
	id, err := vocabulary.ParseSessionID(rest[:cut])
	return id, err == nil
}

func (j *Journal) folder(root *os.File, c *commit) (*os.File, error) {
	return tree.Dir(root, j.folderName(c))
}

func (j *Journal) removeFolder(root *os.File, c *commit) error {
	if look(root, j.folderName(c)).Kind == Absent {
		return nil
	}
	return tree.Remove(root, j.folderName(c))
}

// prepare makes what shall stand there, and writes the steps into the log.
func (j *Journal) prepare(root *os.File, c *commit) error {
	if err := unix.Mkdirat(int(root.Fd()), j.folderName(c), 0o700); err != nil {
		return fmt.Errorf("the workspace can't be changed: %w", err)
	}
	h, err := j.folder(root, c)
	if err != nil {
		return err
	}
	defer h.Close()
	var batch []*entry
	for i := range c.steps {
		s := &c.steps[i]
		if err := j.make(h, s); err != nil {
			return fmt.Errorf("%s: %w", tree.Show(s.path), err)
		}
		batch = append(batch, &entry{Type: typeStep, Commit: c.number, Slot: s.slot, Path: name(s.path), Was: &s.was, Is: &s.is, Number: s.back})
		if len(batch) == leaveBatch || i == len(c.steps)-1 {
			if err := j.write(false, batch...); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	return nil
}

func (j *Journal) make(h *os.File, s *step) error {
	dir, at := int(h.Fd()), s.name()
	var fd int
	var err error
	switch {
	case s.is.Kind == Absent || s.chmods():
		return nil
	case s.is.Kind == Dir:
		if err := unix.Mkdirat(dir, at, 0o700); err != nil { // its mode comes last
			return err
		}
	case s.is.Kind == Link:
		if err := unix.Symlinkat(s.change.Target, dir, at); err != nil {
			return err
		}
	case s.is.Kind == File:
		if fd, err = unix.Openat(dir, at, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600); err != nil {
			return err
		}
		if err := j.fill(os.NewFile(uintptr(fd), at), s); err != nil {
			return err
		}
	default:
		return fmt.Errorf("can't become %s", s.is.Kind)
	}
	o := s.change.owner
	if o == nil && s.was.Kind != Absent {
		o = &s.was // root changes somebody's file, and it stays theirs
	}
	if o != nil && (int(o.UID) != os.Geteuid() || int(o.GID) != os.Getegid()) {
		_ = unix.Fchownat(dir, at, int(o.UID), int(o.GID), unix.AT_SYMLINK_NOFOLLOW) // only root may give away
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, at, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	mode := s.is.Mode
	s.is = StateOf(&st)
	if s.is.Kind == Dir {
		s.is.Mode = mode
	}
	if isIndex(s.path) {
		s.is.Index = meaning(h, at, s.is)
	}
	return nil
}

func (j *Journal) fill(dst *os.File, s *step) error {
	defer dst.Close()
	src, err := s.change.Content()
	if err != nil {
		return err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if _, err := j.cloner.Copy(dst, src, st.Size()); err != nil {
		return err
	}
	if err := dst.Chmod(os.FileMode(s.is.Mode)); err != nil {
		return err
	}
	if m := s.change.Mtime; !m.IsZero() {
		ts := unix.NsecToTimespec(m.UnixNano())
		name := "/proc/self/fd/" + strconv.Itoa(int(dst.Fd()))
		return unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{ts, ts}, 0)
	}
	return nil
}

// begin brings everything to the disk and says so.
func (j *Journal) begin(root *os.File, c *commit) error {
	d, err := tree.Dir(root, "")
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("writing to the disk: %w", err)
	}
	if err := unix.Syncfs(int(j.log.Fd())); err != nil {
		return fmt.Errorf("writing to the disk: %w", err)
	}
	if err := j.write(true, &entry{Type: typeBegin, Commit: c.number}); err != nil {
		return err
	}
	c.begun = true
	return nil
}

// act makes the changes; modes of folders come last, so that nothing has to be
// put into one that forbids it.
func (j *Journal) act(root *os.File, c *commit) error {
	h, err := j.folder(root, c)
	if err != nil {
		return err
	}
	defer h.Close()
	for i := range c.steps {
		s := &c.steps[i]
		if s.chmods() {
			continue
		}
		if err := s.do(root, h); err != nil {
			return fmt.Errorf("%s: %w", tree.Show(s.path), err)
		}
	}
	for _, s := range slices.Backward(c.steps) {
		if s.is.Kind == Dir {
			if err := chmod(root, s.path, s.is.Inode, s.is.Mode); err != nil {
				return fmt.Errorf("%s: %w", tree.Show(s.path), err)
			}
		}
	}
	return nil
}

var errChanged = errors.New("it was changed by somebody else meanwhile")

func (s *step) do(root, h *os.File) error {
	parent, base, err := tree.Parent(root, s.path)
	if err != nil {
		return err
	}
	defer parent.Close()
	if now := look(parent, base); !now.Same(s.was) {
		return errChanged
	}
	if s.is.Kind != Absent && look(h, s.name()).Inode != s.is.Inode {
		return errChanged
	}
	return allowed(parent, base, s.was, func() error {
		switch {
		case s.is.Kind == Absent:
			return move(parent, base, h, s.name())
		case s.was.Kind == Absent:
			return move(h, s.name(), parent, base)
		}
		return exchange(h, s.name(), parent, base)
	})
}

func look(dir *os.File, name string) State {
	var st unix.Stat_t
	if unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return State{Kind: Absent}
	}
	return StateOf(&st)
}

// move renames, and replaces nothing.
func move(from *os.File, name string, to *os.File, as string) error {
	err := unix.Renameat2(int(from.Fd()), name, int(to.Fd()), as, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if look(to, as).Kind != Absent { // this filesystem can't look and rename in one step
		return unix.EEXIST
	}
	return unix.Renameat(int(from.Fd()), name, int(to.Fd()), as)
}

const aside = ".was" // a slot's other name, where the filesystem can't exchange

func exchange(h *os.File, slot string, parent *os.File, base string) error {
	err := unix.Renameat2(int(h.Fd()), slot, int(parent.Fd()), base, unix.RENAME_EXCHANGE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if err := move(parent, base, h, slot+aside); err != nil {
		return err
	}
	return move(h, slot, parent, base)
}

// allowed does something in a directory to an entry of it. Modes of the user's own
// that forbid it are lifted for that long; the entry's own mode, where moving a
// folder needs it, stays lifted until the commit has ended.
func allowed(parent *os.File, base string, was State, do func() error) error {
	err := do()
	if !errors.Is(err, unix.EACCES) {
		return err
	}
	if was.Kind == Dir && was.Mode&0o300 != 0o300 {
		if d, derr := tree.Dir(parent, base); derr == nil {
			_ = d.Chmod(os.FileMode(was.Mode&0o777 | 0o700))
			d.Close()
		}
	}
	st, serr := parent.Stat()
	if serr != nil {
		return err
	}
	if st.Mode().Perm()&0o300 != 0o300 && parent.Chmod(st.Mode().Perm()|0o300) == nil {
		defer parent.Chmod(st.Mode().Perm())
	}
	return do()
}

func chmod(root *os.File, path string, inode uint64, mode uint32) error {
	fd, st, err := tree.Handle(root, path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if st.Ino != inode || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return errChanged
	}
	if st.Mode&0o7777 == mode {
		return nil
	}
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode)
}

// Recover finishes what a crash broke off: a commit that began and did not end is
// taken back, and its folder is removed. Conflicts are paths that somebody else
// changed in between: they stay as they are, and what was there is a version.
// Whoever opens the journal of a workspace that may be changed calls it first.
func (j *Journal) Recover(root *os.File) (Report, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch c := j.last; {
	case c == nil:
		return Report{}, nil
	case c.begun && c.ended == "":
		return j.takeBack(root, c)
	default:
		return Report{}, j.removeFolder(root, c)
	}
}

// takeBack undoes the steps that were done, the last one first.
func (j *Journal) takeBack(root *os.File, c *commit) (report Report, err error) {
	if j.Witness != nil {
		_ = j.Witness("take back", c.paths()) // not refused: half of a commit is worse than one without a record
	}
	h, err := j.folder(root, c)
	if err != nil && !tree.Absent(err) {
		return report, err
	}
	if h != nil {
		defer h.Close()
	}
	for _, s := range slices.Backward(c.steps) {
		done, err := s.undo(root, h)
		switch {
		case errors.Is(err, errChanged):
			report.Conflicts = append(report.Conflicts, Conflict{s.path, errChanged.Error()})
		case err != nil:
			return report, fmt.Errorf("%s: %w", tree.Show(s.path), err)
		case done:
			report.Changed = append(report.Changed, s.path)
		}
	}
	if err := j.write(true, &entry{Type: typeBack, Commit: c.number}); err != nil {
		return report, err
	}
	c.ended = typeBack
	j.unsettle(c)
	return report, j.removeFolder(root, c)
}

// undo takes one step back, if it was done.
func (s *step) undo(root, h *os.File) (done bool, err error) {
	parent, base, err := tree.Parent(root, s.path)
	if err != nil {
		switch {
		case !tree.Absent(err) && !errors.Is(err, unix.ELOOP):
			return false, err
		case s.was.Kind == Absent: // nor is it now
			return false, nil
		}
		return false, errChanged
	}
	defer parent.Close()
	now := look(parent, base)
	if s.chmods() {
		if now.Kind != Dir || now.Inode != s.was.Inode {
			return false, errChanged
		}
		return now.Mode != s.was.Mode, chmod(root, s.path, s.was.Inode, s.was.Mode)
	}
	isNew := s.is.Kind != Absent && now.Kind == s.is.Kind && now.Inode == s.is.Inode && (now.Kind == Dir || now.Same(s.is))
	isOld := now.Kind == s.was.Kind && (now.Kind == Absent || now.Inode == s.was.Inode)
	old := "" // the slot that holds what was there
	if h != nil && s.was.Kind != Absent {
		for _, slot := range []string{s.name(), s.name() + aside} {
			if l := look(h, slot); l.Kind == s.was.Kind && l.Inode == s.was.Inode {
				old = slot
			}
		}
	}
	restore := func(do func() error) (bool, error) {
		if err := allowed(parent, base, now, do); err != nil {
			return false, err
		}
		if s.was.Kind == Dir {
			return true, chmod(root, s.path, s.was.Inode, s.was.Mode)
		}
		return true, nil
	}
	switch {
	case old == "" && isOld:
		if s.was.Kind == Dir { // lifted before it could be moved
			return false, chmod(root, s.path, s.was.Inode, s.was.Mode)
		}
		return false, nil
	case isNew && s.was.Kind == Absent && h != nil:
		return restore(func() error { return move(parent, base, h, s.name()) })
	case isNew && old == s.name():
		return restore(func() error { return exchange(h, old, parent, base) })
	case isNew && old != "":
		return restore(func() error {
			if err := move(parent, base, h, s.name()); err != nil {
				return err
			}
			return move(h, old, parent, base)
		})
	case now.Kind == Absent && old != "":
		return restore(func() error { return move(h, old, parent, base) })
	}
	return false, errChanged
}

// below reports whether p is dir or lies in it.
func below(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, dir+"/")
}
