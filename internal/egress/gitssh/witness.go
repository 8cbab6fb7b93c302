package gitssh

import (
	"bytes"
	"encoding/binary"
	"net"
	"sync"
)

// witness reads along with what a server sends before encryption begins, and
// keeps its answer in the first key exchange: the host key, and its signature
// over the exchange hash. x/crypto checks both and shows neither; the
// controller wants to check them itself.
//
// What is kept is not believed: it is only ever shown to the controller, which
// verifies it against the session's id.
type witness struct {
	net.Conn

	mu             sync.Mutex
	seen           []byte
	begun          bool // the version line has been read
	done           bool
	key, signature []byte
}

const (
	msgNewKeys       = 21 // RFC 4253 section 12
	msgExchangeReply = 31 // the same number and form for DH, ECDH and ML-KEM
	maxSeen          = 256 << 10
)

func (w *witness) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.done {
		w.seen = append(w.seen, p[:n]...)
		w.parse()
		if w.done || len(w.seen) > maxSeen {
			w.seen, w.done = nil, true
		}
	}
	return n, err
}

// proof returns what was seen, once it was.
func (w *witness) proof() (key, signature []byte, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.key, w.signature, len(w.key) > 0 && len(w.signature) > 0
}

func (w *witness) parse() {
	for !w.begun {
		// Lines may precede the version (RFC 4253 section 4.2).
		line, rest, ok := bytes.Cut(w.seen, []byte("\n"))
		if !ok {
			return
		}
		w.seen, w.begun = rest, bytes.HasPrefix(line, []byte("SSH-"))
	}
	for !w.done && len(w.seen) >= 6 {
		size := int(binary.BigEndian.Uint32(w.seen))
		padding := int(w.seen[4])
		switch {
		case size < padding+2 || size > maxSeen:
			w.done = true
			return
		case len(w.seen) < 4+size:
			return
		}
		w.message(w.seen[5 : 4+size-padding])
		w.seen = w.seen[4+size:]
	}
}

func (w *witness) message(b []byte) {
	switch b[0] {
	case msgNewKeys:
		w.done = true
	case msgExchangeReply:
		var fields [3][]byte
		rest := b[1:]
		for i := range fields {
			if len(rest) < 4 || uint64(binary.BigEndian.Uint32(rest)) > uint64(len(rest)-4) {
				return
			}
			n := binary.BigEndian.Uint32(rest)
			fields[i], rest = rest[4:4+n], rest[4+n:]
		}
		w.key, w.signature = bytes.Clone(fields[0]), bytes.Clone(fields[2])
	}
}
