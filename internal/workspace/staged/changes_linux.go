package staged

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/workspace/journal"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

// reader compares a layer with the folder below it.
type reader struct {
	layer     *Layer
	root      *os.File
	protected *Protected
	quick     bool
	out       []Change
}

// Changes says what differs between the real folder, by its handle, and what the
// session sees, by path; a folder stands before what is in it.
func (l *Layer) Changes(root *os.File, p *Protected) ([]Change, error) {
	return l.changes(root, p, false)
}

// Count is about how many changes there are: a file of the same size and time is
// taken for the same, unless there is no other change. Zero is exact.
func (l *Layer) Count(root *os.File) (int, error) {
	list, err := l.changes(root, ForPatterns(nil), true)
	if err == nil && len(list) == 0 {
		list, err = l.changes(root, ForPatterns(nil), false)
	}
	return len(list), err
}

func (l *Layer) changes(root *os.File, p *Protected, quick bool) ([]Change, error) {
	r := &reader{layer: l, root: root, protected: p, quick: quick}
	up, err := tree.Dir(l.upper, "")
	if err != nil {
		return nil, err
	}
	defer up.Close()
	low, err := tree.Dir(root, "")
	if err != nil {
		return nil, err
	}
	defer low.Close()
	err = r.dir(up, low, "", false, 0)
	return r.out, err
}

const maxDepth = 2000

// dir compares a folder of the layer with the real one, which is nil if there is
// none. opaque: what is only in the real one is gone, at every depth.
func (r *reader) dir(up, low *os.File, at string, opaque bool, depth int) error {
	list, err := tree.List(up)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, e := range list {
		seen[e.Name] = true
	}
	if opaque && low != nil {
		gone, err := tree.List(low)
		if err != nil {
			return err
		}
		for _, e := range gone {
			if seen[e.Name] {
				continue
			}
			if err := r.deleted(low, e.Name, join(at, e.Name), depth+1); err != nil {
				return err
			}
		}
	}
	for _, e := range list {
		if err := r.entry(up, low, e.Name, join(at, e.Name), opaque, depth); err != nil {
			return err
		}
	}
	return nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func stat(dir *os.File, name string) (st unix.Stat_t, there bool, err error) {
	if dir == nil {
		return st, false, nil
	}
	err = unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return st, false, nil
	}
	if err != nil {
		return st, false, &os.PathError{Op: "stat", Path: tree.Show(name), Err: err}
	}
	return st, true, nil
}

func (r *reader) entry(up, low *os.File, name, at string, opaque bool, depth int) error {
	us, there, err := stat(up, name)
	if err != nil || !there {
		return err
	}
	ls, was, err := stat(low, name)
	if err != nil {
		return err
	}
	gone, err := isWhiteout(up, name, &us)
	if err != nil {
		return err
	}
	if gone {
		if !was {
			return nil
		}
		return r.deleted(low, name, at, depth+1)
	}
	c := Change{Path: at, Was: journal.State{Kind: journal.Absent}, Is: journal.StateOf(&us), Protected: r.protected.Reason(at)}
	if was {
		c.Was = journal.StateOf(&ls)
	}
	if err := r.marks(up, low, name, at, &c, &us); err != nil {
		return err
	}
	if c.Is.Kind == journal.Dir {
		return r.folder(up, low, name, &c, opaque, depth)
	}
	if c.Is.Kind == journal.Link {
		if c.Target, err = readlink(up, name); err != nil {
			return err
		}
		c.Leads = leadsOut(at, c.Target)
	}
	if c.Was.Kind == journal.Link {
		if c.WasTarget, err = readlink(low, name); err != nil {
			return err
		}
	}
	if c.What, err = r.differs(up, low, name, &c); err != nil || c.What == "" {
		return err
	}
	r.add(c, was, &ls)
	if c.Was.Kind != journal.Dir {
		return nil
	}
	return r.below(low, name, at, depth+1) // it goes with all that is in it
}

// marks checks what the kernel noted at an entry, and notes where it came from.
func (r *reader) marks(up, low *os.File, name, at string, c *Change, us *unix.Stat_t) error {
	for _, m := range []string{xattrRedirect, xattrMetacopy} {
		if _, ok, err := mark(up, name, m); err != nil {
			return err
		} else if ok {
			return fmt.Errorf("the layer can't be read: %s has the mark %s, which is not used here", tree.Show(at), m)
		}
	}
	if c.Was.Kind != journal.Absent || low == nil || c.Is.Kind == journal.File && us.Nlink > 1 {
		return nil
	}
	// It was copied from a real file. That had this name, and is gone since, or
	// another one: then somebody must have changed the real folder for the first.
	_, copied, err := mark(up, name, xattrOrigin)
	if err != nil || !copied {
		return err
	}
	var parent unix.Stat_t
	if err := unix.Fstat(int(low.Fd()), &parent); err != nil {
		return err
	}
	if what, _ := r.layer.Journal.Last(); what == "" && parent.Mtim.Nano() >= r.layer.since {
		c.Conflict = "was removed from the real folder since"
	}
	return nil
}

// folder compares a directory and what is in it.
func (r *reader) folder(up, low *os.File, name string, c *Change, opaque bool, depth int) error {
	own, _, err := mark(up, name, xattrOpaque)
	if err != nil {
		return err
	}
	ls, was, err := stat(low, name)
	if err != nil {
		return err
	}
	switch {
	case !was:
		c.What = Added
	case c.Was.Kind != journal.Dir:
		c.What = Replaced
	case c.Was.Mode&0o777 != c.Is.Mode&0o777:
		c.What = Mode
	}
	if depth >= maxDepth || len(c.Path) > tree.MaxPath {
		c.Never = "lies too deep"
		if c.What == "" {
			c.What = Modified
		}
	}
	if c.What != "" {
		r.add(*c, was, &ls)
	}
	if c.Never != "" {
		return nil
	}
	upDir, err := tree.Dir(up, name)
	if err != nil {
		return err
	}
	defer upDir.Close()
	var lowDir *os.File
	if c.Was.Kind == journal.Dir {
		if lowDir, err = tree.Dir(low, name); err != nil {
			return err
		}
		defer lowDir.Close()
	}
	return r.dir(upDir, lowDir, c.Path, opaque || own == "y", depth+1)
}

// deleted adds a deletion with all that goes with it.
func (r *reader) deleted(low *os.File, name, at string, depth int) error {
	ls, there, err := stat(low, name)
	if err != nil || !there {
		return err
	}
	c := Change{Path: at, What: Deleted, Was: journal.StateOf(&ls), Is: journal.State{Kind: journal.Absent}, Protected: r.protected.Reason(at)}
	if c.Was.Kind == journal.Link {
		if c.WasTarget, err = readlink(low, name); err != nil {
			return err
		}
	}
	r.add(c, true, &ls)
	if c.Was.Kind != journal.Dir || depth > maxDepth {
		return nil
	}
	return r.below(low, name, at, depth)
}

// below adds the deletion of what is in a real folder.
func (r *reader) below(low *os.File, name, at string, depth int) error {
	d, err := tree.Dir(low, name)
	if err != nil {
		return err
	}
	defer d.Close()
	list, err := tree.List(d)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := r.deleted(d, e.Name, join(at, e.Name), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func readlink(dir *os.File, name string) (string, error) {
	buf := make([]byte, tree.MaxPath+1)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: tree.Show(name), Err: err}
	}
	return string(buf[:n]), nil
}

// differs says what an entry that is no directory is to the real folder.
func (r *reader) differs(up, low *os.File, name string, c *Change) (What, error) {
	switch {
	case c.Was.Kind == journal.Absent:
		return Added, nil
	case c.Was.Kind != c.Is.Kind:
		return Replaced, nil
	case c.Is.Kind == journal.Link:
		if c.Target == c.WasTarget {
			return "", nil
		}
		return Modified, nil
	case c.Is.Kind != journal.File:
		return Replaced, nil
	}
	same := c.Was.Size == c.Is.Size
	if same && !(r.quick && c.Was.Mtime == c.Is.Mtime) {
		var err error
		if same, err = sameContent(up, low, name); err != nil {
			return "", err
		}
	}
	switch {
	case !same:
		return Modified, nil
	case c.Was.Mode&0o777 != c.Is.Mode&0o777:
		return Mode, nil
	}
	return "", nil
}

func sameContent(a, b *os.File, name string) (bool, error) {
	f, _, err := tree.OpenFile(a, name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	g, _, err := tree.OpenFile(b, name)
	if err != nil {
		if errors.Is(err, unix.EACCES) {
			return false, nil
		}
		return false, err
	}
	defer g.Close()
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(f, x)
		m, err2 := io.ReadFull(g, y)
		if n != m || !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return true, nil
		}
		if err = errors.Join(err, err2); err != nil {
			return false, err
		}
	}
}

// add judges a change: can it come over, and did somebody else change the same?
func (r *reader) add(c Change, was bool, ls *unix.Stat_t) {
	if c.Is.Kind == journal.Other {
		c.Never = "is a device, a socket or a FIFO"
	}
	if c.Never == "" && tree.Check(c.Path) != nil {
		c.Never = "has too long a name"
	}
	if was && c.Was.Kind == journal.Other {
		c.Never = "is a device, a socket or a FIFO in the real folder"
	}
	left, ours := r.layer.Journal.Left(c.Path)
	switch {
	case ours && left.Same(c.Was), r.layer.Journal.SameIndex(r.root, c.Path, c.Was):
		c.Conflict = "" // what an apply or an undo put there, or what somebody only looked at
	case was && c.Was.Kind != journal.Dir && ls.Ctim.Nano() >= r.layer.since:
		c.Conflict = "was changed in the real folder since"
		if c.What == Added || c.What == Replaced && c.Was.Kind != c.Is.Kind && ls.Mtim.Nano() >= r.layer.since {
			c.Conflict = "was made in the real folder since"
		}
	}
	r.out = append(r.out, c)
}

// Open opens what the session left of a file for reading.
func (l *Layer) Open(path string) (*os.File, error) {
	f, _, err := tree.OpenFile(l.upper, path)
	return f, err
}
