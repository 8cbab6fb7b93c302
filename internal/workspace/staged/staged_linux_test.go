package staged

import (
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/journal"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

// desk is a real folder with a layer, which the tests fill as the kernel does.
type desk struct {
	*testing.T
	ws, state, outside string
	root               *os.File
	layer              *Layer
	protected          *Protected
}

// newDesk makes the folder with before, then the layer.
func newDesk(t *testing.T, before func(d *desk)) *desk {
	t.Helper()
	d := &desk{T: t, ws: t.TempDir(), state: filepath.Join(t.TempDir(), "s"), outside: t.TempDir()}
	d.protected = ForPatterns([]Pattern{{".envrc", "direnv"}, {".vscode/tasks.json", "tasks"}})
	d.must(os.WriteFile(filepath.Join(d.outside, "secret"), []byte("secret"), 0o600))
	before(d)
	d.tick()
	var err error
	d.root, err = tree.OpenRoot(d.ws)
	d.must(err)
	d.layer, err = Create(d.state, journal.Meta{Session: vocabulary.NewSessionID(), Workspace: d.ws, Mode: vocabulary.StagedWrites, Started: time.Now(), Budget: math.MaxInt64})
	d.must(err)
	t.Cleanup(func() { d.root.Close(); d.layer.Close() })
	d.tick()
	return d
}

// tick lets the kernel's clock for files go on.
func (d *desk) tick() { time.Sleep(12 * time.Millisecond) }

func (d *desk) must(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

func (d *desk) up(p string) string   { return filepath.Join(d.state, "upper", p) }
func (d *desk) real(p string) string { return filepath.Join(d.ws, p) }

func (d *desk) put(at, text string, mode os.FileMode) {
	d.Helper()
	d.must(os.MkdirAll(filepath.Dir(at), 0o755))
	d.must(os.WriteFile(at, []byte(text), 0o600))
	d.must(os.Chmod(at, mode))
}

func (d *desk) whiteout(p string) {
	d.Helper()
	d.must(os.MkdirAll(filepath.Dir(d.up(p)), 0o755))
	d.must(unix.Mknod(d.up(p), unix.S_IFCHR, 0))
}

func (d *desk) mark(p, attr, value string) {
	d.Helper()
	d.must(unix.Setxattr(d.up(p), attr, []byte(value), 0))
}

func (d *desk) changes() []Change {
	d.Helper()
	list, err := d.layer.Changes(d.root, d.protected)
	d.must(err)
	return list
}

func (d *desk) said() []string {
	d.Helper()
	var out []string
	for _, c := range d.changes() {
		s := fmt.Sprintf("%s %s", c.What, tree.Show(c.Path))
		for _, more := range []string{c.Protected, c.Never, c.Conflict} {
			if more != "" {
				s += "; " + more
			}
		}
		if c.Leads {
			s += "; leads out"
		}
		out = append(out, s)
	}
	return out
}

func (d *desk) want(want ...string) {
	d.Helper()
	if got := d.said(); !slices.Equal(got, want) {
		d.Errorf("changes:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func (d *desk) apply(s Selection) (chosen, held []Change, err error) {
	d.Helper()
	chosen, held, err = Select(d.changes(), d.protected, s)
	if err == nil {
		err = d.layer.Apply(d.root, chosen)
	}
	return chosen, held, err
}

// picture is all that counts of a folder.
func picture(t *testing.T, dir string) map[string]string {
	t.Helper()
	root, err := tree.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	out := map[string]string{}
	err = tree.Walk(root, "", func(_ *os.File, p string, st *unix.Stat_t) error {
		s := fmt.Sprintf("%o", st.Mode)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			text, err := os.ReadFile(filepath.Join(dir, p))
			s += " " + string(text)
			if err != nil {
				s += err.Error()
			}
		case unix.S_IFLNK:
			text, _ := os.Readlink(filepath.Join(dir, p))
			s += " -> " + text
		}
		out[p] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func someFiles(d *desk) {
	d.put(d.real("a"), "a", 0o644)
	d.put(d.real("dir/b"), "b", 0o644)
	d.put(d.real("dir/sub/c"), "c", 0o644)
	d.put(d.real("gone/x/y"), "y", 0o644)
	d.put(d.real("keep"), "keep", 0o644)
	d.must(os.Symlink("a", d.real("link")))
}

func TestChanges(t *testing.T) {
	d := newDesk(t, someFiles)
	d.want()
	d.put(d.up("a"), "changed", 0o644)
	d.put(d.up("keep"), "keep", 0o644) // copied up, the same
	d.put(d.up("dir/b"), "b", 0o755)
	d.put(d.up("dir/new\n\x1b"), "new", 0o755)
	d.must(os.Symlink("/etc/passwd", d.up("dir/out")))
	d.must(os.Symlink("../a", d.up("dir/in")))
	d.must(os.Symlink("b", d.up("link")))
	d.must(unix.Mkfifo(d.up("fifo"), 0o644))
	d.put(d.up(".envrc"), "x", 0o644)
	d.put(d.up("nested/.git/hooks/pre-commit"), "x", 0o755)
	d.whiteout("gone")
	d.whiteout("never-was")
	d.want(
		"added .envrc; direnv",
		"modified a",
		"mode dir/b",
		"added dir/in",
		`added "dir/new\n\x1b"`,
		"added dir/out; leads out",
		"added fifo; is a device, a socket or a FIFO",
		"deleted gone", "deleted gone/x", "deleted gone/x/y",
		"modified link",
		"added nested", "added nested/.git", "added nested/.git/hooks; obeyed by git on the host", "added nested/.git/hooks/pre-commit; obeyed by git on the host",
	)
	n, err := d.layer.Count(d.root)
	d.must(err)
	if n != len(d.changes()) {
		t.Errorf("counted %d", n)
	}
}

// A layer is dropped if nothing is counted: what size and time don't show counts too.
func TestCountOfEqualSizesAndTimes(t *testing.T) {
	d := newDesk(t, someFiles)
	st, err := os.Stat(d.real("a"))
	d.must(err)
	d.put(d.up("a"), strings.Repeat("x", int(st.Size())), st.Mode().Perm())
	d.must(os.Chtimes(d.up("a"), st.ModTime(), st.ModTime()))
	if n, err := d.layer.Count(d.root); err != nil || n != 1 {
		t.Errorf("counted %d, %v", n, err)
	}
}

func TestOtherMarks(t *testing.T) {
	d := newDesk(t, someFiles)
	d.put(d.up("dir/sub/d"), "d", 0o644)
	d.mark("dir", xattrOpaque, "y")
	d.put(d.up("gone/x"), "now a file", 0o644)
	d.put(d.up("a"), "", 0o644)
	d.mark("a", xattrWhiteout, "y")
	d.put(d.up("link/in"), "in", 0o644)
	d.want(
		"deleted a",
		"deleted dir/b",
		"deleted dir/sub/c", "added dir/sub/d",
		"replaced gone/x", "deleted gone/x/y",
		"replaced link", "added link/in",
	)
	for path, want := range map[string]bool{"a": true, "dir": false, "dir/b": true, "dir/sub": false, "dir/sub/c": true, "gone/x/y": true, "keep": false, "keep/x": false} {
		got, err := d.layer.Missing(path)
		d.must(err)
		if got != want {
			t.Errorf("missing %s: %v", path, got)
		}
	}
	d.mark("dir/sub/d", xattrRedirect, "/etc")
	if _, err := d.layer.Changes(d.root, d.protected); err == nil || !strings.Contains(err.Error(), xattrRedirect) {
		t.Errorf("a redirect: %v", err)
	}
}

func TestApplyAndUndo(t *testing.T) {
	d := newDesk(t, someFiles)
	before := picture(t, d.ws)
	d.put(d.up("a"), "changed", 0o4755)
	d.put(d.up("dir/n/m"), "new", 0o600)
	d.must(os.Chmod(d.up("dir/n"), 0o2775))
	d.whiteout("gone")
	d.whiteout("link")
	d.must(unix.Mkfifo(d.up("fifo"), 0o644))
	d.put(d.up(".envrc"), "x", 0o644)
	chosen, held, err := d.apply(Selection{})
	d.must(err)
	if len(chosen) != 7 || len(held) != 2 {
		t.Errorf("%d chosen, %d held", len(chosen), len(held))
	}
	after := picture(t, d.ws)
	for p, want := range map[string]string{"a": "100755 changed", "dir/n": "40775", "dir/n/m": "100600 new", "gone": "", "link": "", "fifo": "", ".envrc": "", "keep": "100644 keep"} {
		if after[p] != want {
			t.Errorf("%s is %q, want %q", p, after[p], want)
		}
	}
	d.want("added .envrc; direnv", "added fifo; is a device, a socket or a FIFO")
	if _, _, err := d.apply(Selection{Paths: []string{".envrc"}}); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(d.real(".envrc")); err != nil {
		t.Error("named, it does not come over")
	}
	report, err := d.layer.Journal.Undo(d.root, journal.UndoOptions{})
	d.must(err)
	if len(report.Conflicts) > 0 {
		t.Errorf("%+v", report)
	}
	if got := picture(t, d.ws); !maps.Equal(got, before) {
		t.Errorf("undone:\n%v\nwant\n%v", got, before)
	}
	// And once more, without anything being taken for somebody else's.
	if list := Conflicts(d.changes()); len(list) > 0 {
		t.Errorf("conflicts after an undo: %+v", list)
	}
	if _, _, err = d.apply(Selection{}); err != nil {
		t.Error(err)
	}
	if len(picture(t, d.ws)) != len(after) {
		t.Error("applied again, it is not the same")
	}
}

func TestSelect(t *testing.T) {
	d := newDesk(t, func(d *desk) {
		someFiles(d)
		d.put(d.real("gone/.envrc"), "x", 0o644)
	})
	d.put(d.up("a"), "changed", 0o644)
	d.put(d.up("n/m/f"), "f", 0o644)
	d.put(d.up("n/m/g"), "g", 0o644)
	d.whiteout("gone")
	d.put(d.up("n/.vscode/tasks.json"), "x", 0o644)
	paths := func(list []Change) string {
		var out []string
		for _, c := range list {
			out = append(out, c.Path)
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		paths        []string
		chosen, held string
	}{
		{nil, "a gone/x gone/x/y n n/.vscode n/m n/m/f n/m/g", "gone/.envrc n/.vscode/tasks.json gone"},
		{[]string{"n/m/f"}, "n n/m n/m/f", ""},
		{[]string{"a", "gone/x"}, "a gone/x gone/x/y", ""},
		{[]string{"gone/x/y"}, "gone/x/y", ""},
		{[]string{"n"}, "n n/.vscode n/m n/m/f n/m/g", "n/.vscode/tasks.json"},
		{[]string{"n/.vscode/tasks.json"}, "n n/.vscode n/.vscode/tasks.json", ""},
		{[]string{"gone", "gone/.envrc"}, "gone gone/.envrc gone/x gone/x/y", ""},
	} {
		chosen, held, err := Select(d.changes(), d.protected, Selection{Paths: c.paths})
		if err != nil || paths(chosen) != c.chosen || paths(held) != c.held {
			t.Errorf("%q: chosen %q, held %q, %v", c.paths, paths(chosen), paths(held), err)
		}
	}
	if _, _, err := Select(d.changes(), d.protected, Selection{Paths: []string{"keep"}}); err == nil || !strings.Contains(err.Error(), "keep") {
		t.Errorf("%v", err)
	}
}

func TestConflicts(t *testing.T) {
	d := newDesk(t, func(d *desk) {
		someFiles(d)
		d.put(d.real("removed"), "x", 0o644)
	})
	for _, p := range []string{"a", "dir/b", "keep", "removed", "made"} {
		d.put(d.up(p), "by the session", 0o644)
	}
	d.mark("removed", xattrOrigin, "x")
	d.whiteout("gone")
	d.put(d.real("a"), "by a person", 0o644)
	d.must(os.Chmod(d.real("dir/b"), 0o600))
	d.must(os.Remove(d.real("removed")))
	d.put(d.real("made"), "by a person", 0o644)
	d.put(d.real("gone/x/z"), "by a person", 0o644)
	d.must(os.Rename(d.real("keep"), d.real("k")))
	d.must(os.Rename(d.real("k"), d.real("keep"))) // the same file, but it was moved about
	before := picture(t, d.ws)
	conflicts := map[string]string{}
	for _, c := range Conflicts(d.changes()) {
		conflicts[c.Path] = c.Conflict
	}
	if got := slices.Sorted(maps.Keys(conflicts)); !slices.Equal(got, []string{"a", "dir/b", "gone/x/z", "keep", "made", "removed"}) {
		t.Errorf("%q", got)
	}
	if _, _, err := d.apply(Selection{Force: true}); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(d.real("a")); string(text) != "by the session" {
		t.Errorf("forced: %q", text)
	}
	_, err := d.layer.Journal.Undo(d.root, journal.UndoOptions{})
	d.must(err)
	if got := picture(t, d.ws); !maps.Equal(got, before) {
		t.Errorf("undone:\n%v\nwant\n%v", got, before)
	}
	// What a person made is still a person's.
	for _, p := range []string{"a", "made", "gone/x/z"} {
		if !slices.ContainsFunc(Conflicts(d.changes()), func(c Change) bool { return c.Path == p }) {
			t.Errorf("%s is no conflict any more", p)
		}
	}
}

// What somebody put into a folder that the session replaced is not lost with it.
func TestReplacedFolder(t *testing.T) {
	d := newDesk(t, someFiles)
	d.put(d.up("gone"), "a file now", 0o644)
	d.must(unix.Mkfifo(d.up("dir"), 0o644))
	d.put(d.real("gone/x/mine"), "by a person", 0o644)
	d.want("replaced dir; is a device, a socket or a FIFO", "deleted dir/b", "deleted dir/sub", "deleted dir/sub/c",
		"replaced gone", "deleted gone/x", "deleted gone/x/mine; was changed in the real folder since", "deleted gone/x/y")
	before := picture(t, d.ws)
	chosen, held, err := Select(d.changes(), d.protected, Selection{})
	d.must(err)
	if c := Conflicts(chosen); len(c) != 1 || c[0].Path != "gone/x/mine" || len(held) != 4 {
		t.Errorf("conflicts %+v, held %+v", c, held)
	}
	d.must(d.layer.Apply(d.root, chosen)) // as with --force
	if got := picture(t, d.ws); got["gone"] != "100644 a file now" || got["dir/sub/c"] == "" {
		t.Errorf("%q", got)
	}
	_, err = d.layer.Journal.Undo(d.root, journal.UndoOptions{})
	d.must(err)
	if got := picture(t, d.ws); !maps.Equal(got, before) {
		t.Errorf("undone:\n%q\nwant\n%q", got, before)
	}
}

// What one session's apply brought over is somebody else's work to another session.
func TestTwoSessions(t *testing.T) {
	d := newDesk(t, someFiles)
	other, err := Create(filepath.Join(t.TempDir(), "other"), journal.Meta{Session: vocabulary.NewSessionID(), Workspace: d.ws, Mode: vocabulary.StagedWrites, Started: time.Now(), Budget: math.MaxInt64})
	d.must(err)
	defer other.Close()
	d.tick()
	for _, dir := range []string{d.state, other.dir} {
		d.put(filepath.Join(dir, "upper", "a"), "by "+dir, 0o644)
		d.put(filepath.Join(dir, "upper", "new"), "by "+dir, 0o644)
		d.put(filepath.Join(dir, "upper", "own-"+filepath.Base(dir)), "own", 0o644)
	}
	_, _, err = d.apply(Selection{})
	d.must(err)
	list, err := other.Changes(d.root, d.protected)
	d.must(err)
	var conflicts []string
	for _, c := range Conflicts(list) {
		conflicts = append(conflicts, c.Path)
	}
	if !slices.Equal(conflicts, []string{"a", "new"}) {
		t.Errorf("conflicts: %q", conflicts)
	}
	chosen, _, err := Select(list, d.protected, Selection{Paths: []string{"own-other"}})
	d.must(err)
	d.must(other.Apply(d.root, chosen))
	_, err = d.layer.Journal.Undo(d.root, journal.UndoOptions{})
	d.must(err)
	if got := picture(t, d.ws); got["a"] != "100644 a" || got["new"] != "" || got["own-other"] == "" {
		t.Errorf("%q", got)
	}
}

func TestListAndDrop(t *testing.T) {
	d := newDesk(t, someFiles)
	dir := filepath.Join(t.TempDir(), "workspaces")
	if list, err := List(dir); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
	m := d.layer.Journal.Meta()
	at := filepath.Join(dir, string(m.Session))
	l, err := Create(at, m)
	d.must(err)
	states := func(want string) {
		t.Helper()
		list, err := List(dir)
		if len(list) == 1 {
			list[0].Look()
		}
		if err != nil || len(list) != 1 || list[0].Problem != nil || list[0].State != want || list[0].Workspace != d.ws {
			t.Errorf("%+v %v", list, err)
		}
	}
	states(Running)
	l.Close()
	states(Ended)
	l, err = Open(at)
	d.must(err)
	d.must(os.WriteFile(filepath.Join(at, "upper", "a"), []byte("changed"), 0o600))
	list, err := l.Changes(d.root, d.protected)
	d.must(err)
	d.must(l.Apply(d.root, list))
	l.Close()
	states(Applied)
	d.must(os.WriteFile(filepath.Join(at, "log"), []byte("damaged\nand more\n"), 0o600))
	kept, err := List(dir)
	d.must(err)
	if kept[0].Look(); kept[0].Problem == nil {
		t.Errorf("%+v", kept)
	}
	d.must(os.Mkdir(filepath.Join(at, "work", "work"), 0))
	d.must(Drop(at))
	if list, err := List(dir); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
}

func TestLeadsOut(t *testing.T) {
	for _, c := range []struct {
		name, target string
		out          bool
	}{
		{"l", "a", false}, {"l", "/a", true}, {"l", "..", true}, {"d/l", "..", false}, {"d/l", "../..", true}, {"l", "d/../..", true},
		{"l", "", true}, {"d/l", "../x/./y", false}, {"d/e/l", "../../../x", true}, {"l", "d//../x", false},
	} {
		if leadsOut(c.name, c.target) != c.out {
			t.Errorf("%s -> %s: %v", c.name, c.target, !c.out)
		}
	}
}

func TestProtectedNames(t *testing.T) {
	p := ForPatterns([]Pattern{{".vscode/tasks.json", "r"}, {"*.secret", "r"}})
	for name, want := range map[string]bool{
		".git/hooks": true, ".git/hooks/x": true, "a/b/.git/config": true, ".git/HEAD": false, ".git": false, ".vscode": false,
		"x/.vscode/tasks.json": true, ".vscode/tasks.json/x": true, "a.secret": true, "d/a.secret/x": true, "secret": false,
		".git/modules/m/hooks/x": true, ".git/worktrees/w/gitdir": true, ".GIT/Hooks/x": true,
	} {
		if got := p.Reason(name) != ""; got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Whatever a layer and the real folder hold: nothing outside is touched, an apply
// is whole or nothing, and an undo brings back what was there.
func FuzzLayer(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09"))
	f.Add([]byte("\x10\x21\x32\x43\x54\x65\x76\x87\x98\xa9\xba\xcb\xdc\xed\xfe\x0f"))
	f.Add([]byte("d\x01e\x02\x10\x20\x30\x11\x22\x33\x44\x55"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 64 {
			return
		}
		names := []string{"a", "b", "a/c", "b/c", "a/c/d", "\n", "a/\xff", "b/e", ".envrc", "b/.git/hooks"}
		build := func(d *desk, base string, ops []byte, layer bool) {
			for i := 0; i+1 < len(ops); i += 2 {
				at := filepath.Join(base, names[int(ops[i])%len(names)])
				// Only below real folders: the test must not follow links itself.
				plain := func(dir string) bool { real, err := filepath.EvalSymlinks(dir); return err == nil && real == dir }
				if dir := filepath.Dir(at); !plain(dir) && (!plain(filepath.Dir(dir)) || os.Mkdir(dir, 0o755) != nil) {
					continue
				}
				switch ops[i+1] % 9 {
				case 0, 1:
					if st, err := os.Lstat(at); err != nil || st.Mode().IsRegular() {
						_ = os.WriteFile(at, ops[i:], os.FileMode(0o600|int(ops[i+1])&0o177))
					}
				case 2:
					_ = os.Mkdir(at, 0o755)
				case 3:
					_ = os.Symlink(d.outside, at)
				case 4:
					_ = os.Symlink("../"+names[int(ops[i+1])%len(names)], at)
				case 5:
					_ = unix.Mkfifo(at, 0o600)
				case 6:
					if layer {
						_ = unix.Mknod(at, unix.S_IFCHR, 0)
					}
				case 7:
					if st, err := os.Lstat(at); layer && err == nil && st.IsDir() {
						_ = unix.Setxattr(at, xattrOpaque, []byte("y"), 0)
					}
				case 8:
					if st, err := os.Lstat(at); layer && err == nil && st.Mode().IsRegular() {
						_ = unix.Chmod(at, 0o6755)
					}
				}
			}
		}
		half := len(data) / 2
		d := newDesk(t, func(d *desk) { build(d, d.ws, data[:half], false) })
		build(d, filepath.Join(d.state, "upper"), data[half:], true)
		before := picture(t, d.ws)
		list := d.changes()
		chosen, held, err := Select(list, d.protected, Selection{Force: true})
		if err != nil {
			return
		}
		for _, c := range held { // what has no reason of its own stays for one that is held in it or around it
			if c.Protected == "" && c.Never == "" && !slices.ContainsFunc(held, func(other Change) bool {
				return other.Path != c.Path && (below(other.Path, c.Path) || below(c.Path, other.Path))
			}) {
				t.Errorf("held without reason: %+v", c)
			}
		}
		if err := d.layer.Apply(d.root, chosen); err != nil {
			if got := picture(t, d.ws); !maps.Equal(got, before) {
				t.Errorf("%v, and something was changed:\n%q\n%q", err, before, got)
			}
			if !strings.Contains(err.Error(), "nothing was changed") {
				t.Errorf("%v", err)
			}
			return
		}
		for p, s := range picture(t, d.ws) {
			if before[p] != s && (strings.HasPrefix(s, "10") && len(s) > 4 && strings.Contains("4567", s[2:3])) {
				t.Errorf("%q is %q", p, s)
			}
			if before[p] == "" && strings.HasPrefix(s, "1") && !strings.HasPrefix(s, "100") && !strings.HasPrefix(s, "120") {
				t.Errorf("%q came over as %q", p, s)
			}
		}
		report, err := d.layer.Journal.Undo(d.root, journal.UndoOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := picture(t, d.ws); !maps.Equal(got, before) && len(report.Conflicts) == 0 {
			t.Errorf("undone:\n%q\nwant\n%q", got, before)
		}
		if got := picture(t, d.outside); len(got) != 1 || got["secret"] != "100600 secret" {
			t.Errorf("outside: %q", got)
		}
	})
}
