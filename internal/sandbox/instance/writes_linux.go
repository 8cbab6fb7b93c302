package instance

import (
	"os"
	"strconv"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const ptraceScope = "/proc/sys/kernel/yama/ptrace_scope"

// CheckWrites refuses writable folders of the host where nobody can judge what is
// written: the guard reads the paths of calls in their caller's memory, which yama may
// forbid. most is the strictest setting with which this backend's guard can.
func CheckWrites(spec sandbox.Spec, most int) error {
	if spec.Writes == nil {
		return nil
	}
	text, err := os.ReadFile(ptraceScope)
	if err != nil {
		return nil // a kernel without yama
	}
	return judgeScope(string(text), most)
}

func judgeScope(text string, most int) error {
	scope, err := strconv.Atoi(strings.TrimSpace(text))
	if err == nil && scope <= most {
		return nil
	}
	remedy := "allow parents to look into their children: sudo sysctl -w kernel.yama.ptrace_scope=1"
	if scope == 3 {
		remedy = "boot without kernel.yama.ptrace_scope=3, which can't be changed later"
	}
	return vocabulary.Exitf(vocabulary.ExitNoIsolation, "this host lets nobody look into a process (%s is %s), so writes into a folder can't be judged by their names\n"+
		"nothing was started\n%s; or use --workspace .:ro or .:staged", ptraceScope, strings.TrimSpace(text), remedy)
}
