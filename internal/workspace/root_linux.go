package workspace

import (
	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// root puts the root in that is not the host's system.
func (pl *planner) root() error {
	r := pl.Root
	p, err := open(r.Path)
	if r.Image {
		if err == nil && (p.path != r.Path || !p.isDir()) {
			return refuse("the unpacked image "+show(r.Path)+" is not where it was put", r.Pos, "see who changes that folder")
		}
		if err != nil {
			return refuse("the unpacked image "+show(r.Path)+": "+err.Error(), r.Pos, "pull it again: bulkhead image pull")
		}
	} else if p, err = pl.judgeRoot(r.Folder); err != nil {
		return err
	}
	pl.add(classSystem, vocabulary.Mount{Kind: vocabulary.Root, Source: p.path, Target: "/", Size: r.Size, Why: "image " + r.Pos.String()})
	pl.out.judged = append(pl.out.judged, judged{"/", p.dev, p.ino})
	return nil
}

// judgeRoot judges a folder of the user's as a mount of the policy is judged, and
// refuses what holds places of secrets: nothing is masked in a root.
func (pl *planner) judgeRoot(f Folder) (place, error) {
	f.Mode, f.Optional = vocabulary.ReadOnly, false
	p, _, _, err := pl.judgeMount(f)
	if err != nil {
		return p, err
	}
	const remedy = "name a folder that holds a root filesystem and nothing else"
	switch {
	case !p.isDir():
		return p, refuse("root "+show(f.Path)+" is not a folder", f.Pos, remedy)
	case p.path == pl.home || inSystem(p.path):
		return p, refuse("root "+show(p.path)+" is your home, or the system's", f.Pos, remedy)
	}
	var st unix.Stat_t
	if err := unix.Lstat(p.path, &st); err != nil || int(st.Uid) != pl.UID || int(st.Gid) != pl.GID {
		return p, refuse("root "+show(p.path)+" belongs to another user or group than you", f.Pos, "copy it to a folder of your own, or use an image: bulkhead image pull")
	}
	for _, s := range pl.fixedSecrets() {
		if within(s.path, p.path) || within(p.path, s.path) {
			return p, refuse("root "+show(p.path)+" is or holds a place of secrets ("+s.reason+")", f.Pos, remedy)
		}
	}
	return p, pl.permit(f, p, false)
}
