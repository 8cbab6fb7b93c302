// Package switches takes single enforcements out, in test builds only, so that
// the red team can be tested: without an enforcement the scenarios that it
// stops must succeed.
//
// A normal build has none: Off is constant false and leaves no trace in the
// binary. With the build tag redteam_switches the linker sets what is off:
//
//	go build -tags redteam_switches -ldflags '-X github.com/bulkhead-dev/bulkhead/internal/switches.off=secrets' ./cmd/bulkhead
//
// Nothing that runs can change it: no variable, no flag, no file. Such a binary
// says so in `bulkhead version` and at each start.
package switches

// Switch is one enforcement and the scenarios that must succeed without it.
type Switch struct {
	Name      string
	What      string
	Scenarios []string
	// Ordinary: seen in sessions of an ordinary user.
	Ordinary bool
	// Container: seen in isolation container; otherwise in isolation process.
	Container bool
}

// All lists every switch.
func All() []Switch {
	return []Switch{
		{"secrets", "masks over secrets below mounts (internal/workspace)", []string{"fs-broad-mount"}, false, false},
		{"files", "the private home: /home is the host's (internal/sandbox/process)", []string{"fs-read-home", "fs-write-outside", "fs-prefix", "incident-symlink", "dx-persistence", "dx-path", "aud-tamper", "mem-instructions", "mcp-obeyed"}, false, false},
		{"protected", "protection of files that the host obeys later (internal/workspace, internal/sandbox/guest/guard)", []string{"dx-git-hook", "dx-git-config", "dx-git-nested", "dx-git-hook-absent", "dx-git-nested-new", "dx-envrc-absent", "dx-mcp-json-absent", "dx-agent-settings-absent", "dx-venv"}, false, false},
		{"trust", "hiding a project's configuration (internal/session)", []string{"incident-project-hooks", "tru-mcp-servers", "tru-loosening"}, false, false},
		{"sockets", "masks over sockets in the workspace (internal/workspace)", []string{"ipc-workspace-socket"}, false, false},
		{"environment", "the closed list of variables (internal/session)", []string{"crd-environment", "pr-env-crossing"}, false, false},
		{"seccomp", "the system-call filter (internal/seccomp)", []string{"krn-uring"}, false, false},
		{"ipc", "the IPC namespace (internal/sandbox/process)", []string{"krn-sysv"}, false, false},
		{"network", "the network namespace of a session over the relay (internal/sandbox/process)", []string{"net-direct", "net-localhost", "net-udp", "dns-names", "dns-raw", "net-metadata"}, true, false},
		{"limits", "limits on memory and processes (internal/sandbox/process/cgroup)", []string{"res-processes", "res-memory"}, false, false},
		{"grants", "which operations a rule grants (internal/capability)", []string{"pxy-path", "pxy-method", "dns-over-https"}, false, false},
		{"credentials", "the refusal of foreign credentials (internal/capability)", []string{"exf-foreign-credential"}, false, false},
		{"features", "the refusal of features that make a server fetch (internal/capability)", []string{"exf-server-fetch"}, false, false},
		{"echoes", "the removal of echoed credentials (internal/egress/httpauthz)", []string{"crd-echo"}, false, false},
		{"addresses", "the judgement of upstream addresses (internal/egress/dial)", []string{"net-private-names"}, false, false},
		{"bodies", "the refusal of bodies that override the method (internal/egress/httpauthz)", []string{"pxy-override-form"}, false, false},
		{"authority", "the agreement of Host with the connection's name (internal/egress/httpauthz)", []string{"pxy-host"}, false, false},
		{"disk", "the limits on disk and files, by looking (internal/session)", []string{"res-disk"}, false, false},
		{"descriptors", "the closing of what a session inherits, and Landlock behind it (internal/sandbox/warden, internal/sandbox/guest)", []string{"vmm-leaked-descriptor"}, false, false},
		{"unpacking", "the judgement of paths in layers, and Landlock behind it (internal/image)", []string{"sl-archive"}, false, true},
		{"root", "the layers over a container's image (internal/sandbox/container)", []string{"vmm-image-cache", "vmm-image-folder"}, false, true},
	}
}
