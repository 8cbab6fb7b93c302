// Package thief is the far end of an exfiltration: listeners that answer
// politely and keep every byte that arrives. They are the only judge of a
// red-team run.
//
// One port each for TCP (plain HTTP, TLS with any client hello, or anything
// else) and UDP, on 127.0.0.1, on ::1, and on one further address of this host
// if it has one: a sandbox with a loopback of its own can reach that one only
// through its gateway. There, peers that are not this host are turned away.
//
// It runs in the process of the red-team harness. Limits: 256 connections at
// once, 4 MiB from each, 10 s for each.
package thief

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	maxConns   = 256
	maxBytes   = 4 << 20
	maxOpen    = 10 * time.Second
	settleTime = 2 * time.Second
)

// Delivery is what one connection or datagram brought. Of TLS it holds the
// bytes on the wire and after them what was inside.
type Delivery struct {
	Place    string // of a Stage; empty for a Thief
	Listener netip.AddrPort
	Network  string // tcp or udp
	Data     []byte
}

// Thief is a set of open listeners.
type Thief struct {
	tcp  []net.Listener
	udp  []net.PacketConn
	cert tls.Certificate
	own  []netip.Addr

	slots chan struct{}
	wg    sync.WaitGroup // running connections
	loops sync.WaitGroup

	mu       sync.Mutex
	got      []Delivery
	active   map[net.Conn]struct{}
	arrivals *sync.Cond // a delivery was added
}

// Listen opens the listeners.
func Listen() (*Thief, error) {
	cert, err := anyCertificate()
	if err != nil {
		return nil, fmt.Errorf("thief: %w", err)
	}
	t := &Thief{cert: cert, slots: make(chan struct{}, maxConns), active: map[net.Conn]struct{}{}}
	t.arrivals = sync.NewCond(&t.mu)
	if t.own, err = ownAddresses(); err != nil {
		return nil, fmt.Errorf("thief: %w", err)
	}
	addrs := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	if i := slices.IndexFunc(t.own, routable); i >= 0 {
		addrs = append(addrs, t.own[i])
	}
	for i, a := range addrs {
		if err := t.open(a); err != nil {
			if i == 0 {
				t.Close()
				return nil, fmt.Errorf("thief: %w", err)
			}
			continue // no IPv6 here, or an address that cannot be bound: one route less
		}
	}
	return t, nil
}

func routable(a netip.Addr) bool {
	return a.Is4() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.IsUnspecified()
}

func (t *Thief) open(a netip.Addr) error {
	ln, err := net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
	if err != nil {
		return err
	}
	// The same port number for UDP, so that one URL list serves both.
	pc, err := net.ListenPacket("udp", ln.Addr().String())
	if err != nil {
		ln.Close()
		return err
	}
	t.tcp, t.udp = append(t.tcp, ln), append(t.udp, pc)
	t.loops.Add(2)
	go t.acceptLoop(ln)
	go t.packetLoop(pc)
	return nil
}

// Addrs lists ip:port of each listener, 127.0.0.1 first. TCP and UDP have the
// same.
func (t *Thief) Addrs() []netip.AddrPort {
	var out []netip.AddrPort
	for _, ln := range t.tcp {
		out = append(out, addrPort(ln.Addr()))
	}
	return out
}

func addrPort(a net.Addr) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(a.String())
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func (t *Thief) acceptLoop(ln net.Listener) {
	defer t.loops.Done()
	for {
		c, err := ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors: wait for some
			continue
		}
		if !t.isOwn(c.RemoteAddr()) {
			c.Close()
			continue
		}
		t.slots <- struct{}{}
		t.wg.Add(1)
		t.mu.Lock()
		t.active[c] = struct{}{}
		t.mu.Unlock()
		go func() {
			defer func() { <-t.slots; t.wg.Done() }()
			data := t.talk(c)
			t.mu.Lock()
			delete(t.active, c)
			t.mu.Unlock()
			t.add(Delivery{Listener: addrPort(ln.Addr()), Network: "tcp", Data: data})
		}()
	}
}

func (t *Thief) packetLoop(pc net.PacketConn) {
	defer t.loops.Done()
	buf := make([]byte, 64<<10)
	for {
		n, peer, err := pc.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if n > 0 && t.isOwn(peer) {
			t.add(Delivery{Listener: addrPort(pc.LocalAddr()), Network: "udp", Data: bytes.Clone(buf[:n])})
		}
	}
}

func (t *Thief) isOwn(peer net.Addr) bool {
	a := addrPort(peer).Addr()
	return a.IsLoopback() || slices.Contains(t.own, a)
}

func (t *Thief) add(d Delivery) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.got = append(t.got, d)
	t.arrivals.Broadcast()
}

// recorder keeps what is read through it, up to maxBytes.
type recorder struct {
	net.Conn
	r    io.Reader
	kept *bytes.Buffer
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if room := maxBytes - r.kept.Len(); room > 0 {
		r.kept.Write(p[:min(n, room)])
	} else if err == nil {
		err = io.EOF
	}
	return n, err
}

// talk answers like a small web server and returns everything that came in.
func (t *Thief) talk(c net.Conn) []byte {
	defer c.Close()
	c.SetDeadline(time.Now().Add(maxOpen))
	var wire, inner bytes.Buffer
	br := bufio.NewReader(&recorder{Conn: c, r: c, kept: &wire})
	var rw net.Conn = &recorder{Conn: c, r: br, kept: new(bytes.Buffer)}
	if first, err := br.Peek(1); err == nil && first[0] == 0x16 {
		s := tls.Server(rw, &tls.Config{Certificates: []tls.Certificate{t.cert}})
		rw = &recorder{Conn: s, r: s, kept: &inner}
	}
	in := bufio.NewReader(rw)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			break
		}
		if req.Header.Get("Expect") != "" {
			io.WriteString(rw, "HTTP/1.1 100 Continue\r\n\r\n")
		}
		io.Copy(io.Discard, io.LimitReader(req.Body, maxBytes))
		if _, err := io.WriteString(rw, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"); err != nil {
			break
		}
		if req.Close {
			break
		}
	}
	// Not HTTP, or no longer: whatever else comes until the sender is done.
	io.Copy(io.Discard, io.LimitReader(in, maxBytes))
	return append(wire.Bytes(), inner.Bytes()...)
}

// Settle waits until everything that was sent before the call has been read.
// Connections that are still open two seconds later are cut.
func (t *Thief) Settle() {
	// Accept queues are first in, first out: once our own connection has been
	// served, every earlier one has been accepted.
	sentinel := []byte("settle " + fmt.Sprint(time.Now().UnixNano()) + "\n")
	want := 0
	for _, a := range t.Addrs() {
		for _, network := range []string{"tcp", "udp"} {
			c, err := net.DialTimeout(network, a.String(), settleTime)
			if err != nil {
				continue
			}
			c.Write(sentinel)
			c.Close()
			want++
		}
	}
	expired := false
	timer := time.AfterFunc(settleTime, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		expired = true
		t.arrivals.Broadcast()
	})
	defer timer.Stop()
	t.mu.Lock()
	for !expired {
		n := 0
		for _, d := range t.got {
			if bytes.Equal(d.Data, sentinel) {
				n++
			}
		}
		if n >= want {
			break
		}
		t.arrivals.Wait()
	}
	t.got = slices.DeleteFunc(t.got, func(d Delivery) bool { return bytes.Equal(d.Data, sentinel) })
	t.mu.Unlock()

	idle := make(chan struct{})
	go func() { t.wg.Wait(); close(idle) }()
	select {
	case <-idle:
	case <-time.After(settleTime):
		// A sender that keeps its connection open is judged by what it sent.
		t.mu.Lock()
		for c := range t.active {
			c.SetDeadline(time.Now())
		}
		t.mu.Unlock()
		<-idle
	}
}

// Received returns what arrived on connections that have ended, and all
// datagrams, in order of arrival.
func (t *Thief) Received() []Delivery {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.got)
}

// Close stops listening. Connections that are open end by themselves.
func (t *Thief) Close() {
	for _, ln := range t.tcp {
		ln.Close()
	}
	for _, pc := range t.udp {
		pc.Close()
	}
	t.loops.Wait()
}

func ownAddresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out, nil
}

func anyCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), DNSNames: []string{"collector.example"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
