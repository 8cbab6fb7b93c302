package instance

import (
	"os"
	"strconv"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const ptraceScope = "/proc/sys/kernel/yama/ptrace_scope"

// CheckTracing refuses a host where nobody may trace a process. most is the strictest
// setting of yama with which this backend can.
func CheckTracing(most int) error {
	scope, remedy := yama(most)
	if remedy == "" {
		return nil
	}
	return vocabulary.Exitf(vocabulary.ExitNoIsolation, "this host lets nobody look into a process (%s is %s), and gVisor does so with those inside\n"+
		"nothing was started\n%s; or use --isolation process with --workspace .:ro or .:staged", ptraceScope, scope, remedy)
}

// CheckWrites refuses writable folders of the host where nobody can judge what is
// written: the guard reads the paths of calls in their caller's memory, which yama may
// forbid. most is the strictest setting with which this backend's guard can.
func CheckWrites(spec sandbox.Spec, most int) error {
	if spec.Writes == nil {
		return nil
	}
	scope, remedy := yama(most)
	if remedy == "" {
		return nil
	}
	return vocabulary.Exitf(vocabulary.ExitNoIsolation, "this host lets nobody look into a process (%s is %s), so writes into a folder can't be judged by their names\n"+
		"nothing was started\n%s; or use --workspace .:ro or .:staged", ptraceScope, scope, remedy)
}

// yama returns its setting, and a remedy if that is stricter than most.
func yama(most int) (scope, remedy string) {
	text, err := os.ReadFile(ptraceScope)
	if err != nil {
		return "", "" // a kernel without yama
	}
	return judgeScope(string(text), most)
}

func judgeScope(text string, most int) (scope, remedy string) {
	scope = strings.TrimSpace(text)
	n, err := strconv.Atoi(scope)
	switch {
	case err == nil && n <= most:
		return scope, ""
	case n == 3:
		return scope, "boot without kernel.yama.ptrace_scope=3, which can't be changed later"
	}
	return scope, "allow parents to look into their children: sudo sysctl -w kernel.yama.ptrace_scope=1"
}
