// Package journal keeps what files of a workspace were before a session changed
// them, changes workspaces so that all of a change happens or nothing, and takes
// changes back.
//
// A journal is one directory of the user's own, for one session: meta.json, an
// append-only log of one checked line for each fact (log), and the kept contents:
// small ones one behind the other (pack, and spool, which the guard in the sandbox
// writes), others each in a file (content/N), which
// shares its blocks with the workspace's where the filesystem can. Nothing about it is in memory only: after kill -9 or a reboot Open
// finds what is true, and Recover finishes taking back a commit that broke off.
//
// It runs in the controller and in the workspace commands, with the user's
// privileges. The workspace is hostile: its files are reached by handles below an
// open root (package tree), only regular files are read, devices, sockets and
// FIFOs are known by kind alone, no link is followed.
//
// Who changes a workspace directly (modes rw and rw-no-delete) calls Keep, or
// KeepTree for a directory, before each change, and LeaveAll when the session
// ends. Who applies a staged layer calls Commit. One process at a time has a
// journal open.
package journal

import (
	"errors"
	"os"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Kind says what stands at a path.
type Kind string

// The kinds. The contents of Other (devices, sockets, FIFOs) are never touched.
const (
	Absent Kind = "absent"
	File   Kind = "file"
	Dir    Kind = "dir"
	Link   Kind = "link"
	Other  Kind = "other"
)

// Meta says whose journal it is.
type Meta struct {
	Format    int                  `json:"format"` // Create sets it
	Session   vocabulary.SessionID `json:"session"`
	Workspace string               `json:"workspace"` // absolute real path
	Mode      vocabulary.MountMode `json:"mode"`
	Started   time.Time            `json:"started"`
	// Budget bounds the bytes of kept contents; 0 keeps none.
	Budget int64 `json:"budget"`
	// Index is what the workspace's git index meant then, of a staged session (IndexNow).
	Index string `json:"index,omitempty"`
	// Events is the file that the session's events are in.
	Events string `json:"events,omitempty"`
}

// State is what stands at a path, told apart from what others may put there.
type State struct {
	Kind  Kind   `json:"kind"`
	Size  int64  `json:"size,omitempty"`
	Mode  uint32 `json:"mode,omitempty"` // permission bits, with setuid, setgid and sticky
	Mtime int64  `json:"mtime,omitempty"`
	Inode uint64 `json:"ino,omitempty"`
	UID   uint32 `json:"uid,omitempty"`
	GID   uint32 `json:"gid,omitempty"`
	// Index is what a git index that a session or a commit left means.
	Index string `json:"index,omitempty"`
}

// Same reports whether both are the same object, unchanged. A directory is the
// same whatever happened in it.
func (s State) Same(o State) bool {
	switch {
	case s.Kind != o.Kind:
		return false
	case s.Kind == Absent:
		return true
	case s.Kind == Dir:
		return s.Inode == o.Inode && s.Mode == o.Mode
	}
	return s.Inode == o.Inode && s.Mode == o.Mode && s.Size == o.Size && s.Mtime == o.Mtime
}

// Version is what stood at a path before a change.
type Version struct {
	Path   string
	Number int // from 1, for each path; 0: covered by a folder that did not exist
	State
	Target string // of a Link
	// Kept is false for what has no content here: an Other, and what Note recorded.
	Kept bool
	// Foreign is what Change.Foreign said when it was overwritten.
	Foreign bool
	Time    time.Time

	// Where the content is: a file of its own, or stored bytes at pack-1 of the pack
	// or at spool-1 of the spool.
	content, pack, spool, stored int64
	sum                          uint32 // of packed or spooled bytes
}

// Change is one step of a commit: what shall stand at a path.
type Change struct {
	Path string
	// Kind is Absent (with all below it), File, Link, or Dir (an existing
	// directory only gets the mode).
	Kind   Kind
	Mode   uint32 // of a File or Dir; setuid, setgid and sticky bits are not used
	Mtime  time.Time
	Target string // of a Link
	// Content opens what a File shall hold, at its beginning.
	Content func() (*os.File, error)
	// Was is what the caller saw there; anything else is an *ExitError, and
	// nothing is changed. Nil: whatever is there.
	Was *State
	// Foreign says that what is there is somebody else's work, overwritten by force.
	Foreign bool
	// Forget keeps no version of what is there now.
	Forget bool
	// Back is the number of the version that this brings back.
	Back int

	owner *State // whose it shall be, if it may
}

// Witness is told what a commit is about to change, when all of it is ready and
// nothing has changed yet. An error refuses it, but not the taking back of one that
// failed or broke off ("take back").
type Witness func(what string, paths []string) error

// Conflict is a path that was not changed, and why.
type Conflict struct {
	Path string
	Why  string
}

// Report says what a commit, an undo or a recovery did.
type Report struct {
	Changed   []string
	Conflicts []Conflict
}

// Errors of Keep, for errors.Is. After each of them the path must be taken for
// not kept.
var (
	// ErrBudget: the contents would exceed Meta.Budget.
	ErrBudget  = errors.New("the budget for kept versions is used up")
	errBadPath = errors.New("not a path in a workspace")
	// ErrRunning: another process has the journal open.
	ErrRunning = errors.New("the session is running, or another command works on it")
)
