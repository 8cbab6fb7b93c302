package kernel

import (
	"path/filepath"
	"strings"
)

// Cgroups says where this process may make a cgroup that limits.
type Cgroups struct {
	// Version is 2 or 1, and 0 when none is usable.
	Version int
	// Dirs maps a controller ("memory", "pids", "cpu") to the existing directory
	// below which this process may create a cgroup and move children into it.
	// Version 2 has the same directory for all.
	Dirs map[string]string
	// Why says what stands in the way when Version is 0.
	Why string
}

// cgroupMount is one mounted hierarchy.
type cgroupMount struct {
	version int
	root    string // what of the hierarchy is mounted
	point   string // where
	options []string
}

// parseCgroupMounts reads /proc/self/mountinfo (proc_pid_mountinfo(5)).
func parseCgroupMounts(mountinfo string) []cgroupMount {
	var mounts []cgroupMount
	for line := range strings.Lines(mountinfo) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 {
			continue
		}
		m := cgroupMount{root: unescapeMount(l[3]), point: unescapeMount(l[4])}
		switch r[0] {
		case "cgroup2":
			m.version = 2
		case "cgroup":
			m.version, m.options = 1, strings.Split(r[2], ",")
		default:
			continue
		}
		mounts = append(mounts, m)
	}
	return mounts
}

func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// dir translates a path of the hierarchy to one below the mount point.
func (m cgroupMount) dir(path string) (string, bool) {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(m.root, "/"))
	if !ok || strings.HasPrefix(path, "/..") || rest != "" && !strings.HasPrefix(rest, "/") {
		return "", false
	}
	return filepath.Join(m.point, rest), true
}

// parseOwnCgroups reads /proc/self/cgroup into controller → path; version 2
// has the key "".
func parseOwnCgroups(s string) map[string]string {
	own := map[string]string{}
	for line := range strings.Lines(s) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, c := range strings.Split(f[1], ",") {
			own[c] = f[2]
		}
	}
	return own
}
