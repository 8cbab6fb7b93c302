package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The peers, pinned. Moving a pin is a change to be reviewed like any other.
const (
	srtPackage   = "@anthropic-ai/sandbox-runtime@0.0.83"
	fencePackage = "github.com/fencesandbox/fence/cmd/fence@v0.1.60"
)

// peerSettings grants both peers what the granted bulkhead session has: one
// name, and the workspace to write to. They share these key names.
const peerSettings = `{
  "network": {"allowedDomains": ["bench.example"], "deniedDomains": []},
  "filesystem": {"denyRead": [], "allowWrite": ["."], "denyWrite": []}
}
`

// srt is Anthropic's sandbox runtime, installed from npm into the cache.
func (b *bench) srt(dir string) *contender {
	c := &contender{name: "srt " + version(srtPackage), dir: dir}
	root := filepath.Join(b.cache, "srt-"+version(srtPackage))
	bin := filepath.Join(root, "node_modules", ".bin", "srt")
	if _, err := os.Stat(bin); err != nil {
		if err := os.MkdirAll(root, 0o755); err != nil {
			c.absent = err.Error()
			return c
		}
		if err := b.install(nil, "npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", root, srtPackage); err != nil {
			c.absent = err.Error()
			return c
		}
	}
	settings, err := b.settings("srt.json")
	if err != nil {
		c.absent = err.Error()
		return c
	}
	c.argv = []string{bin, "--settings", settings, "true"}
	return c
}

// fence is taken from PATH, or installed from its Go module into the cache.
func (b *bench) fence(dir string) *contender {
	c := &contender{name: "fence " + version(fencePackage), dir: dir}
	bin := filepath.Join(b.cache, "fence-"+version(fencePackage), "fence")
	if path, err := exec.LookPath("fence"); err == nil {
		bin, c.name = path, "fence (from PATH)"
	} else if _, err := os.Stat(bin); err != nil {
		env := []string{"GOBIN=" + filepath.Dir(bin), "CGO_ENABLED=0", "GOFLAGS="}
		if err := b.install(env, "go", "install", fencePackage); err != nil {
			c.absent = err.Error()
			return c
		}
	}
	settings, err := b.settings("fence.json")
	if err != nil {
		c.absent = err.Error()
		return c
	}
	c.argv = []string{bin, "--settings", settings, "true"}
	return c
}

func (b *bench) settings(name string) (string, error) {
	path := filepath.Join(b.dir, name)
	return path, os.WriteFile(path, []byte(peerSettings), 0o644)
}

func (b *bench) install(env []string, argv ...string) error {
	fmt.Fprintf(os.Stderr, "installing %s …\n", argv[len(argv)-1])
	ctx, cancel := context.WithTimeout(b.ctx, 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = b.dir // outside this module
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if errors.Is(err, exec.ErrNotFound) {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return fmt.Errorf("%s: %s", strings.Join(argv[:2], " "), strings.TrimSpace(lines[len(lines)-1]))
}

func version(pkg string) string { return pkg[strings.LastIndexByte(pkg, '@')+1:] }
