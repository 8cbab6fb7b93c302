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
}

// All lists every switch.
func All() []Switch {
	return []Switch{
		{"secrets", "masks over secrets below mounts (internal/workspace)", []string{"fs-broad-mount"}, false},
		{"files", "the private home: /home is the host's (internal/sandbox/process)", []string{"fs-read-home", "fs-write-outside", "fs-prefix", "incident-symlink", "dx-persistence", "dx-path", "aud-tamper", "mem-instructions", "mcp-obeyed"}, false},
		{"protected", "protection of files that the host obeys later (internal/workspace, internal/sandbox/guest/guard)", []string{"dx-git-hook", "dx-git-config", "dx-git-nested", "dx-git-hook-absent", "dx-git-nested-new", "dx-envrc-absent", "dx-mcp-json-absent", "dx-agent-settings-absent", "dx-venv"}, false},
		{"trust", "hiding a project's configuration (internal/session)", []string{"incident-project-hooks", "tru-mcp-servers", "tru-loosening"}, false},
		{"sockets", "masks over sockets in the workspace (internal/workspace)", []string{"ipc-workspace-socket"}, false},
		{"environment", "the closed list of variables (internal/session)", []string{"crd-environment", "pr-env-crossing"}, false},
		{"seccomp", "the system-call filter (internal/seccomp)", []string{"krn-uring"}, false},
		{"ipc", "the IPC namespace (internal/sandbox/process)", []string{"krn-sysv"}, false},
		{"network", "the network namespace of a session over the relay (internal/sandbox/process)", []string{"net-direct", "net-localhost", "net-udp", "dns-names", "dns-raw", "net-metadata"}, true},
		{"limits", "limits on memory and processes (internal/sandbox/process/cgroup)", []string{"res-processes", "res-memory"}, false},
		{"grants", "which operations a rule grants (internal/capability)", []string{"pxy-path", "pxy-method", "dns-over-https"}, false},
		{"credentials", "the refusal of foreign credentials (internal/capability)", []string{"exf-foreign-credential"}, false},
		{"features", "the refusal of features that make a server fetch (internal/capability)", []string{"exf-server-fetch"}, false},
		{"echoes", "the removal of echoed credentials (internal/egress/httpauthz)", []string{"crd-echo"}, false},
		{"addresses", "the judgement of upstream addresses (internal/egress/dial)", []string{"net-private-names"}, false},
		{"bodies", "the refusal of bodies that override the method (internal/egress/httpauthz)", []string{"pxy-override-form"}, false},
		{"authority", "the agreement of Host with the connection's name (internal/egress/httpauthz)", []string{"pxy-host"}, false},
	}
}
