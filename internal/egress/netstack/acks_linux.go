package netstack

import (
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// acks leaves out acknowledgements that an answer carries anyway. gVisor
// acknowledges every segment at once; a request is then two packets to the
// sandbox instead of one, and each wakes somebody. As every other stack does
// (RFC 9293 section 3.8.6.3), we hold back the acknowledgement of a little data for
// a moment, and only of a stream that is a conversation: nothing is held before
// quickSegments with data have been sent, and where an answer did not come in
// time, none for as many again. A sender that waits for its acknowledgement
// before it sends the rest of its request loses ackDelay once in that many answers.
//
// Acknowledgements of much, and those that open the window again, go at once.
type acks struct {
	link *tap

	mu      sync.Mutex
	sent    int    // segments with data, up to quickSegments
	acked   uint32 // what the sandbox has been told
	held    *stack.PacketBuffer
	holding uint64 // counts what was held
	timer   *time.Timer
	armed   bool
	armedAt uint64 // holding, then
	closed  bool
}

const (
	ackDelay      = 10 * time.Millisecond
	quickSegments = 8
	littleData    = 4 << 10
)

// hold reports whether pkt, which is the stream's, need not be written now.
func (a *acks) hold(pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	if len(h) < header.TCPMinimumSize {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	first := a.held == nil
	a.drop() // this one says all that it said
	news := h.AckNumber() - a.acked
	a.acked = h.AckNumber()
	switch {
	case pkt.Data().Size() > 0:
		a.sent = min(a.sent+1, quickSegments)
		return false
	case h.Flags() != header.TCPFlagAck, len(h) > header.TCPMinimumSize+timestamps, !first,
		a.sent < quickSegments, news == 0 || news > littleData, a.closed:
		return false
	}
	a.held = pkt.IncRef()
	a.holding++
	if !a.armed {
		a.arm()
	}
	return true
}

// timestamps is the length of that option with its padding; whatever is longer has
// more to say.
const timestamps = 12

func (a *acks) drop() {
	if a.held != nil {
		a.held.DecRef()
		a.held = nil
	}
}

// arm starts the timer. It is not stopped when the answer comes: at the rate of
// requests that would cost more than it ringing in vain once in ackDelay.
func (a *acks) arm() {
	a.armed, a.armedAt = true, a.holding
	if a.timer == nil {
		a.timer = time.AfterFunc(ackDelay, a.rang)
	} else {
		a.timer.Reset(ackDelay)
	}
}

func (a *acks) rang() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.armed = false
	switch {
	case a.held == nil || a.closed:
	case a.armedAt != a.holding: // a later one
		a.arm()
	default:
		a.sent = 0
		a.link.write(a.held)
		a.drop()
	}
}

// close writes what is held: what follows is not known to say it.
func (a *acks) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	if a.timer != nil {
		a.timer.Stop()
	}
	if a.held != nil {
		a.link.write(a.held)
		a.drop()
	}
}
