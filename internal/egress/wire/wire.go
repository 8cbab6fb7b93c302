// Package wire is the language between the controller and its gateway.
//
// Both ends of a stream socket pair speak frames: a four-byte big-endian
// length and one JSON object. Either side may ask; requests carry an id, run
// concurrently and are answered once. A descriptor travels with the frame that
// announces it, and only towards the gateway. What the gateway records, which is
// every request of the sandbox, and the receipts for it travel over two pipes
// beside the stream, in binary: records are written in the order in which they
// come, and the gateway acts when it has the receipt.
//
// The controller treats the gateway as hostile: frames are bounded before they
// are read, at most Limits.Concurrent requests are served at a time (further
// ones wait in the socket), every field of an event is clipped and cleaned,
// descriptors are never accepted, and anything unexpected ends the connection,
// which ends the gateway. Secrets travel in receipts and nowhere else.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// The requests that the controller makes.
const (
	Configure = "configure" // Config of egress → nothing; confined afterwards
	Attach    = "attach"    // with a descriptor: the sandbox's link → nothing
	Listen    = "listen"    // ListenRequest with a descriptor → nothing
	Revoke    = "revoke"    // → nothing, once no credential travels any more
	Stop      = "stop"      // → nothing, once the last counts are recorded
)

// The requests that the gateway makes, beside records (Client.Authorize).
const Roots = "roots" // nothing → RootsReply

// ListenRequest says which port of this host the listener that comes along
// stands for.
type ListenRequest struct {
	Port hostport.Port `json:"port"`
}

// Bounds of frames. A configuration carries a capability set and certificates;
// everything else is small.
const (
	MaxToGateway    = 16 << 20
	MaxToController = 128 << 10
)

var (
	// ErrProtocol: the other side does not keep to this package.
	ErrProtocol = errors.New("wire: protocol error")
	// ErrClosed: the connection is gone.
	ErrClosed = errors.New("wire: connection closed")
)

// RemoteError is the other side's answer when it could not do what was asked.
type RemoteError struct {
	Code    string
	Message string
}

func (e *RemoteError) Error() string { return e.Message }

type frame struct {
	ID    uint64          `json:"id"`
	Kind  string          `json:"kind,omitempty"` // a request
	Reply bool            `json:"reply,omitempty"`
	Error string          `json:"error,omitempty"`
	Code  string          `json:"code,omitempty"`
	File  bool            `json:"file,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

func (f frame) valid() bool {
	if f.ID == 0 {
		return false
	}
	if f.Reply {
		return f.Kind == "" && !f.File
	}
	return f.Kind != "" && len(f.Kind) <= 32 && f.Error == "" && f.Code == ""
}

const maxErrorText = 1 << 10

func encode(f frame, max int) ([]byte, error) {
	if len(f.Error) > maxErrorText {
		f.Error = f.Error[:maxErrorText]
	}
	body, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	if len(body) > max {
		return nil, fmt.Errorf("wire: a %q frame of %d bytes is over the limit of %d", f.Kind, len(body), max)
	}
	out := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(out, uint32(len(body)))
	return append(out, body...), nil
}

// decode reads one frame of at most max bytes. io.EOF means a clean end.
func decode(r io.Reader, max int) (frame, error) {
	body, err := next(r, max)
	if err != nil {
		return frame{}, err
	}
	var f frame
	if err := json.Unmarshal(body, &f); err != nil {
		return frame{}, fmt.Errorf("%w: not a frame", ErrProtocol)
	}
	if !f.valid() {
		return frame{}, fmt.Errorf("%w: impossible frame", ErrProtocol)
	}
	return f, nil
}

// next reads what stands in one frame.
func next(r io.Reader, max int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: torn frame", ErrProtocol)
		}
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 2 || int64(n) > int64(max) {
		return nil, fmt.Errorf("%w: frame of %d bytes, at most %d allowed", ErrProtocol, n, max)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("%w: torn frame", ErrProtocol)
	}
	return body, nil
}
