// Package hosts runs Bulkhead on hosts that this machine is not: Debian's own
// kernels in QEMU without hardware virtualisation, each with a layout of
// cgroups, security modules, sysctls and file systems of its own. `make
// e2e-hosts` runs it. It needs the packages of `scripts/install-deps hosts`,
// and Debian's archive once; afterwards .cache/hosts serves.
//
// A guest has the machine's /usr and the stories of e2e/process with their
// binaries, both read-only, a folder to write its results to, and no network. Its
// first process is this very test binary. Where a host has what a story takes for
// granted the story itself runs there, as root or as the ordinary user, in the tier
// and on the file system that the host is about.
//
// BULKHEAD_E2E_HOST, a regular expression, chooses among the hosts.
package hosts

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// bootTime bounds one guest, checks included.
const bootTime = 30 * time.Minute

// host is one arrangement of a kernel and of what belongs to it.
type host struct {
	name   string
	kernel string // Debian's meta-package
	boot   string // kernel parameters
	checks func(*guest)
}

const (
	linux61  = "linux-image-amd64"
	linux612 = "linux-image-6.12-amd64"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getpid() == 1:
		runGuest()
	case os.Getenv("BULKHEAD_E2E_HOSTS") != "1":
		fmt.Println("no other hosts were booted: that is what make e2e-hosts does")
	default:
		os.Exit(m.Run())
	}
}

func TestHosts(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(root, ".cache", "hosts")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	chosen, err := regexp.Compile(os.Getenv("BULKHEAD_E2E_HOST"))
	if err != nil {
		t.Fatal(err)
	}
	stories := filepath.Join(t.TempDir(), "stories")
	if err := prepare(t.Context(), root, stories); err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		if !chosen.MatchString(h.name) {
			continue
		}
		t.Run(h.name, func(t *testing.T) {
			kernel, err := kernelDir(cache, h.kernel)
			if err != nil {
				t.Fatal(err)
			}
			work := t.TempDir()
			ctx, cancel := context.WithTimeout(t.Context(), bootTime)
			defer cancel()
			console := filepath.Join(cache, h.name+".console")
			results, err := boot(ctx, h, kernel, stories, work, console)
			for _, r := range results {
				if r.Done {
					break
				}
				t.Run(r.Name, func(t *testing.T) {
					t.Logf("%.1f s in the guest", r.Seconds)
					if r.Failure != "" {
						t.Error(r.Failure)
					}
				})
			}
			if err != nil {
				t.Errorf("%v\nthe console's end (%s):\n%s", err, console, tail(console))
			}
		})
	}
}
