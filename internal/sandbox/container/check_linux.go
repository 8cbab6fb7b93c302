package container

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/instance"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/warden"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const appArmorRestriction = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"

// Check implements sandbox.Backend. It starts nothing: what only shows when
// runsc runs is said by Prepare.
func (b *Backend) Check(spec sandbox.Spec) error {
	if _, err := b.Runtime(); err != nil {
		return err
	}
	if readSysctl("/proc/sys/user/max_user_namespaces") == "0" {
		return vocabulary.Exitf(vocabulary.ExitNoIsolation,
			"user namespaces are switched off on this host\nallow them: sudo sysctl -w user.max_user_namespaces=10000")
	}
	if os.Geteuid() != 0 {
		if readSysctl("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
			return vocabulary.Exitf(vocabulary.ExitNoIsolation,
				"user namespaces are switched off for ordinary users on this host\nallow them: sudo sysctl -w kernel.unprivileged_userns_clone=1")
		}
		if readSysctl(appArmorRestriction) == "1" && !confinedByAppArmor() {
			return vocabulary.Exitf(vocabulary.ExitNoIsolation, "AppArmor gives bulkhead no user namespace on this host (%s is 1)\n%s",
				appArmorRestriction, appArmorRemedy)
		}
	}
	// The guard's user has made gVisor's user namespace: 2 is no obstacle.
	if err := instance.CheckWrites(spec, 2); err != nil {
		return err
	}
	if spec.Network != sandbox.NetTAP {
		return nil
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		remedy := "load it: sudo modprobe tun"
		if errors.Is(err, os.ErrPermission) {
			remedy = "open it to users: sudo chmod 0666 /dev/net/tun (harmless: a TAP needs rights in a network namespace)"
		}
		return vocabulary.Exitf(vocabulary.ExitNoIsolation, "the sandbox's link can't be made: %w\n%s", err, remedy)
	}
	return f.Close()
}

const appArmorRemedy = "install bulkhead's AppArmor profile, or allow all programs: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"

// confinedByAppArmor says whether a profile, which may allow namespaces, is on
// this process.
func confinedByAppArmor() bool {
	profile := readSysctl("/proc/self/attr/apparmor/current")
	return profile != "" && profile != "unconfined"
}

func readSysctl(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// explain turns what the parts said into an error that names the remedy.
func explain(text string) error {
	text = strings.TrimSpace(text)
	if of, ok := warden.LayerFailed(text); ok {
		return instance.ExplainLayer(of)
	}
	if what, ok := guest.WasExchanged(text); ok {
		return instance.ExplainExchanged(what)
	}
	has := func(ss ...string) bool {
		for _, s := range ss {
			if strings.Contains(text, s) {
				return true
			}
		}
		return false
	}
	remedy := ""
	switch {
	case has(imageForeign):
		remedy = "copy that folder, so that all of it is yours, or use an image: bulkhead image pull"
	case has(imageFailed):
		remedy = "an image is shown through the kernel's overlay filesystem: Linux 6.6 or newer, or root; load it: sudo modprobe overlay; the cache must be on a local filesystem"
	case has("No space left on device", "no space left on device", "max_user_namespaces"):
		remedy = "the limit on user namespaces may be reached: sudo sysctl -w user.max_user_namespaces=100000"
	case has("starting the warden", "fork/exec", "a proc of its own", "separating mounts", "pivot_root"):
		remedy = "user namespaces do not work here; see: bulkhead doctor"
	default:
		return fmt.Errorf("the sandbox could not be set up: %s", text)
	}
	return vocabulary.Exitf(vocabulary.ExitNoIsolation, "the sandbox could not be set up: %s\n%s", text, remedy)
}
