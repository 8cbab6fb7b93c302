package session

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/image"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace"
)

func cacheDir() (string, error) {
	dir := os.Getenv("XDG_CACHE_HOME")
	if filepath.IsAbs(dir) {
		return dir, nil
	}
	who, err := whoami()
	return filepath.Join(who.home, ".cache"), err
}

// ImageDir is where unpacked images are: below the XDG cache directory.
func ImageDir() (string, error) {
	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	// Where it really is: no link is followed when a container is made.
	if err := os.MkdirAll(filepath.Join(dir, "bulkhead"), 0o700); err != nil {
		return "", vocabulary.Exitf(vocabulary.ExitRefused, "no cache for images can be made: %w\nname a folder of your own for caches: XDG_CACHE_HOME", err)
	}
	real, err := filepath.EvalSymlinks(filepath.Join(dir, "bulkhead"))
	return filepath.Join(real, "images"), err
}

// ImageReference is a policy's image as package image wants it.
func ImageReference(i policy.Image, home, cwd string) image.Reference {
	ref := image.Reference{Kind: image.Registry, Where: i.Where}
	switch i.Form {
	case policy.ImageLayout:
		ref.Kind = image.Layout
	case policy.ImageArchive:
		ref.Kind = image.Archive
	default:
		return ref
	}
	ref.Where = policy.ResolvePath(i.Where, home, cwd)
	return ref
}

// openImage gets the image that the policy names, if it names one. One of a
// registry that was pulled before is taken as it is.
func (v *view) openImage(ctx context.Context) error {
	i := v.opts.Policy.Image
	if i.Where == "" {
		return nil
	}
	if is := v.backend.Isolation(); is != vocabulary.Container {
		return vocabulary.Exitf(vocabulary.ExitRefused, "image %s (%s) is for isolation container, and this session has %s (%s); nothing was started\nadd --isolation container, or leave the image out",
			i, i.Pos, is, v.opts.Policy.IsolationPos)
	}
	v.root = &workspace.Root{Folder: workspace.Folder{Path: i.Where, Mode: vocabulary.ReadOnly, Pos: i.Pos}}
	if i.Form == policy.ImageRootFS {
		return nil
	}
	dir, err := ImageDir()
	if err != nil {
		return err
	}
	store, err := image.Open(dir)
	if err != nil {
		return err
	}
	ref := ImageReference(i, v.who.home, v.cwd)
	if v.image, err = store.Find(ref); err != nil {
		return vocabulary.Exitf(vocabulary.ExitRefused, "%v (%s)\nnothing was started", err, i.Pos)
	}
	if v.image == nil {
		begun, told := time.Now(), time.Time{}
		v.image, err = store.Pull(ctx, ref, func(have, all int64) {
			if now := time.Now(); now.Sub(begun) > time.Second && now.Sub(told) > 2*time.Second {
				told = now
				v.opts.Notice("image %s: %s of %s", ref, mebibytes(have), mebibytes(all))
			}
		})
		if err != nil {
			return asExit(vocabulary.ExitRefused, fmt.Errorf("%w\nnothing was started", err))
		}
	}
	v.root.Path, v.root.Image = v.image.Root, true
	return nil
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// imageEnv is the image's own environment: below everything that Bulkhead, the
// policy and its presets say, but above the usual PATH.
func (v *view) imageEnv() (env []string, path string) {
	if v.image == nil {
		return nil, ""
	}
	for _, kv := range v.image.Config.Env {
		name, value, _ := strings.Cut(kv, "=")
		switch {
		case name == "PATH":
			path = value
		case strings.HasPrefix(name, "BULKHEAD_"):
		default:
			env = append(env, kv)
		}
	}
	return env, path
}
