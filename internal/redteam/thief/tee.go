package thief

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"sync"
)

// tee keeps what is read through it, up to maxBytes.
type tee struct {
	net.Conn
	kept *lockedBuffer
}

func (t *tee) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	t.kept.write(p[:n])
	return n, err
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) write(p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if room := maxBytes - l.b.Len(); room > 0 {
		l.b.Write(p[:min(len(p), room)])
	}
}

func (l *lockedBuffer) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}

// prefixed gives back what was read ahead.
type prefixed struct {
	net.Conn
	head []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.head) > 0 {
		n := copy(b, p.head)
		p.head = p.head[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

func newReader(r io.Reader) *bufio.Reader { return bufio.NewReader(r) }
