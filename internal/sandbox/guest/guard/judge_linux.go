package guard

import (
	"os"
	"path"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/guard/rules"
	"golang.org/x/sys/unix"
)

// kind is what would stand at a name.
type kind uint8

const (
	aFile kind = iota // made or written to
	aFolder
	aLink
	aNode // socket, FIFO
)

// refuse reports a refusal and answers it.
func (t *task) refuse(at, reason string) verdict {
	t.g.host.Refused(Refusal{Op: t.op, Path: at, Reason: reason})
	return failed(unix.EPERM)
}

// forbidden says why nothing of that kind may come to stand, or be written, at a
// place. It only looks. The caller holds mu.
func (g *Guard) forbidden(p place, k kind) (reason string) {
	f, rel := g.folder(p.path)
	if f == nil || p.isFolderItself() {
		return ""
	}
	rel = append(slices.Clone(rel), p.name)
	if reason, ok := g.list.Plain(rel); ok {
		return reason
	}
	for _, h := range g.list.Git(rel) {
		if f.isGit(rel[:h.Dir]) && !f.usedByGit(rel, h, k) {
			return h.Reason
		}
	}
	if k == aLink {
		return g.linkForbidden(f, rel)
	}
	return ""
}

// linkForbidden refuses a link that stands for a folder in which something is
// protected: what it leads to has another name, under which it is not.
func (g *Guard) linkForbidden(f *folder, rel []string) string {
	if rules.Is(rel[len(rel)-1], ".git") {
		return "leads to a git directory"
	}
	for _, w := range g.list.Ways(rel) {
		if w.Dir < 0 || w.Dir >= 0 && f.isGit(rel[:w.Dir]) {
			return "a link here would lead to what is protected: " + w.Reason
		}
	}
	return ""
}

// stays says why something may not be removed: it is protected. A file is kept in
// place by a mount besides, whose refusal nobody would hear of, a link is not.
func (g *Guard) stays(p place) (reason string) {
	f, rel := g.folder(p.path)
	if f == nil || p.isFolderItself() {
		return ""
	}
	reason, ok := g.list.Plain(append(slices.Clone(rel), p.name))
	if !ok || !existsAt(p.dir, p.name) {
		return ""
	}
	return reason
}

// isGit reports whether git would take a folder for a repository, or may soon:
// what a git directory must have besides is no safeguard.
func (f *folder) isGit(rel []string) bool {
	if n := len(rel); n > 0 && rules.Is(rel[n-1], ".git") {
		return true
	}
	dir := path.Join(append([]string{f.disk}, rel...)...)
	return exists(dir+"/HEAD") || exists(dir+"/objects") && exists(dir+"/refs")
}

func exists(p string) bool {
	var st unix.Stat_t
	return unix.Lstat(p, &st) == nil
}

// usedByGit lets git make what a new repository or worktree needs, and nothing
// in it that runs.
func (f *folder) usedByGit(rel []string, h rules.Hit, k kind) bool {
	switch h.Name {
	case "hooks":
		return len(h.Rest) == 0 && k == aFolder ||
			len(h.Rest) == 1 && k == aFile && strings.HasSuffix(h.Rest[0], ".sample")
	case "commondir", "gitdir":
		// The folder of a worktree; whatever they lead to is a git directory, and
		// has a configuration that was read.
		return k == aFile && len(h.Rest) == 0 && h.Dir >= 2 && rules.Is(rel[h.Dir-2], "worktrees") && f.isGit(rel[:h.Dir-2])
	}
	return false
}

// isConfig reports whether a name is a configuration of git: it changes by
// rename from its lock file only, see settleConfig.
func (g *Guard) isConfig(p place) bool {
	f, rel := g.folder(p.path)
	if f == nil {
		return false
	}
	switch p.name {
	case "config", "config.worktree":
		return f.isGit(rel)
	case ".gitmodules":
		return true
	}
	return false
}

// makesGit reports whether a name could make its folder a git directory.
func makesGit(name string) bool {
	return rules.Is(name, "HEAD") || rules.Is(name, "objects") || rules.Is(name, "refs")
}

// becomesGit says why a folder may not get a name that makes it a git directory.
// Its configuration is replaced by a copy that nobody else has open. The caller
// holds mu alone.
func (t *task) becomesGit(p place) (reason string) {
	if !makesGit(p.name) {
		return ""
	}
	f, rel := t.g.folder(p.path)
	if f == nil || f.isGit(rel) {
		return ""
	}
	if rules.Is(p.name, "objects") && !existsAt(p.dir, "refs") || rules.Is(p.name, "refs") && !existsAt(p.dir, "objects") {
		return ""
	}
	return t.settle(p.dir, p.path)
}

// settle makes sure that nothing in a folder runs or leads elsewhere if it is a
// git directory.
func (t *task) settle(dir int, real string) (reason string) {
	for _, name := range []string{"config", "config.worktree"} {
		if !existsAt(dir, name) {
			continue
		}
		if v := t.settleConfig(place{dir: dir, path: real, name: name}, place{dir: dir, path: real, name: name}); v.errno != 0 {
			return name + " is there already, and it can run programs or leads elsewhere"
		}
	}
	f, rel := t.g.folder(real)
	n := len(rel)
	worktree := f != nil && n >= 2 && rules.Is(rel[n-2], "worktrees") && f.isGit(rel[:n-2])
	for _, w := range t.g.list.GitPaths() {
		switch w.Rest[0] {
		case "config", "config.worktree":
			continue
		case "commondir", "gitdir":
			if worktree {
				continue
			}
		case "hooks":
			if existsAt(dir, "hooks") && !onlySamples(dir, "hooks") {
				return w.Reason
			}
			continue
		}
		if found(dir, w.Rest) {
			return w.Reason
		}
	}
	return ""
}

func existsAt(dir int, name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// names lists a folder below a handle; ok is false if it is none, or a link.
func names(dir int, name string) (list []string, ok bool) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	list, err = f.Readdirnames(-1)
	return list, err == nil
}

// onlySamples reports whether a folder of hooks has none that git runs.
func onlySamples(dir int, name string) bool {
	list, ok := names(dir, name)
	return ok && !slices.ContainsFunc(list, func(n string) bool { return !strings.HasSuffix(n, ".sample") })
}

// found reports whether a path of patterns exists below a folder. What can't be
// looked into counts as found, and so does a link on the way.
func found(dir int, elems []string) bool {
	list, ok := names(dir, ".")
	if !ok {
		return true
	}
	for _, n := range list {
		if !rules.Match(elems[0], n) {
			continue
		}
		if len(elems) == 1 {
			return true
		}
		var st unix.Stat_t
		if unix.Fstatat(dir, n, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return true
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		sub, err := unix.Openat(dir, n, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return true
		}
		hit := found(sub, elems[1:])
		unix.Close(sub)
		if hit {
			return true
		}
	}
	return false
}

// moveForbidden says why what stands at from may not come to stand at to. The
// caller holds mu alone.
func (t *task) moveForbidden(from, to place, st *unix.Stat_t) (reason string) {
	g := t.g
	if f, _ := g.folder(from.path); f != nil {
		if g.fixed[from.full()] {
			return "obeyed by git on the host"
		}
		if reason := g.forbidden(from, kindOf(st)); reason != "" {
			return reason
		}
	}
	if g.fixed[to.full()] {
		return "obeyed by git on the host"
	}
	if reason := g.forbidden(to, kindOf(st)); reason != "" {
		return reason
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if reason := t.treeForbidden(from, to); reason != "" {
			return reason
		}
	}
	return t.becomesGit(to)
}

func kindOf(st *unix.Stat_t) kind {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return aFolder
	case unix.S_IFLNK:
		return aLink
	case unix.S_IFREG:
		return aFile
	}
	return aNode
}

// treeForbidden judges a folder by what it holds and would be called.
func (t *task) treeForbidden(from, to place) string {
	g := t.g
	f, rel := g.folder(to.path)
	if f == nil {
		return ""
	}
	dir, err := unix.Openat(from.dir, from.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "a folder that can't be looked into"
	}
	t.own(dir)
	rel = append(slices.Clone(rel), to.name)
	for _, w := range g.list.Ways(rel) {
		if (w.Dir < 0 || w.Dir >= 0 && f.isGit(rel[:w.Dir])) && found(dir, w.Rest) {
			return w.Reason
		}
	}
	if rules.Is(to.name, ".git") && !rules.Is(from.name, ".git") {
		if reason := t.settle(dir, from.full()); reason != "" {
			return reason
		}
	}
	if n := len(rel) - 1; rules.Is(to.name, "hooks") && f.isGit(rel[:n]) && !onlySamples(dir, ".") {
		return "git runs them at commit, checkout, merge and push"
	}
	if source, srel := g.folder(from.path); source != nil && g.list.Installed(append(slices.Clone(srel), from.name)) && !g.list.Installed(rel) {
		left := maxMoved
		return g.holdsProtected(dir, rel, &left)
	}
	return ""
}

// maxMoved bounds the search of a folder that leaves the installed packages.
const maxMoved = 200_000

// holdsProtected looks for protected names in a folder that will be called rel.
func (g *Guard) holdsProtected(dir int, rel []string, left *int) string {
	const unsearched = "a folder of packages that is too large to be searched for protected files"
	list, ok := names(dir, ".")
	if !ok {
		return "a folder that can't be looked into"
	}
	for _, n := range list {
		if *left--; *left < 0 {
			return unsearched
		}
		at := append(slices.Clone(rel), n)
		if reason, ok := g.list.Plain(at); ok {
			return reason
		}
		sub, err := unix.Openat(dir, n, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // no folder
		}
		reason := g.holdsProtected(sub, at, left)
		unix.Close(sub)
		if reason != "" {
			return reason
		}
	}
	return ""
}
