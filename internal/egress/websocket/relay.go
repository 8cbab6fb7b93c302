package websocket

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

const (
	bufferSize = 32 << 10
	readAhead  = 4 << 10
	closeWait  = 3 * time.Second
	maxReason  = 123 // RFC 6455 section 5.5.1, without the code
)

// Options of a Relay. Zero limits are refused by Relay.
type Options struct {
	// Judge reads one message of the client whole and returns what is sent in its
	// place, and what to call once it is sent; a *Violation ends the connection.
	// Nil: messages pass unread.
	Judge func(message io.Reader) (send []byte, sent func(), err error)
	// Scrub cleans one message of the upstream, Clean a control frame in place.
	Scrub func(message io.Reader) io.Reader
	Clean func([]byte)

	MaxMessage  int64
	Stall, Idle time.Duration
}

// Violation says why a connection was ended by Relay itself.
type Violation struct {
	Code     ws.StatusCode
	Reason   string
	Upstream bool // the upstream's doing, else the client's
}

func (v *Violation) Error() string { return v.Reason }

// Ends that are nobody's fault.
var (
	errClosed = errors.New("websocket: closed")
	errIdle   = errors.New("no frame came for too long")
)

// Relay carries frames until one side closes, breaks a rule or goes away, or ctx
// ends (its cause is told to the client). It closes both. The error is a
// *Violation, the cause of ctx, or nil.
func Relay(ctx context.Context, client, upstream io.ReadWriteCloser, o Options) error {
	defer client.Close()
	defer upstream.Close()
	if o.MaxMessage <= 0 || o.Stall <= 0 || o.Idle <= 0 {
		return &Violation{ws.StatusInternalServerError, "no limits", false}
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	idle := time.AfterFunc(o.Idle, func() { end(errIdle) })
	defer idle.Stop()
	touch := func() { idle.Reset(o.Idle) }
	in := newSide(client, false, o.Stall, touch)
	out := newSide(upstream, true, o.Stall, touch)
	ended := make(chan error, 2)
	go func() { ended <- (&pump{from: in, to: out, o: &o}).run() }()
	go func() { ended <- (&pump{from: out, to: in, o: &o}).run() }()

	var first error
	running := 2
	select {
	case first = <-ended:
		running--
	case <-ctx.Done():
		first = context.Cause(ctx)
	}
	v := (*Violation)(nil)
	switch {
	case errors.Is(first, errClosed): // and passed on; the answer may come
	case errors.As(first, &v):
		if v.Upstream {
			out.sendClose(v.Code, "")
			in.sendClose(ws.StatusInternalServerError, v.Reason)
		} else {
			in.sendClose(v.Code, v.Reason)
			out.sendClose(ws.StatusGoingAway, "")
		}
	case ctx.Err() != nil:
		upstream.Close() // at once: nothing passes any more
		in.sendClose(ws.StatusPolicyViolation, first.Error())
	default: // one side broke off: without a close the other sees that it did
		running = -running
	}
	timer := time.NewTimer(closeWait)
	defer timer.Stop()
	if v != nil && !v.Upstream {
		// What the client still sends must not turn our close into a reset.
		time.AfterFunc(closeWait, func() { client.Close() })
		io.CopyN(io.Discard, in.r, 1<<20)
	}
	for ; running > 0; running-- {
		select {
		case <-ended:
		case <-timer.C:
			running = 0
		}
	}
	client.Close()
	upstream.Close()
	if v != nil || ctx.Err() != nil {
		return first
	}
	return nil
}

// side is one end of the connection.
type side struct {
	upstream bool
	conn     io.ReadWriteCloser
	r        *bufio.Reader
	touch    func()

	header     [ws.MaxHeaderSize]byte
	fragmented bool

	mu     sync.Mutex // of what follows: writing
	stall  time.Duration
	timer  *time.Timer
	closed bool
	small  [ws.MaxHeaderSize + ws.MaxControlFramePayloadSize]byte
}

func newSide(c io.ReadWriteCloser, upstream bool, stall time.Duration, touch func()) *side {
	s := &side{upstream: upstream, conn: c, r: bufio.NewReaderSize(c, readAhead), touch: touch, stall: stall}
	s.timer = time.AfterFunc(stall, func() { c.Close() })
	s.timer.Stop()
	return s
}

func (s *side) breaks(code ws.StatusCode, format string, args ...any) error {
	who := "the client"
	if s.upstream {
		who = "the upstream"
	}
	return &Violation{code, who + ": " + fmt.Sprintf(format, args...), s.upstream}
}

// next reads and checks one frame's header.
func (s *side) next() (ws.Header, error) {
	h, err := ws.ReadHeaderBuffer(s.r, s.header[:])
	if err != nil {
		if errors.Is(err, ws.ErrHeaderLengthMSB) {
			err = s.breaks(ws.StatusProtocolError, "a frame's length is negative")
		}
		return h, err
	}
	s.touch()
	state := ws.StateServerSide
	if s.upstream {
		state = ws.StateClientSide
	}
	if s.fragmented {
		state = state.Set(ws.StateFragmented)
	}
	if err := ws.CheckHeader(h, state); err != nil {
		return h, s.breaks(ws.StatusProtocolError, "%v", err)
	}
	if h.OpCode.IsData() || h.OpCode == ws.OpContinuation {
		s.fragmented = !h.Fin
	}
	return h, nil
}

// write sends one frame whose payload stands in b behind MaxHeaderSize bytes of
// room. The payload is masked in place where it has to be.
func (s *side) write(op ws.OpCode, fin bool, b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writeLocked(op, fin, b)
}

func (s *side) writeLocked(op ws.OpCode, fin bool, b []byte) error {
	if s.closed {
		return errClosed
	}
	payload := b[ws.MaxHeaderSize:]
	h := ws.Header{Fin: fin, OpCode: op, Length: int64(len(payload))}
	if s.upstream {
		h.Masked, h.Mask = true, ws.NewMask()
		ws.Cipher(payload, h.Mask, 0)
	}
	start := ws.MaxHeaderSize - ws.HeaderSize(h)
	if err := ws.WriteHeader(&into{b[start:start]}, h); err != nil {
		return err
	}
	s.timer.Reset(s.stall)
	_, err := s.conn.Write(b[start:])
	s.timer.Stop()
	if op == ws.OpClose {
		s.closed = true
	}
	return err
}

// into appends to a slice that has the room.
type into struct{ b []byte }

func (w *into) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

func (s *side) control(op ws.OpCode, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := copy(s.small[ws.MaxHeaderSize:], payload)
	return s.writeLocked(op, true, s.small[:ws.MaxHeaderSize+n])
}

func (s *side) sendClose(code ws.StatusCode, reason string) {
	for len(reason) > maxReason || !utf8.ValidString(reason) {
		reason = reason[:min(len(reason)-1, maxReason)]
	}
	body := ws.NewCloseFrameBody(code, reason)
	// The other pump may be stuck in a write to somebody who does not read.
	stuck := time.AfterFunc(closeWait, func() { s.conn.Close() })
	defer stuck.Stop()
	s.control(ws.OpClose, body)
}

// pump carries one direction.
type pump struct {
	from, to *side
	o        *Options
	buf      []byte
}

func (p *pump) run() error {
	p.buf = make([]byte, ws.MaxHeaderSize+bufferSize)
	for {
		h, err := p.data()
		if err != nil {
			return err
		}
		if err := p.message(h); err != nil {
			return err
		}
	}
}

// data returns the next frame that is no control frame; those it passes on.
func (p *pump) data() (ws.Header, error) {
	for {
		h, err := p.from.next()
		if err != nil || !h.OpCode.IsControl() {
			return h, err
		}
		var room [ws.MaxControlFramePayloadSize]byte
		payload := room[:h.Length]
		if _, err := io.ReadFull(p.from.r, payload); err != nil {
			return h, err
		}
		if h.Masked {
			ws.Cipher(payload, h.Mask, 0)
		}
		if h.OpCode == ws.OpClose {
			if err := p.checkClose(payload); err != nil {
				return h, err
			}
		}
		if p.from.upstream && p.o.Clean != nil {
			p.o.Clean(payload)
		}
		if err := p.to.control(h.OpCode, payload); err != nil {
			return h, err
		}
		if h.OpCode == ws.OpClose {
			return h, errClosed
		}
	}
}

func (p *pump) checkClose(payload []byte) error {
	switch {
	case len(payload) == 0:
		return nil
	case len(payload) == 1:
		return p.from.breaks(ws.StatusProtocolError, "half a close code")
	}
	code := ws.StatusCode(uint16(payload[0])<<8 | uint16(payload[1]))
	if err := ws.CheckCloseFrameData(code, string(payload[2:])); err != nil || code >= 5000 {
		return p.from.breaks(ws.StatusProtocolError, "close code %d cannot be sent: %v", code, err)
	}
	return nil
}

// message carries what h begins.
func (p *pump) message(h ws.Header) error {
	m := &message{p: p, text: h.OpCode == ws.OpText}
	if err := m.frame(h); err != nil {
		return err
	}
	var src io.Reader = m
	if !p.from.upstream && p.o.Judge != nil {
		send, sent, err := p.o.Judge(m)
		if m.err != nil {
			err = m.err
		}
		if err != nil {
			return err
		}
		defer sent()
		src = &whole{send}
	} else if p.from.upstream && p.o.Scrub != nil {
		src = p.o.Scrub(m)
	}
	op := h.OpCode
	for {
		n, err := src.Read(p.buf[ws.MaxHeaderSize:])
		if m.err != nil {
			return m.err
		}
		if err != nil && err != io.EOF {
			return err
		}
		if n > 0 || err == io.EOF {
			if werr := p.to.write(op, err == io.EOF, p.buf[:ws.MaxHeaderSize+n]); werr != nil {
				return werr
			}
			op = ws.OpContinuation
		}
		if err == io.EOF {
			return nil
		}
	}
}

// whole is a reader that tells the end with the last bytes.
type whole struct{ b []byte }

func (w *whole) Read(p []byte) (int, error) {
	n := copy(p, w.b)
	if w.b = w.b[n:]; len(w.b) == 0 {
		return n, io.EOF
	}
	return n, nil
}

// message reads the payload of all frames of one message.
type message struct {
	p     *pump
	text  bool
	valid runes
	total int64

	left int64
	fin  bool
	mask [4]byte
	off  int
	err  error // other than the end
}

func (m *message) frame(h ws.Header) error {
	if h.Length > m.p.o.MaxMessage-m.total {
		return m.p.from.breaks(ws.StatusMessageTooBig, "a message is longer than %d bytes", m.p.o.MaxMessage)
	}
	m.total += h.Length
	m.left, m.fin, m.mask, m.off = h.Length, h.Fin, h.Mask, 0
	return nil
}

func (m *message) fail(err error) (int, error) {
	m.err = err
	if err == io.EOF {
		m.err = io.ErrUnexpectedEOF
	}
	return 0, m.err
}

func (m *message) Read(b []byte) (int, error) {
	for m.left == 0 && !m.fin {
		h, err := m.p.data()
		if err == nil {
			err = m.frame(h)
		}
		if err != nil {
			return m.fail(err)
		}
	}
	n := 0
	if m.left > 0 {
		var err error
		n, err = m.p.from.r.Read(b[:min(int64(len(b)), m.left)])
		if err != nil && n == 0 {
			return m.fail(err)
		}
		m.p.from.touch()
		if !m.p.from.upstream {
			ws.Cipher(b[:n], m.mask, m.off)
		}
		m.off += n
		m.left -= int64(n)
	}
	last := m.left == 0 && m.fin
	if m.text && !m.valid.add(b[:n], last) {
		return m.fail(m.p.from.breaks(ws.StatusInvalidFramePayloadData, "a text message is not UTF-8"))
	}
	if last {
		return n, io.EOF
	}
	return n, nil
}

// runes checks UTF-8 that comes in pieces.
type runes struct{ rest []byte }

func (u *runes) add(b []byte, last bool) bool {
	for len(u.rest) > 0 && len(b) > 0 {
		u.rest, b = append(u.rest, b[0]), b[1:]
		if utf8.FullRune(u.rest) {
			if !utf8.Valid(u.rest) {
				return false
			}
			u.rest = u.rest[:0]
		}
	}
	tail := 0
	for i := 1; i <= min(3, len(b)); i++ {
		if utf8.RuneStart(b[len(b)-i]) {
			if !utf8.FullRune(b[len(b)-i:]) {
				tail = i
			}
			break
		}
	}
	if !utf8.Valid(b[:len(b)-tail]) {
		return false
	}
	u.rest = append(u.rest, b[len(b)-tail:]...)
	return !last || len(u.rest) == 0
}
