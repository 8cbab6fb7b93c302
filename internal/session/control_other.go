//go:build !linux

package session

import (
	"errors"

	"github.com/bulkhead-dev/bulkhead/internal/publish"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

var errNeedsLinux = errors.New("sessions need Linux; this system has no sandbox that Bulkhead can use")

type controlServer struct{}

func (*controlServer) Close() error { return nil }

func listenControl(vocabulary.SessionID, controlOps) (*controlServer, error) {
	return nil, errNeedsLinux
}

// Remote is a running session of this user; there are none on this system.
type Remote struct{}

// Find fails: there are no sessions on this system.
func Find(vocabulary.SessionID) (*Remote, error) { return nil, errNeedsLinux }

// List is empty: there are no sessions on this system.
func List() []Info { return nil }

func (*Remote) Info() (*Info, error) { return nil, errNeedsLinux }
func (*Remote) Stop() error          { return errNeedsLinux }
func (*Remote) Revoke() error        { return errNeedsLinux }

func (*Remote) Publish(publish.Port) error { return errNeedsLinux }

func (*Remote) Exec([]string, string, sandbox.Command) (sandbox.Process, error) {
	return nil, errNeedsLinux
}
