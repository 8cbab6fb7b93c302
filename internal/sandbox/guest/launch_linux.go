package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// failure says why a command could not be started.
type failure struct {
	notFound bool // exit 127, otherwise 126
	text     string
}

type launchOptions struct {
	session bool // a session of its own
	group   bool // a process group of its own
	traced  bool // stopped before its first instruction, traced by this thread
	numbers *Foreign
}

// numbered gives a child of the supervisor the user's numbers under a foreign
// kernel: 0 there, which all files of the user have, and in a user namespace in
// which nothing else has a number what it is outside.
func numbered(attr *syscall.SysProcAttr, f *Foreign) *syscall.SysProcAttr {
	if f == nil {
		return attr
	}
	attr.Credential = &syscall.Credential{Uid: uint32(f.UID), Gid: uint32(f.GID), NoSetGroups: true}
	if f.UID != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: f.UID, HostID: 0, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: f.GID, HostID: 0, Size: 1}}
	}
	return attr
}

// launch forks and executes a command, as execvp would inside. It does not use
// package os/exec, whose Wait can't live beside a supervisor that waits for
// every process.
func launch(s start, fds []uintptr, o launchOptions) (int, *failure) {
	dir := string(s.Dir)
	if st, err := os.Stat(dir); err != nil {
		return 0, &failure{text: "working directory: " + cause(err)}
	} else if !st.IsDir() {
		return 0, &failure{text: fmt.Sprintf("working directory %s: not a directory", dir)}
	}
	argv, env := stringsOf(s.Argv), stringsOf(s.Env)
	attr := &syscall.ProcAttr{Dir: dir, Env: env, Files: fds,
		Sys: numbered(&syscall.SysProcAttr{Setsid: o.session, Setpgid: o.group, Ptrace: o.traced}, o.numbers)}
	var denied *failure
	for _, path := range candidates(argv[0], dir, env) {
		st, err := os.Stat(path)
		if err == nil && st.IsDir() {
			err = syscall.EISDIR
		}
		if err == nil {
			var pid int
			if pid, err = syscall.ForkExec(path, argv, attr); err == nil {
				return pid, nil
			}
			if errors.Is(err, syscall.ENOEXEC) { // a script without #!, as every shell takes it
				if pid, err = syscall.ForkExec("/bin/sh", append([]string{"sh", path}, argv[1:]...), attr); err == nil {
					return pid, nil
				}
			}
			if errors.Is(err, syscall.ENOENT) {
				err = errors.New("its interpreter or loader is not there")
			}
		}
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENOTDIR) && denied == nil {
			denied = &failure{text: cause(err)}
		}
	}
	if denied != nil {
		return 0, denied
	}
	if strings.Contains(argv[0], "/") {
		return 0, &failure{notFound: true, text: "no such file inside the sandbox"}
	}
	return 0, &failure{notFound: true, text: "command not found on the sandbox's PATH"}
}

// candidates are the paths that name may mean.
func candidates(name, dir string, env []string) []string {
	absolute := func(p string) string {
		if filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(dir, p)
	}
	if strings.Contains(name, "/") {
		return []string{absolute(name)}
	}
	path := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	var all []string
	for _, d := range filepath.SplitList(path) {
		all = append(all, filepath.Join(absolute(d), name))
	}
	return all
}

// cause is an error without the name of the call that met it.
func cause(err error) string {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Path + ": " + pe.Err.Error()
	}
	return err.Error()
}

func stringsOf(bs [][]byte) []string {
	ss := make([]string, len(bs))
	for i, b := range bs {
		ss[i] = string(b)
	}
	return ss
}
