package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// SOCKS protocol version 5 (RFC 1928).
const (
	socksVersion  = 5
	socksConnect  = 1
	socksIPv4     = 1
	socksName     = 3
	socksIPv6     = 4
	socksNoAuth   = 0
	socksNoMethod = 0xff

	replyOK         = 0
	replyFailure    = 1
	replyNotAllowed = 2
	replyBadCommand = 7
	replyBadAddress = 8
)

// socksError carries the reply and what goes into the log.
type socksError struct {
	reply  byte
	code   string
	target string
	err    error
}

func (e *socksError) Error() string { return e.err.Error() }

// socks serves one SOCKS5 connection whose version byte was read.
func (s *server) socks(f *flow) {
	if err := socksGreeting(f); err != nil {
		s.gate.Malformed("", "protocol-refused", err.Error())
		return
	}
	dst, err := socksRequest(f)
	if err != nil {
		if se := (*socksError)(nil); errors.As(err, &se) {
			s.gate.Malformed(se.target, se.code, se.Error())
			socksReply(f, se.reply)
		}
		return
	}
	serve, refused := s.gate.Open(dst)
	if refused != nil || serve == nil {
		socksReply(f, replyNotAllowed)
		return
	}
	if socksReply(f, replyOK) != nil {
		return
	}
	f.SetDeadline(time.Time{})
	serve(f)
}

func socksGreeting(rw io.ReadWriter) error {
	var n [1]byte
	if _, err := io.ReadFull(rw, n[:]); err != nil {
		return errors.New("SOCKS: torn greeting")
	}
	methods := make([]byte, n[0])
	if _, err := io.ReadFull(rw, methods); err != nil {
		return errors.New("SOCKS: torn greeting")
	}
	for _, m := range methods {
		if m == socksNoAuth {
			_, err := rw.Write([]byte{socksVersion, socksNoAuth})
			return err
		}
	}
	rw.Write([]byte{socksVersion, socksNoMethod})
	return errors.New("SOCKS: the client insists on authentication; the relay has none")
}

// socksRequest reads the request and returns its destination.
func socksRequest(r io.Reader) (hostport.HostPort, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return hostport.HostPort{}, io.ErrUnexpectedEOF
	}
	if head[0] != socksVersion || head[2] != 0 {
		return hostport.HostPort{}, &socksError{replyFailure, "bad-request", "", errors.New("SOCKS: malformed request")}
	}
	var name []byte
	switch head[3] {
	case socksIPv4, socksIPv6:
		size := 4
		if head[3] == socksIPv6 {
			size = 16
		}
		raw := make([]byte, size+2)
		if _, err := io.ReadFull(r, raw); err != nil {
			return hostport.HostPort{}, io.ErrUnexpectedEOF
		}
		a, _ := netip.AddrFromSlice(raw[:size])
		target := netip.AddrPortFrom(a, binary.BigEndian.Uint16(raw[size:])).String()
		return hostport.HostPort{}, &socksError{replyNotAllowed, "ip-literal", target, errors.New("SOCKS: the request names an address; only names are granted (use socks5h://)")}
	case socksName:
		var n [1]byte
		if _, err := io.ReadFull(r, n[:]); err != nil {
			return hostport.HostPort{}, io.ErrUnexpectedEOF
		}
		name = make([]byte, n[0])
		if _, err := io.ReadFull(r, name); err != nil {
			return hostport.HostPort{}, io.ErrUnexpectedEOF
		}
	default:
		return hostport.HostPort{}, &socksError{replyBadAddress, "bad-request", "", errors.New("SOCKS: unknown kind of address")}
	}
	var port [2]byte
	if _, err := io.ReadFull(r, port[:]); err != nil {
		return hostport.HostPort{}, io.ErrUnexpectedEOF
	}
	target := fmt.Sprintf("%s:%d", name, binary.BigEndian.Uint16(port[:]))
	if head[1] != socksConnect {
		return hostport.HostPort{}, &socksError{replyBadCommand, "protocol-refused", target, errors.New("SOCKS: only CONNECT is served")}
	}
	dst, err := hostport.Parse(target)
	if err != nil {
		return hostport.HostPort{}, &socksError{replyNotAllowed, code(err), target, fmt.Errorf("SOCKS: the destination %w", err)}
	}
	return dst, nil
}

func socksReply(w io.Writer, reply byte) error {
	_, err := w.Write([]byte{socksVersion, reply, 0, socksIPv4, 0, 0, 0, 0, 0, 0})
	return err
}

var _ net.Conn = (*flow)(nil)
