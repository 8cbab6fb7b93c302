// Package publish makes a port inside a sandbox reachable on this host: a
// listener on the host's loopback whose connections are carried to the
// sandbox's own loopback.
//
// It runs in the controller. In: a port of the host, and a function that
// connects inside. Out: bytes, copied both ways; what comes from inside is
// hostile, and nothing here reads it. Listeners are on 127.0.0.1 only: no other
// machine reaches a sandbox through them, every local user does. Each
// connection is announced before it is carried, and not carried if that fails.
//
// Figures: at most maxFlows connections at a time for each port; a connection
// inside has to come about within connectTimeout.
package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	maxFlows       = 256
	connectTimeout = 5 * time.Second
)

// Port is a published port: Host on this host, Inside in the sandbox.
type Port struct {
	Host, Inside int
}

// String is the long form.
func (p Port) String() string { return fmt.Sprintf("%d:%d", p.Host, p.Inside) }

// Inside is what a published port leads to.
type Inside interface {
	// Dial connects to a port of the sandbox's loopback.
	Dial(ctx context.Context, port int) (net.Conn, error)
	// Announce records a connection before it is carried.
	Announce(Port) error
}

// Published is a port that is open on this host.
type Published struct {
	port     Port
	listener net.Listener
	inside   Inside

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	ended bool
}

// Open listens, and serves once Serve is called.
func Open(p Port, inside Inside) (*Published, error) {
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(p.Host))))
	if err != nil {
		return nil, fmt.Errorf("port %d of this host cannot be listened on: %w", p.Host, errors.Unwrap(err))
	}
	return &Published{port: p, listener: l, inside: inside, conns: map[net.Conn]struct{}{}}, nil
}

// Port is what was published.
func (p *Published) Port() Port { return p.port }

// Serve carries connections until Close.
func (p *Published) Serve() {
	slots := make(chan struct{}, maxFlows)
	for {
		c, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(50 * time.Millisecond) // out of descriptors, say
			continue
		}
		select {
		case slots <- struct{}{}:
			go func() {
				defer func() { <-slots }()
				p.carry(c)
			}()
		default:
			c.Close()
		}
	}
}

// Close ends the listener and every connection.
func (p *Published) Close() error {
	err := p.listener.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for c := range p.conns {
		c.Close()
	}
	return err
}

// keep makes Close end c; false if it is too late.
func (p *Published) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.conns[c] = struct{}{}
	}
	return !p.ended
}

func (p *Published) drop(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *Published) carry(outside net.Conn) {
	defer p.drop(outside)
	if !p.keep(outside) || p.inside.Announce(p.port) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	inside, err := p.inside.Dial(ctx, p.port.Inside)
	cancel()
	if err != nil {
		return
	}
	defer p.drop(inside)
	if !p.keep(inside) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { oneWay(inside, outside) })
	both.Go(func() { oneWay(outside, inside) })
	both.Wait()
}

func oneWay(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	if half, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
		half.CloseWrite()
		return
	}
	dst.Close()
	src.Close()
}
