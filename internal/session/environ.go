package session

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/switches"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// environment builds what the sandbox sees: nothing of the host's environment
// but the names that the policy passes. Later settings win: our own, passed
// names, the trust store's, presets and policy, placeholders, the relay's.
type environment struct{ vars []string }

func (e *environment) set(name, value string) { e.vars = setenv(e.vars, name, value) }

func (e *environment) add(vars []string) {
	for _, kv := range vars {
		if name, value, ok := strings.Cut(kv, "="); ok {
			e.set(name, value)
		}
	}
}

func setenv(env []string, name, value string) []string {
	for i, kv := range env {
		if strings.HasPrefix(kv, name+"=") {
			env[i] = name + "=" + value
			return env
		}
	}
	return append(env, name+"="+value)
}

// base is what every program expects to find.
func (e *environment) base(who person, id vocabulary.SessionID, path string, hostShells bool) {
	e.set("HOME", who.home)
	e.set("USER", who.name)
	e.set("LOGNAME", who.name)
	e.set("SHELL", "/bin/sh")
	if sh := os.Getenv("SHELL"); hostShells && (sh == "/bin/bash" || sh == "/usr/bin/bash" || sh == "/bin/zsh" || sh == "/usr/bin/zsh") {
		e.set("SHELL", sh)
	}
	e.set("PATH", path)
	e.set("TMPDIR", "/tmp")
	e.set("LANG", "C.UTF-8")
	// Tells an agent, and a person looking from inside, where they are.
	e.set("BULKHEAD_SESSION", string(id))
}

// foreign is for a kernel that numbers files itself: git then compares what it finds with
// its index by time and size. Otherwise the first git status inside, and the next one
// outside, would read every file again.
func (e *environment) foreign() {
	e.set("GIT_CONFIG_COUNT", "1")
	e.set("GIT_CONFIG_KEY_0", "core.checkStat")
	e.set("GIT_CONFIG_VALUE_0", "minimal")
}

func (e *environment) pass(names []policy.At[string]) {
	if switches.Off("environment") {
		e.add(os.Environ())
	}
	for _, n := range names {
		if v, ok := os.LookupEnv(n.Value); ok {
			e.set(n.Value, v)
		}
	}
}

// relay sets what programs without transparent capture listen to. Both
// spellings, because programs disagree; Node from 22.21 honours them when told.
func (e *environment) relay() {
	proxy := fmt.Sprintf("http://127.0.0.1:%d", sandbox.RelayPort)
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY"} {
		e.set(name, proxy)
		e.set(strings.ToLower(name), proxy)
	}
	socks := fmt.Sprintf("socks5h://127.0.0.1:%d", sandbox.RelayPort)
	e.set("ALL_PROXY", socks)
	e.set("all_proxy", socks)
	e.set("NO_PROXY", "localhost,127.0.0.1,::1")
	e.set("no_proxy", "localhost,127.0.0.1,::1")
	e.set("NODE_USE_ENV_PROXY", "1")
	e.set("JAVA_TOOL_OPTIONS", fmt.Sprintf("-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=%d -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=%d", sandbox.RelayPort, sandbox.RelayPort))
}

// searchPath keeps the entries of the host's PATH that the sandbox will see,
// so that a program found outside is the same program inside. Relative entries
// and those in a writable place are left out: what stands there is the agent's.
func searchPath(hostPath string, mounts []vocabulary.Mount) string {
	var dirs []string
	seen := map[string]bool{}
	keep := func(dir string) {
		if dir != "" && !seen[dir] {
			seen[dir] = true
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range filepath.SplitList(hostPath) {
		if filepath.IsAbs(dir) && visibleReadOnly(filepath.Clean(dir), mounts) {
			keep(filepath.Clean(dir))
		}
	}
	for _, dir := range []string{"/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"} {
		keep(dir)
	}
	return strings.Join(dirs, ":")
}

// visibleReadOnly reports whether the last mount that covers dir shows the
// host's folder read-only.
func visibleReadOnly(dir string, mounts []vocabulary.Mount) bool {
	for i := len(mounts) - 1; i >= 0; i-- {
		m := mounts[i]
		if dir == m.Target || strings.HasPrefix(dir, m.Target+"/") {
			return m.Kind == vocabulary.BindRO || m.Kind == vocabulary.Symlink
		}
	}
	return false
}
