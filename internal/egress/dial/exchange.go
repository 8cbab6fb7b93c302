package dial

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/bulkhead-dev/bulkhead/internal/egress/gather"
)

// exchanger sends small requests over HTTP/1.1 and reads their answers in the
// goroutine that asks. net/http's Transport has two more for each connection, and
// a request passes from one to the other four times; with bodies that can be
// longer than what a connection takes unread it has to, with small ones not.
// What is written and read is written and read by net/http all the same
// (Request.Write, ReadResponse); here is when, and what becomes of connections.
type exchanger struct {
	dial func(ctx context.Context, addr string, secure bool) (net.Conn, error)

	mu    sync.Mutex
	idle  map[target][]*upstreamConn // the one used last is last
	count int
	sweep *time.Timer // while some are idle
}

// target is what a connection may be used again for.
type target struct {
	addr   string
	secure bool
}

const (
	// smallRequest is the most of a request, head and body apart, that is written
	// before anything is read: a connection takes twice that without its reader.
	smallRequest  = 16 << 10
	maxInterim    = 5               // 1xx answers to one request
	sweepEvery    = 5 * time.Second // for connections that were closed
	lateAnswer    = time.Second     // for one that came although writing failed
	keptWriteSize = 64 << 10        // of a buffer to be used again
)

// takes reports whether req is one for an exchanger.
func (x *exchanger) takes(req *http.Request) bool {
	if req.ProtoMajor != 1 || req.Method == http.MethodConnect {
		return false
	}
	for _, name := range []string{"Upgrade", "Expect", "Connection", "Te", "Trailer"} {
		if len(req.Header[name]) > 0 {
			return false
		}
	}
	if req.Body != nil && req.Body != http.NoBody && (req.GetBody == nil || req.ContentLength < 0 || req.ContentLength > smallRequest) {
		return false
	}
	size := len(req.Method) + len(req.URL.RawPath) + len(req.URL.Path) + len(req.URL.RawQuery)
	for name, values := range req.Header {
		for _, v := range values {
			size += len(name) + len(v) + 4
		}
	}
	return size <= smallRequest
}

// roundTrip is http.RoundTripper's, for requests that takes has accepted.
func (x *exchanger) roundTrip(req *http.Request, to target) (*http.Response, error) {
	body := req.Body
	if body != nil {
		defer body.Close()
	}
	for name, values := range req.Header {
		if !httpguts.ValidHeaderFieldName(name) {
			return nil, fmt.Errorf("invalid header name %q", name)
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return nil, fmt.Errorf("invalid value of header %q", name)
			}
		}
	}
	written := buffers.Get().(*bytes.Buffer)
	defer func() {
		clear(written.Bytes()) // there may be a credential in it
		written.Reset()
		if written.Cap() <= keptWriteSize {
			buffers.Put(written)
		}
	}()
	if err := req.Write(written); err != nil {
		return nil, err
	}
	ctx := req.Context()
	for {
		c, err := x.get(ctx, to)
		if err != nil {
			return nil, err
		}
		resp, err := c.exchange(req, written.Bytes())
		switch {
		case err == nil:
			return resp, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case c.used && c.unanswered && replayable(req):
			// The upstream gave the idle connection up at this moment. It has
			// said nothing, and asking twice is as asking once.
			continue
		}
		return nil, err
	}
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// replayable is for methods that change nothing (RFC 9110 section 9.2.1).
func replayable(req *http.Request) bool {
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// upstreamConn is a connection, used by one request at a time.
type upstreamConn struct {
	net.Conn
	x      *exchanger
	to     target
	silent func() bool // nothing has come, not the end either
	in     *bufio.Reader
	left   int64 // bytes that may still be read of heads

	used       bool // for a request before
	unanswered bool // no byte of an answer to this one
	since      time.Time
	unwatch    func() bool // ends the watch over the request's context
	once       sync.Once
}

// get takes the connection used last, or makes one.
func (x *exchanger) get(ctx context.Context, to target) (*upstreamConn, error) {
	for {
		x.mu.Lock()
		list := x.idle[to]
		if len(list) == 0 {
			x.mu.Unlock()
			break
		}
		c := list[len(list)-1]
		x.remove(to, len(list)-1)
		x.mu.Unlock()
		if c.silent() {
			return c, nil
		}
		c.Close()
	}
	conn, err := x.dial(ctx, to.addr, to.secure)
	if err != nil {
		return nil, err
	}
	c := &upstreamConn{Conn: conn, x: x, to: to}
	switch g := conn.(type) {
	case *gather.Conn:
		c.silent = g.Silent
	default:
		t := gather.Under(conn)
		c.Conn, c.silent = t, t.Silent
	}
	c.in = bufio.NewReaderSize(c, readBuffer)
	return c, nil
}

// remove takes one connection out of the pool. x.mu is held.
func (x *exchanger) remove(to target, i int) {
	list := x.idle[to]
	copy(list[i:], list[i+1:])
	list[len(list)-1] = nil
	if list = list[:len(list)-1]; len(list) == 0 {
		delete(x.idle, to)
	} else {
		x.idle[to] = list
	}
	x.count--
}

// put keeps a connection whose answer was read to its end, and nothing more.
func (x *exchanger) put(c *upstreamConn) {
	if c.in.Buffered() > 0 {
		c.Close()
		return
	}
	c.used, c.since = true, time.Now()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.count >= maxIdle || len(x.idle[c.to]) >= maxIdlePerHost {
		c.Close()
		return
	}
	if x.idle == nil {
		x.idle = map[target][]*upstreamConn{}
	}
	x.idle[c.to] = append(x.idle[c.to], c)
	if x.count++; x.count == 1 {
		if x.sweep == nil {
			x.sweep = time.AfterFunc(sweepEvery, x.tidy)
		} else {
			x.sweep.Reset(sweepEvery)
		}
	}
}

// tidy closes what the upstream has closed, and what has been idle for long.
func (x *exchanger) tidy() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for to, list := range x.idle {
		for i := len(list) - 1; i >= 0; i-- {
			if c := list[i]; time.Since(c.since) > idleTimeout || !c.silent() {
				c.Close()
				x.remove(to, i)
			}
		}
	}
	if x.count > 0 {
		x.sweep.Reset(sweepEvery)
	}
}

// closeIdle empties the pool.
func (x *exchanger) closeIdle() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, list := range x.idle {
		for _, c := range list {
			c.Close()
		}
	}
	x.idle, x.count = nil, 0
}

var errHeadTooLong = fmt.Errorf("the head of its answer is longer than %d bytes", maxHeaderBytes)

// Read counts the bytes of heads.
func (c *upstreamConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errHeadTooLong
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
	if n > 0 {
		c.unanswered = false
	}
	c.left -= int64(n)
	return n, err
}

// exchange writes a request and reads the head of its answer. The connection goes
// back to the pool with the end of the answer's body, and else is closed.
func (c *upstreamConn) exchange(req *http.Request, written []byte) (*http.Response, error) {
	c.unanswered, c.left, c.once = true, maxHeaderBytes, sync.Once{}
	c.unwatch = context.AfterFunc(req.Context(), func() { c.Close() })
	_, werr := c.Write(written)
	if werr != nil {
		// It may have answered before it closed.
		c.SetReadDeadline(time.Now().Add(lateAnswer))
	}
	resp, err := c.head(req)
	if err != nil {
		c.finish(false)
		if werr != nil {
			return nil, werr
		}
		return nil, err
	}
	c.left = 1<<63 - 1
	again := werr == nil && !resp.Close && resp.StatusCode != http.StatusSwitchingProtocols
	if resp.Body == http.NoBody || resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body = http.NoBody
		c.finish(again)
		return resp, nil
	}
	if werr != nil {
		c.SetReadDeadline(time.Time{})
	}
	resp.Body = &answerBody{ReadCloser: resp.Body, c: c, again: again, ctx: req.Context()}
	return resp, nil
}

func (c *upstreamConn) head(req *http.Request) (*http.Response, error) {
	for range maxInterim + 1 {
		resp, err := http.ReadResponse(c.in, req)
		if err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) && c.unanswered {
				err = io.EOF // nothing at all
			}
			return nil, err
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, nil
		}
	}
	return nil, errors.New("too many interim answers")
}

// finish gives the connection back or up, once.
func (c *upstreamConn) finish(again bool) {
	c.once.Do(func() {
		if !c.unwatch() || !again { // false: it is being closed
			c.Close()
			return
		}
		c.x.put(c)
	})
}

// answerBody is the body of an answer.
type answerBody struct {
	io.ReadCloser
	c     *upstreamConn
	ctx   context.Context
	again bool
	end   error
}

func (b *answerBody) Read(p []byte) (int, error) {
	if b.end != nil {
		return 0, b.end
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		if b.c.finish(err == io.EOF && b.again); err != io.EOF && b.ctx.Err() != nil {
			err = context.Cause(b.ctx)
		}
		b.end = err
	}
	return n, err
}

// Close before the end gives the connection up.
func (b *answerBody) Close() error {
	if b.end == nil {
		b.end = http.ErrBodyReadAfterClose
		b.c.finish(false)
	}
	return nil
}
