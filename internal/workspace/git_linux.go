package workspace

import (
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// readSmall reads a file that a stranger may have written: no link, no device,
// at most limit bytes.
func readSmall(name string, limit int64) (string, bool) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", false
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return "", false
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	return string(b), err == nil
}

// configured returns the paths in which a repository's config makes git look
// for hooks and for more config. They are only ever protected for it, so a
// loose reading of the file is enough.
func configured(gitDir string) []string {
	text, ok := readSmall(filepath.Join(gitDir, "config"), 256<<10)
	if !ok {
		return nil
	}
	var out []string
	for _, c := range configPaths(text) {
		switch {
		case strings.HasPrefix(c.value, "~"):
			continue // the private home hides it
		case strings.HasPrefix(c.value, "/"):
		case c.hooks: // relative to where hooks run: the top of the work tree
			c.value = filepath.Join(filepath.Dir(gitDir), c.value)
		default:
			c.value = filepath.Join(gitDir, c.value)
		}
		out = append(out, filepath.Clean(c.value))
	}
	return out
}

type configPath struct {
	value string
	hooks bool
}

// configPaths finds core.hooksPath, include.path and includeIf.*.path.
func configPaths(text string) []configPath {
	var out []configPath
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "["); ok {
			name, after, _ := strings.Cut(rest, "]")
			section, _, _ = strings.Cut(strings.TrimSpace(name), " ")
			section = strings.ToLower(section)
			line = strings.TrimSpace(after)
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || len(out) == 64 {
			continue
		}
		key = strings.ToLower(strings.TrimSpace(key))
		hooks := section == "core" && key == "hookspath"
		if !hooks && (key != "path" || (section != "include" && section != "includeif")) {
			continue
		}
		value, _, _ = strings.Cut(strings.TrimSpace(value), " #")
		value = strings.TrimSpace(value)
		if v, ok := strings.CutPrefix(value, `"`); ok {
			value, _, _ = strings.Cut(v, `"`)
		}
		if value != "" && !strings.ContainsRune(value, 0) {
			out = append(out, configPath{value, hooks})
		}
	}
	return out
}

// worktree shows the common git directory of a workspace that is a linked
// worktree of a repository elsewhere. The workspace's own word is not enough:
// a stranger's .git file could name any directory. The directory must name
// this workspace back, as git's own check does.
func (pl *planner) worktree() {
	ws := pl.folders[0]
	if !exists(filepath.Join(ws.path, ".git")) {
		for d := filepath.Dir(ws.path); d != "/" && d != pl.home; d = filepath.Dir(d) {
			if exists(filepath.Join(d, ".git")) {
				pl.warn("the workspace is part of the git repository %s, which is not visible; start there to use git", show(d))
				return
			}
		}
		return
	}
	text, ok := readSmall(filepath.Join(ws.path, ".git"), 4096)
	if !ok {
		return
	}
	dir, ok := strings.CutPrefix(strings.TrimRight(text, "\n"), "gitdir: ")
	if !ok {
		return
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(ws.path, dir)
	}
	g, err := open(dir)
	if err != nil || !g.isDir() || within(g.path, ws.path) || filepath.Base(filepath.Dir(g.path)) != "worktrees" {
		return
	}
	back, ok := readSmall(filepath.Join(g.path, "gitdir"), 4096)
	if back = strings.TrimRight(back, "\n"); !filepath.IsAbs(back) {
		back = filepath.Join(g.path, back)
	}
	real, _, err := chase(back)
	common := filepath.Dir(filepath.Dir(g.path))
	if !ok || err != nil || real != filepath.Join(ws.path, ".git") || !exists(filepath.Join(common, "objects")) {
		pl.warn("%s names a git directory that does not name it back; it stays invisible", show(filepath.Join(ws.path, ".git")))
		return
	}
	p, err := openExact(common)
	if err != nil || pl.visible(common) || inSystem(common) || within(pl.home, common) {
		return
	}
	f := folder{place: p, rw: ws.rw && !ws.staged, mode: ws.mode, pos: ws.pos, why: "git directory of the worktree in the workspace", preset: true}
	if !f.rw || unix.Faccessat(unix.AT_FDCWD, common, unix.W_OK, unix.AT_EACCESS) != nil {
		f.rw, f.mode = false, vocabulary.ReadOnly
	}
	pl.folders = append(pl.folders, f)
	pl.bind(f)
	pl.spelling(dir, f.why)
	if ws.staged {
		pl.warn("the workspace is a git worktree: its repository %s is not staged and read-only, so git can't commit", show(common))
	}
	if f.rw {
		pl.warn("the workspace is a git worktree: its repository %s is writable too, except hooks and config", show(common)) // found as a git directory by search
	}
}
