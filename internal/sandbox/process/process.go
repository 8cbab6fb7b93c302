// Package process is the isolation "process": an operating system sandbox made
// by bubblewrap, with Landlock and a system call filter on top (package guest),
// held by a warden (package warden).
//
// It runs in the controller. A Spec comes in, an Instance goes out; the mounts
// of the Spec become bwrap's arguments and, once more, Landlock's rules. The
// host needs bubblewrap (0.8.0 or newer), user namespaces, Landlock and, for
// NetTAP, /dev/net/tun. What is missing is an error of exit code 12 with the
// remedy; nothing is ever made weaker than asked.
//
// Known limits: a Unix socket file inside a mounted folder reaches the host's
// process behind it on kernels before Landlock ABI 9, so the mount plan must
// mask those; an ordinary user's supplementary groups stay (the kernel does not
// let him drop them).
package process

import (
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Backend implements sandbox.Backend. Its zero value is ready. Warm, Discard and
// Prepare are for one caller at a time.
type Backend struct {
	bwrap string // for tests; empty: where it is installed

	wardens wardens
}

// Isolation implements sandbox.Backend.
func (*Backend) Isolation() vocabulary.Isolation { return vocabulary.Process }
