// Package catalogdata embeds the data that Bulkhead's rules are made of: the
// services and their operations, the presets, the paths that hold secrets, and
// the workspace files that the host runs later. It holds bytes and nothing
// else; internal/catalog and internal/policy parse them.
package catalogdata

import "embed"

// Services holds services/NAME.yaml, one service each.
//
//go:embed services
var Services embed.FS

// Presets holds presets/NAME.yaml, one preset each.
//
//go:embed presets
var Presets embed.FS

// Registry is registry.yaml: the form from which a service for a registry of
// images of the user's own is made.
//
//go:embed registry.yaml
var Registry []byte

// Logins holds logins/NAME.yaml: where a program keeps its login on the host.
//
//go:embed logins
var Logins embed.FS

// KnownHosts is known_hosts: SSH host keys that their owners publish.
//
//go:embed known_hosts
var KnownHosts []byte

// Secrets is secrets.yaml: what stays unreachable below any broad mount.
//
//go:embed secrets.yaml
var Secrets []byte

// Protected is protected.yaml: what cannot be changed in a writable workspace.
//
//go:embed protected.yaml
var Protected []byte

// Trust is trust.yaml: project configuration that is hidden until it is trusted.
//
//go:embed trust.yaml
var Trust []byte
