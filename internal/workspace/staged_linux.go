package workspace

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// stageable refuses a workspace that a layer would not show as it is.
func (pl *planner) stageable(f Folder, p place) error {
	if pl.Layer == "" || within(pl.Layer, p.path) {
		return refuse("workspace "+show(p.path)+" would hold its own layer", f.Pos, "name another folder, keep layers elsewhere (XDG_STATE_HOME), or use mode rw")
	}
	if r := pl.Root; r != nil {
		if root, err := open(r.Path); err == nil && within(root.path, p.path) {
			what, do := "the root "+show(root.path), "name another folder as the root, or use mode rw"
			if r.Image {
				what, do = "the cache with the unpacked image ("+show(root.path)+")", "keep it elsewhere (XDG_CACHE_HOME), name another folder as the workspace, or use mode rw"
			}
			return refuse("workspace "+show(p.path)+" holds "+what+", which can't be shown through the workspace's layer", f.Pos, do)
		}
	}
	points, err := mountPoints()
	if err != nil {
		return refuse("workspace "+show(p.path)+": what is mounted in it is not known: "+err.Error(), f.Pos, "use mode rw")
	}
	for _, at := range points {
		if at != p.path && within(at, p.path) {
			return refuse("workspace "+show(p.path)+" holds another filesystem at "+show(at)+", which a layer would not show", f.Pos, "use mode rw, or name a folder without it")
		}
	}
	return nil
}

func inStaged(f Folder, ws folder) error {
	return refuse("mount "+show(f.Path)+" is rw and lies in the staged workspace "+show(ws.path)+": what is written there would not be staged", f.Pos, "leave it out, or use mode ro")
}

// mountPoints lists where something is mounted in this process's view.
func mountPoints() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 { // id parent dev root POINT …
			out = append(out, filepath.Clean(unescapeMount(fields[4])))
		}
	}
	return out, nil
}

// unescapeMount undoes the kernel's \ooo for blanks and the like.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
