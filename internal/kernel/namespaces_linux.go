package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
)

func init() {
	childproc.Register("probe-userns", usernsChild)
}

const tunPath = "/dev/net/tun"

// TUNUsable says whether a TAP device can be expected to work: nil, or why
// not. It opens the device and reads one sysctl, which takes microseconds; the
// proof is TUNSETIFF in the new namespaces, which Examine makes as a probe and
// a backend makes for real.
func TUNUsable() error {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", tunPath, err)
	}
	unix.Close(fd)
	if appArmorRestricts() {
		return errors.New("AppArmor gives this program user namespaces without capabilities (kernel.apparmor_restrict_unprivileged_userns=1)")
	}
	return nil
}

// appArmorRestricts is true where Ubuntu's restriction applies to this very
// process: the sysctl is on, it is not root, and no profile covers it.
func appArmorRestricts() bool {
	if os.Geteuid() == 0 || sysctl("kernel/apparmor_restrict_unprivileged_userns") != "1" {
		return false
	}
	label, err := os.ReadFile("/proc/self/attr/current")
	return err == nil && strings.HasPrefix(string(label), "unconfined")
}

// sysctl returns a value of /proc/sys, "" if this kernel has no such key.
func sysctl(key string) string {
	b, err := os.ReadFile("/proc/sys/" + key)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// namespaceFacts is what the child in a new user namespace could do. An empty
// string is success.
type namespaceFacts struct {
	Create  string // clone(CLONE_NEWUSER)
	Caps    string // unshare the network and host name, and set the name
	OpenTUN string
	SetIff  string // TUNSETIFF for a TAP in the new network namespace

	AppArmor, UnprivilegedClone, MaxNamespaces string // the sysctls
}

var usernsOnce struct {
	sync.Mutex
	facts *namespaceFacts
}

// usernsFacts asks the child once for both probes that need it.
func usernsFacts(ctx context.Context) namespaceFacts {
	usernsOnce.Lock()
	defer usernsOnce.Unlock()
	if usernsOnce.facts != nil {
		return *usernsOnce.facts
	}
	var f namespaceFacts
	if err := child(ctx, "probe-userns", unix.CLONE_NEWUSER, &f); err != nil {
		f.Create = err.Error()
	}
	f.AppArmor = sysctl("kernel/apparmor_restrict_unprivileged_userns")
	f.UnprivilegedClone = sysctl("kernel/unprivileged_userns_clone")
	f.MaxNamespaces = sysctl("user/max_user_namespaces")
	if ctx.Err() == nil {
		usernsOnce.facts = &f
	}
	return f
}

// usernsChild runs as root of a fresh user namespace.
func usernsChild() int {
	runtime.LockOSThread() // unshare is per thread
	var f namespaceFacts
	say := func(err error) string {
		if err != nil {
			return err.Error()
		}
		return ""
	}
	// Holding capability bits proves nothing under AppArmor, using them does.
	err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWUTS)
	if err == nil {
		err = unix.Sethostname([]byte("probe"))
	}
	f.Caps = say(err)
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	f.OpenTUN = say(err)
	if err == nil && f.Caps == "" {
		var ifr [40]byte // struct ifreq: the kernel chooses the name
		*(*uint16)(unsafe.Pointer(&ifr[16])) = unix.IFF_TAP | unix.IFF_NO_PI
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&ifr)))
		if errno != 0 {
			f.SetIff = errno.Error()
		}
	}
	return answer(f)
}

const inContainerRemedy = "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined --device /dev/net/tun …   # weakens the outer container"

const appArmorRemedy = `printf 'abi <abi/4.0>,\ninclude <tunables/global>\nprofile bulkhead %s flags=(unconfined) {\n  userns,\n}\n' "$(command -v bulkhead)" | sudo tee /etc/apparmor.d/bulkhead && sudo apparmor_parser -r /etc/apparmor.d/bulkhead`

func judgeUserns(f namespaceFacts) Probe {
	switch {
	case f.Create == "" && f.Caps == "":
		return Probe{Status: OK, Found: "created one, with capabilities in it"}
	case f.Create == "":
		p := Probe{
			Status: Limited,
			Found:  "created one, but without capabilities in it: " + f.Caps,
			Cost:   "no TAP device: the network is the relay; no container isolation",
			Remedy: appArmorRemedy,
		}
		if f.AppArmor == "1" {
			p.Found += " (kernel.apparmor_restrict_unprivileged_userns=1)"
		}
		return p
	}
	p := Probe{
		Found: "cannot create one: " + f.Create,
		Cost:  "no TAP device, and no isolation at all unless bwrap is setuid root",
	}
	switch {
	case f.UnprivilegedClone == "0":
		p.Found += " (kernel.unprivileged_userns_clone=0)"
		p.Remedy = "echo kernel.unprivileged_userns_clone=1 | sudo tee /etc/sysctl.d/60-bulkhead.conf && sudo sysctl --system"
	case f.MaxNamespaces == "0":
		p.Found += " (user.max_user_namespaces=0)"
		p.Remedy = "echo user.max_user_namespaces=15000 | sudo tee /etc/sysctl.d/60-bulkhead.conf && sudo sysctl --system"
	case f.AppArmor == "1":
		p.Found += " (kernel.apparmor_restrict_unprivileged_userns=1)"
		p.Remedy = appArmorRemedy
	default:
		p.Remedy = inContainerRemedy
	}
	return p
}

func judgeTUN(open error, f namespaceFacts) Probe {
	p := Probe{Cost: "no TAP: the network is the relay, which only programs that honour HTTP_PROXY or SOCKS can use; no container isolation"}
	switch {
	case errors.Is(open, unix.ENOENT) || errors.Is(open, unix.ENODEV) || errors.Is(open, unix.ENXIO):
		p.Found = tunPath + " is not there"
		p.Remedy = "sudo modprobe tun && echo tun | sudo tee /etc/modules-load.d/tun.conf"
		if judgeNesting(nestingFacts()).Status != OK {
			p.Remedy = "start the container with: --device /dev/net/tun"
		}
	case errors.Is(open, unix.EACCES) || errors.Is(open, unix.EPERM):
		p.Found = tunPath + " is closed to this user"
		if st, err := os.Stat(tunPath); err == nil {
			p.Found += fmt.Sprintf(" (mode %04o)", st.Mode().Perm())
		}
		// The mode that systemd's own udev rules give it; it grants nothing in
		// the host's network namespace, where TUNSETIFF needs CAP_NET_ADMIN.
		p.Remedy = `echo 'KERNEL=="tun", MODE="0666"' | sudo tee /etc/udev/rules.d/60-tun.rules && sudo chmod 0666 /dev/net/tun`
	case f.Create != "" || f.Caps != "":
		p.Found = "opens, but is useless without capabilities in a user namespace"
		p.Remedy = "mend the line user-namespaces first"
	case f.OpenTUN != "":
		p.Found = "opens here, but not in a new user namespace: " + f.OpenTUN
		p.Remedy = "sudo chmod 0666 /dev/net/tun"
	case f.SetIff != "":
		p.Found = "opens, but TUNSETIFF in a new network namespace fails: " + f.SetIff
	case open != nil:
		p.Found = open.Error()
	default:
		return Probe{Status: OK, Found: "made a TAP in a new network namespace"}
	}
	return p
}
