//go:build linux

package process

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/instance"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/sandboxtest"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func TestRefusedMounts(t *testing.T) {
	host := t.TempDir()
	os.MkdirAll(host+"/real", 0o755)
	os.Symlink("real", host+"/link")
	work := vocabulary.Mount{Kind: vocabulary.BindRW, Source: host, Target: "/ws"}
	for name, m := range map[string]vocabulary.Mount{
		"relative target":      {Kind: vocabulary.BindRO, Source: "/usr", Target: "usr"},
		"unclean target":       {Kind: vocabulary.BindRO, Source: "/usr", Target: "/a/../usr"},
		"relative source":      {Kind: vocabulary.BindRO, Source: "usr", Target: "/usr"},
		"zero byte":            {Kind: vocabulary.BindRO, Source: "/usr", Target: "/u\x00--share-net"},
		"unknown kind":         {Kind: 99, Target: "/x"},
		"over /proc":           {Kind: vocabulary.BindRO, Source: "/usr", Target: "/proc"},
		"into /proc":           {Kind: vocabulary.Data, Target: "/proc/version"},
		"over /dev":            {Kind: vocabulary.Tmpfs, Target: "/dev"},
		"over our binary":      {Kind: vocabulary.Tmpfs, Target: "/run/bulkhead"},
		"root later":           {Kind: vocabulary.BindRO, Source: "/", Target: "/"},
		"host's proc rw":       {Kind: vocabulary.BindRW, Source: "/proc/sys", Target: "/x"},
		"negative size":        {Kind: vocabulary.Tmpfs, Target: "/x", Size: -1},
		"created on the host":  {Kind: vocabulary.MaskDir, Target: "/ws/missing"},
		"link on the way":      {Kind: vocabulary.MaskDir, Target: "/ws/link"},
		"link further up":      {Kind: vocabulary.MaskDir, Target: "/ws/link/x"},
		"link without a name":  {Kind: vocabulary.Symlink, Target: "/x"},
		"overlay elsewhere":    {Kind: vocabulary.Overlay, Source: "/srv", Target: "/x", Layer: "/layer"},
		"overlay, no layer":    {Kind: vocabulary.Overlay, Source: "/srv", Target: "/srv"},
		"overlay over proc":    {Kind: vocabulary.Overlay, Source: "/proc/sys", Target: "/proc/sys", Layer: "/layer"},
		"set-uid bits unknown": {Kind: vocabulary.Tmpfs, Target: "/x", Perm: 0o10000},
	} {
		spec := sandbox.Spec{Mounts: []vocabulary.Mount{work, m}}
		if _, err := arguments(spec, "/bin/true", 1<<20, os.Stat); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := os.Lstat(host + "/missing"); err == nil {
		t.Error("a refused mount left something on the host")
	}
}

// What a later mount covers, Landlock must not open by its old rule.
func TestCoveredRules(t *testing.T) {
	p, err := arguments(sandbox.Spec{Mounts: []vocabulary.Mount{
		{Kind: vocabulary.Tmpfs, Target: "/home", Size: 1},
		{Kind: vocabulary.BindRO, Source: "/usr", Target: "/home/u/ro"},
		{Kind: vocabulary.BindRO, Source: "/etc", Target: "/etc"},
		{Kind: vocabulary.Tmpfs, Target: "/x"},
		{Kind: vocabulary.BindRO, Source: "/usr", Target: "/x"},
		{Kind: vocabulary.Data, Target: "/etc/secret"},
		{Kind: vocabulary.MaskFile, Target: "/etc/secret"},
		{Kind: vocabulary.BindRO, Source: "/usr", Target: "/hidden/a"},
		{Kind: vocabulary.MaskDir, Target: "/hidden"},
	}}, "/bin/true", 1<<20, os.Stat)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/home/u/ro", "/etc", "/x"}; !slices.Equal(p.readOnly, want) {
		t.Errorf("read-only: %v, want %v", p.readOnly, want)
	}
	if want := []string{"/home"}; !slices.Equal(p.writable, want) {
		t.Errorf("writable: %v, want %v", p.writable, want)
	}
	for _, m := range []string{"--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup",
		"--die-with-parent", "--clearenv", "--as-pid-1"} {
		if !slices.Contains(p.args, m) {
			t.Errorf("%s is missing", m)
		}
	}
}

func TestMissingParts(t *testing.T) {
	code := func(err error) int {
		var ee *vocabulary.ExitError
		if errors.As(err, &ee) {
			return ee.Code
		}
		return 0
	}
	b := &Backend{bwrap: "/no/such/bwrap"}
	spec := sandboxtest.Spec(sandbox.NetNone)
	for _, err := range []error{b.Check(spec), func() error { _, err := b.Prepare(context.Background(), spec); return err }()} {
		if code(err) != vocabulary.ExitNoIsolation || !strings.Contains(err.Error(), "apt-get install bubblewrap") || strings.Count(err.Error(), "\n") > 2 {
			t.Errorf("without bwrap: %v", err)
		}
	}
	// A bwrap that fails, with the words of a real one.
	fake := filepath.Join(t.TempDir(), "bwrap")
	for words, remedy := range map[string]string{
		"bwrap: No permissions to create new namespace, likely because the kernel does not allow non-privileged user namespaces.": "bulkhead doctor",
		"bwrap: setting up uid map: Permission denied":                  "user namespaces",
		"bwrap: Creating new namespace failed: No space left on device": "max_user_namespaces",
		"bwrap: Unknown option --unshare-cgroup":                        "too old",
	} {
		os.WriteFile(fake, []byte("#!/bin/sh\necho '"+words+"' >&2\nexit 1\n"), 0o755)
		i, err := (&Backend{bwrap: fake}).Prepare(context.Background(), spec)
		if i != nil || code(err) != vocabulary.ExitNoIsolation || !strings.Contains(err.Error(), remedy) {
			t.Errorf("%s: %v", words, err)
		}
	}
	// One that pretends: it must not pass for a sandbox.
	os.WriteFile(fake, []byte("#!/bin/sh\nexec sleep 60\n"), 0o755)
	ctx, cancel := context.WithTimeout(context.Background(), 300*1e6)
	defer cancel()
	if i, err := (&Backend{bwrap: fake}).Prepare(ctx, spec); i != nil || err == nil {
		t.Errorf("a bwrap that does nothing: %v", err)
	}
	if os.Chmod(fake, 0o777); instance.RootsOwn(fake) {
		t.Error("a bwrap that anybody can write is taken for the system's")
	}
	// A mount that can't be made: nothing runs, and the reason is told.
	spec = sandboxtest.Spec(sandbox.NetNone, vocabulary.Mount{Kind: vocabulary.BindRO, Source: "/no/such/source", Target: "/x", Why: "test"})
	if i, err := (&Backend{}).Prepare(context.Background(), spec); i != nil || err == nil || !strings.Contains(err.Error(), "/no/such/source") {
		t.Errorf("missing source: %v", err)
	}
}
