// Package cgroup makes one cgroup for one sandbox, in whatever the host gives
// this user: a cgroup v2 folder that is his (root's, or delegated by systemd),
// or the cgroup v1 hierarchies, which are root's.
//
// The controller creates and removes; the warden starts the sandbox in it and
// removes it when the controller is gone. Nothing of the host's own tree is
// changed but for the folder made and removed. A controller that is not there
// is not an error here: Group says which limits it enforces, and the caller
// must not go on with less than asked.
package cgroup

import (
	"bytes"
	"os"
	"path"
	"strconv"
	"strings"
)

// Overhead is how many tasks of our own live beside a sandbox's: bwrap, the
// supervisor, who leads a terminal's session, and their threads.
const Overhead = 32

// Prefix starts the name of every folder we make; the controller's process id
// and the session follow, for people.
const Prefix = "bulkhead-"

// Limits to enforce; zero is none.
type Limits struct {
	Memory int64   // bytes, swap included
	PIDs   int     // tasks of the sandbox, without Overhead
	CPUs   float64 // processors' worth of time
}

// Group is a sandbox's cgroup. Its zero value enforces nothing.
type Group struct {
	Join    []string `json:"join,omitempty"`    // v1: files in which a thread writes 0 to go in
	Leave   []string `json:"leave,omitempty"`   // and to come back
	Unified string   `json:"unified,omitempty"` // v2: the folder to start the sandbox in
	Dirs    []string `json:"dirs,omitempty"`    // to remove at the end
	// The folders that enforce a limit; empty: it is not enforced.
	Memory string `json:"memory,omitempty"`
	PIDs   string `json:"pids,omitempty"`
	CPUs   string `json:"cpus,omitempty"`

	held []*os.File // Dirs, against a sweep
}

// Kind names the kind of cgroup that it is.
func (g *Group) Kind() string {
	switch {
	case g.Unified == "":
		return "cgroup v1"
	case len(g.Join) == 0:
		return "cgroup v2"
	}
	return "cgroup v1 and v2"
}

// hierarchy is one mounted cgroup tree and where this process is in it.
type hierarchy struct {
	v2          bool
	controllers []string // v1
	mount       string   // where it is mounted
	own         string   // the folder of this process, below mount
}

// hierarchies reads /proc/self/mountinfo and /proc/self/cgroup.
func hierarchies(mountinfo, cgroups []byte) []hierarchy {
	// "4:memory:/path" for v1, "0::/path" for v2.
	paths := map[string]string{}
	for line := range bytes.Lines(cgroups) {
		f := strings.SplitN(strings.TrimSpace(string(line)), ":", 3)
		if len(f) != 3 {
			continue
		}
		if f[0] == "0" && f[1] == "" {
			paths["v2"] = f[2]
			continue
		}
		for _, c := range strings.Split(f[1], ",") {
			paths[c] = f[2]
		}
	}
	var hs []hierarchy
	for line := range bytes.Lines(mountinfo) {
		f := strings.Fields(string(line))
		dash := -1
		for i, w := range f {
			if w == "-" {
				dash = i
				break
			}
		}
		if dash < 6 || len(f) < dash+4 {
			continue
		}
		root, mount := unescape(f[3]), unescape(f[4])
		h := hierarchy{mount: mount}
		own, ok := "", false
		switch f[dash+1] {
		case "cgroup2":
			h.v2 = true
			own, ok = paths["v2"]
		case "cgroup":
			for _, o := range strings.Split(f[dash+3], ",") {
				if p, known := paths[o]; known {
					h.controllers = append(h.controllers, o)
					own, ok = p, true
				}
			}
		}
		if !ok {
			continue
		}
		// A mount may show only a part of the tree, as in a container.
		rel, inside := strings.CutPrefix(own, strings.TrimSuffix(root, "/"))
		if !inside || strings.Contains(own, "/../") {
			continue
		}
		h.own = path.Join("/", rel)
		hs = append(hs, h)
	}
	return hs
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) string {
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

// counter finds "name value" in a file of such lines.
func counter(data []byte, name string) int64 {
	for line := range bytes.Lines(data) {
		f := strings.Fields(string(line))
		if len(f) == 2 && f[0] == name {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n
		}
	}
	return 0
}
