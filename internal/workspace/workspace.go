// Package workspace turns a workspace, the policy's mounts and the lists of
// secret and protected paths into one ordered mount plan.
//
// It runs in the controller with the user's privileges, before anything of the
// session exists, and only reads. In: a Request of names. Out: a Layout whose
// sources are link-free real paths, or a *vocabulary.ExitError (code 11) of at
// most three lines: what was refused, by which rule, what to do next.
//
// Every name is opened first and judged afterwards, by the path the kernel
// gives for the open handle: links cannot make a refused place look like an
// allowed one. A plan is sorted so that a parent always stands before what
// lies in it; system directories, private directories, the policy's mounts,
// read-only protections and masks therefore never uncover one another.
//
// Figures (BenchmarkPlan, two shared cores): 0.3 ms for a small project, 2.5 ms
// more as root, when /etc is searched for files that are not for everyone, and
// 50 ms for a tree of 10,000 directories, 5 µs each.
//
// Known holes, each the seam of later work:
//   - What does not exist yet has no mount to protect it: the sandbox's guard
//     judges every write by its name (Layout.Writable, Protected, Fixed).
//   - A secret, or a socket of the host, that appears under a mount after the
//     session started is visible.
//   - A protected name that is a symbolic link is frozen at its end; that the
//     link stays is the guard's work.
//   - A secret that the host shows a second time, by a bind mount or a hard
//     link, is masked under its first name only.
//   - Between Plan and the backend's mounting, another writer in the same
//     workspace could exchange a directory: the sandbox's supervisor compares
//     Layout.Judged with what stands inside before anything runs.
package workspace

import (
	"fmt"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Folder is the workspace, or a mount of the policy.
type Folder struct {
	// Path as written: absolute, relative to Request.Cwd, or below "~/".
	Path string
	Mode vocabulary.MountMode
	// Optional folders that do not exist are left out (presets only).
	Optional bool
	Pos      vocabulary.Position
}

// Secret is a place that stays unreadable even under a broad mount, unless a
// mount of the policy names exactly it or something in it.
type Secret struct {
	// Path starts with "~/" or "/", and each of its elements may be a pattern
	// of path.Match; or it is "**/NAME": NAME at any depth of every mount
	// except the workspace, presets' mounts and system directories.
	Path   string
	Reason string
}

// Protected is a file or folder that the host runs or obeys later. It is
// read-only wherever it exists under a writable mount, at every depth.
type Protected struct {
	// Path is relative; each element may be a pattern of path.Match. What it
	// says below ".git/" holds for every git directory: nested, bare, of
	// worktrees and of submodules.
	Path   string
	Reason string
}

// Hidden is a place to be shown empty: a file with the bytes in Empty, a folder
// without anything in it. Path is absolute; a link stands for what it leads to.
type Hidden struct {
	Path  string
	Empty []byte
	Why   string
}

// Request says what to plan. Zero sizes mean a quarter of the machine's memory
// and at least 1 GiB.
type Request struct {
	Home, Cwd string // absolute, as the user sees them
	User      string // login name; "" is "user"
	UID, GID  int    // UID 0 also masks system files that are not for everyone
	Hostname  string // "" is "bulkhead"

	Workspace Folder
	Mounts    []Folder
	Secrets   []Secret
	Protected []Protected
	// Installed are names of folders below which only git's entries are protected.
	Installed []string

	// OwnState names Bulkhead's own configuration and state: masked wherever
	// visible, and no mount can name it.
	OwnState []string
	// OwnFiles names files this session relies on (its policy file, the
	// binary): read-only wherever a writable mount shows them.
	OwnFiles []string

	// Permit, if not nil, has the last word on the workspace and each mount, by the
	// real path that was opened.
	Permit func(f Folder, real string, workspace bool) error

	// Hidden are files and folders of the workspace that the sandbox sees empty
	// and can't write.
	Hidden []Hidden

	// Root, if not nil, is shown as the root in place of the host's system
	// directories. No secrets are looked for in it.
	Root *Root

	// Layer is the folder with the layer of a staged workspace (vocabulary.Overlay).
	Layer string

	// Nameserver is the DNS server for resolv.conf; "" if there is none (relay
	// mode), and then names do not resolve inside.
	Nameserver string

	HomeSize, TmpSize int64
}

// Root is the root of a sandbox that does not see the host's system directories.
type Root struct {
	Folder      // Mode does not count: a root is never written to
	Image  bool // one of Bulkhead's own, unpacked: Path is real
	Size   int64
}

// Layout is what to mount, in order.
type Layout struct {
	Mounts []vocabulary.Mount
	// Dir is where commands start: the workspace's real path.
	Dir string
	// Home is where the private home stands: the value for HOME.
	Home string
	// Warnings are for the terminal: what works less well than one may expect.
	Warnings []string
	// Writable are the folders of the host that the sandbox may write to. What may
	// be written there is a matter of names too: Protected, and what exists at
	// the start is read-only besides, by mounts.
	Writable []Writable
	// Protected and Installed are the request's.
	Protected []Protected
	Installed []string
	// Fixed are files of git in them that change by the guard's rule only.
	Fixed []string

	judged []judged
}

// Writable is a writable folder by its path, the same inside as outside.
type Writable struct {
	Path      string
	Mode      vocabulary.MountMode
	Workspace bool
}

// judged is the identity of a source when it was judged.
type judged struct {
	target   string
	dev, ino uint64
}

func refuse(what string, rule vocabulary.Position, remedy string) error {
	return vocabulary.Exitf(vocabulary.ExitRefused, "%s\n  rule: %s\n  do:   %s", what, rule, remedy)
}

// show makes a path safe for a terminal.
func show(path string) string {
	for _, r := range path {
		if r < 0x20 || r == 0x7f || r == 0xfffd || (r >= 0x80 && r < 0xa0) || (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069) {
			return fmt.Sprintf("%q", path)
		}
	}
	return path
}

// Identity is what a mount's source was when it was judged.
type Identity struct {
	Path     string
	Dev, Ino uint64
}

// Judged lists them by target. Who mounts compares: another writer may have
// exchanged a folder since.
func (l *Layout) Judged() []Identity {
	out := make([]Identity, len(l.judged))
	for i, j := range l.judged {
		out[i] = Identity{j.target, j.dev, j.ino}
	}
	return out
}
