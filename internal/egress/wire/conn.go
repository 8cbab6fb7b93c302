package wire

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

// Handler answers one request. file is the descriptor that came with it, or
// nil; the handler owns it. The answer is marshalled as JSON.
type Handler func(ctx context.Context, kind string, body json.RawMessage, file *os.File) (any, error)

// Limits of one end.
type Limits struct {
	MaxRead, MaxWrite int // bytes of a frame
	Concurrent        int // requests served at a time
	Files             bool
}

// The limits of the two ends.
var (
	ControllerLimits = Limits{MaxRead: MaxToController, MaxWrite: MaxToGateway, Concurrent: 64}
	GatewayLimits    = Limits{MaxRead: MaxToGateway, MaxWrite: MaxToController, Concurrent: 8, Files: true}
)

// Conn is one end. Safe for concurrent use.
type Conn struct {
	rw      io.ReadWriteCloser
	in      *bufio.Reader
	files   *fileReader
	limits  Limits
	handler Handler
	slots   chan struct{}
	records *records // nil: none travel

	writing sync.Mutex

	mu      sync.Mutex
	last    uint64
	pending map[uint64]chan frame
	dead    error
	why     error // the first reason, nil for a clean end
}

// NewConn wraps a stream; requests are handled once Serve runs. Descriptors
// need rw to be a *net.UnixConn.
func NewConn(rw io.ReadWriteCloser, limits Limits, handler Handler) *Conn {
	c := &Conn{
		rw: rw, limits: limits, handler: handler,
		slots:   make(chan struct{}, limits.Concurrent),
		pending: map[uint64]chan frame{},
	}
	var r io.Reader = rw
	if u, ok := rw.(*net.UnixConn); ok && limits.Files {
		c.files = &fileReader{conn: u}
		r = c.files
	}
	c.in = bufio.NewReaderSize(r, 16<<10)
	return c
}

// Serve reads until the connection ends and returns why: nil for a clean end.
// Handlers get a context that ends with it.
func (c *Conn) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c.records != nil {
		go func() { c.end(cleanEnd(c.records.read(ctx))) }()
	}
	c.end(cleanEnd(c.read(ctx)))
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why
}

// cleanEnd is nil for an end that is nobody's fault.
func cleanEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

func (c *Conn) read(ctx context.Context) error {
	for {
		f, err := decode(c.in, c.limits.MaxRead)
		if err != nil {
			return err
		}
		if f.Reply {
			c.mu.Lock()
			ch, ok := c.pending[f.ID]
			delete(c.pending, f.ID)
			c.mu.Unlock()
			if !ok {
				return fmt.Errorf("%w: an answer that nobody waits for", ErrProtocol)
			}
			ch <- f
			continue
		}
		var file *os.File
		if f.File {
			if file = c.files.take(); file == nil {
				return fmt.Errorf("%w: a descriptor was announced and did not come", ErrProtocol)
			}
		}
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		go func() {
			defer func() { <-c.slots }()
			c.answer(ctx, f, file)
		}()
	}
}

func (c *Conn) answer(ctx context.Context, f frame, file *os.File) {
	reply := frame{ID: f.ID, Reply: true}
	value, err := c.handler(ctx, f.Kind, f.Body, file)
	if errors.Is(err, ErrProtocol) {
		c.end(err)
		return
	}
	if err == nil && value != nil {
		reply.Body, err = json.Marshal(value)
	}
	if err != nil {
		reply.Body, reply.Error, reply.Code = nil, err.Error(), "failed"
		if re := (*RemoteError)(nil); errors.As(err, &re) {
			reply.Code = re.Code
		}
	}
	if err := c.write(reply, nil); err != nil {
		c.end(err)
	}
}

// Call asks the other side and waits. reply may be nil. file, if any, is sent
// along and stays the caller's.
func (c *Conn) Call(ctx context.Context, kind string, body, reply any, file *os.File) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("wire: %w", err)
	}
	ch := make(chan frame, 1)
	c.mu.Lock()
	if c.dead != nil {
		c.mu.Unlock()
		return c.dead
	}
	c.last++
	id := c.last
	c.pending[id] = ch
	c.mu.Unlock()
	if err := c.write(frame{ID: id, Kind: kind, File: file != nil, Body: raw}, file); err != nil {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
		return err
	}
	select {
	case f, ok := <-ch:
		switch {
		case !ok:
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.dead
		case f.Code != "" || f.Error != "":
			return &RemoteError{f.Code, f.Error}
		case reply == nil:
			return nil
		}
		if err := json.Unmarshal(f.Body, reply); err != nil {
			return fmt.Errorf("%w: unreadable answer to %s", ErrProtocol, kind)
		}
		return nil
	case <-ctx.Done():
		// The entry stays: the late answer must find somebody.
		return ctx.Err()
	}
}

func (c *Conn) write(f frame, file *os.File) error {
	b, err := encode(f, c.limits.MaxWrite)
	if err != nil {
		return err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if file != nil {
		u, ok := c.rw.(*net.UnixConn)
		if !ok {
			return errors.New("wire: this connection carries no descriptors")
		}
		return writeWithFile(u, b, file)
	}
	_, err = c.rw.Write(b)
	return err
}

// end wakes everyone who waits. The first reason stays.
func (c *Conn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead != nil {
		return
	}
	c.why = err
	c.rw.Close()
	if c.records != nil {
		c.records.end()
	}
	if c.dead = ErrClosed; err != nil {
		c.dead = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	for id, ch := range c.pending {
		delete(c.pending, id)
		close(ch)
	}
}

// Close ends the connection.
func (c *Conn) Close() error {
	c.end(nil)
	return nil
}
