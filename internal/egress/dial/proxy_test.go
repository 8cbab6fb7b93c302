package dial

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// What a proxy answers to CONNECT makes a tunnel only if it is an HTTP answer
// 200, and then what follows it, and nothing else, is the upstream's.
func FuzzProxyAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 Connection established\r\n\r\n", "HTTP/1.1 200 OK\r\nVia: x\r\n\r\n\x16\x03\x03early", "HTTP/1.1 407 no\r\nProxy-Authenticate: Basic\r\nContent-Length: 2\r\n\r\nno",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 200\r\n\r\n", "ICY 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nabcd", "200",
	} {
		f.Add([]byte(s))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.Close() })
	answer := make(chan []byte, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(10 * time.Second))
			head := make([]byte, 0, 512)
			for b := make([]byte, 512); !bytes.HasSuffix(head, []byte("\r\n\r\n")); {
				n, err := c.Read(b)
				if head = append(head, b[:n]...); err != nil {
					break
				}
			}
			c.Write(<-answer)
			c.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	at := netip.MustParseAddrPort(l.Addr().String())
	d := New(Config{})
	var p *capability.Permit
	f.Fuzz(func(t *testing.T, in []byte) {
		if p == nil {
			p = permit(t, "db.example.com:5432")
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		answer <- in
		c, err := d.tunnel(ctx, &Proxy{Addr: at.Addr(), Port: hostport.Port(at.Port())}, p)
		if err != nil {
			return
		}
		defer c.Close()
		head, rest, _ := bytes.Cut(in, []byte("\n\r\n"))
		if h, r, ok := bytes.Cut(in, []byte("\n\n")); ok && len(h) < len(head) {
			head, rest = h, r
		}
		if f := strings.Fields(string(head)); len(f) < 2 || !strings.HasPrefix(f[0], "HTTP/") || f[1] != "200" {
			t.Fatalf("%q made a tunnel", in)
		}
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, rest) {
			t.Fatalf("of %q came %q, want %q (%v)", in, got, rest, err)
		}
	})
}
