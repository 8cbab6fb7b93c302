// Package framing watches the bytes of an HTTP/1 connection before net/http
// reads them and ends the connection at the first request whose beginning or
// end two parsers could see in different places.
//
// It is not the parser and changes nothing that it lets through: net/http parses
// that, and what is forwarded is rebuilt from it. In the place of a head that it
// refuses it delivers a request of its own, the last one of the connection, which
// only Refusal knows; so the answer comes in its turn and says why. A body that
// it refuses breaks off with an *Error, and refused hears of it. It only insists
// on the one spelling of RFC 9112 that everybody reads alike: CRLF line ends, no
// folded lines, no control characters, one Host, at most one Content-Length of
// digits or one "Transfer-Encoding: chunked" and never both, chunks without
// extensions and without trailers.
//
// Figures: a head has at most MaxHead bytes; one request's head is held back
// until it is complete, bodies pass as they come.
package framing

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
)

// MaxHead bounds the request line and all header lines together.
const MaxHead = 64 << 10

type state uint8

const (
	inHead      state = iota
	inBody            // left bytes of a body with a length
	inSize            // a chunk's size line
	inChunk           // left bytes of a chunk
	afterChunk        // its CRLF
	inEnd             // the CRLF after the last chunk
	transparent       // after a CONNECT: no HTTP any more
)

// Conn is a connection whose reads are checked. It is used by one reader.
type Conn struct {
	net.Conn
	refused func(message string)

	state state
	store []byte // where buf grows again once it is empty
	buf   []byte // read and not delivered
	pass  int    // bytes at the beginning of buf that may be delivered
	seen  int    // bytes behind pass that are known to hold no end of a head
	left  int64
	line  []byte
	err   error

	ours   atomic.Pointer[substitute] // the server reads ahead while handlers run
	status string                     // "HTTP/1.1 NNN " of the next answer with a phrase
	phrase string
}

// substitute is our request in the place of a refused head.
type substitute struct{ mark, refusal string }

// Error is why a body breaks off.
type Error struct{ message string }

func (e *Error) Error() string { return "ambiguous request: " + e.message }

// New checks the requests that are read from c. refused hears, once, why the
// connection ends.
func New(c net.Conn, refused func(message string)) *Conn {
	return &Conn{Conn: c, refused: refused}
}

// Read delivers bytes of requests that are framed unambiguously.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for c.pass == 0 {
		if c.err != nil {
			return 0, c.err
		}
		if err := c.check(); err != nil {
			if c.state == inHead {
				c.substitute(err.Error())
				continue
			}
			c.err = &Error{err.Error()}
			c.refused(err.Error())
			continue
		}
		if c.pass > 0 {
			break
		}
		if c.state == transparent {
			return c.Conn.Read(p)
		}
		if body := c.state == inBody || c.state == inChunk; body && len(p) >= readSize && len(c.buf) == 0 {
			return c.readBody(p)
		}
		if err := c.fill(); err != nil {
			return 0, err // not kept: it may be the server's own deadline
		}
	}
	n := copy(p, c.buf[:c.pass])
	c.pass -= n
	if c.buf = c.buf[n:]; len(c.buf) == 0 {
		c.buf = c.store[:0]
	}
	return n, nil
}

// substitute puts our request where a head was refused.
func (c *Conn) substitute(message string) {
	o := &substitute{rand.Text(), message}
	c.ours.Store(o)
	c.err = io.EOF
	c.buf = []byte("GET / HTTP/1.1\r\nHost: refused.invalid\r\n" + markHeader + ": " + o.mark + "\r\nConnection: close\r\n\r\n")
	c.store, c.pass = nil, len(c.buf)
}

const readSize = 16 << 10

// readBody passes bytes of a body on without a copy; check does the same to what
// is in buf.
func (c *Conn) readBody(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
	if c.left -= int64(n); c.left == 0 {
		if c.state == inChunk {
			c.state = afterChunk
		} else {
			c.state = inHead
		}
	}
	return n, err
}

func (c *Conn) fill() error {
	if cap(c.buf)-len(c.buf) < readSize {
		grown := make([]byte, len(c.buf), len(c.buf)+readSize)
		copy(grown, c.buf)
		c.buf = grown
		if len(grown) == 0 {
			c.store = grown
		}
	}
	n, err := c.Conn.Read(c.buf[len(c.buf) : len(c.buf)+readSize])
	c.buf = c.buf[:len(c.buf)+n]
	if n > 0 {
		return nil
	}
	if err == nil {
		err = errors.New("read of nothing")
	}
	return err
}

// check moves as many bytes of buf as possible from unknown to deliverable.
func (c *Conn) check() error {
	for c.pass < len(c.buf) {
		rest := c.buf[c.pass:]
		switch c.state {
		case transparent:
			c.pass = len(c.buf)
		case inHead:
			from := max(c.seen-3, 0)
			end := bytes.Index(rest[from:], []byte("\r\n\r\n"))
			if len(rest) > MaxHead && (end < 0 || from+end > MaxHead) {
				return fmt.Errorf("the head is longer than %d bytes", MaxHead)
			}
			if end < 0 {
				// What is wrong already is told now, and not after a timeout.
				err := earlyCheck(rest, c.seen)
				c.seen = len(rest)
				return err
			}
			end += from
			c.seen = 0
			if err := c.head(rest[:end]); err != nil {
				return err
			}
			c.pass += end + 4
			if c.state == inHead {
				return nil // the next request is looked at when it is wanted
			}
		case inBody, inChunk:
			n := min(int64(len(rest)), c.left)
			c.pass += int(n)
			if c.left -= n; c.left == 0 {
				if c.state == inChunk {
					c.state = afterChunk
				} else {
					c.state = inHead
					return nil
				}
			}
		default:
			done, err := c.chunkByte(rest[0])
			if err != nil {
				return err
			}
			c.pass++
			if done {
				return nil
			}
		}
	}
	return nil
}

// earlyCheck looks at the new bytes of an incomplete head.
func earlyCheck(b []byte, from int) error {
	if b[0] < 'A' || b[0] > 'Z' {
		return errors.New("no request line")
	}
	for i := from; i < len(b); i++ {
		if b[i] == '\n' && (i == 0 || b[i-1] != '\r') {
			return errors.New("a line ends without CR")
		}
	}
	return nil
}

// head judges one head without its empty line and says what follows it.
func (c *Conn) head(b []byte) error {
	lines := strings.Split(string(b), "\r\n")
	minor, method, err := requestLine(lines[0])
	if err != nil {
		return err
	}
	length, lengths, encodings, hosts := int64(0), 0, 0, 0
	for _, l := range lines[1:] {
		name, value, ok := strings.Cut(l, ":")
		if !ok || name == "" || !isToken(name) {
			return errors.New("a header line has no proper name")
		}
		if !isFieldValue(value) {
			return errors.New("a header value has control characters")
		}
		value = strings.Trim(value, " \t")
		switch strings.ToLower(name) {
		case "host":
			hosts++
		case "content-length":
			lengths++
			if length, err = ParseLength(value); err != nil {
				return err
			}
		case "transfer-encoding":
			encodings++
			if !strings.EqualFold(value, "chunked") {
				return errors.New("a transfer coding other than chunked")
			}
		}
	}
	switch {
	case hosts > 1 || hosts == 0 && minor == 1:
		return fmt.Errorf("%d Host headers", hosts)
	case lengths > 1:
		return errors.New("more than one Content-Length")
	case encodings > 1:
		return errors.New("more than one Transfer-Encoding")
	case lengths+encodings > 1:
		return errors.New("both Content-Length and Transfer-Encoding")
	case encodings == 1 && minor == 0:
		return errors.New("Transfer-Encoding in HTTP/1.0")
	}
	switch {
	case method == "CONNECT":
		if lengths+encodings > 0 {
			return errors.New("CONNECT with a body")
		}
		c.state = transparent
	case encodings == 1:
		c.state, c.line = inSize, c.line[:0]
	case length > 0:
		c.state, c.left = inBody, length
	}
	return nil
}

func requestLine(l string) (minor int, method string, err error) {
	f := strings.Split(l, " ")
	if len(f) != 3 || !isToken(f[0]) || f[1] == "" {
		return 0, "", errors.New("the request line is not METHOD TARGET VERSION")
	}
	for i := range len(f[1]) {
		if f[1][i] <= ' ' || f[1][i] == 0x7f {
			return 0, "", errors.New("the request target has control characters")
		}
	}
	switch f[2] {
	case "HTTP/1.1":
		return 1, f[0], nil
	case "HTTP/1.0":
		return 0, f[0], nil
	}
	return 0, "", errors.New("the version is neither HTTP/1.1 nor HTTP/1.0")
}

func isToken(s string) bool {
	for i := range len(s) {
		ch := s[i]
		switch {
		case 'a' <= ch && ch <= 'z', 'A' <= ch && ch <= 'Z', '0' <= ch && ch <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", ch) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

func isFieldValue(s string) bool {
	for i := range len(s) {
		if ch := s[i]; ch < ' ' && ch != '\t' || ch == 0x7f {
			return false
		}
	}
	return true
}

const maxDigits = 18 // fits int64

// ParseLength reads a Content-Length: digits and nothing else, as RFC 9110
// (section 8.6) has it, at most maxDigits.
func ParseLength(s string) (int64, error) {
	if s == "" || len(s) > maxDigits || strings.Trim(s, "0123456789") != "" {
		return 0, errors.New("the Content-Length is no plain number")
	}
	n := int64(0)
	for i := range len(s) {
		n = n*10 + int64(s[i]-'0')
	}
	return n, nil
}

const maxSizeDigits = 8 // chunks of up to 4 GiB

// chunkByte takes one byte of the grammar around chunks. done says that the
// request has ended.
func (c *Conn) chunkByte(ch byte) (done bool, err error) {
	c.line = append(c.line, ch)
	switch c.state {
	case inSize:
		n := len(c.line)
		if ch != '\n' {
			if ch == '\r' && n > 1 && c.line[n-2] != '\r' || hex(ch) >= 0 && n <= maxSizeDigits && c.line[max(n-2, 0)] != '\r' {
				return false, nil
			}
			return false, errors.New("a chunk's size is no plain hexadecimal number")
		}
		if n < 3 || c.line[n-2] != '\r' {
			return false, errors.New("a chunk's size line does not end with CRLF")
		}
		size := int64(0)
		for _, d := range c.line[:n-2] {
			size = size<<4 | int64(hex(d))
		}
		c.line = c.line[:0]
		if c.state, c.left = inChunk, size; size == 0 {
			c.state = inEnd
		}
		return false, nil
	case afterChunk, inEnd:
		if ch != "\r\n"[len(c.line)-1] {
			if c.state == inEnd {
				return false, errors.New("trailers, or no CRLF, after the last chunk")
			}
			return false, errors.New("a chunk does not end with CRLF")
		}
		if len(c.line) < 2 {
			return false, nil
		}
		c.line = c.line[:0]
		if c.state == inEnd {
			c.state = inHead
			return true, nil
		}
		c.state = inSize
	}
	return false, nil
}

func hex(ch byte) int {
	switch {
	case '0' <= ch && ch <= '9':
		return int(ch - '0')
	case 'a' <= ch && ch <= 'f':
		return int(ch-'a') + 10
	case 'A' <= ch && ch <= 'F':
		return int(ch-'A') + 10
	}
	return -1
}

// CloseWrite ends the sending half, where there is one.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}
