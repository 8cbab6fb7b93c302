package workspace

import (
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/switches"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

type fixedSecret struct {
	path, reason string
	spelled      []string // as the list has it, below the home by each of its names
}

// fixedSecrets returns the real paths of the listed secrets without patterns,
// whether they exist or not, and Bulkhead's own state.
func (pl *planner) fixedSecrets() []fixedSecret {
	if pl.fixed != nil {
		return pl.fixed
	}
	for _, s := range pl.Secrets {
		if strings.HasPrefix(s.Path, "**/") || hasMeta(s.Path) {
			continue
		}
		if p := pl.expandHome(s.Path); filepath.IsAbs(p) {
			f := fixedSecret{path: pl.resolve(filepath.Clean(p)), reason: s.Reason, spelled: []string{filepath.Clean(p)}}
			if rest, ok := strings.CutPrefix(s.Path, "~/"); ok {
				f.spelled = append(f.spelled, filepath.Join(pl.Home, rest))
			}
			pl.fixed = append(pl.fixed, f)
		}
	}
	for _, o := range pl.own {
		pl.fixed = append(pl.fixed, fixedSecret{path: o, reason: "Bulkhead's own configuration and state"})
	}
	return pl.fixed
}

// resolve is chase for hundreds of names in few directories: it remembers the
// directories, also those that do not exist.
func (pl *planner) resolve(p string) string {
	if p == "/" {
		return p
	}
	if real, ok := pl.resolved[p]; ok {
		return real
	}
	dir := pl.resolve(filepath.Dir(p))
	real := filepath.Join(dir, filepath.Base(p))
	if !pl.absent[dir] {
		var st unix.Stat_t
		switch err := unix.Lstat(real, &st); {
		case err != nil:
			pl.absent[real] = true
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			if end, _, err := chase(real); err == nil {
				real = end
			}
		}
	} else {
		pl.absent[real] = true
	}
	pl.resolved[p] = real
	return real
}

// maskSecrets hides every listed secret that some mount makes visible.
func (pl *planner) maskSecrets() {
	for _, s := range pl.fixedSecrets() {
		if !pl.absent[s.path] && pl.visible(s.path) {
			pl.maskAt(s.path, s.reason, s.spelled...)
		}
	}
	for _, s := range pl.Secrets {
		if strings.HasPrefix(s.Path, "**/") || !hasMeta(s.Path) {
			continue
		}
		// The part before the first pattern is resolved, the rest is listed.
		elems := strings.Split(strings.TrimPrefix(pl.expandHome(s.Path), "/"), "/")
		i := slices.IndexFunc(elems, hasMeta)
		base := pl.resolve(filepath.Clean("/" + strings.Join(elems[:i], "/")))
		if pl.absent[base] || !pl.shows(base) {
			continue
		}
		for _, p := range expand(base, elems[i:]) {
			pl.maskAt(p, s.Reason)
		}
	}
}

// shows reports whether anything at or below dir can be seen inside.
func (pl *planner) shows(dir string) bool {
	return pl.visible(dir) || slices.ContainsFunc(pl.folders, func(f folder) bool { return within(f.path, dir) })
}

// maskAt hides what the path leads to, unless a mount names exactly that: by its
// real path, or as it is spelled in the list. A mount that only leads there, by a
// link that anybody may have made, names something else.
func (pl *planner) maskAt(path, reason string, spelled ...string) {
	p, err := open(path)
	if switches.Off("secrets") || err != nil || !pl.visible(p.path) {
		return
	}
	if pl.namedAs(p.path, spelled) {
		return // named one by one
	}
	kind := vocabulary.MaskFile
	if p.isDir() {
		kind = vocabulary.MaskDir
	} else if p.mode&unix.S_IFMT == unix.S_IFCHR {
		return // /dev/null and the like hide nothing
	}
	if slices.ContainsFunc(pl.entries, func(e entry) bool { return e.class == classMask && e.Target == p.path }) {
		return
	}
	pl.add(classMask, vocabulary.Mount{Kind: kind, Target: p.path, Why: "secret: " + reason})
}
