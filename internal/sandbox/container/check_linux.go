package container

import (
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/instance"
)

// needed is how many tasks start with a container, on the host.
const needed = 60

// Check implements sandbox.Backend. It starts nothing: what only shows when
// runsc runs is said by Prepare.
func (b *Backend) Check(spec sandbox.Spec) error {
	if _, err := b.Runtime(); err != nil {
		return err
	}
	if err := instance.CheckNamespaces(); err != nil {
		return err
	}
	if err := instance.CheckRoom(needed); err != nil {
		return err
	}
	if err := instance.CheckAppArmor("user namespace"); err != nil {
		return err
	}
	// gVisor traces the processes inside, and the guard reads gVisor's calls. Both
	// are in a namespace that their own user has made: yama's 2 is no obstacle.
	if err := instance.CheckTracing(2); err != nil || spec.Network != sandbox.NetTAP {
		return err
	}
	return instance.CheckTUN()
}

// explain turns what the parts said into an error that names the remedy.
func explain(text string) error {
	return instance.Explain(text,
		instance.Remedy{Parts: []string{imageForeign}, Do: "copy that folder, so that all of it is yours, or use an image: bulkhead image pull"},
		instance.Remedy{Parts: []string{imageFailed}, Do: "an image is shown through the kernel's overlay filesystem: Linux 6.6 or newer, or root; load it: sudo modprobe overlay; the cache must be on a local filesystem"})
}
