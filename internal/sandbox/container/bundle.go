package container

import (
	"encoding/json"
	"fmt"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/warden"
	"github.com/bulkhead-dev/bulkhead/internal/switches"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// orders is what the cradle gets, over its descriptor for arguments.
type orders struct {
	Steps  []step
	Runsc  string // on the host
	Bundle []byte // config.json
	Trace  []byte // trace.json; empty: no monitoring
	Args   []string
	// Guarded are the folders whose writes are judged; none: no write is.
	Guarded []guarded
}

// guarded is a writable folder of the host, and where it stands in the cradle's root.
type guarded struct{ Target, At string }

// supervisorCaps are what the supervisor starts with, of gVisor's: they mean
// nothing to the host. The bounding set is empty, so that root inside, who starts
// with what is in that or in the inheritable set, has them by the second, which the
// supervisor empties before it starts anything; see package guest.
var supervisorCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_SETFCAP"}

// bundle writes the OCI configuration for an arrangement.
func bundle(spec sandbox.Spec, a *arrangement) ([]byte, error) {
	hostname := spec.Hostname
	if hostname == "" {
		hostname = "sandbox"
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "nodev", "noexec"}},
		{Destination: "/dev", Type: "tmpfs", Source: "dev", Options: []string{"nosuid"}},
	}
	for _, m := range a.mounts {
		mode := "rw"
		if m.RO {
			mode = "ro"
		}
		if m.Source != "" {
			mounts = append(mounts, specs.Mount{Destination: m.Target, Type: "bind", Source: m.Source, Options: []string{"rbind", mode, "nosuid", "nodev"}})
			continue
		}
		options := []string{mode, "nosuid", "nodev", fmt.Sprintf("mode=%o", m.Perm), fmt.Sprintf("size=%d", m.Size)}
		if m.RO { // a mask, of which nobody inside is to be the owner
			options = append(options, "uid=65534", "gid=65534")
		}
		mounts = append(mounts, specs.Mount{Destination: m.Target, Type: "tmpfs", Source: "tmpfs", Options: options})
	}
	namespaces := []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace}}
	if spec.Network == sandbox.NetTAP {
		// The cradle's own, with the link in it: runsc is pid 1 there.
		namespaces = append(namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/proc/1/ns/net"})
	}
	return json.Marshal(specs.Spec{
		Version:  "1.0.2",
		Hostname: hostname,
		Root:     &specs.Root{Path: rootTree, Readonly: !a.image},
		Process: &specs.Process{
			User: specs.User{GID: guest.SupervisorID}, Args: []string{supervisor}, Env: []string{}, Cwd: "/", NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Inheritable: supervisorCaps, Effective: supervisorCaps, Permitted: supervisorCaps},
		},
		Mounts: mounts,
		Linux:  &specs.Linux{Namespaces: namespaces},
	})
}

// arguments are runsc's.
func arguments(network sandbox.NetworkKind, a *arrangement, trace bool) []string {
	net, overlay := "none", "none"
	if network == sandbox.NetTAP {
		net = "sandbox"
	}
	if a.image && !switches.Off("root") {
		overlay = fmt.Sprintf("root:memory,size=%d", a.size)
	}
	args := []string{Name,
		"--root=" + stateDir, "--ignore-cgroups", "--network=" + net, "--platform=systrap",
		"--overlay2=" + overlay, "--host-uds=none", "--host-fifo=none", "--oci-seccomp=false", "--file-access=exclusive",
	}
	if trace {
		args = append(args, "--pod-init-config="+traceConfig)
	}
	return append(args, "run", fmt.Sprintf("--pass-fd=%d:%d", warden.GuestFD, warden.GuestFD), "--bundle="+bundleDir, "sandbox")
}
