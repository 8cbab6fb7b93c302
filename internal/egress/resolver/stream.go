package resolver

import (
	"encoding/binary"
	"io"
	"net"
	"time"
)

// Bounds of a DNS connection over TCP (RFC 7766): queries on one connection,
// and seconds for each.
const (
	streamQueries = 100
	streamTimeout = 10 * time.Second
)

// Serve answers queries on one TCP connection, one after the other.
func (r *Resolver) Serve(conn net.Conn) {
	defer conn.Close()
	var head [2]byte
	for range streamQueries {
		conn.SetDeadline(time.Now().Add(streamTimeout))
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(head[:]))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		answer := r.Answer(query)
		if answer == nil || len(answer) > 0xffff {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}
