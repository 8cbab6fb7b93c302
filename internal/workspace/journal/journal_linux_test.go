package journal

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

// bench is a workspace with a journal.
type bench struct {
	*testing.T
	ws, state string
	root      *os.File
	j         *Journal
}

func newBench(t *testing.T, mode vocabulary.MountMode, budget int64) *bench {
	t.Helper()
	b := &bench{T: t, ws: t.TempDir(), state: filepath.Join(t.TempDir(), "s")}
	root, err := tree.OpenRoot(b.ws)
	b.must(err)
	b.root = root
	t.Cleanup(func() { root.Close(); b.j.Close() })
	b.j, err = Create(b.state, Meta{Session: vocabulary.NewSessionID(), Workspace: b.ws, Mode: mode, Started: time.Now(), Budget: budget})
	b.must(err)
	return b
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bench) reopen() {
	b.Helper()
	b.j.Close()
	j, err := Open(b.state)
	b.must(err)
	b.j = j
}

func (b *bench) at(p string) string { return filepath.Join(b.ws, p) }

func (b *bench) write(p, text string) {
	b.Helper()
	b.must(os.MkdirAll(filepath.Dir(b.at(p)), 0o755))
	b.must(os.WriteFile(b.at(p), []byte(text), 0o644))
}

// picture is all that counts of a workspace: names, kinds, modes, contents.
func (b *bench) picture() map[string]string {
	b.Helper()
	out := map[string]string{}
	b.must(tree.Walk(b.root, "", func(_ *os.File, p string, st *unix.Stat_t) error {
		s := fmt.Sprintf("%o", st.Mode)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			text, err := os.ReadFile(b.at(p))
			if err != nil && os.Geteuid() == 0 {
				return err
			}
			s += fmt.Sprintf(" %d %s", st.Mtim.Nano(), text)
		case unix.S_IFLNK:
			text, err := os.Readlink(b.at(p))
			if err != nil {
				return err
			}
			s += " -> " + text
		}
		out[p] = s
		return nil
	}))
	return out
}

func (b *bench) same(what string, want map[string]string) {
	b.Helper()
	got := b.picture()
	for _, p := range slices.Sorted(maps.Keys(want)) {
		if got[p] != want[p] {
			b.Errorf("%s: %q is %q, want %q", what, p, got[p], want[p])
		}
	}
	for _, p := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[p]; !ok {
			b.Errorf("%s: %q should not be there: %q", what, p, got[p])
		}
	}
}

// keep is what a direct session calls before a change.
func (b *bench) keep(paths ...string) {
	b.Helper()
	for _, p := range paths {
		b.must(b.j.KeepTree(b.root, p, false))
	}
}

const plenty = 1 << 30

func (b *bench) populate() {
	b.write("a.txt", "one")
	b.write("dir/b.txt", "two")
	b.write("dir/sub/c.txt", "three")
	b.write("ro/d.txt", "four")
	b.must(os.Symlink("a.txt", b.at("link")))
	b.must(os.Symlink("/etc/passwd", b.at("out")))
	b.write("odd/\x1b[31m\n\xff", "name")
	b.must(os.Mkdir(b.at("empty"), 0o750))
	b.must(os.Chmod(b.at("ro/d.txt"), 0o400))
	b.must(os.Chmod(b.at("ro"), 0o555))
	b.Cleanup(func() { os.Chmod(b.at("ro"), 0o755) })
}

// session changes things in every way.
func (b *bench) session() {
	b.keep("a.txt", "dir", "link", "out", "odd/\x1b[31m\n\xff", "empty", "ro", "new", "made")
	b.write("a.txt", "one and more")
	b.must(os.RemoveAll(b.at("dir")))
	b.must(os.Remove(b.at("link")))
	b.write("link", "now a file")
	b.must(os.Remove(b.at("out")))
	b.must(os.Mkdir(b.at("out"), 0o755))
	b.write("out/x", "x")
	b.must(os.Rename(b.at("odd/\x1b[31m\n\xff"), b.at("new")))
	b.must(os.Chmod(b.at("empty"), 0o700))
	b.must(os.Chmod(b.at("ro"), 0o755))
	b.must(os.Chmod(b.at("ro/d.txt"), 0o644))
	b.must(os.Remove(b.at("ro/d.txt")))
	b.write("made/deep/tree/f", "made")
	b.must(os.Symlink("nowhere", b.at("made/deep/l")))
	b.must(os.Chmod(b.at("made/deep/tree"), 0o555))
	b.must(b.j.LeaveAll(b.root))
}

func TestUndoOfADirectSession(t *testing.T) {
	for _, reopened := range []bool{false, true} {
		b := newBench(t, vocabulary.ReadWrite, plenty)
		b.populate()
		before := b.picture()
		b.session()
		if reopened {
			b.reopen()
		}
		report, err := b.j.Undo(b.root, UndoOptions{})
		b.must(err)
		if len(report.Conflicts) > 0 {
			t.Errorf("conflicts: %v", report.Conflicts)
		}
		b.same("undone", before)
		b.reopen()
		report, err = b.j.Undo(b.root, UndoOptions{})
		b.must(err)
		if len(report.Changed)+len(report.Conflicts) > 0 {
			t.Errorf("a second undo does something: %+v", report)
		}
		b.same("undone again", before)
	}
}

func TestWhatOthersChangedIsAConflict(t *testing.T) {
	b := newBench(t, vocabulary.ReadWrite, plenty)
	b.populate()
	b.session()
	b.write("a.txt", "by a person")
	b.write("made/mine", "by a person")
	b.must(os.Remove(b.at("new")))
	b.write("new", "by a person")
	report, err := b.j.Undo(b.root, UndoOptions{})
	b.must(err)
	var paths []string
	for _, c := range report.Conflicts {
		paths = append(paths, c.Path)
	}
	slices.Sort(paths)
	if want := []string{"a.txt", "made", "made/mine", "new"}; !slices.Equal(paths, want) {
		t.Errorf("conflicts %q, want %q", paths, want)
	}
	for p, want := range map[string]string{"a.txt": "by a person", "made/mine": "by a person", "new": "by a person", "dir/b.txt": "two"} {
		if text, _ := os.ReadFile(b.at(p)); string(text) != want {
			t.Errorf("%s: %q, want %q", p, text, want)
		}
	}
	if _, err := os.Lstat(b.at("made/deep")); err == nil {
		t.Error("what the session made beside a person's file is still there")
	}
	report, err = b.j.Undo(b.root, UndoOptions{Force: true})
	b.must(err)
	if text, _ := os.ReadFile(b.at("a.txt")); string(text) != "one" || len(report.Conflicts) > 0 {
		t.Errorf("forced: %q %+v", text, report)
	}
	// What was overwritten by force is a version.
	for _, v := range b.j.Versions() {
		if v.Path == "a.txt" && v.Number == 2 {
			_, err := b.j.Restore(b.root, v)
			b.must(err)
		}
	}
	if text, _ := os.ReadFile(b.at("a.txt")); string(text) != "by a person" {
		t.Errorf("the person's version: %q", text)
	}
}

func TestACutOffSessionIsAConflict(t *testing.T) {
	b := newBench(t, vocabulary.ReadWrite, plenty)
	b.write("a", "before")
	b.keep("a", "n")
	b.write("a", "after")
	b.write("n", "new")
	b.reopen()
	report, err := b.j.Undo(b.root, UndoOptions{})
	b.must(err)
	if len(report.Conflicts) != 2 || len(report.Changed) != 0 {
		t.Errorf("%+v", report)
	}
	_, err = b.j.Undo(b.root, UndoOptions{Force: true})
	b.must(err)
	if text, _ := os.ReadFile(b.at("a")); string(text) != "before" {
		t.Errorf("%q", text)
	}
}

func TestVersionsOfEveryChange(t *testing.T) {
	b := newBench(t, vocabulary.RWNoDelete, plenty)
	for i := range 5 {
		b.write("f", strings.Repeat("x", i+1))
		v, err := b.j.Keep(b.root, "f", true)
		b.must(err)
		if v.Number != i+1 {
			t.Errorf("number %d", v.Number)
		}
	}
	b.write("f", "last")
	b.must(b.j.LeaveAll(b.root))
	b.reopen()
	_, err := b.j.Restore(b.root, b.j.Versions()[2])
	b.must(err)
	if text, _ := os.ReadFile(b.at("f")); string(text) != "xxx" {
		t.Errorf("%q", text)
	}
	_, err = b.j.Undo(b.root, UndoOptions{})
	b.must(err)
	if text, _ := os.ReadFile(b.at("f")); string(text) != "x" {
		t.Errorf("undone: %q", text)
	}
}

func TestBudget(t *testing.T) {
	b := newBench(t, vocabulary.ReadWrite, 10)
	b.write("small", "12345678")
	b.write("big", strings.Repeat("x", 11))
	b.keep("small")
	if _, err := b.j.Keep(b.root, "big", false); !errors.Is(err, ErrBudget) {
		t.Fatalf("%v", err)
	}
	_, err := b.j.Note(b.root, "big")
	b.must(err)
	b.write("big", "changed")
	b.must(b.j.LeaveAll(b.root))
	b.reopen()
	if b.j.Stored() != 8 {
		t.Errorf("stored %d", b.j.Stored())
	}
	report, err := b.j.Undo(b.root, UndoOptions{Force: true})
	b.must(err)
	if len(report.Conflicts) != 1 || report.Conflicts[0].Path != "big" {
		t.Errorf("%+v", report)
	}
}

func TestHostileTree(t *testing.T) {
	b := newBench(t, vocabulary.ReadWrite, plenty)
	outside := t.TempDir()
	b.must(os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600))
	b.must(os.Symlink(outside, b.at("away")))
	b.must(os.Symlink(filepath.Join(outside, "secret"), b.at("l")))
	b.must(unix.Mkfifo(b.at("fifo"), 0o600))
	for _, p := range []string{"", "/", "/etc", "..", "../x", "a/../b", "a//b", "./a", "a/", "a\x00b", strings.Repeat("a", 256), strings.Repeat("a/", 3000) + "a"} {
		if _, err := b.j.Keep(b.root, p, false); err == nil {
			t.Errorf("%q was kept", p)
		}
	}
	if _, err := b.j.Keep(b.root, "away/secret", false); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link on the way: %v", err)
	}
	v, err := b.j.Keep(b.root, "l", false)
	b.must(err)
	if v.Kind != Link || v.Target != filepath.Join(outside, "secret") {
		t.Errorf("%+v", v)
	}
	v, err = b.j.Keep(b.root, "fifo", false) // would block for ever if it were opened
	b.must(err)
	if v.Kind != Other || v.Kept {
		t.Errorf("%+v", v)
	}
	b.write("d/f", "inside")
	b.keep("d/f", "d/g")
	b.write("d/f", "changed")
	b.must(b.j.LeaveAll(b.root))
	b.must(os.RemoveAll(b.at("d")))
	b.must(os.Symlink(outside, b.at("d")))
	b.must(os.WriteFile(filepath.Join(outside, "f"), []byte("not yours"), 0o600))
	for _, force := range []bool{false, true} {
		report, err := b.j.Undo(b.root, UndoOptions{Force: force})
		b.must(err)
		if len(report.Changed) > 0 || len(report.Conflicts) == 0 {
			t.Errorf("%+v", report)
		}
	}
	if text, _ := os.ReadFile(filepath.Join(outside, "f")); string(text) != "not yours" {
		t.Error("something outside was changed")
	}
}

// A directory is exchanged for a link, again and again, while versions are kept
// and brought back: nothing outside is read or written.
func TestExchangedFolders(t *testing.T) {
	b := newBench(t, vocabulary.RWNoDelete, plenty)
	outside := t.TempDir()
	b.must(os.WriteFile(filepath.Join(outside, "f"), []byte("secret"), 0o600))
	b.must(os.Symlink(outside, b.at("evil")))
	b.write("d/f", "inside")
	v, err := b.j.Keep(b.root, "d/f", true)
	b.must(err)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(int(b.root.Fd()), "d", int(b.root.Fd()), "evil", unix.RENAME_EXCHANGE)
			}
		}
	}()
	var kept, restored int
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		if w, err := b.j.Keep(b.root, "d/f", true); err == nil && w.Kind == File {
			kept++
		}
		if _, err := b.j.Restore(b.root, v); err == nil {
			restored++
		}
	}
	close(stop)
	<-stopped
	for _, w := range b.j.Versions() {
		if w.Kind != File {
			continue
		}
		f, err := b.j.Open(w)
		b.must(err)
		buf := make([]byte, 16)
		n, _ := f.Read(buf)
		f.Close()
		if string(buf[:n]) != "inside" {
			t.Fatalf("version %d is %q", w.Number, buf[:n])
		}
	}
	if text, _ := os.ReadFile(filepath.Join(outside, "f")); string(text) != "secret" {
		t.Error("something outside was changed")
	}
	if list, _ := os.ReadDir(outside); len(list) != 1 {
		t.Errorf("left outside: %v", list)
	}
	if kept == 0 || restored == 0 {
		t.Errorf("kept %d, restored %d: nothing is proven", kept, restored)
	}
}

func text(s string) func() (*os.File, error) {
	return func() (*os.File, error) {
		f, err := os.CreateTemp("", "journal-test")
		if err != nil {
			return nil, err
		}
		os.Remove(f.Name())
		if _, err := f.WriteString(s); err != nil {
			return nil, err
		}
		_, err = f.Seek(0, 0)
		return f, err
	}
}

// changes of every kind on what populate makes.
func changes() []Change {
	return []Change{
		{Path: "a.txt", Kind: File, Mode: 0o4755, Content: text("changed")},
		{Path: "dir", Kind: Absent},
		{Path: "link", Kind: Dir, Mode: 0o700},
		{Path: "link/in", Kind: File, Mode: 0o600, Content: text("in")},
		{Path: "out", Kind: Link, Target: "../.."},
		{Path: "empty", Kind: Dir, Mode: 0o711},
		{Path: "ro/d.txt", Kind: Absent},
		{Path: "ro/e.txt", Kind: File, Mode: 0o444, Content: text("e")},
		{Path: "fresh", Kind: Dir, Mode: 0o555},
		{Path: "fresh/deep", Kind: Dir, Mode: 0o555},
		{Path: "fresh/deep/f", Kind: File, Mode: 0o444, Content: text("f"), Mtime: time.Unix(1e9, 0)},
		{Path: "odd", Kind: File, Mode: 0o644, Content: text("was a folder")},
	}
}

func TestCommitAndUndo(t *testing.T) {
	b := newBench(t, vocabulary.StagedWrites, plenty)
	b.populate()
	before := b.picture()
	_, err := b.j.Commit(b.root, "apply", changes())
	b.must(err)
	after := b.picture()
	st, err := os.Stat(b.at("a.txt"))
	b.must(err)
	if st.Mode() != 0o755 {
		t.Errorf("mode %v", st.Mode())
	}
	for p, want := range map[string]string{"a.txt": "changed", "link/in": "in", "ro/e.txt": "e", "fresh/deep/f": "f", "odd": "was a folder"} {
		if text, _ := os.ReadFile(b.at(p)); string(text) != want {
			t.Errorf("%s: %q, want %q", p, text, want)
		}
	}
	for i := range 3 {
		b.reopen()
		report, err := b.j.Undo(b.root, UndoOptions{})
		b.must(err)
		if len(report.Conflicts) > 0 {
			t.Fatalf("%+v", report)
		}
		b.same("undone", before)
		if i == 1 { // what a person does in between is what the next undo brings back
			b.write("a.txt", "by a person")
			before = b.picture()
		}
		_, err = b.j.Commit(b.root, "apply", changes())
		b.must(err)
		if len(b.picture()) != len(after) {
			t.Error("applied again, it is not the same")
		}
	}
}

// Whatever step of a commit a crash follows, the next command takes all back.
func TestCrashInEachStep(t *testing.T) {
	for n := 0; ; n++ {
		b := newBench(t, vocabulary.StagedWrites, plenty)
		b.populate()
		before := b.picture()
		steps, err := plan(b.root, changes())
		b.must(err)
		for i := range steps {
			b.must(b.j.keepFor(b.root, &steps[i]))
		}
		c := &commit{number: 1, what: "apply", steps: steps}
		b.must(b.j.write(false, &entry{Type: typePrepare, Commit: 1, What: "apply"}))
		b.must(b.j.prepare(b.root, c))
		if n > 0 {
			b.must(b.j.begin(b.root, c))
		}
		h, err := b.j.folder(b.root, c)
		b.must(err)
		for i := range min(n, len(steps)) {
			if s := &steps[i]; !s.chmods() {
				b.must(s.do(b.root, h))
			}
		}
		if n > len(steps) {
			b.must(chmod(b.root, "fresh", look(b.root, "fresh").Inode, 0o555))
			b.must(chmod(b.root, "empty", look(b.root, "empty").Inode, 0o711))
		}
		h.Close()
		b.reopen()
		report, err := b.j.Recover(b.root)
		b.must(err)
		if len(report.Conflicts) > 0 {
			t.Errorf("after %d steps: %+v", n, report)
		}
		b.same(fmt.Sprintf("after %d steps", n), before)
		b.reopen()
		_, err = b.j.Commit(b.root, "apply", changes())
		b.must(err)
		if t.Failed() || n > len(steps) {
			return
		}
	}
}

// The same where a filesystem can't exchange two names in one step.
func TestCrashBetweenTwoRenames(t *testing.T) {
	b := newBench(t, vocabulary.StagedWrites, plenty)
	b.write("a", "before")
	before := b.picture()
	steps, err := plan(b.root, []Change{{Path: "a", Kind: File, Mode: 0o600, Content: text("after")}})
	b.must(err)
	b.must(b.j.keepFor(b.root, &steps[0]))
	c := &commit{number: 1, steps: steps}
	b.must(b.j.write(false, &entry{Type: typePrepare, Commit: 1}))
	b.must(b.j.prepare(b.root, c))
	b.must(b.j.begin(b.root, c))
	h, err := b.j.folder(b.root, c)
	b.must(err)
	b.must(move(b.root, "a", h, "1"+aside))
	b.reopen()
	_, err = b.j.Recover(b.root)
	b.must(err)
	b.same("between the two", before)

	steps, err = plan(b.root, []Change{{Path: "a", Kind: File, Mode: 0o600, Content: text("after")}})
	b.must(err)
	c = &commit{number: 2, steps: steps}
	b.must(b.j.write(false, &entry{Type: typePrepare, Commit: 2}))
	b.must(b.j.prepare(b.root, c))
	b.must(b.j.begin(b.root, c))
	h2, err := b.j.folder(b.root, c)
	b.must(err)
	b.must(move(b.root, "a", h2, "1"+aside))
	b.must(move(h2, "1", b.root, "a"))
	b.reopen()
	_, err = b.j.Recover(b.root)
	b.must(err)
	b.same("after both", before)
}

func TestCommitThatFailsChangesNothing(t *testing.T) {
	for what, extra := range map[string]Change{
		"content":     {Path: "zz", Kind: File, Content: func() (*os.File, error) { return nil, unix.ENOSPC }},
		"no parent":   {Path: "nowhere/zz", Kind: File, Content: text("x")},
		"link on way": {Path: "out/zz", Kind: File, Content: text("x")},
		"twice":       {Path: "a.txt", Kind: Absent},
		"below":       {Path: "dir/zz", Kind: File, Content: text("x")},
		"changed":     {Path: "ro", Kind: Absent, Was: &State{Kind: Absent}},
		"outside":     {Path: "../zz", Kind: File, Content: text("x")},
	} {
		b := newBench(t, vocabulary.StagedWrites, plenty)
		b.populate()
		before := b.picture()
		list := changes()
		if what == "link on way" {
			list = slices.DeleteFunc(list, func(c Change) bool { return c.Path == "out" })
		}
		_, err := b.j.Commit(b.root, "apply", append(list, extra))
		if err == nil || !strings.Contains(err.Error(), "nothing was changed") && what != "outside" {
			t.Errorf("%s: %v", what, err)
		}
		b.same(what, before)
	}
}

func TestOneAtATime(t *testing.T) {
	b := newBench(t, vocabulary.ReadWrite, plenty)
	if _, err := Open(b.state); !errors.Is(err, ErrRunning) {
		t.Errorf("%v", err)
	}
	if m, err := ReadMeta(b.state); err != nil || m.Workspace != b.ws {
		t.Errorf("%+v %v", m, err)
	}
	if _, err := Create(b.state, b.j.Meta()); err == nil {
		t.Error("made twice")
	}
}

// A log that ends anywhere is read up to its last whole line, and what is there
// without a line is swept away.
func TestTornLog(t *testing.T) {
	b := newBench(t, vocabulary.ReadWrite, plenty)
	for i := range 4 {
		b.write(fmt.Sprint("f", i), strings.Repeat("content", i%2*smallest))
		b.keep(fmt.Sprint("f", i))
	}
	file := filepath.Join(b.state, logFile)
	whole, err := os.ReadFile(file)
	b.must(err)
	for n := len(whole); n >= 0; n-- {
		b.j.Close()
		b.must(os.WriteFile(file, whole[:n], 0o600))
		b.j, err = Open(b.state)
		b.must(err)
		lines := bytes.Count(whole[:n], []byte("\n"))
		if got := len(b.j.Versions()); got != lines {
			t.Fatalf("%d bytes: %d versions, want %d", n, got, lines)
		}
		if list, _ := os.ReadDir(filepath.Join(b.state, contentDir)); len(list) != lines/2 {
			t.Fatalf("%d bytes: %d contents", n, len(list))
		}
		if got, _ := os.ReadFile(file); bytes.Count(got, []byte("\n")) != lines || len(got) > 0 && got[len(got)-1] != '\n' {
			t.Fatalf("%d bytes: the torn line is still there", n)
		}
	}
	// In the middle it is damage, and said.
	b.j.Close()
	damaged := bytes.Clone(whole)
	damaged[20] ^= 1
	b.must(os.WriteFile(file, damaged, 0o600))
	if _, err := Open(b.state); err == nil || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("%v", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	b := newBench(t, vocabulary.ReadWrite, plenty)
	for i := range 50 {
		b.write(fmt.Sprintf("d/%d", i), fmt.Sprint(i))
	}
	done := make(chan error)
	for range 8 {
		go func() {
			for _, i := range rand.Perm(50) {
				if _, err := b.j.Keep(b.root, fmt.Sprintf("d/%d", i), false); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 8 {
		b.must(<-done)
	}
	b.reopen()
	if n := len(b.j.Versions()); n != 50 {
		t.Errorf("%d versions", n)
	}
}

func TestSparseFilesStaySparse(t *testing.T) {
	b := newBench(t, vocabulary.StagedWrites, 1<<20)
	f, err := os.Create(b.at("sparse"))
	b.must(err)
	b.must(f.Truncate(4 << 30))
	_, err = f.WriteAt([]byte("end"), 3<<30)
	b.must(err)
	f.Close()
	b.keep("sparse")
	b.must(os.Remove(b.at("sparse")))
	_, err = b.j.Restore(b.root, b.j.Versions()[0])
	b.must(err)
	var st unix.Stat_t
	b.must(unix.Stat(b.at("sparse"), &st))
	if st.Size != 4<<30 || st.Blocks > 1024 {
		t.Errorf("size %d, blocks %d", st.Size, st.Blocks)
	}
	f, err = os.Open(b.at("sparse"))
	b.must(err)
	defer f.Close()
	buf := make([]byte, 3)
	_, err = f.ReadAt(buf, 3<<30)
	b.must(err)
	if string(buf) != "end" {
		t.Errorf("%q", buf)
	}
}

func FuzzLog(f *testing.F) {
	var seed []byte
	for _, e := range []entry{
		{Type: typeKeep, Path: "a\n\xff%/b", Number: 1, Is: &State{Kind: File, Size: 3, Mode: 0o644}, Content: 1, Stored: 3},
		{Type: typeKeep, Path: "p", Number: 1, Is: &State{Kind: File, Size: 3, Mode: 0o644}, Pack: 1, Sum: 7, Stored: 3},
		{Type: typeKeep, Path: "l", Number: 1, Is: &State{Kind: Link}, Target: "../x"},
		{Type: typePrepare, Commit: 1, What: "apply"},
		{Type: typeStep, Commit: 1, Slot: 1, Path: "a", Was: &State{Kind: Absent}, Is: &State{Kind: Dir, Mode: 0o755}},
		{Type: typeBegin, Commit: 1}, {Type: typeDone, Commit: 1}, {Type: typeBack, Commit: 1},
		{Type: typeLeft, Path: "a", Is: &State{Kind: Absent}},
	} {
		one, err := appendEntry(nil, &e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(one)
		f.Add(one[:len(one)-1])
		seed = append(seed, one...)
	}
	f.Add(seed)
	f.Add([]byte("00000000 {}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var again []byte
		used, err := parseLog(data, func(e entry) error {
			if e.Path != "" && tree.Check(string(e.Path)) != nil {
				t.Errorf("accepted path %q", e.Path)
			}
			var err error
			again, err = appendEntry(again, &e)
			return err
		})
		if err != nil {
			return
		}
		if used > len(data) || used > 0 && data[used-1] != '\n' {
			t.Errorf("used %d of %d", used, len(data))
		}
		// What was accepted means the same once more.
		n, err := parseLog(again, func(entry) error { return nil })
		if err != nil || n != len(again) {
			t.Errorf("not read again: %v", err)
		}
		j := &Journal{byPath: map[string][]int{}, left: map[string]left{}, base: map[string]int{}}
		_, _ = parseLog(data, j.replay)
	})
}

func FuzzMeta(f *testing.F) {
	f.Add([]byte(`{"format":1,"session":"s-aaaaaaaaaaaaaaaa","workspace":"/w","mode":"rw","started":"2026-01-01T00:00:00Z","budget":1}`))
	f.Add([]byte(`{"format":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseMeta(data)
		if err == nil && (!filepath.IsAbs(m.Workspace) || strings.Contains(m.Workspace, "/../") || m.Budget < 0) {
			t.Errorf("%+v", m)
		}
	})
}

func BenchmarkKeep(b *testing.B) {
	ws, state := b.TempDir(), b.TempDir()
	root, err := tree.OpenRoot(ws)
	if err != nil {
		b.Fatal(err)
	}
	j, err := Create(filepath.Join(state, "s"), Meta{Session: vocabulary.NewSessionID(), Workspace: ws, Budget: plenty})
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(ws, "f"), bytes.Repeat([]byte("x"), 4096), 0o600); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := j.Keep(root, "f", true); err != nil {
			b.Fatal(err)
		}
	}
}

func TestSomebodysFileStaysTheirs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not proven here: only root can change somebody's file and give it back")
		return
	}
	b := newBench(t, vocabulary.StagedWrites, plenty)
	b.write("f", "theirs")
	b.must(os.Chown(b.at("f"), 12345, 12346))
	owner := func() {
		t.Helper()
		var st unix.Stat_t
		b.must(unix.Lstat(b.at("f"), &st))
		if st.Uid != 12345 || st.Gid != 12346 {
			t.Errorf("belongs to %d:%d", st.Uid, st.Gid)
		}
	}
	_, err := b.j.Commit(b.root, "apply", []Change{{Path: "f", Kind: File, Mode: 0o600, Content: text("changed")}})
	b.must(err)
	owner()
	_, err = b.j.Undo(b.root, UndoOptions{})
	b.must(err)
	owner()
}
