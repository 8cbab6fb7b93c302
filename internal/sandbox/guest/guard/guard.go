// Package guard decides every write by path that a command of the sandbox makes
// in a folder of the host, and carries it out.
//
// It runs in pid 1 inside the sandbox. The kernel stops each call that creates,
// opens for writing, renames or removes what a path names (package seccomp,
// Listen) and hands it over. The guard reads the caller's path once, resolves
// its folder to a handle, judges the folder's real path and the last name, does
// the work itself below that handle, and gives the caller the result: what was
// judged is what is written. It never lets a call with a path go on by itself,
// because its caller could exchange the path in between. Reading, and writing
// to what is open, are not its business.
//
// Two things are kept true. No name on the list of protected files comes into
// being, by whatever call. And every folder that git would take for a
// repository has a configuration that was read and found harmless, and no hook
// but samples. In rw-no-delete nothing that was there is lost, and where
// versions are kept, the first change of a file waits for its copy.
//
// Below a kernel of the sandbox's own (gVisor) the same guard is a process beside that
// kernel, on the host, and what it judges are the calls of that kernel and of its
// file server: see Setup.Base.
//
// The guard has the rights of the commands and no more. What it must not do for
// them is reach itself: files of /proc are opened for a caller's own process only.
package guard

import (
	"encoding/json"
	"os"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/guard/rules"
)

// Folder is a writable folder of the host.
type Folder struct {
	Path Bytes `json:"path"`
	// NoDelete makes it one from which nothing that was there is lost.
	NoDelete bool `json:"no_delete,omitempty"`
	// Versions asks Host.Keep before the first change of what was there.
	Versions bool `json:"versions,omitempty"`
}

// Setup says what to guard.
type Setup struct {
	Folders   []Folder          `json:"folders"`
	Protected []rules.Protected `json:"protected"`
	// Installed are names of folders below which only what git obeys is protected.
	Installed []string `json:"installed"`
	// Fixed are files that stay writable by rule (git's configuration) and must
	// not be removed or moved.
	Fixed []Bytes `json:"fixed,omitempty"`
	// Base makes it the guard beside a foreign kernel: the folder of the host below
	// which that kernel's view of the sandbox's tree stands. Calls come from there,
	// name by name; to the guard the folders stand below it too. Until Seal, and of
	// the process that starts that kernel (the first one) always, calls go on as they
	// are: nothing of the sandbox's has a part in them.
	Base Bytes `json:"base,omitempty"`
	// UID and GID are the user's numbers outside, where the guard's own are others.
	UID uint32 `json:"uid,omitempty"`
	GID uint32 `json:"gid,omitempty"`
}

// Bytes is a path as JSON: a file's name need not be UTF-8.
type Bytes string

// MarshalJSON implements json.Marshaler.
func (b Bytes) MarshalJSON() ([]byte, error) { return json.Marshal([]byte(b)) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *Bytes) UnmarshalJSON(text []byte) error {
	var raw []byte
	err := json.Unmarshal(text, &raw)
	*b = Bytes(raw)
	return err
}

// Refusal is a write that was not carried out.
type Refusal struct {
	Op     string // the system call's name
	Path   string
	Reason string
}

// Spool is a file of the host to which the guard appends what small files of a
// folder were (package spool), so that their change need not wait for an answer.
type Spool struct {
	File  *os.File
	Limit int64 // bytes
}

// Host is what the guard needs of the world outside. Safe for concurrent use.
type Host interface {
	// Refused reports a refusal, and returns when that is on its way.
	Refused(Refusal)
	// Keep has a version made of what is at a path, which is about to change, or
	// with tree of a folder and all in it, and returns when that is safe. again
	// asks for one more version of a path that has one already. A spool for the
	// path's folder may come with the answer.
	Keep(path string, again, tree bool) (*Spool, error)
	// Made reports what stands where nothing stood before. It does not wait.
	Made(path string)
	// Opened reports a file of a guarded folder that was opened for writing. It does
	// not wait.
	Opened(path string)
}
