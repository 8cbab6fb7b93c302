package workspace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/switches"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// gitFrozen is what git on the host obeys in any git directory, whatever the
// list says: hooks run, commondir and gitdir lead to another config.
var gitFrozen = []string{"hooks", "commondir", "gitdir"}

// gitRuled name programs and hooks too, and git writes them all the time: the
// sandbox's guard lets them change to what it has read and found harmless.
var gitRuled = []string{"config", "config.worktree"}

// search walks the workspace and the mounts once each, and protects and masks
// what it finds.
func (pl *planner) search() error {
	var budget atomic.Int64
	budget.Store(pl.maxDirs)
	prune := map[string]bool{}
	for _, f := range pl.folders {
		prune[f.path] = true
	}
	anyDepth := map[string]string{} // name pattern to reason
	for _, s := range pl.Secrets {
		if name, ok := strings.CutPrefix(s.Path, "**/"); ok {
			anyDepth[name] = s.Reason
		}
	}
	for _, f := range slices.Clone(pl.folders) {
		if !f.isDir() || !pl.visible(f.path) {
			continue
		}
		if _, sys := boundSystem(f.path); sys && !f.rw {
			continue
		}
		w := &treeWalk{want: map[string]bool{}, prune: prune, budget: &budget}
		name := func(n string) {
			if hasMeta(n) {
				if !slices.Contains(w.globs, n) {
					w.globs = append(w.globs, n)
				}
			} else {
				w.want[n] = true
			}
		}
		name(".git")
		if f.rw {
			for _, p := range pl.Protected {
				first, _, _ := strings.Cut(p.Path, "/")
				name(first)
			}
		}
		if !f.workspace && !f.preset {
			for n := range anyDepth {
				name(n)
			}
		}
		if f.preset && !f.rw {
			w.depth = 2 // toolchain caches: only sockets near the top matter
		}
		hits, err := w.run(f.path)
		if err != nil {
			if errors.Is(err, errTooMany) {
				return refuse(fmt.Sprintf("%s has more than %d directories: what must be protected in it can't all be found", show(f.path), pl.maxDirs), f.pos,
					"name smaller folders")
			}
			return refuse("searching "+show(f.path)+": "+err.Error(), f.pos, "name another folder")
		}
		for _, h := range hits {
			at := filepath.Join(h.dir, h.name)
			switch {
			case h.typ == unix.DT_SOCK:
				pl.maskSocket(at)
				continue
			case h.name == bareGit:
				pl.socketsIn(h.dir)
			case h.name == ".git" && h.typ == unix.DT_DIR:
				pl.socketsIn(at)
			}
			if !f.workspace && !f.preset {
				if reason, ok := matchName(anyDepth, h.name); ok {
					pl.maskAt(at, reason)
				}
			}
			if f.rw {
				pl.protect(f, h)
			}
		}
	}
	return nil
}

func (pl *planner) maskSocket(at string) {
	if switches.Off("sockets") {
		return
	}
	pl.add(classMask, vocabulary.Mount{Kind: vocabulary.MaskFile, Target: at, Why: "socket of the host"})
}

// socketsIn looks into a git directory, which the walk does not enter (git's
// file system monitor listens there).
func (pl *planner) socketsIn(gitDir string) {
	list, _ := os.ReadDir(gitDir)
	for _, d := range list {
		if d.Type()&os.ModeSocket != 0 {
			pl.maskSocket(filepath.Join(gitDir, d.Name()))
		}
	}
}

func hasMeta(s string) bool { return strings.ContainsAny(s, `*?[\`) }

func matchName(patterns map[string]string, name string) (string, bool) {
	if r, ok := patterns[name]; ok {
		return r, true
	}
	for p, r := range patterns {
		if hasMeta(p) {
			if ok, _ := filepath.Match(p, name); ok {
				return r, true
			}
		}
	}
	return "", false
}

// protect freezes what exists of the protected paths that begin with h. The
// protected names that do not exist in h.dir are the seam named in the package
// comment.
func (pl *planner) protect(f folder, h hit) {
	at := filepath.Join(h.dir, h.name)
	switch {
	case h.name == bareGit:
		pl.gitDir(f, h.dir, 0)
		return
	case h.name == ".git" && h.typ == unix.DT_DIR:
		pl.pin(f, at)
		pl.gitDir(f, at, 0)
		return
	case h.name == ".git" && h.typ == unix.DT_REG:
		pl.freeze(f, at, "leads to a git directory")
		return
	case h.name == ".git" && h.typ == unix.DT_LNK:
		pl.freeze(f, at, "leads to a git directory")
		if p, err := open(at); err == nil && p.isDir() && within(p.path, f.path) {
			pl.gitDir(f, p.path, 0)
		}
		return
	}
	if below, err := filepath.Rel(f.path, h.dir); err == nil && pl.installed(below) {
		return
	}
	for _, p := range pl.Protected {
		first, rest, more := strings.Cut(p.Path, "/")
		if ok, _ := filepath.Match(first, h.name); !ok {
			continue
		}
		if h.name == ".gitmodules" {
			pl.rule(f, at)
			continue
		}
		if !more {
			pl.freeze(f, at, p.Reason)
			continue
		}
		for _, found := range expand(at, strings.Split(rest, "/")) {
			pl.pinBetween(f, at, found)
			pl.freeze(f, found, p.Reason)
		}
	}
}

// installed reports whether a folder, relative to a writable one, is or lies in
// one of installed packages.
func (pl *planner) installed(below string) bool {
	for part := range strings.SplitSeq(below, "/") {
		if slices.ContainsFunc(pl.Installed, func(n string) bool { return strings.EqualFold(n, part) }) {
			return true
		}
	}
	return false
}

// gitDir freezes what git obeys in the git directory g and in those of its
// worktrees and submodules.
func (pl *planner) gitDir(f folder, g string, depth int) {
	for _, name := range gitFrozen {
		if at := filepath.Join(g, name); exists(at) {
			pl.freeze(f, at, "obeyed by git on the host")
		}
	}
	for _, name := range gitRuled {
		pl.rule(f, filepath.Join(g, name))
	}
	for _, p := range pl.Protected {
		if rest, ok := strings.CutPrefix(p.Path, ".git/"); ok && !slices.Contains(gitRuled, rest) {
			for _, found := range expand(g, strings.Split(rest, "/")) {
				pl.pinBetween(f, g, found)
				pl.freeze(f, found, p.Reason)
			}
		}
	}
	for _, p := range configured(g) {
		if real, err := open(p); err == nil && within(real.path, f.path) && real.path != f.path {
			pl.freeze(f, real.path, "named by "+show(filepath.Join(g, "config")))
		}
	}
	if depth > 8 { // submodules of submodules; git itself gives up sooner
		pl.warn("%s holds git directories deeper than they are searched", show(g))
		return
	}
	for _, sub := range []string{"modules", "worktrees"} {
		pl.subGitDirs(f, filepath.Join(g, sub), depth, sub == "modules")
	}
}

// subGitDirs finds git directories below dir; a submodule's name may have
// slashes, and then its directory lies deeper.
func (pl *planner) subGitDirs(f folder, dir string, depth int, nested bool) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, d := range list {
		if !d.IsDir() {
			continue
		}
		sub := filepath.Join(dir, d.Name())
		if exists(filepath.Join(sub, "HEAD")) {
			pl.pinBetween(f, filepath.Dir(dir), filepath.Join(sub, "x"))
			pl.gitDir(f, sub, depth+1)
		} else if nested && depth < 8 {
			pl.subGitDirs(f, sub, depth+1, true)
		}
	}
}

// freeze makes at read-only over itself.
func (pl *planner) freeze(f folder, at, why string) {
	p, err := open(at)
	if switches.Off("protected") || err != nil {
		return
	}
	if p.path != at { // a link: the guard keeps it as it is
		if !within(p.path, f.path) {
			return
		}
		at = p.path
	}
	if p.path == f.path || slices.ContainsFunc(pl.folders, func(o folder) bool { return o.path == p.path }) {
		return // a named mount says itself what it is
	}
	if !p.isDir() && !p.isFile() {
		return
	}
	pl.add(classFreeze, vocabulary.Mount{Kind: vocabulary.BindRO, Source: at, Target: at, Why: "protected: " + why})
	pl.out.judged = append(pl.out.judged, judged{at, p.dev, p.ino})
}

// rule leaves a file of git writable, by the guard's rule.
func (pl *planner) rule(f folder, at string) {
	p, err := open(at)
	if err != nil || !p.isFile() {
		return
	}
	if p.path != at { // a link: what it leads to is nobody's to change
		pl.freeze(f, at, "obeyed by git on the host")
		return
	}
	pl.pinBetween(f, f.path, at)
	pl.out.Fixed = append(pl.out.Fixed, at)
}

// pin makes a directory a mount of its own, as writable as before: a mount
// point can't be renamed or removed, so what is frozen in it stays in place.
func (pl *planner) pin(f folder, dir string) {
	p, err := openExact(dir)
	if err != nil || !p.isDir() || slices.ContainsFunc(pl.folders, func(o folder) bool { return o.path == dir }) {
		return
	}
	if slices.ContainsFunc(pl.entries, func(e entry) bool { return e.class == classPin && e.Target == dir }) {
		return
	}
	pl.add(classPin, vocabulary.Mount{Kind: vocabulary.BindRW, Source: dir, Target: dir, Why: "holds protected files, kept in place"})
	pl.out.judged = append(pl.out.judged, judged{dir, p.dev, p.ino})
}

// pinBetween pins top and every directory from it down to the one holding leaf.
func (pl *planner) pinBetween(f folder, top, leaf string) {
	for d := filepath.Dir(leaf); within(d, top) && d != f.path; d = filepath.Dir(d) {
		pl.pin(f, d)
	}
}

// freezeOwn keeps the files that the session itself relies on.
func (pl *planner) freezeOwn() {
	for _, name := range pl.OwnFiles {
		p, err := open(pl.expandHome(name))
		if err != nil {
			continue
		}
		for _, f := range pl.folders {
			if f.rw && within(p.path, f.path) {
				if f.path == p.path { // named as a mount of its own, rw
					pl.add(classFreeze, vocabulary.Mount{Kind: vocabulary.BindRO, Source: p.path, Target: p.path, Why: "this session relies on it"})
					continue
				}
				pl.pinBetween(f, f.path, p.path)
				pl.freeze(f, p.path, "this session relies on it")
			}
		}
	}
}

func exists(p string) bool {
	var st unix.Stat_t
	return unix.Lstat(p, &st) == nil
}

// expand returns the existing paths below base that match elems.
func expand(base string, elems []string) []string {
	if len(elems) == 0 {
		return []string{base}
	}
	if !hasMeta(elems[0]) {
		if next := filepath.Join(base, elems[0]); exists(next) {
			return expand(next, elems[1:])
		}
		return nil
	}
	var out []string
	list, _ := os.ReadDir(base)
	for _, d := range list {
		if ok, _ := filepath.Match(elems[0], d.Name()); ok {
			out = append(out, expand(filepath.Join(base, d.Name()), elems[1:])...)
		}
	}
	return out
}
