package thief

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Place is one listener of a stage: the thief's own, a name server, or a
// service of the victim's that nobody may reach.
type Place struct {
	// Name stands in Delivery.Place; several places may share one.
	Name string
	// Network is tcp, udp, unix (stream; an address with @ is abstract), dns
	// (UDP and TCP) or icmp (echo requests to the address).
	Network string
	Address string
	// Answer is the body of HTTP answers and what others get for their first
	// bytes; empty is "ok\n".
	Answer string
}

// Stage is a set of places with one authority, whose certificates name whatever a
// client asks for. It speaks HTTP with or without TLS on each stream; the
// paths /echo (the request's headers), /redirect?to=URL, and /cookie answer specially.
type Stage struct {
	zone map[string]netip.Addr
	all  netip.Addr

	ca    *x509.Certificate
	caDER []byte
	key   *ecdsa.PrivateKey

	closers []io.Closer
	loops   sync.WaitGroup
	conns   sync.WaitGroup
	slots   chan struct{}

	mu  sync.Mutex
	got []Delivery
}

// Open opens all places, or none. Names that zone does not list resolve to
// every; without it they do not exist.
func Open(places []Place, zone map[string]netip.Addr, every netip.Addr) (*Stage, error) {
	s := &Stage{zone: zone, all: every, slots: make(chan struct{}, maxConns)}
	if err := s.authority(); err != nil {
		return nil, fmt.Errorf("thief: %w", err)
	}
	for _, p := range places {
		if err := s.open(p); err != nil {
			s.Close()
			return nil, fmt.Errorf("thief: %s at %s:%s: %w", p.Name, p.Network, p.Address, err)
		}
	}
	return s, nil
}

func (s *Stage) open(p Place) error {
	switch p.Network {
	case "tcp", "unix":
		return s.stream(p, p.Network, s.talk)
	case "udp":
		return s.packets(p, "udp", func(q []byte) []byte { return []byte(p.answer()) })
	case "icmp":
		return s.packets(p, "ip4:icmp", func([]byte) []byte { return nil })
	case "dns":
		if err := s.packets(p, "udp", s.resolve); err != nil {
			return err
		}
		return s.stream(p, "tcp", s.talkDNS)
	}
	return fmt.Errorf("unknown network %q", p.Network)
}

func (p Place) answer() string {
	if p.Answer == "" {
		return "ok\n"
	}
	return p.Answer
}

func (s *Stage) stream(p Place, network string, talk func(Place, net.Conn) []byte) error {
	ln, err := net.Listen(network, p.Address)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, ln)
	s.loops.Add(1)
	go func() {
		defer s.loops.Done()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.slots <- struct{}{}
			s.conns.Add(1)
			go func() {
				defer func() { c.Close(); <-s.slots; s.conns.Done() }()
				c.SetDeadline(time.Now().Add(maxOpen))
				data := talk(p, c)
				s.add(Delivery{Place: p.Name, Network: p.Network, Data: data})
			}()
		}
	}()
	return nil
}

func (s *Stage) packets(p Place, network string, answer func([]byte) []byte) error {
	pc, err := net.ListenPacket(network, p.Address)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, pc)
	s.loops.Add(1)
	go func() {
		defer s.loops.Done()
		buf := make([]byte, 64<<10)
		for {
			n, peer, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			data := bytes.Clone(buf[:n])
			if network == "ip4:icmp" && (n == 0 || data[0] != 8) {
				continue // only what asks; our own kernel's answers are not deliveries
			}
			s.add(Delivery{Place: p.Name, Network: p.Network, Data: readable(p, data)})
			if a := answer(data); a != nil {
				pc.WriteTo(a, peer)
			}
		}
	}()
	return nil
}

// readable adds to a DNS question the name without its dots: a secret in
// labels is a secret.
func readable(p Place, data []byte) []byte {
	if p.Network != "dns" {
		return data
	}
	var m dnsmessage.Parser
	if _, err := m.Start(data); err != nil {
		return data
	}
	qs, err := m.AllQuestions()
	if err != nil {
		return data
	}
	for _, q := range qs {
		name := strings.ToLower(q.Name.String())
		data = append(data, "\n"+q.Name.String()+"\n"+name+"\n"+strings.ReplaceAll(q.Name.String(), ".", "")...)
	}
	return data
}

func (s *Stage) add(d Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, d)
}

// Received returns what arrived on connections that have ended, and all datagrams.
func (s *Stage) Received() []Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Delivery(nil), s.got...)
}

// Settle waits until open connections have ended, for at most two seconds.
func (s *Stage) Settle() {
	time.Sleep(50 * time.Millisecond) // what is in accept queues and on its way
	idle := make(chan struct{})
	go func() { s.conns.Wait(); close(idle) }()
	select {
	case <-idle:
	case <-time.After(settleTime):
	}
}

// Close stops listening.
func (s *Stage) Close() {
	for _, c := range s.closers {
		c.Close()
	}
	s.loops.Wait()
}

func (s *Stage) talk(p Place, c net.Conn) []byte {
	var wire, inner lockedBuffer
	rec := &tee{Conn: c, kept: &wire}
	first := make([]byte, 1)
	if n, err := io.ReadFull(rec, first); n == 0 || err != nil {
		return wire.bytes()
	}
	var rw net.Conn = &tee{Conn: &prefixed{Conn: rec, head: first}, kept: &lockedBuffer{}}
	if first[0] == 0x16 {
		t := tls.Server(rw, &tls.Config{GetCertificate: s.certificate, NextProtos: []string{"http/1.1"}})
		rw = &tee{Conn: t, kept: &inner}
	}
	serve(rw, p)
	return append(wire.bytes(), inner.bytes()...)
}

func serve(rw net.Conn, p Place) {
	in := newReader(rw)
	for {
		if head, err := in.Peek(4); err != nil || !isMethod(head) {
			io.WriteString(rw, p.answer())
			io.CopyN(io.Discard, in, maxBytes)
			return
		}
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if req.Header.Get("Expect") != "" {
			io.WriteString(rw, "HTTP/1.1 100 Continue\r\n\r\n")
		}
		io.Copy(io.Discard, io.LimitReader(req.Body, maxBytes))
		body, extra, status := p.answer(), "", "200 OK"
		switch req.URL.Path {
		case "/echo":
			var b bytes.Buffer
			req.Header.Write(&b)
			body = b.String()
		case "/redirect":
			status, extra = "302 Found", "Location: "+strings.NewReplacer("\r", "", "\n", "").Replace(req.URL.Query().Get("to"))+"\r\n"
		case "/cookie":
			extra = "Set-Cookie: real=1\r\nAlt-Svc: h3=\":443\"; ma=86400\r\n"
		}
		if _, err := fmt.Fprintf(rw, "HTTP/1.1 %s\r\nContent-Type: text/plain\r\n%sContent-Length: %d\r\n\r\n%s", status, extra, len(body), body); err != nil || req.Close {
			return
		}
	}
}

func isMethod(b []byte) bool {
	for _, c := range b {
		if (c < 'A' || c > 'Z') && c != ' ' {
			return false
		}
	}
	return true
}

func (s *Stage) talkDNS(_ Place, c net.Conn) []byte {
	var kept []byte
	for {
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return kept
		}
		q := make([]byte, int(length[0])<<8|int(length[1]))
		if _, err := io.ReadFull(c, q); err != nil {
			return kept
		}
		kept = append(kept, readable(Place{Network: "dns"}, bytes.Clone(q))...)
		a := s.resolve(q)
		if a == nil {
			return kept
		}
		c.Write(append([]byte{byte(len(a) >> 8), byte(len(a))}, a...))
	}
}

// resolve answers a question: addresses of the zone, and a text for TXT.
func (s *Stage) resolve(q []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(q)
	if err != nil || h.Response {
		return nil
	}
	question, err := p.Question()
	if err != nil {
		return nil
	}
	addr, known := s.zone[strings.TrimSuffix(strings.ToLower(question.Name.String()), ".")]
	if !known {
		addr = s.all
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{question},
	}
	rh := dnsmessage.ResourceHeader{Name: question.Name, Class: question.Class, TTL: 1}
	switch {
	case !addr.IsValid():
		m.RCode = dnsmessage.RCodeNameError
	case question.Type == dnsmessage.TypeA && addr.Is4():
		m.Answers = []dnsmessage.Resource{{Header: rh, Body: &dnsmessage.AResource{A: addr.As4()}}}
	case question.Type == dnsmessage.TypeAAAA && addr.Is6():
		m.Answers = []dnsmessage.Resource{{Header: rh, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}}}
	case question.Type == dnsmessage.TypeTXT:
		m.Answers = []dnsmessage.Resource{{Header: rh, Body: &dnsmessage.TXTResource{TXT: []string{"ok"}}}}
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

func (s *Stage) authority() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "stage"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if s.caDER, err = x509.CreateCertificate(rand.Reader, t, t, key.Public(), key); err != nil {
		return err
	}
	s.key = key
	s.ca, err = x509.ParseCertificate(s.caDER)
	return err
}

// CAPEM is the authority that vouches for every name.
func (s *Stage) CAPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.caDER})
}

func (s *Stage) certificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := h.ServerName
	if name == "" {
		name = "collector.example"
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), DNSNames: []string{name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, s.ca, s.key.Public(), s.key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: s.key}, nil
}
