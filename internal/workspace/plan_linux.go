package workspace

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// class orders what stands at the same path.
type class uint8

const (
	classSystem class = iota
	classPolicy
	classPin
	classFreeze
	classMask
)

type entry struct {
	vocabulary.Mount
	class class
}

type planner struct {
	Request
	home    string // real path
	own     []string
	entries []entry
	folders []folder // workspace and mounts, judged
	out     Layout
	maxDirs int64

	fixed    []fixedSecret
	resolved map[string]string
	absent   map[string]bool
}

// folder is a judged workspace or mount.
type folder struct {
	place
	rw, workspace, preset bool
	mode                  vocabulary.MountMode
	names                 []string // as the policy has them, absolute
	staged                bool     // rw, and what is written goes to a layer
	why                   string
	pos                   vocabulary.Position
}

// maxDirs bounds the search for protected files, secrets and sockets. Past it
// the plan is refused: a part that was not searched is not protected.
const maxDirs = 400_000

// manyMounts is where bubblewrap's time, which grows with the square, is felt:
// 600 mounts take 0.8 s, 1,500 take 4.6 s.
const manyMounts = 500

// maxMounts is what fits into bubblewrap's 9,000 arguments, three for each mount
// (bubblewrap 0.8, MAX_ARGS), with room for the rest of its command line.
const maxMounts = 2900

// Plan makes the mount plan.
func Plan(r Request) (*Layout, error) { return plan(r, maxDirs) }

func plan(r Request, maxDirs int64) (*Layout, error) {
	pl := &planner{Request: r, maxDirs: maxDirs, resolved: map[string]string{}, absent: map[string]bool{}}
	if pl.User == "" {
		pl.User = "user"
	}
	if pl.Hostname == "" {
		pl.Hostname = "bulkhead"
	}
	if !filepath.IsAbs(r.Cwd) {
		return nil, vocabulary.Exitf(vocabulary.ExitRefused, "the current directory is not known\n  do: change to a folder that exists")
	}
	pl.sizes()
	pl.findHome()
	for _, s := range r.OwnState {
		if real, _, err := chase(pl.expandHome(s)); err == nil && real != "/" {
			pl.own = append(pl.own, real)
		}
	}
	var private []vocabulary.Mount
	var privateErr error
	var wg sync.WaitGroup
	if pl.UID == 0 && pl.Root == nil {
		wg.Go(func() { private, privateErr = privateSystemFiles() })
	}
	defer wg.Wait()
	if err := pl.system(); err != nil {
		return nil, err
	}
	if err := pl.judge(); err != nil {
		return nil, err
	}
	pl.worktree()
	if err := pl.search(); err != nil {
		return nil, err
	}
	pl.freezeOwn()
	if wg.Wait(); privateErr != nil {
		return nil, privateErr
	}
	for _, m := range private {
		if pl.visible(m.Target) && !pl.named(m.Target) {
			pl.add(classMask, m)
		}
	}
	if err := pl.hide(); err != nil {
		return nil, err
	}
	pl.maskSecrets()
	if err := pl.settleMasks(); err != nil {
		return nil, err
	}
	out := pl.finish()
	if n := len(out.Mounts); n > maxMounts {
		remedy := "name a smaller folder, or open it read-only: --workspace DIR:ro"
		if len(r.Hidden) > 0 {
			remedy += ", and trust it: bulkhead trust add DIR"
		}
		return nil, refuse(fmt.Sprintf("%s needs %d mounts, most to protect or to hide files that run something; %d are possible", show(out.Dir), n, maxMounts), r.Workspace.Pos, remedy)
	}
	return out, nil
}

func (pl *planner) add(c class, m vocabulary.Mount) { pl.entries = append(pl.entries, entry{m, c}) }

func (pl *planner) warn(format string, args ...any) {
	w := fmt.Sprintf(format, args...)
	if !slices.Contains(pl.out.Warnings, w) {
		pl.out.Warnings = append(pl.out.Warnings, w)
	}
}

// sizes of private directories: a bound, not a reservation.
func (pl *planner) sizes() {
	size := int64(1 << 30)
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		size = max(size, int64(uint64(si.Totalram)*uint64(si.Unit)/4))
	}
	pl.HomeSize = cmp.Or(pl.HomeSize, size)
	pl.TmpSize = cmp.Or(pl.TmpSize, size)
}

// findHome settles where the private home stands. A home that is a system
// directory (service accounts) is replaced by one in /home.
func (pl *planner) findHome() {
	if filepath.IsAbs(pl.Home) {
		pl.Home = filepath.Clean(pl.Home)
		real, _, err := chase(pl.Home)
		p, oerr := openExact(real)
		ok := err == nil && real != "/"
		if _, bound := boundSystem(real); ok && bound {
			ok = oerr == nil && p.isDir() // a mount point can't be made in a read-only directory
		}
		if ok && (!inSystem(real) || real == "/root") {
			pl.home, pl.out.Home = real, pl.Home
			return
		}
	}
	fallback := "/home/" + strings.Map(func(c rune) rune {
		if c == '/' || c == '.' || c < 0x20 {
			return '-'
		}
		return c
	}, pl.User)
	pl.warn("your home %s can't be one inside; the command has %s", show(pl.Home), fallback)
	pl.Home, pl.home, pl.out.Home = fallback, fallback, fallback
}

func (pl *planner) expandHome(p string) string {
	if rest, ok := strings.CutPrefix(p, "~/"); ok {
		return filepath.Join(pl.home, rest)
	}
	return p
}

// judge resolves and checks the workspace and all mounts.
func (pl *planner) judge() error {
	type named struct{ name string }
	var names []named
	at := map[string]int{}
	put := func(p place, name string, f Folder, ws bool) error {
		if ws && f.Mode == "" {
			f.Mode = vocabulary.ReadWrite
		}
		rw := f.Mode != vocabulary.ReadOnly
		staged := f.Mode == vocabulary.StagedWrites
		what := "mount"
		if ws {
			what = "workspace"
		}
		if i, dup := at[p.path]; dup {
			old := &pl.folders[i]
			if old.mode != f.Mode {
				return refuse(fmt.Sprintf("%s %s is asked for both %s and %s (also at %s)", what, show(f.Path), old.mode, f.Mode, old.pos), f.Pos, "leave one of the two out")
			}
			if old.staged && rw {
				return inStaged(f, *old)
			}
			old.names = append(old.names, name)
			names = append(names, named{name})
			return nil
		}
		at[p.path] = len(pl.folders)
		pl.folders = append(pl.folders, folder{
			place: p, rw: rw, mode: f.Mode, names: []string{name}, staged: staged, workspace: ws, pos: f.Pos, why: what + " " + f.Pos.String(),
			preset: strings.HasPrefix(f.Pos.File, "preset:"),
		})
		names = append(names, named{name})
		return nil
	}
	p, name, err := pl.judgeWorkspace(pl.Workspace)
	if err != nil {
		return err
	}
	if err := pl.permit(pl.Workspace, p, true); err != nil {
		return err
	}
	pl.out.Dir = p.path
	put(p, name, pl.Workspace, true)
	for _, f := range pl.Mounts {
		p, name, ok, err := pl.judgeMount(f)
		if err != nil {
			return err
		}
		if ws := pl.folders[0]; ok && ws.staged && f.Mode == vocabulary.ReadWrite && within(p.path, ws.path) {
			return inStaged(f, ws)
		}
		if ok {
			if err := pl.permit(f, p, false); err != nil {
				return err
			}
			if err := put(p, name, f, false); err != nil {
				return err
			}
		}
	}
	for _, f := range pl.folders {
		pl.bind(f)
	}
	for _, n := range names {
		pl.spelling(n.name, "another name of a mounted folder")
	}
	return nil
}

func (pl *planner) permit(f Folder, p place, workspace bool) error {
	if pl.Permit == nil {
		return nil
	}
	return pl.Permit(f, p.path, workspace)
}

func (pl *planner) bind(f folder) {
	kind := vocabulary.BindRO
	layer := ""
	switch {
	case f.staged:
		kind, layer = vocabulary.Overlay, pl.Layer
	case f.rw:
		kind = vocabulary.BindRW
	}
	pl.add(classPolicy, vocabulary.Mount{Kind: kind, Source: f.path, Target: f.path, Layer: layer, Why: f.why})
	pl.out.judged = append(pl.out.judged, judged{f.path, f.dev, f.ino})
}

// spelling makes name lead inside to where it leads outside, with the links
// that are not there already.
func (pl *planner) spelling(name, why string) {
	_, links, err := chase(name)
	if err != nil {
		return
	}
	for _, l := range links {
		if k, _ := pl.covering(filepath.Dir(l.at)); k.ShowsHost() {
			continue // the host's own link is in view, or its folder can't be written
		}
		if slices.ContainsFunc(pl.entries, func(e entry) bool { return e.Target == l.at }) {
			continue
		}
		pl.add(classSystem, vocabulary.Mount{Kind: vocabulary.Symlink, Source: l.text, Target: l.at, Why: why})
	}
}

// covering returns which entry decides what is seen at p: the one with the
// longest target, and of those the highest class. With no entry it is the
// private root, a Tmpfs.
func (pl *planner) covering(p string) (vocabulary.MountKind, string) {
	kind, target, c := vocabulary.Tmpfs, "", class(0)
	for i := range pl.entries {
		e := &pl.entries[i]
		if within(p, e.Target) && (len(e.Target) > len(target) || (len(e.Target) == len(target) && e.class >= c)) {
			kind, target, c = e.Kind, e.Target, e.class
		}
	}
	return kind, target
}

// visible reports whether the host's file at the real path p is seen inside.
func (pl *planner) visible(p string) bool {
	k, _ := pl.covering(p)
	return k.ShowsHost()
}

// named reports whether a mount of the policy names exactly p.
func (pl *planner) named(p string) bool {
	return slices.ContainsFunc(pl.folders, func(f folder) bool { return !f.workspace && f.path == p })
}

// namedAs reports whether a mount of the policy names p by its own path or by one
// of these.
func (pl *planner) namedAs(p string, spelled []string) bool {
	return slices.ContainsFunc(pl.folders, func(f folder) bool {
		return !f.workspace && f.path == p && slices.ContainsFunc(f.names, func(n string) bool { return n == p || slices.Contains(spelled, n) })
	})
}

// settleMasks leaves one mask where masks lie in one another, because nothing
// can be mounted in a masked directory. Where a named mount lies in one, the
// mask becomes a private empty directory, in which mount points can be made.
func (pl *planner) settleMasks() error {
	var masks []int
	for i := range pl.entries {
		m := &pl.entries[i]
		if m.Kind != vocabulary.MaskDir {
			continue
		}
		masks = append(masks, i)
		if ws := pl.folders[0]; within(ws.path, m.Target) {
			return refuse("workspace "+show(ws.path)+" is a place of secrets ("+m.Why+")", ws.pos, "start in a project folder, or name one: --workspace DIR")
		}
		for _, f := range pl.folders {
			if f.path != m.Target && within(f.path, m.Target) {
				m.Kind, m.Source, m.Perm = vocabulary.Dir, "", 0o755
				break
			}
		}
	}
	below := func(e entry) bool {
		return slices.ContainsFunc(masks, func(i int) bool {
			mask := pl.entries[i].Target
			// What lies in a named mount in the mask is that mount's.
			return e.Target != mask && within(e.Target, mask) && !slices.ContainsFunc(pl.folders, func(f folder) bool {
				return f.path != mask && within(f.path, mask) && within(e.Target, f.path)
			})
		})
	}
	kept := make([]entry, 0, len(pl.entries))
	for _, e := range pl.entries {
		if !below(e) {
			kept = append(kept, e)
		}
	}
	pl.entries = kept
	return nil
}

// finish sorts, drops what is said twice, and hands the plan out.
func (pl *planner) finish() *Layout {
	// A parent is a prefix of what lies in it, so plain string order puts it
	// first; the sort is stable, so the order of equals is that of adding.
	slices.SortStableFunc(pl.entries, func(a, b entry) int {
		return cmp.Or(strings.Compare(a.Target, b.Target), cmp.Compare(a.class, b.class))
	})
	for i, e := range pl.entries {
		if i > 0 {
			last := &pl.entries[i-1]
			if last.Target == e.Target && last.Kind == e.Kind && last.Source == e.Source {
				continue
			}
		}
		pl.out.Mounts = append(pl.out.Mounts, e.Mount)
	}
	if n := len(pl.out.Mounts); n > manyMounts {
		pl.warn("%d mounts, most for git repositories in the workspace: starting takes a moment", n)
	}
	for _, f := range pl.folders {
		if f.rw && !f.staged {
			pl.out.Writable = append(pl.out.Writable, Writable{Path: f.path, Mode: f.mode, Workspace: f.workspace})
		}
	}
	pl.out.Protected, pl.out.Installed = pl.Protected, pl.Installed
	// What is masked or covered after all is not there to be verified.
	stands := map[string]bool{}
	for _, m := range pl.out.Mounts {
		stands[m.Target] = m.Kind.ShowsHost() || m.Kind == vocabulary.Root
	}
	if ws := pl.folders[0]; ws.staged { // seen through the layer, they have other numbers
		for t := range stands {
			stands[t] = stands[t] && !within(t, ws.path)
		}
	}
	pl.out.judged = slices.DeleteFunc(pl.out.judged, func(j judged) bool { return !stands[j.target] })
	return &pl.out
}
