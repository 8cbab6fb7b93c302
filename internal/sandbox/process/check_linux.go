package process

import (
	"os"
	"path/filepath"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/instance"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// needed is how many tasks start with a sandbox.
const needed = 24

// Check implements sandbox.Backend. It starts nothing: what only shows when
// bwrap runs is said by Prepare, in the same words.
func (b *Backend) Check(spec sandbox.Spec) error {
	if _, err := b.findBwrap(); err != nil {
		return err
	}
	if abi, err := llsys.LandlockGetABIVersion(); err != nil || abi < 1 {
		return vocabulary.Exitf(vocabulary.ExitNoIsolation,
			"this kernel has no Landlock, the second wall around files\n"+
				"use Linux 5.13 or newer and add landlock to the lsm= boot parameter (see /sys/kernel/security/lsm)")
	}
	if err := instance.CheckNamespaces(); err != nil {
		return err
	}
	if err := instance.CheckRoom(needed); err != nil {
		return err
	}
	if err := instance.CheckWrites(spec, 1); err != nil || spec.Network != sandbox.NetTAP {
		return err
	}
	if err := instance.CheckAppArmor("network namespace"); err != nil {
		return err
	}
	return instance.CheckTUN()
}

// findBwrap looks where distributions install it, then on PATH, and takes only
// a program that nobody but root could have put there: PATH may lead into a
// workspace.
func (b *Backend) findBwrap() (string, error) {
	if b.bwrap != "" {
		if _, err := os.Stat(b.bwrap); err != nil {
			return "", errNoBwrap
		}
		return b.bwrap, nil
	}
	dirs := append([]string{"/usr/bin", "/usr/local/bin", "/bin", "/run/current-system/sw/bin"}, filepath.SplitList(os.Getenv("PATH"))...)
	for _, d := range dirs {
		if !filepath.IsAbs(d) {
			continue
		}
		p, err := filepath.EvalSymlinks(filepath.Join(d, "bwrap"))
		if err == nil && instance.RootsOwn(p) {
			return p, nil
		}
	}
	return "", errNoBwrap
}

var errNoBwrap = vocabulary.Exitf(vocabulary.ExitNoIsolation,
	"bubblewrap (bwrap) is not installed; isolation process is made with it\n"+
		"install it: sudo apt-get install bubblewrap (Fedora: sudo dnf install bubblewrap, Arch: sudo pacman -S bubblewrap)")

// explain turns what the parts said into an error that names the remedy.
func explain(text string) error {
	return instance.Explain(text, instance.Remedy{Parts: []string{"Unknown option"}, Do: "this bubblewrap is too old: 0.8.0 or newer is needed"})
}
