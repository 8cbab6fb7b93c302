package workspace

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// systemDirs are shown read-only if the host has them, links as links. Of
// /var only what package and certificate tools read; of /sys only what
// runtimes size themselves by; of Nix the store, not the daemon's socket.
var systemDirs = []string{
	"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr/local", "/opt", "/etc",
	"/nix/store", "/gnu/store", "/run/current-system",
	"/var/lib/dpkg", "/var/lib/alternatives", "/var/lib/ca-certificates",
	"/sys/devices/system/cpu", "/sys/devices/system/node",
}

const whySystem = "system directories"

// boundSystem returns the system directory that p lies in.
func boundSystem(p string) (string, bool) {
	for _, d := range systemDirs {
		if within(p, d) {
			return d, true
		}
	}
	return "", false
}

func (pl *planner) system() error {
	sys := func(m vocabulary.Mount) { m.Why = whySystem; pl.add(classSystem, m) }
	if pl.Root != nil {
		if err := pl.root(); err != nil {
			return err
		}
	} else if err := pl.hostSystem(sys); err != nil {
		return err
	}
	sys(vocabulary.Mount{Kind: vocabulary.Tmpfs, Target: "/tmp", Size: pl.TmpSize, Perm: 0o1777})
	sys(vocabulary.Mount{Kind: vocabulary.Tmpfs, Target: "/var/tmp", Size: pl.TmpSize, Perm: 0o1777})
	sys(vocabulary.Mount{Kind: vocabulary.Tmpfs, Target: "/run", Size: 64 << 20, Perm: 0o755})
	sys(vocabulary.Mount{Kind: vocabulary.Symlink, Source: "/run", Target: "/var/run"})
	pl.add(classSystem, vocabulary.Mount{Kind: vocabulary.Tmpfs, Target: pl.home, Size: pl.HomeSize, Perm: 0o700, Why: "private home"})
	pl.spelling(pl.Home, "private home")
	pl.identityFiles()
	return nil
}

// hostSystem shows the host's own system directories.
func (pl *planner) hostSystem(sys func(vocabulary.Mount)) error {
	var bound []string
	for _, d := range systemDirs {
		real, links, err := chase(d)
		if err != nil {
			continue
		}
		if p, err := openExact(real); err != nil || !p.isDir() || within(real, pl.home) {
			continue
		}
		for _, l := range links {
			// A link in a bound directory is there already.
			if !withinAny(l.at, bound) {
				sys(vocabulary.Mount{Kind: vocabulary.Symlink, Source: l.text, Target: l.at})
			}
		}
		if !withinAny(real, bound) {
			sys(vocabulary.Mount{Kind: vocabulary.BindRO, Source: real, Target: real})
			bound = append(bound, real)
		}
	}
	if !withinAny("/usr", bound) || !withinAny("/etc", bound) {
		return vocabulary.Exitf(vocabulary.ExitNoIsolation, "this host has no /usr or no /etc to show inside\n  do: run on an ordinary Linux installation")
	}
	return nil
}

func withinAny(p string, dirs []string) bool {
	for _, d := range dirs {
		if within(p, d) {
			return true
		}
	}
	return false
}

// identityFiles puts the sandbox's own answers in place of the host's files
// that say who is on this machine and how names resolve.
func (pl *planner) identityFiles() {
	clean := func(s string) string {
		return strings.Map(func(c rune) rune {
			if c == ':' || c < 0x20 || c == 0x7f {
				return '-'
			}
			return c
		}, s)
	}
	user, home := clean(pl.User), clean(pl.out.Home)
	shell := "/bin/sh"
	if _, err := os.Stat("/bin/bash"); err == nil && pl.Root == nil {
		shell = "/bin/bash"
	}
	passwd, group := "", ""
	if pl.UID != 0 {
		passwd = fmt.Sprintf("%s:x:%d:%d::%s:%s\n", user, pl.UID, pl.GID, home, shell)
		passwd += "root:x:0:0:root:/root:/usr/sbin/nologin\n"
	} else {
		passwd = fmt.Sprintf("root:x:0:%d:root:%s:%s\n", pl.GID, home, shell)
	}
	passwd += "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
	if pl.GID != 0 {
		group = fmt.Sprintf("%s:x:%d:\n", user, pl.GID)
	}
	group += "root:x:0:\nnogroup:x:65534:\n"
	resolv := "# names do not resolve in this sandbox: it has no TAP device, use the proxy variables\n"
	if pl.Nameserver != "" {
		resolv = "nameserver " + clean(pl.Nameserver) + "\noptions timeout:2 attempts:2\n"
	}
	host := clean(pl.Hostname)
	files := []struct{ name, data string }{
		{"/etc/passwd", passwd},
		{"/etc/group", group},
		{"/etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 " + host + "\n"},
		{"/etc/resolv.conf", resolv},
		{"/etc/hostname", host + "\n"},
		{"/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n"},
	}
	composed := false
	for i, f := range files {
		if pl.Root != nil { // whatever the image has there makes way
			pl.add(classPin, vocabulary.Mount{Kind: vocabulary.Data, Target: f.name, Data: []byte(f.data), Perm: 0o444, Why: "the sandbox's own " + f.name})
			continue
		}
		real, _, err := chase(f.name)
		if err != nil {
			real = f.name
		}
		if _, err := openExact(real); err != nil && pl.visible(filepath.Dir(real)) {
			// No mount point, and none can be made in a read-only directory. The
			// last two have sound defaults in every libc.
			if i >= 4 {
				continue
			}
			if real = f.name; !composed {
				pl.composeEtc()
				composed = true
			}
		}
		pl.add(classPin, vocabulary.Mount{Kind: vocabulary.Data, Target: real, Data: []byte(f.data), Perm: 0o444, Why: "the sandbox's own " + f.name})
	}
}

// composeEtc shows /etc entry by entry in a private directory, for hosts whose
// /etc lacks a file that the sandbox must have. Slower, hence not the rule.
func (pl *planner) composeEtc() {
	etc, _, err := chase("/etc")
	if err != nil {
		return
	}
	for i := range pl.entries {
		if e := &pl.entries[i]; e.Target == etc && e.Kind == vocabulary.BindRO {
			e.Mount = vocabulary.Mount{Kind: vocabulary.Dir, Target: etc, Why: whySystem}
		}
	}
	list, _ := os.ReadDir(etc)
	for _, d := range list {
		at := filepath.Join(etc, d.Name())
		switch d.Type() {
		case os.ModeSymlink:
			if text, err := os.Readlink(at); err == nil {
				pl.add(classSystem, vocabulary.Mount{Kind: vocabulary.Symlink, Source: text, Target: at, Why: whySystem})
			}
		case 0, os.ModeDir:
			if unix.Access(at, unix.R_OK) == nil {
				pl.add(classSystem, vocabulary.Mount{Kind: vocabulary.BindRO, Source: at, Target: at, Why: whySystem})
			}
		}
	}
}

// privateRoots are where system software keeps keys and passwords, with the
// depth searched. /opt holds whole products, whose own secrets lie near the
// top.
var privateRoots = []struct {
	path  string
	depth int
}{{"/etc", 16}, {"/usr/local/etc", 16}, {"/opt", 2}}

// privateSystemFiles finds what a root session must not see although uid 0
// inside owns it without any capability: what other users can't read. It runs
// beside the rest of the planning, being the longest part of it.
func privateSystemFiles() ([]vocabulary.Mount, error) {
	const why = "not readable for everyone on the host"
	budget := 50_000
	var out []vocabulary.Mount
	for _, root := range privateRoots {
		real, _, err := chase(root.path)
		if err != nil {
			continue
		}
		if p, err := openExact(real); err != nil || !p.isDir() {
			continue
		}
		err = eachBelow(real, root.depth, &budget, func(path string, st *unix.Stat_t) bool {
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				if st.Mode&0o005 != 0o005 {
					out = append(out, vocabulary.Mount{Kind: vocabulary.MaskDir, Target: path, Why: why})
					return false
				}
			case unix.S_IFREG:
				if st.Mode&0o004 == 0 {
					out = append(out, vocabulary.Mount{Kind: vocabulary.MaskFile, Target: path, Why: why})
				}
			default:
				out = append(out, vocabulary.Mount{Kind: vocabulary.MaskFile, Target: path, Why: "socket or device of the host"})
			}
			return true
		})
		if err != nil {
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "%s could not be searched for files that are not for everyone: %v\n  do: run as an ordinary user", root.path, err)
		}
	}
	return out, nil
}
