package framing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
)

const (
	markHeader = "Bulkhead-Refused"
	maxPhrase  = 300
)

type connKey struct{}

// Context makes the connection known to the requests that come over it; c may be
// any connection.
func Context(ctx context.Context, c net.Conn) context.Context {
	if fc, ok := c.(*Conn); ok {
		return context.WithValue(ctx, connKey{}, fc)
	}
	return ctx
}

// From returns the connection of a request, or nil.
func From(ctx context.Context) *Conn {
	c, _ := ctx.Value(connKey{}).(*Conn)
	return c
}

// Refusal reports whether r stands in the place of a refused head, and why that
// was refused.
func Refusal(r *http.Request) (message string, ok bool) {
	// The mark is unknown until we have made it: no client can send it.
	got := r.Header[markHeader]
	if len(got) != 1 {
		return "", false
	}
	c := From(r.Context())
	if c == nil {
		return "", false
	}
	o := c.ours.Load()
	if o == nil || got[0] != o.mark {
		return "", false
	}
	return o.refusal, true
}

// Phrase has the next answer with this status say more on its status line than
// the usual words: tools that show no body show that. To be called by the handler
// before it writes anything.
func (c *Conn) Phrase(status int, phrase string) {
	if c == nil {
		return
	}
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, phrase)
	if len(clean) > maxPhrase {
		clean = clean[:maxPhrase-3] + "..."
	}
	c.status, c.phrase = fmt.Sprintf("HTTP/1.1 %03d ", status), clean
}

// Write passes answers on, the next one with its phrase.
func (c *Conn) Write(b []byte) (int, error) {
	if c.phrase == "" || !bytes.HasPrefix(b, []byte(c.status)) && !bytes.HasPrefix(b, []byte("HTTP/1.0"+c.status[8:])) {
		return c.Conn.Write(b)
	}
	line := bytes.IndexByte(b, '\r')
	if line < 0 {
		return c.Conn.Write(b)
	}
	out := append(append(append(make([]byte, 0, len(b)+len(c.phrase)), b[:len(c.status)]...), c.phrase...), b[line:]...)
	c.phrase = ""
	if _, err := c.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Release gives up the connection after a hijack. Bytes that came before they
// were asked for are an error.
func (c *Conn) Release() (net.Conn, error) {
	if c.err != nil || len(c.buf) > 0 {
		return nil, errors.New("the client went on before it was answered")
	}
	return c.Conn, nil
}

// Abort closes the connection so that a client that reads until the end sees
// that this is none: by a reset where there is one to be had, and over TLS
// without its closing alert.
func (c *Conn) Abort() {
	if c == nil {
		return
	}
	inner := c.Conn
	if tc, ok := inner.(interface{ NetConn() net.Conn }); ok { // TLS
		inner = tc.NetConn()
	}
	Reset(inner)
	c.Conn.Close()
}

// Reset closes a connection, with a reset if it or what it wraps (Abort) can.
func Reset(c net.Conn) {
	switch c := c.(type) {
	case interface{ Abort() }:
		c.Abort()
	case interface{ SetLinger(int) error }:
		c.SetLinger(0)
	}
	c.Close()
}
