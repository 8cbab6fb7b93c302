// Package frame carries bounded messages with descriptors over a Unix stream
// socket, between the controller and the processes of a sandbox.
//
// Format: 4 bytes big-endian length of the payload, 1 byte number of
// descriptors, then the payload, one JSON object. The descriptors travel with
// the header (SCM_RIGHTS). Each receiver says how long a payload and how many
// descriptors it takes; the other side may be hostile. A message is taken
// completely or the connection is of no use any more: after any error, close it.
package frame

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxPayload is what a trusted sender may send: a command's arguments and
// environment (the kernel's limit is about 2 MiB), escaped as JSON.
const MaxPayload = 16 << 20

// MaxFiles is how many descriptors fit one message (the kernel takes 253).
const MaxFiles = 200

const headerSize = 5

var errTrailing = errors.New("message goes on after its end")

func header(payload, files int) [headerSize]byte {
	var h [headerSize]byte
	binary.BigEndian.PutUint32(h[:4], uint32(payload))
	h[4] = byte(files)
	return h
}

// parseHeader judges a header before anything is allocated for it.
func parseHeader(h [headerSize]byte, maxPayload, maxFiles int) (payload, files int, err error) {
	n := binary.BigEndian.Uint32(h[:4])
	if uint64(n) > uint64(maxPayload) {
		return 0, 0, fmt.Errorf("message of %d bytes, at most %d are allowed", n, maxPayload)
	}
	if int(h[4]) > maxFiles {
		return 0, 0, fmt.Errorf("message with %d descriptors, at most %d are allowed", h[4], maxFiles)
	}
	return int(n), int(h[4]), nil
}

// Decode reads exactly one JSON object without unknown fields.
func Decode(payload []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("message: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errTrailing
	}
	return nil
}
