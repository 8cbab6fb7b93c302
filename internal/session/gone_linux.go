package session

import (
	"bufio"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

// gone knows what of a git directory may be gone at the end of a session in
// rw-no-delete: git itself removes it, and it would say something else if it came
// back. Its versions are kept all the same.
type gone struct {
	root   *os.File
	gitDir map[string]bool
	packed map[string]map[string]bool // git directory → names of refs
}

func newGone(root *os.File) *gone {
	return &gone{root: root, gitDir: map[string]bool{}, packed: map[string]map[string]bool{}}
}

// underWay are what git notes of a merge, a rebase and the like while they last
// (gitrepository-layout(5), and git's path.c), and shallow, which says that
// history ends early.
var underWay = []string{
	"MERGE_*", "AUTO_MERGE", "SQUASH_MSG", "CHERRY_PICK_HEAD", "REVERT_HEAD", "REBASE_HEAD", "NOTES_MERGE_*", "BISECT_*",
	"rebase-merge", "rebase-apply", "sequencer", "shallow", "gc.pid", "gc.log", "index.lock", "HEAD.lock", "packed-refs.lock", "config.lock", "shallow.lock",
}

// stays reports whether a path that is gone stays so.
func (g *gone) stays(p string) bool {
	dir := path.Dir(p)
	for !g.isGit(dir) {
		if dir == "." {
			return false
		}
		dir = path.Dir(dir)
	}
	rel := strings.TrimPrefix(p, dir+"/")
	for name := range strings.SplitSeq(rel, "/") {
		if slices.ContainsFunc(underWay, func(pattern string) bool { ok, _ := path.Match(pattern, name); return ok }) {
			return true
		}
	}
	// A ref that was packed has its value there, and a file would be believed
	// instead.
	return strings.HasPrefix(rel, "refs/bisect/") || strings.HasPrefix(rel, "refs/") && g.packedIn(dir)[rel]
}

func (g *gone) isGit(dir string) bool {
	is, known := g.gitDir[dir]
	if !known {
		is = true
		for _, name := range []string{"HEAD", "objects", "refs"} {
			_, there, err := tree.Lstat(g.root, path.Join(dir, name))
			is = is && there && err == nil
		}
		g.gitDir[dir] = is
	}
	return is
}

// maxPackedRefs bounds what is read of a file that the session wrote.
const maxPackedRefs = 64 << 20

func (g *gone) packedIn(dir string) map[string]bool {
	if names, known := g.packed[dir]; known {
		return names
	}
	names := map[string]bool{}
	g.packed[dir] = names
	f, _, err := tree.OpenFile(g.root, path.Join(dir, "packed-refs"))
	if err != nil {
		return names
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxPackedRefs))
	for lines.Scan() {
		if _, name, ok := strings.Cut(lines.Text(), " "); ok && !strings.HasPrefix(name, "#") {
			names[name] = true
		}
	}
	return names
}
