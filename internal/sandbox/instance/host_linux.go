package instance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/warden"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"golang.org/x/sys/unix"
)

const appArmorRestriction = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"

const appArmorRemedy = "install bulkhead's AppArmor profile, or allow all programs: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"

// CheckNamespaces says whether this user may have user namespaces.
func CheckNamespaces() error {
	if sysctl("/proc/sys/user/max_user_namespaces") == "0" {
		return vocabulary.Exitf(vocabulary.ExitNoIsolation,
			"user namespaces are switched off on this host\nallow them: sudo sysctl -w user.max_user_namespaces=10000")
	}
	if os.Geteuid() != 0 && sysctl("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
		return vocabulary.Exitf(vocabulary.ExitNoIsolation,
			"user namespaces are switched off for ordinary users on this host\nallow them: sudo sysctl -w kernel.unprivileged_userns_clone=1")
	}
	return nil
}

// CheckAppArmor says whether AppArmor leaves this program the rights in a user
// namespace of its own, for what they are needed.
func CheckAppArmor(what string) error {
	if os.Geteuid() == 0 || !appArmorRestricts() {
		return nil
	}
	if profile := sysctl("/proc/self/attr/apparmor/current"); profile != "" && profile != "unconfined" {
		return nil // a profile, which may allow namespaces
	}
	return vocabulary.Exitf(vocabulary.ExitNoIsolation, "AppArmor gives bulkhead no %s on this host (%s is 1)\n%s", what, appArmorRestriction, appArmorRemedy)
}

// CheckTUN says whether this user can make a link.
func CheckTUN() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err == nil {
		return f.Close()
	}
	remedy := "load it: sudo modprobe tun"
	if errors.Is(err, os.ErrPermission) {
		remedy = "open it to users: sudo chmod 0666 /dev/net/tun (harmless: a TAP needs rights in a network namespace)"
	}
	return vocabulary.Exitf(vocabulary.ExitNoIsolation, "the sandbox's link can't be made: %w\n%s", err, remedy)
}

func appArmorRestricts() bool { return sysctl(appArmorRestriction) == "1" }

func sysctl(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// RootsOwn says whether a file is a program that only root can replace.
func RootsOwn(p string) bool {
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

// Remedy is what to do about a text that has one of the parts.
type Remedy struct {
	Parts []string
	Do    string
}

// Explain turns what the parts of a sandbox said into an error that names the
// remedy: first the backend's own, then those that all share.
func Explain(text string, own ...Remedy) error {
	text = words(text)
	if of, ok := warden.LayerFailed(text); ok {
		return ExplainLayer(of)
	}
	if what, ok := guest.WasExchanged(text); ok {
		return ExplainExchanged(what)
	}
	common := []Remedy{
		{[]string{noRoom, "Resource temporarily unavailable", "resource temporarily unavailable"}, tasksRemedy},
		{[]string{"No space left on device", "no space left on device", "max_user_namespaces"},
			"the limit on user namespaces may be reached: sudo sysctl -w user.max_user_namespaces=100000"},
		{[]string{"new namespace", "uid map", "gid map", "clone", "starting the warden", "fork/exec", "a proc of its own", "separating mounts", "pivot_root"},
			"user namespaces do not work here; see: bulkhead doctor"},
	}
	if appArmorRestricts() {
		common = append([]Remedy{{[]string{"ermission denied", "not permitted"}, "AppArmor restricts user namespaces here: " + appArmorRemedy}}, common...)
	}
	for _, r := range append(own, common...) {
		for _, part := range r.Parts {
			if strings.Contains(text, part) {
				return setUp(text, r.Do)
			}
		}
	}
	// A runtime that can't make a thread often dies without a word of that.
	if crowded(sysctl("/proc/loadavg"), sysctl("/proc/sys/kernel/pid_max")) {
		return setUp(text, tasksRemedy)
	}
	return fmt.Errorf("the sandbox could not be set up: %s", text)
}

func setUp(text, remedy string) error {
	return vocabulary.Exitf(vocabulary.ExitNoIsolation, "the sandbox could not be set up: %s\n%s", text, remedy)
}
