package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/instance"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/warden"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

const appArmorRestriction = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"

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
	if n := readSysctl("/proc/sys/user/max_user_namespaces"); n == "0" {
		return vocabulary.Exitf(vocabulary.ExitNoIsolation,
			"user namespaces are switched off on this host\nallow them: sudo sysctl -w user.max_user_namespaces=10000")
	}
	root := os.Geteuid() == 0
	if !root && readSysctl("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
		return vocabulary.Exitf(vocabulary.ExitNoIsolation,
			"user namespaces are switched off for ordinary users on this host\nallow them: sudo sysctl -w kernel.unprivileged_userns_clone=1")
	}
	if err := instance.CheckWrites(spec, 1); err != nil {
		return err
	}
	if spec.Network != sandbox.NetTAP {
		return nil
	}
	if !root && readSysctl(appArmorRestriction) == "1" && !confinedByAppArmor() {
		return vocabulary.Exitf(vocabulary.ExitNoIsolation, "AppArmor gives bulkhead no network namespace on this host (%s is 1)\n%s",
			appArmorRestriction, appArmorRemedy)
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		return tunError(err)
	}
	return f.Close()
}

const appArmorRemedy = "install bulkhead's AppArmor profile, or allow all programs: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"

func tunError(err error) error {
	remedy := "load it: sudo modprobe tun"
	if errors.Is(err, os.ErrPermission) {
		remedy = "open it to users: sudo chmod 0666 /dev/net/tun (harmless: a TAP needs rights in a network namespace)"
	}
	return vocabulary.Exitf(vocabulary.ExitNoIsolation, "the sandbox's link can't be made: %w\n%s", err, remedy)
}

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
		if err == nil && rootsOwn(p) {
			return p, nil
		}
	}
	return "", errNoBwrap
}

var errNoBwrap = vocabulary.Exitf(vocabulary.ExitNoIsolation,
	"bubblewrap (bwrap) is not installed; isolation process is made with it\n"+
		"install it: sudo apt-get install bubblewrap (Fedora: sudo dnf install bubblewrap, Arch: sudo pacman -S bubblewrap)")

// rootsOwn says whether only root can replace the program.
func rootsOwn(p string) bool {
	for at := p; ; at = filepath.Dir(at) {
		var st unix.Stat_t
		if unix.Lstat(at, &st) != nil || st.Uid != 0 || st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0 {
			return false
		}
		if at == p && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0) {
			return false
		}
		if at == "/" {
			return true
		}
	}
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
	case readSysctl(appArmorRestriction) == "1" && has("ermission denied", "not permitted"):
		remedy = "AppArmor restricts user namespaces here: " + appArmorRemedy
	case has("No space left on device", "max_user_namespaces"):
		remedy = "the limit on user namespaces is reached: sudo sysctl -w user.max_user_namespaces=100000"
	case has("new namespace", "uid map", "gid map", "clone"):
		remedy = "user namespaces do not work here; see: bulkhead doctor"
	case has("Unknown option"):
		remedy = "this bubblewrap is too old: 0.8.0 or newer is needed"
	default:
		return fmt.Errorf("the sandbox could not be set up: %s", text)
	}
	return vocabulary.Exitf(vocabulary.ExitNoIsolation, "the sandbox could not be set up: %s\n%s", text, remedy)
}
