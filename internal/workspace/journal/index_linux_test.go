package journal

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

type repository struct {
	t   testing.TB
	dir string
}

func newRepository(t testing.TB, args ...string) *repository {
	r := &repository{t, t.TempDir()}
	r.git(append([]string{"init", "-q"}, args...)...)
	return r
}

func (r *repository) git(args ...string) {
	r.t.Helper()
	cmd := exec.Command("git", append([]string{"-C", r.dir, "-c", "user.name=a", "-c", "user.email=a@b.example"}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
}

func (r *repository) write(name, content string) {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *repository) index() []byte {
	r.t.Helper()
	data, err := os.ReadFile(filepath.Join(r.dir, ".git/index"))
	if err != nil {
		r.t.Fatal(err)
	}
	return data
}

// touch gives files another time, and has git note that they are the same.
func (r *repository) touch(names ...string) {
	r.t.Helper()
	for _, n := range names {
		when := time.Unix(1500000000, 0)
		if err := os.Chtimes(filepath.Join(r.dir, n), when, when); err != nil {
			r.t.Fatal(err)
		}
	}
	before := string(r.index())
	r.git("status")
	if string(r.index()) == before {
		r.t.Fatal("git status left the index as it was: nothing is tested")
	}
}

func TestIndexMeaning(t *testing.T) {
	for _, version := range []string{"2", "3", "4"} {
		for _, format := range []string{"sha1", "sha256"} {
			t.Run(version+" "+format, func(t *testing.T) {
				r := newRepository(t, "--object-format="+format)
				for _, n := range []string{"a", "dir/b", "dir/bb", "dir/sub/a name", "exactly8", "x"} {
					r.write(n, n)
				}
				r.git("add", ".")
				if version == "3" {
					r.write("meant", "later")
					r.git("add", "-N", "meant")
				} else {
					r.git("update-index", "--index-version", version)
				}
				if v := r.index()[7]; v != version[0]-'0' {
					t.Fatalf("version %d", v)
				}
				first := indexMeaning(r.index())
				if first == "" {
					t.Fatal("not understood")
				}
				r.touch("a", "dir/bb")
				if indexMeaning(r.index()) != first {
					t.Error("looking changes the meaning")
				}
				seen := map[string]string{first: "at first"}
				for _, change := range [][]string{{"update-index", "--chmod=+x", "a"}, {"update-index", "--assume-unchanged", "x"}, {"rm", "-q", "--cached", "dir/b"}, {"mv", "exactly8", "e"}} {
					r.git(change...)
					now := indexMeaning(r.index())
					if before, same := seen[now]; same || now == "" {
						t.Errorf("%v: %q is as %s", change, now, before)
					}
					seen[now] = strings.Join(change, " ")
				}
			})
		}
	}
}

func TestIndexNotUnderstood(t *testing.T) {
	r := newRepository(t)
	r.write("a", "a")
	r.git("add", "a")
	whole := r.index()
	for i := range whole {
		if indexMeaning(whole[:i]) != "" {
			t.Errorf("the first %d bytes are understood", i)
		}
		other := append([]byte(nil), whole...)
		other[i] ^= 1
		if indexMeaning(other) != "" {
			t.Errorf("with byte %d changed it is understood", i)
		}
	}
	r.git("update-index", "--split-index")
	if indexMeaning(r.index()) != "" {
		t.Error("a part of an index is understood")
	}
}

// Whoever looks at what a session did does not keep an undo from working.
func TestUndoAfterALook(t *testing.T) {
	b := newBench(t, vocabulary.ReadWrite, 1<<20)
	r, j, root := &repository{t, b.ws}, b.j, b.root
	r.git("init", "-q")
	r.write("a", "a")
	r.write("b", "b")
	r.git("add", ".")
	r.git("commit", "-qm", "one")
	before := string(r.index())
	for _, p := range []string{"a", ".git/index"} {
		if _, err := j.Keep(root, p, false); err != nil {
			t.Fatal(err)
		}
	}
	r.write("a", "by the session")
	r.git("add", "a")
	if err := j.LeaveAll(root); err != nil {
		t.Fatal(err)
	}
	r.touch("b")
	report, err := j.Undo(root, UndoOptions{})
	if err != nil || len(report.Conflicts) > 0 || string(r.index()) != before {
		t.Fatalf("%+v %v, index as before: %v", report, err, string(r.index()) == before)
	}

	r.write("a", "by the session again")
	if _, err := j.Keep(root, ".git/index", true); err != nil {
		t.Fatal(err)
	}
	r.git("add", "a")
	if err := j.LeaveAll(root); err != nil {
		t.Fatal(err)
	}
	r.write("c", "by a person")
	r.git("add", "c")
	if report, err = j.Undo(root, UndoOptions{}); err != nil || len(report.Conflicts) != 1 {
		t.Fatalf("somebody's work: %+v %v", report, err)
	}
}

func FuzzIndex(f *testing.F) {
	r := newRepository(f)
	for _, n := range []string{"a", "dir/b", "dir/bb"} {
		r.write(n, n)
	}
	r.git("add", ".")
	f.Add(r.index())
	r.git("update-index", "--index-version", "4")
	f.Add(r.index())
	f.Fuzz(func(t *testing.T, data []byte) {
		data = append(data, checksum(20, data)...) // what has no checksum is not read on
		if indexMeaning(data) != indexMeaning(append([]byte(nil), data...)) {
			t.Error("one index has two meanings")
		}
	})
}
