// Package staged reads the layer of a staged workspace, says what a session
// changed in it, and brings all or chosen parts over to the real folder.
//
// A layer is a folder of the user's own with the session's journal (package
// journal), "upper", which the kernel's overlay filesystem fills, and "work", the
// kernel's own. It runs in the controller and in the workspace commands, with the
// user's privileges; nothing of it is in memory only.
//
// What lies in a layer was made by the sandbox and is hostile. It is read by
// handles that follow no link (package tree); only regular files are opened;
// devices, sockets and FIFOs, and the bits setuid, setgid and sticky never come
// over. The layer's own marks (whiteouts, opaque folders) are read as the kernel
// documents them; marks that Bulkhead has switched off are an error.
package staged

import (
	"path"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/workspace/journal"
)

// What happened at a path.
type What string

// The words of a difference.
const (
	Added    What = "added"
	Modified What = "modified"
	Deleted  What = "deleted"
	Mode     What = "mode"     // only the permission bits
	Replaced What = "replaced" // by something of another kind
)

// Change is one difference between the real folder and what the session sees.
type Change struct {
	Path string
	What What
	// Was is what stands in the real folder, Is what the session left.
	Was, Is           journal.State
	WasTarget, Target string // of links
	// Protected says why the host may run or obey it by itself. Such a change
	// comes over only if it is named.
	Protected string
	// Never says why it can't come over at all.
	Never string
	// Conflict says what happened to it in the real folder since the session began.
	Conflict string
	// Leads is true for a link that leads out of the workspace.
	Leads bool
}

// goes reports whether a folder goes with all that is in it.
func (c *Change) goes() bool { return c.Was.Kind == journal.Dir && c.Is.Kind != journal.Dir }

// Executable reports whether the change makes or leaves a program.
func (c *Change) Executable() bool {
	return c.Is.Kind == journal.File && c.Is.Mode&0o111 != 0 && c.What != Deleted
}

// Bits names the bits of the mode that don't come over.
func (c *Change) Bits() []string {
	var out []string
	if c.Is.Kind != journal.File && c.Is.Kind != journal.Dir {
		return nil
	}
	for _, b := range []struct {
		bit  uint32
		name string
	}{{0o4000, "setuid"}, {0o2000, "setgid"}, {0o1000, "sticky"}} {
		if c.Is.Mode&b.bit != 0 && c.Was.Mode&b.bit == 0 {
			out = append(out, b.name)
		}
	}
	return out
}

// Pattern is a protected path, as in workspace.Protected.
type Pattern struct{ Path, Reason string }

// Protected finds what the host runs or obeys by itself.
type Protected struct {
	patterns [][]string
	reasons  []string
}

// ForPatterns makes a finder for patterns that hold at every depth.
func ForPatterns(list []Pattern) *Protected {
	p := &Protected{}
	add := func(pattern, reason string) {
		p.patterns = append(p.patterns, strings.Split(pattern, "/"))
		p.reasons = append(p.reasons, reason)
	}
	for _, name := range []string{"hooks", "config", "config.worktree", "commondir", "gitdir"} {
		add(".git/"+name, "obeyed by git on the host")
		for _, sub := range []string{"modules", "worktrees"} {
			add(".git/"+sub+"/*/"+name, "obeyed by git on the host")
		}
	}
	for _, x := range list {
		add(x.Path, x.Reason)
	}
	return p
}

// Reason returns why a path, or a folder that holds it, is protected; "" if it is
// not. Letters count without case: a folder may be on a filesystem that does not
// tell them apart.
func (p *Protected) Reason(name string) string {
	elems := strings.Split(strings.ToLower(name), "/")
	for i, pattern := range p.patterns {
		for at := 0; at+len(pattern) <= len(elems); at++ {
			if match(pattern, elems[at:]) {
				return p.reasons[i]
			}
		}
	}
	return ""
}

func match(pattern, elems []string) bool {
	for i, e := range pattern {
		if ok, err := path.Match(strings.ToLower(e), elems[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// leadsOut reports whether a link at name leaves the folder it lies below.
func leadsOut(name, target string) bool {
	if target == "" || target[0] == '/' {
		return true
	}
	depth := strings.Count(name, "/")
	for e := range strings.SplitSeq(target, "/") {
		switch e {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}

func below(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }
