// Package container is the isolation "container": a sandbox with a kernel of
// its own, gVisor's, for every user and with nothing installed but Bulkhead's
// two binaries.
//
// A Backend runs in the controller. A Spec comes in, an Instance goes out
// (package instance): the warden (package warden), in a user and network
// namespace of its own, starts the cradle (childproc "cradle", cradle_linux.go),
// the first process of a pid and mount namespace, in which nothing of the host
// stands but what the mount plan shows. The cradle writes gVisor's bundle and
// becomes runsc, which starts the sentry and the gofer. Inside, the guest
// supervisor (package guest) is pid 1, as in every tier; it speaks to the
// controller over a socket that runsc passes through.
//
// What is shown of the host is arranged by arrange (pure): binds on the host's
// side as far as what is below cannot be changed from inside, mounts of gVisor's
// otherwise, because a rename by the sentry, which is in another mount
// namespace, would move a host's mount point away.
//
// Known limits: inside, files of other users belong to nobody, as in the
// process tier; a folder whose name is not UTF-8 cannot be mounted; the memory
// limit includes gVisor itself, some 50 MiB.
package container

import (
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Backend implements sandbox.Backend. Its zero value is ready. Warm, Discard and
// Prepare are for one caller at a time.
type Backend struct {
	// Runsc is the runtime's path; empty: beside this binary, then on PATH.
	Runsc string

	wardens wardens
}

// Isolation implements sandbox.Backend.
func (*Backend) Isolation() vocabulary.Isolation { return vocabulary.Container }

// Name is the runtime's file name.
const Name = "bulkhead-runsc"
