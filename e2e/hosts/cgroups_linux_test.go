package hosts

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const cgroups = "/sys/fs/cgroup"

// unified makes what systemd makes of cgroup v2: root's shell and the ordinary
// user's login in scopes of their own, and a branch that is the user's.
func unified() (rootScope, login, delegated string, err error) {
	if err := unix.Mount("cgroup2", cgroups, "cgroup2", 0, "nsdelegate"); err != nil {
		return "", "", "", err
	}
	slice := func(dirs ...string) string {
		at := cgroups
		for _, d := range append([]string{""}, dirs...) {
			at += d
			err = errors.Join(err, os.MkdirAll(at, 0o755), os.WriteFile(at+"/cgroup.subtree_control", []byte("+memory +pids +cpu"), 0o644))
		}
		return at
	}
	leaf := func(dir string) string {
		err = errors.Join(err, os.Mkdir(dir, 0o755))
		return dir + "/cgroup.procs"
	}
	rootScope = leaf(slice("/user.slice", "/user-0.slice") + "/session-1.scope")
	login = leaf(slice("/user.slice", "/user-1000.slice") + "/session-2.scope")
	service := slice("/user.slice", "/user-1000.slice", "/user@1000.service", "/app.slice")
	delegated = leaf(service + "/run-1.scope")
	// As Delegate=yes does it.
	for _, dir := range []string{"/user@1000.service", "/user@1000.service/app.slice", "/user@1000.service/app.slice/run-1.scope"} {
		dir = cgroups + "/user.slice/user-1000.slice" + dir
		for _, f := range []string{"", "/cgroup.procs", "/cgroup.threads", "/cgroup.subtree_control"} {
			err = errors.Join(err, os.Chown(dir+f, ordinary, ordinary))
		}
	}
	return rootScope, login, delegated, err
}

// legacy mounts the hierarchies of cgroup v1 as systemd does; hybrid: with v2
// beside them, which has no controllers then.
func legacy(hybrid bool) (lacking []string, err error) {
	err = unix.Mount("tmpfs", cgroups, "tmpfs", 0, "mode=755")
	for dir, options := range map[string]string{"systemd": "none,name=systemd", "cpu,cpuacct": "cpu,cpuacct", "memory": "memory", "pids": "pids", "freezer": "freezer"} {
		err = errors.Join(err, os.Mkdir(cgroups+"/"+dir, 0o755))
		switch e := unix.Mount("cgroup", cgroups+"/"+dir, "cgroup", 0, options); {
		case errors.Is(e, unix.EINVAL):
			lacking = append(lacking, dir) // a kernel without this controller's first version
		case e != nil:
			err = errors.Join(err, fmt.Errorf("%s: %w", dir, e))
		}
	}
	err = errors.Join(err, os.Symlink("cpu,cpuacct", cgroups+"/cpu"))
	if hybrid {
		err = errors.Join(err, os.Mkdir(cgroups+"/unified", 0o755), unix.Mount("cgroup2", cgroups+"/unified", "cgroup2", 0, "nsdelegate"))
	}
	return lacking, err
}

// scopes makes a cgroup of one name in each mounted hierarchy of v1.
func scopes(name string) (files []string, err error) {
	entries, err := os.ReadDir(cgroups)
	for _, e := range entries {
		dir := cgroups + "/" + e.Name() + "/" + name
		if e.IsDir() {
			err = errors.Join(err, os.MkdirAll(dir, 0o755))
			files = append(files, dir+"/cgroup.procs")
		}
	}
	if len(files) == 0 {
		err = errors.Join(err, errors.New("no hierarchy"))
	}
	return files, err
}

func (r ran) says(parts ...string) error {
	for _, p := range parts {
		if !strings.Contains(r.stdout+r.stderr, p) {
			return fmt.Errorf("nothing says %q: %v", p, r)
		}
	}
	return nil
}
