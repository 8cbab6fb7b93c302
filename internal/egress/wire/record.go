package wire

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/egress/direct"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Pipes carry records to the controller and receipts back. They are pipes and
// not the stream because a pipe costs half: a reader of a socket also wakes the
// writer.
type Pipes struct {
	In  io.ReadCloser
	Out io.WriteCloser
}

// TakeRecords makes c the end that records. To be called before Serve.
func (c *Conn) TakeRecords(p Pipes, ctrl Controller) { c.records = newRecords(p, ctrl) }

// SendRecords makes c the end that asks for it. To be called before Serve.
func (c *Conn) SendRecords(p Pipes) { c.records = newRecords(p, nil) }

// records is one end of the pipes. Frames are as those of the stream; numbers
// in them are uvarint, and strings have their length before them.
type records struct {
	pipes Pipes
	in    *bufio.Reader
	ctrl  Controller // nil at the end that asks
	slots chan struct{}

	writing sync.Mutex
	out     io.Writer
	queue   []byte // records that wait to be written together
	broken  error  // why none can be written any more

	mu      sync.Mutex
	last    uint64
	pending map[uint64]chan receipt
	ended   bool
}

const (
	maxCredentials = 64       // fetched at a time
	maxAnswers     = 16 << 10 // bytes of receipts that wait to be written together
	maxQueue       = 64 << 10 // the same of records
)

// receipt answers a record.
type receipt struct {
	code, message string // of a refusal
	secret        []byte
}

func newRecords(p Pipes, ctrl Controller) *records {
	r := &records{pipes: p, ctrl: ctrl, out: p.Out, slots: make(chan struct{}, maxCredentials), pending: map[uint64]chan receipt{}}
	in := io.Reader(p.In)
	if f := direct.New(p.In); f != nil {
		in = f
	}
	if f := direct.New(p.Out); f != nil {
		r.out = f
	}
	r.in = bufio.NewReaderSize(in, 64<<10)
	return r
}

// Client is the gateway's view of its controller.
type Client struct{ Conn *Conn }

// Authorize records e and, only after it is recorded, returns the credential
// that the recorded act needs: one round trip, in this order. use may be nil.
func (c Client) Authorize(ctx context.Context, e v1.Event, use *CredentialUse) (secret.Value, error) {
	if c.Conn == nil || c.Conn.records == nil {
		return secret.Value{}, ErrClosed
	}
	r, err := c.Conn.records.ask(ctx, e, use)
	switch {
	case err != nil:
		return secret.Value{}, err
	case r.code != "" || r.message != "":
		return secret.Value{}, &RemoteError{r.code, r.message}
	case use == nil:
		return secret.Value{}, nil
	}
	v := secret.New(r.secret)
	clear(r.secret)
	if v.Empty() {
		return v, &RemoteError{CodeNoCredential, "the credential is empty"}
	}
	return v, nil
}

// Record implements event.Recorder.
func (c Client) Record(e v1.Event) error {
	_, err := c.Authorize(context.Background(), e, nil)
	return err
}

var errTooLong = errors.New("wire: the event is too long to be recorded")

// ask sends a record and waits for its receipt.
func (r *records) ask(ctx context.Context, e v1.Event, use *CredentialUse) (receipt, error) {
	answer := make(chan receipt, 1)
	r.mu.Lock()
	if r.ended {
		r.mu.Unlock()
		return receipt{}, ErrClosed
	}
	r.last++
	id := r.last
	r.pending[id] = answer
	r.mu.Unlock()
	b := appendRecord(make([]byte, 4, 1<<10), id, e, use)
	err := errTooLong
	if len(b)-4 <= MaxToController {
		binary.BigEndian.PutUint32(b, uint32(len(b)-4))
		err = r.send(b)
	}
	if err != nil {
		r.mu.Lock()
		delete(r.pending, id)
		r.mu.Unlock()
		return receipt{}, err
	}
	select {
	case got, ok := <-answer:
		if !ok {
			return receipt{}, ErrClosed
		}
		return got, nil
	case <-ctx.Done():
		// The entry stays: the late answer must find somebody.
		return receipt{}, ctx.Err()
	}
}

// send writes a record, together with those of all who have one to send now: each
// write wakes the controller.
func (r *records) send(b []byte) error {
	r.writing.Lock()
	if len(r.queue)+len(b) > maxQueue {
		if err := r.flush(); err != nil {
			r.writing.Unlock()
			return err
		}
	}
	r.queue = append(r.queue, b...)
	r.writing.Unlock()
	runtime.Gosched() // who else can run runs first, up to here
	r.writing.Lock()
	defer r.writing.Unlock()
	return r.flush()
}

func (r *records) flush() error {
	if len(r.queue) == 0 {
		return r.broken
	}
	if r.broken == nil {
		_, r.broken = r.out.Write(r.queue)
	}
	r.queue = r.queue[:0]
	return r.broken
}

func (r *records) write(b []byte) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	_, err := r.out.Write(b)
	return err
}

// end wakes everyone who waits.
func (r *records) end() {
	r.pipes.In.Close()
	r.pipes.Out.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	for id, ch := range r.pending {
		delete(r.pending, id)
		close(ch)
	}
}

// read serves until the other end is gone. The goroutine that reads records also
// writes the log, and answers all that has arrived by then at once.
func (r *records) read(ctx context.Context) error {
	var answers []byte
	for {
		if len(answers) > 0 && (!r.another() || len(answers) > maxAnswers) {
			if err := r.write(answers); err != nil {
				return err
			}
			answers = answers[:0]
		}
		limit := MaxToController
		if r.ctrl == nil {
			limit = MaxToGateway
		}
		b, err := next(r.in, limit)
		if err != nil {
			return err
		}
		if r.ctrl == nil {
			err = r.received(b)
		} else {
			answers, err = r.serve(ctx, b, answers)
		}
		if err != nil {
			return err
		}
	}
}

// another reports whether the next frame is there already.
func (r *records) another() bool {
	if r.in.Buffered() < 4 {
		return false
	}
	head, err := r.in.Peek(4)
	return err == nil && uint64(r.in.Buffered()) >= 4+uint64(binary.BigEndian.Uint32(head))
}

// received takes the answer to a record.
func (r *records) received(b []byte) error {
	defer clear(b)
	p := &parser{b: b}
	id := p.number()
	got := receipt{code: p.text(), message: p.text(), secret: bytes.Clone(p.bytes())}
	if p.failed || len(p.b) > 0 {
		return fmt.Errorf("%w: impossible receipt", ErrProtocol)
	}
	r.mu.Lock()
	ch, ok := r.pending[id]
	delete(r.pending, id)
	r.mu.Unlock()
	if !ok {
		return fmt.Errorf("%w: a receipt that nobody waits for", ErrProtocol)
	}
	ch <- got
	return nil
}

// serve records, and adds the receipt to answers. A credential may have to be
// fetched and is answered on its own.
func (r *records) serve(ctx context.Context, b, answers []byte) ([]byte, error) {
	id, e, use, err := parseRecord(b)
	if err != nil {
		return nil, err
	}
	if err := r.ctrl.Record(Clean(e)); err != nil {
		return appendReceipt(answers, id, receipt{code: CodeNoRecord, message: err.Error()}), nil
	}
	if use == nil {
		return appendReceipt(answers, id, receipt{}), nil
	}
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	go func() {
		defer func() { <-r.slots }()
		var got receipt
		v, err := r.ctrl.Credential(clean(use.Name, 128), vocabulary.Action(clean(string(use.Action), 128)), vocabulary.Resource(clean(string(use.Resource), maxField)))
		if err != nil {
			got = receipt{code: CodeNoCredential, message: err.Error()}
		} else {
			got.secret = v.Reveal()
		}
		answer := appendReceipt(nil, id, got)
		r.write(answer) // whoever does not read it has ended, which the reader sees
		clear(answer)
	}()
	return answers, nil
}

func appendReceipt(b []byte, id uint64, r receipt) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	b = binary.AppendUvarint(b, id)
	if len(r.message) > maxErrorText {
		r.message = r.message[:maxErrorText]
	}
	b = appendText(b, r.code)
	b = appendText(b, r.message)
	b = binary.AppendUvarint(b, uint64(len(r.secret)))
	b = append(b, r.secret...)
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-4))
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendRecord(b []byte, id uint64, e v1.Event, use *CredentialUse) []byte {
	b = binary.AppendUvarint(b, id)
	for _, s := range []string{e.Actor, string(e.Action), string(e.Resource), e.Reason.Code, e.Reason.Message, e.Reason.Remedy, e.Reason.Rule.File} {
		b = appendText(b, s)
	}
	for _, n := range []int{int(e.Verdict), e.Reason.Rule.Line, e.Reason.Rule.Column, len(e.Attrs)} {
		b = binary.AppendUvarint(b, uint64(max(n, 0)))
	}
	for k, v := range e.Attrs {
		b = appendText(appendText(b, k), v)
	}
	if use == nil {
		return append(b, 0)
	}
	b = append(b, 1)
	return appendText(appendText(appendText(b, use.Name), string(use.Action)), string(use.Resource))
}

// parseRecord reads what a hostile gateway may have written.
func parseRecord(b []byte) (id uint64, e v1.Event, use *CredentialUse, err error) {
	p := &parser{b: b}
	id = p.number()
	e.Actor, e.Action, e.Resource = p.text(), vocabulary.Action(p.text()), vocabulary.Resource(p.text())
	e.Reason.Code, e.Reason.Message, e.Reason.Remedy, e.Reason.Rule.File = p.text(), p.text(), p.text(), p.text()
	verdict := p.number()
	e.Verdict = vocabulary.Verdict(min(verdict, 255))
	e.Reason.Rule.Line, e.Reason.Rule.Column = p.small(), p.small()
	if n := p.number(); n > 0 && n <= uint64(len(p.b)) {
		e.Attrs = make(map[string]string, min(n, maxAttrs))
		for range n {
			k, v := p.text(), p.text()
			if len(e.Attrs) < maxAttrs && !p.failed {
				e.Attrs[k] = v
			}
		}
	} else if n > 0 {
		p.failed = true
	}
	switch p.number() {
	case 0:
	case 1:
		use = &CredentialUse{Name: p.text(), Action: vocabulary.Action(p.text()), Resource: vocabulary.Resource(p.text())}
	default:
		p.failed = true
	}
	if p.failed || id == 0 || len(p.b) > 0 || !known(e.Verdict) || verdict > 255 {
		return 0, v1.Event{}, nil, fmt.Errorf("%w: impossible record", ErrProtocol)
	}
	return id, e, use, nil
}

func known(v vocabulary.Verdict) bool {
	return v == vocabulary.Deny || v == vocabulary.Ask || v == vocabulary.Allow
}

// parser reads until something does not fit; then it stays failed and yields
// zeroes.
type parser struct {
	b      []byte
	failed bool
}

func (p *parser) number() uint64 {
	n, used := binary.Uvarint(p.b)
	if p.failed || used <= 0 {
		p.failed = true
		return 0
	}
	p.b = p.b[used:]
	return n
}

func (p *parser) small() int {
	n := p.number()
	if n > 1<<31-1 {
		p.failed = true
		return 0
	}
	return int(n)
}

func (p *parser) text() string { return string(p.bytes()) }

func (p *parser) bytes() []byte {
	n := p.number()
	if p.failed || n > uint64(len(p.b)) {
		p.failed = true
		return nil
	}
	s := p.b[:n]
	p.b = p.b[n:]
	return s
}
