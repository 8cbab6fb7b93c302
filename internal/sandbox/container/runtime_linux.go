package container

import (
	"debug/buildinfo"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox/instance"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// The gVisor that both binaries are built with, as go.mod has it: one that is
// not the other's was not tried.
const (
	gvisor = "gvisor.dev/gvisor"
	pinned = "v0.0.0-20260224225140-573d5e7127a8"
)

// Runtime finds runsc: beside this binary, where it was built or installed
// together with it, then on PATH, where only a program that nobody but root
// could have put there is taken. It must have been built from the gVisor that
// this binary knows.
func (b *Backend) Runtime() (string, error) {
	p, err := b.find()
	if err != nil {
		return "", err
	}
	info, err := buildinfo.ReadFile(p)
	if err != nil {
		return "", vocabulary.Exitf(vocabulary.ExitNoIsolation, "%s is not a program of Bulkhead's: %v\n%s", p, err, remedy)
	}
	if !strings.HasSuffix(info.Path, "/cmd/"+Name) {
		return "", vocabulary.Exitf(vocabulary.ExitNoIsolation, "%s is another program (%s)\n%s", p, info.Path, remedy)
	}
	if is := gvisorIn(info.Deps); is != pinned {
		return "", vocabulary.Exitf(vocabulary.ExitNoIsolation, "%s has another gVisor than this bulkhead: %s, and %s is needed\n%s", p, is, pinned, remedy)
	}
	return p, nil
}

const remedy = "build both together: make build   (or CGO_ENABLED=0 go build ./cmd/...), and keep them in one folder"

var errNoRuntime = vocabulary.Exitf(vocabulary.ExitNoIsolation,
	Name+" is neither beside this bulkhead nor on PATH; isolation container is made with it\n"+remedy)

func (b *Backend) find() (string, error) {
	if b.Runsc != "" {
		if _, err := os.Stat(b.Runsc); err != nil {
			return "", errNoRuntime
		}
		return filepath.Abs(b.Runsc)
	}
	if self, err := os.Executable(); err == nil {
		if p, err := filepath.EvalSymlinks(filepath.Join(filepath.Dir(self), Name)); err == nil {
			return p, nil
		}
	}
	for _, d := range filepath.SplitList(os.Getenv("PATH")) {
		if !filepath.IsAbs(d) {
			continue
		}
		if p, err := filepath.EvalSymlinks(filepath.Join(d, Name)); err == nil && instance.RootsOwn(p) {
			return p, nil
		}
	}
	return "", errNoRuntime
}

func gvisorIn(deps []*debug.Module) string {
	for _, d := range deps {
		if d.Path == gvisor {
			return d.Version
		}
	}
	return ""
}
