package process

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/warden"
	"github.com/bulkhead-dev/bulkhead/internal/switches"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// plan is a Spec turned into what the parts of a sandbox need.
type plan struct {
	args     []string // bwrap's options
	data     [][]byte // contents of the data files, in the order of their descriptors
	readOnly []string // for Landlock
	writable []string
	tmpfs    []string           // mount points that use memory
	filled   []string           // to be made read-only when all stands in them
	layers   []vocabulary.Mount // overlays, for the warden
}

// hiddenProc are files and folders of /proc that tell about the host or reach
// it. To an ordinary user most are closed anyway; root inside is root's number
// outside, so by their modes alone he could read or write them.
var hiddenProc = []string{"/proc/acpi", "/proc/asound", "/proc/driver", "/proc/fs", "/proc/iomem", "/proc/ioports", "/proc/kallsyms",
	"/proc/kcore", "/proc/key-users", "/proc/keys", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags",
	"/proc/latency_stats", "/proc/mtrr", "/proc/pagetypeinfo", "/proc/pressure", "/proc/sched_debug", "/proc/scsi", "/proc/slabinfo",
	"/proc/sysrq-trigger", "/proc/timer_list", "/proc/timer_stats", "/proc/vmallocinfo"}

// readOnlyProc stay readable. bwrap covers some of them by itself, but asks
// access(2) first, which answers wrongly for root and /proc/sys.
var readOnlyProc = []string{"/proc/sys", "/proc/irq", "/proc/bus"}

// supervisor is the command that bwrap runs. bwrap 0.8 can't set argv[0]: it
// is a link, whose name is what the child dispatch sees.
var supervisor = guest.Path + "-" + guest.Child

// arguments makes a plan. self is our binary on the host; tmpfsSize is for a
// Tmpfs without a size; stat looks at the host.
func arguments(spec sandbox.Spec, self string, tmpfsSize int64, stat func(string) (os.FileInfo, error)) (*plan, error) {
	hostname := spec.Hostname
	if hostname == "" {
		hostname = "sandbox"
	}
	p := &plan{args: []string{
		"--unshare-user", "--uid", strconv.Itoa(spec.UID), "--gid", strconv.Itoa(spec.GID),
		"--unshare-pid", "--as-pid-1", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup",
		"--die-with-parent", "--cap-drop", "ALL", "--clearenv", "--hostname", hostname,
		"--info-fd", strconv.Itoa(warden.InfoFD),
	}}
	if spec.Network != sandbox.NetTAP && !switches.Off("network") {
		p.add("--unshare-net")
	}
	if switches.Off("ipc") {
		p.args = slices.DeleteFunc(p.args, func(a string) bool { return a == "--unshare-ipc" })
	}
	root := len(spec.Mounts) > 0 && spec.Mounts[0].Target == "/"
	if !root {
		p.kernelFiles(tmpfsSize, stat)
	}
	for i, m := range spec.Mounts {
		if err := checkMount(m, i); err != nil {
			return nil, fmt.Errorf("mount %s (%s): %w", m.Target, m.Why, err)
		}
		if err := checkMountPoint(spec.Mounts[:i], m); err != nil {
			return nil, fmt.Errorf("mount %s (%s): %w", m.Target, m.Why, err)
		}
		p.mount(m, tmpfsSize)
		if root && i == 0 {
			p.kernelFiles(tmpfsSize, stat)
		}
	}
	if switches.Off("files") {
		p.add("--bind-try", "/home", "/home")
		p.writable = append(p.writable, "/home")
	}
	// A mount of its own, read-only: a folder in a writable /run could be moved
	// away, and pid 1 would start what took its place.
	for _, d := range p.filled {
		p.add("--remount-ro", d)
	}
	p.add("--perms", "0755", "--size", "4096", "--tmpfs", guest.Dir,
		"--ro-bind", self, guest.Path, "--symlink", path.Base(guest.Path), supervisor, "--remount-ro", guest.Dir)
	if !root {
		p.add("--remount-ro", "/")
	}
	p.add("--chdir", "/")
	return p, nil
}

func (p *plan) add(args ...string) { p.args = append(p.args, args...) }

// kernelFiles mounts /proc and /dev.
func (p *plan) kernelFiles(tmpfsSize int64, stat func(string) (os.FileInfo, error)) {
	p.add("--proc", "/proc")
	for _, f := range readOnlyProc {
		if _, err := stat(f); err == nil {
			p.add("--ro-bind", f, f)
		}
	}
	for _, f := range hiddenProc {
		if st, err := stat(f); err == nil {
			p.mask(f, st.IsDir(), 0)
		}
	}
	p.add("--dev", "/dev", "--perms", "1777", "--size", strconv.FormatInt(tmpfsSize, 10), "--tmpfs", "/dev/shm", "--remount-ro", "/dev")
	p.tmpfs = append(p.tmpfs, "/dev/shm")
}

// mask covers a path with something that can't be opened: an empty folder
// on a read-only mount, without permissions unless perm gives some, or a device
// on a nodev mount.
func (p *plan) mask(target string, dir bool, perm uint32) {
	if dir {
		p.add("--perms", fmt.Sprintf("%04o", perm), "--size", "4096", "--tmpfs", target, "--remount-ro", target)
	} else {
		p.add("--ro-bind", "/dev/null", target)
	}
}

func (p *plan) mount(m vocabulary.Mount, tmpfsSize int64) {
	// What is mounted covers what was there: Landlock must not still open it.
	if m.Kind != vocabulary.Symlink && m.Kind != vocabulary.File {
		covered := func(at string) bool { return below(at, m.Target) }
		p.readOnly = slices.DeleteFunc(p.readOnly, covered)
		p.writable = slices.DeleteFunc(p.writable, covered)
		p.tmpfs = slices.DeleteFunc(p.tmpfs, covered)
		p.filled = slices.DeleteFunc(p.filled, covered)
	}
	switch m.Kind {
	case vocabulary.BindRO:
		p.add("--ro-bind", m.Source, m.Target)
		p.readOnly = append(p.readOnly, m.Target)
	case vocabulary.BindRW:
		p.add("--bind", m.Source, m.Target)
		p.writable = append(p.writable, m.Target)
	case vocabulary.Overlay: // the warden has mounted it over its source
		p.add("--bind", m.Source, m.Target)
		p.writable = append(p.writable, m.Target)
		p.layers = append(p.layers, m)
	case vocabulary.Tmpfs:
		size, perm := m.Size, m.Perm
		if size == 0 {
			size = tmpfsSize
		}
		if perm == 0 {
			perm = 0o755
		}
		p.add("--perms", fmt.Sprintf("%04o", perm), "--size", strconv.FormatInt(size, 10), "--tmpfs", m.Target)
		p.writable = append(p.writable, m.Target)
		p.tmpfs = append(p.tmpfs, m.Target)
	case vocabulary.Dir:
		perm := m.Perm
		if perm == 0 {
			perm = 0o755
		}
		p.add("--perms", fmt.Sprintf("%04o", perm), "--size", strconv.Itoa(1<<20), "--tmpfs", m.Target)
		p.readOnly = append(p.readOnly, m.Target)
		p.filled = append(p.filled, m.Target)
	case vocabulary.Data:
		perm := m.Perm
		if perm == 0 {
			perm = 0o444
		}
		p.add("--perms", fmt.Sprintf("%04o", perm), "--ro-bind-data", strconv.Itoa(warden.DataFD+len(p.data)), m.Target)
		p.data = append(p.data, m.Data)
		p.readOnly = append(p.readOnly, m.Target)
	case vocabulary.File:
		perm := m.Perm
		if perm == 0 {
			perm = 0o600
		}
		p.add("--perms", fmt.Sprintf("%04o", perm), "--file", strconv.Itoa(warden.DataFD+len(p.data)), m.Target)
		p.data = append(p.data, m.Data)
	case vocabulary.Symlink:
		p.add("--symlink", m.Source, m.Target)
	case vocabulary.MaskFile, vocabulary.MaskDir:
		p.mask(m.Target, m.Kind == vocabulary.MaskDir, m.Perm)
	}
}

// below says whether p is dir or lies in it.
func below(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

func checkMount(m vocabulary.Mount, index int) error {
	if !clean(m.Target) {
		return fmt.Errorf("target is not an absolute, clean path")
	}
	if m.Kind > vocabulary.Dir || m.Kind == vocabulary.Root {
		return fmt.Errorf("unknown kind %d", m.Kind)
	}
	if m.Kind.ShowsHost() && !clean(m.Source) {
		return fmt.Errorf("source %q is not an absolute, clean path", m.Source)
	}
	if m.Kind == vocabulary.Overlay && (m.Source != m.Target || !clean(m.Layer)) {
		return fmt.Errorf("an overlay stands at its source, and has a layer")
	}
	if m.Kind == vocabulary.Symlink && (m.Source == "" || strings.Contains(m.Source, "\x00")) {
		return fmt.Errorf("link to %q", m.Source)
	}
	if m.Target == "/" && index != 0 {
		return fmt.Errorf("the root can only be mounted first")
	}
	if m.Size < 0 || m.Perm&^0o7777 != 0 {
		return fmt.Errorf("size %d, mode %o", m.Size, m.Perm)
	}
	for _, ours := range []string{"/proc", guest.Dir} {
		if m.Target != "/" && below(m.Target, ours) {
			return fmt.Errorf("%s is the sandbox's own", ours)
		}
	}
	if m.Target == "/dev" {
		return fmt.Errorf("/dev is the sandbox's own")
	}
	for _, ours := range []string{"/proc", "/dev", "/sys", "/run"} {
		// A writable host folder there would be a door to the kernel's files.
		if (m.Kind == vocabulary.BindRW || m.Kind == vocabulary.Overlay) && (m.Source == ours || ours != "/run" && below(m.Source, ours)) {
			return fmt.Errorf("%s of the host can't be mounted writable", m.Source)
		}
	}
	return nil
}

// checkMountPoint refuses a target inside a writable host folder that is not
// there already: bwrap would create it on the host, where it would stay. A link
// on the way would lead the mount elsewhere and leave the name uncovered.
func checkMountPoint(before []vocabulary.Mount, m vocabulary.Mount) error {
	if m.Kind == vocabulary.Symlink {
		return nil
	}
	for _, b := range slices.Backward(before) {
		if b.Kind == vocabulary.Symlink || !below(m.Target, b.Target) {
			continue
		}
		if m.Kind == vocabulary.File && (b.Kind != vocabulary.Tmpfs || m.Target == b.Target) {
			return fmt.Errorf("a private file there would be written to %s, which is not a tmpfs", b.Target)
		}
		if b.Kind != vocabulary.BindRW && b.Kind != vocabulary.Overlay || m.Target == b.Target {
			return nil
		}
		at := ""
		for part := range strings.SplitSeq(strings.TrimPrefix(strings.TrimPrefix(m.Target, b.Target), "/"), "/") {
			at = path.Join(at, part)
			st, err := lstatIn(b, at)
			if err != nil {
				return fmt.Errorf("it would have to be created on the host: %w", err)
			}
			if st.Mode()&os.ModeSymlink != 0 {
				return fmt.Errorf("%s is a symbolic link", at)
			}
		}
		return nil
	}
	if m.Kind == vocabulary.File {
		return fmt.Errorf("a private file there lies in no tmpfs")
	}
	return nil
}

// lstatIn looks at what a mount of the host shows. What was removed in a layer
// stands there as a device.
func lstatIn(m vocabulary.Mount, at string) (os.FileInfo, error) {
	if m.Kind == vocabulary.Overlay {
		st, err := os.Lstat(path.Join(m.Layer, "upper", at))
		if err == nil && st.Mode()&os.ModeDevice != 0 {
			err = os.ErrNotExist
		} else if os.IsNotExist(err) {
			st, err = os.Lstat(path.Join(m.Source, at))
		}
		return st, err
	}
	return os.Lstat(path.Join(m.Source, at))
}

func clean(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && !strings.Contains(p, "\x00")
}
