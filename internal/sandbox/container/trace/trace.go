// Package trace reads what gVisor's runtime monitoring says about a container: one
// message of its remote sink becomes one Point.
//
// It runs in the controller. The messages come from the sentry, which commands
// inside attack first, and hold names that commands chose: all of it is hostile.
// Reading is pure, bounded by the message, and takes what it does not know for
// nothing.
package trace

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
)

// MaxMessage is how long a message may be; longer ones are cut by the socket, and
// refused.
const MaxMessage = 256 << 10

// Kind says what happened.
type Kind uint8

// The kinds of points. Zero is none of ours.
const (
	Other Kind = iota
	Fork       // of a process, not of a thread
	Exec
	Exit
	Open
	Refused // a process or thread, for want of room
)

// Point is one thing that happened. What a kind does not have is zero.
type Point struct {
	Kind Kind
	// PID is the process that did it, Child the one that a fork made; numbers as
	// commands inside see them.
	PID, Child int32
	Name       string // of the process
	// Path is the program or file as it was named, At what a relative one begins
	// with.
	Path, At string
	Flags    uint32 // of an open
	Status   int32  // of an exit, as wait(2) has it
	Failed   bool
	// Lost counts the messages so far that the sentry could not send; it wraps.
	Lost uint32
}

// Message types and field numbers are those of gVisor's points (seccheck/points,
// *.proto).
const (
	headerSize = 8
	typeClone  = 2
	typeExec   = 3
	typeExit   = 4
	typeCall   = 6
	typeOpen   = 7

	noRoom = 11 // EAGAIN
)

var errMalformed = errors.New("a message of the sentry's monitoring is malformed")

// Read reads one message: a header (its own size, type, number of lost messages; in
// the machine's byte order), then a protobuf message.
func Read(message []byte) (p Point, err error) {
	if len(message) < headerSize {
		return p, errMalformed
	}
	size := int(binary.NativeEndian.Uint16(message))
	if size < headerSize || size > len(message) {
		return p, errMalformed
	}
	p.Lost = binary.NativeEndian.Uint32(message[4:])
	kind := binary.NativeEndian.Uint16(message[2:])
	body := message[size:]
	switch kind {
	case typeClone:
		var thread int32
		err = fields(body, func(n int, v uint64, _ []byte) error {
			switch n {
			case 3:
				thread = int32(v)
			case 4:
				p.Child = int32(v)
			}
			return nil
		}, &p)
		if p.Kind = Fork; thread != p.Child {
			p.Kind = Other
		}
	case typeExec:
		p.Kind = Exec
		err = fields(body, func(n int, _ uint64, b []byte) error {
			if n == 2 {
				p.Path = string(b)
			}
			return nil
		}, &p)
	case typeExit:
		p.Kind = Exit
		err = fields(body, func(n int, v uint64, _ []byte) error {
			if n == 2 {
				p.Status = int32(v)
			}
			return nil
		}, &p)
	case typeCall: // Init asks for those only that make a task
		err = fields(body, func(n int, _ uint64, b []byte) error {
			if n != 2 {
				return nil
			}
			return walk(b, func(n int, v uint64, _ []byte) error {
				if n == 2 && v == noRoom {
					p.Kind = Refused
				}
				return nil
			})
		}, &p)
	case typeOpen:
		p.Kind = Open
		dir := ""
		err = fields(body, func(n int, v uint64, b []byte) error {
			switch n {
			case 2:
				return walk(b, func(n int, v uint64, _ []byte) error {
					p.Failed = p.Failed || n == 2 && v != 0
					return nil
				})
			case 5:
				dir = string(b)
			case 6:
				p.Path = string(b)
			case 7:
				p.Flags = uint32(v)
			}
			return nil
		}, &p)
		if dir != "" {
			p.At = dir
		}
	}
	return p, err
}

// fields walks a point, whose first field is its context.
func fields(body []byte, each func(n int, v uint64, b []byte) error, p *Point) error {
	return walk(body, func(n int, v uint64, b []byte) error {
		if n != 1 {
			return each(n, v, b)
		}
		return walk(b, func(n int, v uint64, b []byte) error {
			switch n {
			case 4:
				p.PID = int32(v)
			case 8:
				p.At = string(b)
			case 9:
				p.Name = string(b)
			}
			return nil
		})
	})
}

// walk calls each for the fields of a protobuf message: v is the value of a varint,
// b that of a text or message.
func walk(msg []byte, each func(n int, v uint64, b []byte) error) error {
	const varint, fixed64, bytes, fixed32 = 0, 1, 2, 5
	for len(msg) > 0 {
		key, n := binary.Uvarint(msg)
		if n <= 0 || key>>3 == 0 || key>>3 > math.MaxInt32 {
			return errMalformed
		}
		msg = msg[n:]
		var v uint64
		var b []byte
		switch key & 7 {
		case varint:
			if v, n = binary.Uvarint(msg); n <= 0 {
				return errMalformed
			}
		case bytes:
			length, m := binary.Uvarint(msg)
			if m <= 0 || length > uint64(len(msg)-m) {
				return errMalformed
			}
			b, n = msg[m:m+int(length)], m+int(length)
		case fixed64:
			n = 8
		case fixed32:
			n = 4
		default:
			return errMalformed
		}
		if n > len(msg) {
			return errMalformed
		}
		msg = msg[n:]
		if err := each(int(key>>3), v, b); err != nil {
			return err
		}
	}
	return nil
}

// Handshake is what a sink says first and gets back: that this is version 1.
var Handshake = []byte{1 << 3, 1}

// Init is the configuration that makes runsc send its points to a socket: with opened
// files, and with refused tasks.
func Init(endpoint string, files, refused bool) ([]byte, error) {
	type point struct {
		Name     string   `json:"name"`
		Optional []string `json:"optional_fields,omitempty"`
		Context  []string `json:"context_fields"`
	}
	context := []string{"group_id", "process_name"}
	points := []point{{"sentry/clone", nil, context}, {"sentry/execve", nil, context}, {"sentry/exit_notify_parent", nil, context}}
	if files {
		where := append([]string{"cwd"}, context...)
		points = append(points, point{"syscall/openat/exit", []string{"fd_path"}, where})
		for _, old := range oldOpens {
			points = append(points, point{old, nil, where})
		}
	}
	if refused {
		for _, n := range taskCalls {
			points = append(points, point{fmt.Sprintf("syscall/sysno/%d/exit", n), nil, nil})
		}
	}
	type sink struct {
		Name   string         `json:"name"`
		Config map[string]any `json:"config"`
	}
	return json.Marshal(map[string]any{"trace_session": map[string]any{
		"name": "Default", "points": points,
		// A reader that is behind makes a command wait for a millisecond, then a
		// point is lost, and counted.
		"sinks": []sink{{"remote", map[string]any{"endpoint": endpoint, "retries": 5, "backoff": "50us"}}},
	}})
}
