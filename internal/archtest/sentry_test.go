package archtest

import (
	"os/exec"
	"strings"
	"testing"
)

// TestNoSentryInBulkhead: gVisor's kernel is in a binary of its own. Its package
// initialisers cost time at every start of a process, and a controller that
// holds secrets has no use for it.
func TestNoSentryInBulkhead(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", module+"/cmd/bulkhead").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		if strings.HasPrefix(dep, "gvisor.dev/gvisor/pkg/sentry") || strings.HasPrefix(dep, "gvisor.dev/gvisor/runsc") {
			t.Errorf("bulkhead links %s: that is for bulkhead-runsc", dep)
		}
	}
}
