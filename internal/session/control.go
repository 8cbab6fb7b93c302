package session

import (
	"context"
	"fmt"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/publish"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// The control socket lets the same user look at a running session from another
// terminal, revoke it, stop it and start further commands in it. It is an
// abstract Unix socket: it belongs to the host's network namespace, which no
// sandbox shares, and it vanishes with the controller, kill -9 included. The
// kernel's word about the peer's user id is the authentication.
//
// One packet is one message (SOCK_SEQPACKET), JSON, at most maxPacket bytes.

const maxPacket = 128 << 10

// socketName is where a session listens. "@" stands for the abstract namespace.
func socketName(uid int, id vocabulary.SessionID) string {
	return fmt.Sprintf("@bulkhead/%d/%s", uid, id)
}

// Info is what session list and session show print.
type Info struct {
	ID        vocabulary.SessionID `json:"id"`
	PID       int                  `json:"pid"`
	UID       int                  `json:"uid"`
	Started   time.Time            `json:"started"`
	Isolation vocabulary.Isolation `json:"isolation"`
	Network   string               `json:"network"`
	Profile   vocabulary.Profile   `json:"profile"`
	Workspace string               `json:"workspace"`
	Command   []string             `json:"command"`
	Policy    string               `json:"policy"`
	Events    string               `json:"events"`
	Grants    []string             `json:"grants"`
	Revoked   bool                 `json:"revoked"`
	// Published are ports of this host that lead inside, as HOST:INSIDE.
	Published []string `json:"published"`
	// Limits are in words, each with what enforces it here.
	Limits []string `json:"limits"`
}

// controlOps are what a peer of the same user may do.
type controlOps struct {
	info   func() Info
	stop   func()
	revoke func() error
	// publish opens a port of this host for one inside.
	publish func(publish.Port) error
	exec    func(ctx context.Context, argv []string, term string, cmd sandbox.Command) (sandbox.Process, error)
}
