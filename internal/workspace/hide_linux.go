package workspace

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// hide puts an empty state over what the request wants hidden. What it leads to
// is covered where it stands, so no other name of the same place shows it.
func (pl *planner) hide() error {
	ws := pl.folders[0]
	for _, h := range pl.Hidden {
		p, err := open(h.Path)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue // leads nowhere
		}
		if err != nil {
			return refuse(show(h.Path)+" can't be hidden: "+err.Error(), ws.pos, "remove it, or trust the folder: bulkhead trust add "+show(ws.path))
		}
		if !pl.visible(p.path) {
			continue
		}
		if !within(p.path, ws.path) || p.path == ws.path {
			return refuse(show(h.Path)+" is a link to "+show(p.path)+", which the sandbox sees and which can't be hidden", ws.pos, "remove the link")
		}
		m := vocabulary.Mount{Kind: vocabulary.MaskFile, Target: p.path, Why: "untrusted: " + h.Why}
		switch {
		case p.isDir():
			m.Kind, m.Perm = vocabulary.MaskDir, 0o555
		case p.isFile():
			m.Kind, m.Data, m.Perm = vocabulary.Data, h.Empty, 0o444
		}
		if ws.rw {
			pl.pinBetween(ws, ws.path, p.path)
		}
		pl.add(classMask, m)
	}
	return nil
}
