package journal

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/spool"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// guarded writes as the guard does.
type guarded struct {
	*bench
	file  *os.File
	limit int64
}

func newGuarded(t *testing.T, budget int64) *guarded {
	b := newBench(t, vocabulary.ReadWrite, budget)
	f, limit, err := b.j.Spool()
	b.must(err)
	t.Cleanup(func() { f.Close() })
	return &guarded{b, f, limit}
}

func (g *guarded) record(path string) []byte {
	g.Helper()
	text, err := os.ReadFile(g.at(path))
	g.must(err)
	var st unix.Stat_t
	g.must(unix.Lstat(g.at(path), &st))
	r := spool.Record{Path: path, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Mtime: st.Mtim.Nano(), Inode: st.Ino, Time: 1}
	b := append(spool.Begin(nil, &r), text...)
	spool.End(b, len(text))
	return b
}

func (g *guarded) spool(path string) {
	g.Helper()
	_, err := g.file.Write(g.record(path))
	g.must(err)
}

// What was spooled is undone like the rest, whether the journal took it in, was
// told of its end, or was killed before either.
func TestSpool(t *testing.T) {
	for _, end := range []string{"ended", "killed", "killed later"} {
		t.Run(end, func(t *testing.T) {
			b := newGuarded(t, plenty)
			b.populate()
			before := b.picture()
			b.spool("a.txt")
			b.must(os.Remove(b.at("a.txt")))
			if end == "killed later" {
				_, err := b.j.Absent("a.txt") // as for a name that is made again
				b.must(err)
				b.reopen()
			}
			b.spool("dir/b.txt")
			b.spool("odd/\x1b[31m\n\xff")
			b.write("dir/b.txt", "changed")
			b.keep("link")
			b.must(os.Remove(b.at("link")))
			b.spool("dir/sub/c.txt")
			b.must(os.Truncate(b.at("dir/sub/c.txt"), 1))
			b.must(os.Remove(b.at("odd/\x1b[31m\n\xff")))
			if end == "ended" {
				b.must(b.j.LeaveAll(b.root))
				if v := b.j.Versions(); len(v) != 5 {
					t.Errorf("versions: %v", v)
				}
			}
			looking, err := Read(b.state)
			b.must(err)
			if v := looking.Versions(); len(v) != 5 {
				t.Errorf("who looks sees %v", v)
			} else if f, err := looking.Open(v[0]); err != nil {
				t.Error(err)
			} else if text, _ := io.ReadAll(f); string(text) != "one" || v[0].Path != "a.txt" {
				t.Errorf("%s was %q", v[0].Path, text)
			}
			looking.Close()
			b.reopen()
			report, err := b.j.Undo(b.root, UndoOptions{Force: true})
			b.must(err)
			if len(report.Changed) != 5 {
				t.Errorf("%+v", report)
			}
			b.same("undone", before)
			b.reopen()
			b.same("opened again", before)
		})
	}
}

// A record that is not whole, that is for a path outside or that comes twice says
// nothing, and what the journal was told first holds.
func TestHostileSpool(t *testing.T) {
	b := newGuarded(t, plenty)
	b.write("a", "one")
	b.keep("a")
	b.write("a", "two")
	b.spool("a")
	for _, path := range []string{"../a", "/etc/passwd", "d//a", "d/../a", "a\x00"} {
		r := spool.Record{Path: path}
		rec := spool.Begin(nil, &r)
		spool.End(rec, 0)
		_, err := b.file.Write(rec)
		b.must(err)
	}
	b.write("b", "three")
	whole := b.record("b")
	_, err := b.file.Write(whole[:len(whole)-1])
	b.must(err)
	b.must(b.j.LeaveAll(b.root))
	if v := b.j.Versions(); len(v) != 1 || v[0].Size != 3 || v[0].spool != 0 {
		t.Errorf("versions: %+v", v)
	}
	_, err = b.file.Write(whole[len(whole)-1:])
	b.must(err)
	_, err = b.file.WriteString("no record, and nothing behind it")
	b.must(err)
	b.spool("b")
	b.reopen()
	if v := b.j.Versions(); len(v) != 2 || v[1].Path != "b" || v[1].Size != 5 {
		t.Errorf("versions: %+v", v)
	}
	if _, _, err := b.j.Spool(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second spool: %v", err)
	}
}

// A spool's bytes are the budget's, and damage of its content is noticed.
func TestSpoolOfTheBudget(t *testing.T) {
	b := newGuarded(t, 400)
	if b.limit != 100 {
		t.Fatalf("the limit is %d", b.limit)
	}
	b.write("s", "spooled")
	b.spool("s")
	b.write("big", string(make([]byte, 301)))
	if _, err := b.j.Keep(b.root, "big", false); !errors.Is(err, ErrBudget) {
		t.Errorf("beside a spool: %v", err)
	}
	b.must(os.Truncate(b.at("big"), 300))
	_, err := b.j.Keep(b.root, "big", false)
	b.must(err)
	if got := b.j.Stored(); got != 307 {
		t.Errorf("stored: %d", got)
	}
	f, err := os.OpenFile(filepath.Join(b.state, spoolFile), os.O_WRONLY, 0)
	b.must(err)
	_, err = f.WriteAt([]byte("X"), 63)
	b.must(err)
	f.Close()
	for _, v := range b.j.Versions() {
		if f, err := b.j.Open(v); (err == nil) != (v.Path == "big") {
			t.Errorf("%s: %v", v.Path, err)
		} else if err == nil {
			f.Close()
		}
	}
}
