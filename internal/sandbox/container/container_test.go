//go:build linux

package container

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/sandboxtest"
)

const runscEnv = "BULKHEAD_TEST_RUNSC"

// TestMain builds runsc once, for every user that the tests run as.
func TestMain(m *testing.M) {
	childproc.Dispatch()
	code := m.Run()
	if built != "" {
		os.RemoveAll(filepath.Dir(built))
	}
	os.Exit(code)
}

var built string

var build = sync.OnceValues(func() (string, error) {
	if p := os.Getenv(runscEnv); p != "" {
		return p, nil
	}
	dir, err := os.MkdirTemp("", "bulkhead-runsc-")
	if err != nil {
		return "", err
	}
	built = filepath.Join(dir, Name)
	os.Chmod(dir, 0o755)
	cmd := exec.Command("go", "build", "-o", built, "github.com/bulkhead-dev/bulkhead/cmd/"+Name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	os.Setenv(runscEnv, built)
	return built, cmd.Run()
})

func backend(t testing.TB) *Backend {
	t.Helper()
	p, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return &Backend{Runsc: p}
}

func TestConformance(t *testing.T) {
	sandboxtest.EachUser(t, func(t *testing.T) {
		var b sandbox.Backend = backend(t)
		if os.Getenv(imageEnv) != "" {
			root, _ := hostileRoot(t)
			b = onImage{backend(t), root}
		}
		sandboxtest.Run(t, b, sandboxtest.Traits{ForeignKernel: true, OwnRoot: os.Getenv(imageEnv) != ""})
	})
}

// TestPinned: what the binary is compared with is what it is built from.
func TestPinned(t *testing.T) {
	mod, err := os.ReadFile("../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(mod), "\t"+gvisor+" "+pinned+"\n") {
		t.Errorf("go.mod has another %s than %s: change both", gvisor, pinned)
	}
}
