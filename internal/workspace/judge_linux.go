package workspace

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Places that belong to the system, with all that lies in them, and the
// folders in them where people do keep projects.
var (
	sealed    = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/boot", "/dev", "/proc", "/sys", "/nix", "/gnu", "/run", "/var/run"}
	openPlots = []string{"/usr/src", "/usr/local/src", "/run/media"}
	// shared are places of the system only themselves: what lies in them may be
	// a workspace.
	shared = []string{"/home", "/root", "/opt", "/srv", "/mnt", "/media", "/tmp", "/var", "/var/lib", "/var/tmp", "/var/cache", "/var/log", "/var/opt", "/var/spool", "/var/www"}
	// closed can't be mounted at all: the sandbox has its own, or they are full
	// of sockets.
	closed = []string{"/proc", "/sys", "/dev"}
)

// name expands and checks a path as it was written.
func (r *Request) name(what string, f Folder) (string, error) {
	p := f.Path
	bad := func(msg, remedy string) (string, error) {
		return "", refuse(what+" "+show(p)+" "+msg, f.Pos, remedy)
	}
	switch {
	case p == "":
		return bad("has no path", "name a folder")
	case strings.ContainsFunc(p, func(c rune) bool { return c < 0x20 || c == 0x7f }):
		return bad("has control characters in its name", "rename the folder")
	case slices.Contains(strings.Split(p, "/"), ".."):
		return bad("has .. in it, so it says less than it seems", "write the path it leads to: "+show(filepath.Join(r.Cwd, p)))
	case p == "~" || strings.HasPrefix(p, "~/"):
		return filepath.Join(r.Home, p[1:]), nil
	case strings.HasPrefix(p, "~"):
		return bad("names another user's home", "write the absolute path")
	case !strings.HasPrefix(p, "/"):
		return filepath.Join(r.Cwd, p), nil
	}
	return filepath.Clean(p), nil
}

func checkMode(what string, f Folder) error {
	switch f.Mode {
	case vocabulary.ReadOnly, vocabulary.ReadWrite, vocabulary.RWNoDelete:
		return nil
	case vocabulary.StagedWrites:
		if what == "workspace" {
			return nil
		}
		return refuse(what+" "+show(f.Path)+": mode staged is only for the workspace", f.Pos, "use rw or ro")
	}
	return refuse(what+" "+show(f.Path)+": unknown mode "+show(string(f.Mode)), f.Pos, "use rw or ro")
}

func (pl *planner) openFolder(what, name string, f Folder) (place, error) {
	p, err := open(name)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return p, refuse(what+" "+show(f.Path)+" does not exist", f.Pos, "create it, or name another")
	case errors.Is(err, unix.EACCES):
		return p, refuse(what+" "+show(f.Path)+" is not open to you", f.Pos, "name a folder that you may enter")
	case errors.Is(err, unix.ELOOP):
		return p, refuse(what+" "+show(f.Path)+" is a loop of links, or leads through /proc", f.Pos, "write the path it should lead to")
	case err != nil:
		return p, refuse(what+" "+show(f.Path)+": "+err.Error(), f.Pos, "name another folder")
	}
	for _, own := range pl.own {
		if within(p.path, own) {
			return p, refuse(what+" "+show(f.Path)+" is Bulkhead's own configuration or state", f.Pos, "name another folder: what confines the sandbox is never shown to it")
		}
	}
	return p, nil
}

func writable(what string, f Folder, p place) error {
	if f.Mode == vocabulary.ReadOnly {
		return nil
	}
	switch err := unix.Faccessat(unix.AT_FDCWD, p.path, unix.W_OK, unix.AT_EACCESS); {
	case err == unix.EROFS:
		return refuse(what+" "+show(f.Path)+" lies on a read-only filesystem", f.Pos, "use mode ro, or mount it writable")
	case err != nil:
		return refuse(what+" "+show(f.Path)+" is not writable for you", f.Pos, "use mode ro, or change the mode or owner of "+show(p.path))
	}
	return nil
}

func (pl *planner) judgeWorkspace(f Folder) (place, string, error) {
	if f.Mode == "" {
		f.Mode = vocabulary.ReadWrite
	}
	if err := checkMode("workspace", f); err != nil {
		return place{}, "", err
	}
	name, err := pl.name("workspace", f)
	if err != nil {
		return place{}, "", err
	}
	p, err := pl.openFolder("workspace", name, f)
	if err != nil {
		return p, "", err
	}
	no := func(msg string) (place, string, error) {
		where := show(f.Path)
		if p.path != name || f.Path == "." {
			where += " (" + show(p.path) + ")"
		}
		return p, "", refuse("workspace "+where+" "+msg, f.Pos, "start in a project folder, or name one: --workspace DIR")
	}
	switch {
	case !p.isDir():
		return no("is not a folder")
	case p.path == "/":
		return no("is the whole filesystem")
	case p.path == pl.home:
		return no("is your home: everything you own would be open to the command")
	case within(pl.home, p.path):
		return no("contains your home")
	case filepath.Dir(p.path) == "/home":
		return no("is a home directory")
	case inSystem(p.path):
		return no("is a system directory")
	}
	for _, s := range pl.fixedSecrets() {
		if within(p.path, s.path) {
			return no("is a place of secrets (" + s.reason + ")")
		}
	}
	if f.Mode == vocabulary.StagedWrites {
		if err := pl.stageable(f, p); err != nil {
			return p, "", err
		}
	}
	return p, name, writable("workspace", f, p)
}

func inSystem(p string) bool {
	if slices.Contains(shared, p) || slices.Contains(openPlots, p) {
		return true
	}
	for _, o := range openPlots {
		if within(p, o) {
			return false
		}
	}
	return slices.ContainsFunc(sealed, func(s string) bool { return within(p, s) })
}

func (pl *planner) judgeMount(f Folder) (p place, name string, ok bool, err error) {
	if err := checkMode("mount", f); err != nil {
		return p, "", false, err
	}
	if name, err = pl.name("mount", f); err != nil {
		return p, "", false, err
	}
	if f.Optional {
		if _, err := open(name); errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EACCES) {
			return p, "", false, nil
		}
	}
	// Judged before it is opened too: opening proc may say something else.
	for _, c := range closed {
		if within(name, c) {
			return p, "", false, refuse("mount "+show(f.Path)+" lies in "+c, f.Pos, "leave it out: the sandbox has its own "+c)
		}
	}
	if p, err = pl.openFolder("mount", name, f); err != nil {
		return p, "", false, err
	}
	no := func(msg, remedy string) (place, string, bool, error) {
		where := show(f.Path)
		if p.path != name {
			where += " (" + show(p.path) + ")"
		}
		return p, "", false, refuse("mount "+where+" "+msg, f.Pos, remedy)
	}
	rw := f.Mode != vocabulary.ReadOnly
	switch {
	case p.path == "/":
		return no("is the whole filesystem", "name the folders that are needed")
	case slices.ContainsFunc(closed, func(c string) bool { return within(p.path, c) }):
		return no("lies in "+closedOf(p.path), "leave it out: the sandbox has its own "+closedOf(p.path))
	case p.path == "/run" || p.path == "/run/user" || filepath.Dir(p.path) == "/run/user":
		return no("is full of sockets of the host", "name the folder in it that is needed")
	case p.mode&unix.S_IFMT == unix.S_IFSOCK:
		return no("is a socket: whoever reaches it acts as the host's service behind it", "leave it out; network services are reached by grants")
	case !p.isDir() && !p.isFile():
		return no("is neither a folder nor a file", "leave it out")
	case p.path != pl.home && within(pl.home, p.path):
		return no("contains the homes of all users", "name the folders that are needed")
	case p.path == pl.home && rw:
		return no("is your home: its startup files would be open to the command", "mount it ro, and name the folders that must be rw")
	case rw && inSystem(p.path):
		return no("is a system directory and can't be rw", "use mode ro")
	}
	return p, name, true, writable("mount", f, p)
}

func closedOf(p string) string {
	return closed[slices.IndexFunc(closed, func(c string) bool { return within(p, c) })]
}
