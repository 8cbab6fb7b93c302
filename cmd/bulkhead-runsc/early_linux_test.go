package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/hostmm"
)

// TestEarly: hostmm was not initialised, and knows what systrap asks it for.
func TestEarly(t *testing.T) {
	if hostmm.HaveProcessMemoryBarrier() {
		t.Error("gVisor registered for barriers that systrap has no use for")
	}
	can, _, errno := unix.RawSyscall(unix.SYS_MEMBARRIER, 0, 0, 0)
	if want := errno == 0 && can&1 != 0; hostmm.HaveGlobalMemoryBarrier() != want {
		t.Errorf("the host has membarrier(2): %v; programs inside: %v", want, !want)
	}
	dir := packageDir(t, "gvisor.dev/gvisor/pkg/sentry/platform/systrap")
	if text, err := os.ReadFile(filepath.Join(dir, "systrap.go")); err != nil || !strings.Contains(string(text), "platform.UseHostGlobalMemoryBarrier\n") {
		t.Errorf("systrap has another barrier than the one that early provides for (%v)", err)
	}
	initialisers := 0
	files, _ := filepath.Glob(filepath.Join(packageDir(t, "gvisor.dev/gvisor/pkg/sentry/hostmm"), "*.go"))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		initialisers += strings.Count(string(text), "func init()")
	}
	if initialisers != 1 {
		t.Errorf("hostmm has %d initialisers; early knows of one", initialisers)
	}
}
