// Package load is the client of the gateway's measurements: one program that
// puts the same load on a server whether it stands before it, behind a proxy or
// inside a sandbox.
//
// Main is the program: it reads one Order a line from standard input and
// answers each with one Answer a line, so that one process (and one session, one
// proxy) lives through all rounds. Start runs it, possibly wrapped in another
// command, and Do sends an order. Every figure is taken by the client itself,
// around whole requests; times are nanoseconds, sizes bytes. HTTP/1.1 only: it
// is the one protocol that all contenders speak.
package load

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Kinds of load.
const (
	Latency = "latency" // sequential requests over one connection
	Rate    = "rate"    // Conns connections, each busy all the time
	Connect = "connect" // a new TLS connection for each request, Conns at a time
	Down    = "down"    // one download
	Up      = "up"      // one upload
	Hold    = "hold"    // Conns connections that have served a request and idle
)

// Order is one load. It ends with N requests or bytes or after For, whichever
// is first; 0 is no bound.
type Order struct {
	Kind  string        `json:"kind"`
	N     int64         `json:"n,omitempty"`
	Conns int           `json:"conns,omitempty"`
	For   time.Duration `json:"for,omitempty"`
}

// Answer says what was done.
type Answer struct {
	N     int64         `json:"n"` // requests, or bytes
	Took  time.Duration `json:"took"`
	P50   time.Duration `json:"p50,omitempty"`
	P99   time.Duration `json:"p99,omitempty"`
	Error string        `json:"error,omitempty"`
}

// PerSecond is the throughput.
func (a Answer) PerSecond() float64 {
	if a.Took <= 0 {
		return 0
	}
	return float64(a.N) / a.Took.Seconds()
}

// Main is the program; it ends with its standard input.
func Main(args []string) int {
	fs := flag.NewFlagSet("load", flag.ExitOnError)
	c := &client{}
	fs.StringVar(&c.url, "url", "", "the server, https://NAME")
	fs.StringVar(&c.connect, "connect", "", "address to connect to whatever the name")
	fs.StringVar(&c.proxy, "proxy", "", "URL of the proxy; empty: what the environment says")
	roots := fs.String("ca", "", "PEM file to trust; empty: the system's")
	fs.Parse(args)
	if *roots != "" {
		pem, err := os.ReadFile(*roots)
		if err != nil {
			fmt.Fprintln(os.Stderr, "load:", err)
			return 1
		}
		c.roots = x509.NewCertPool()
		c.roots.AppendCertsFromPEM(pem)
	}
	out := json.NewEncoder(os.Stdout)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var o Order
		a := Answer{}
		err := json.Unmarshal(in.Bytes(), &o)
		if err == nil {
			a, err = c.do(o)
		}
		if err != nil {
			a.Error = err.Error()
		}
		if out.Encode(a) != nil {
			return 1
		}
	}
	return 0
}

type client struct {
	url, connect, proxy string
	roots               *x509.CertPool
	held                *http.Transport
	bulk                *http.Transport
}

func (c *client) transport(conns int) *http.Transport {
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSClientConfig:     &tls.Config{RootCAs: c.roots},
		MaxIdleConnsPerHost: conns, MaxConnsPerHost: conns,
		DisableCompression: true,
		Protocols:          new(http.Protocols),
		ReadBufferSize:     64 << 10, WriteBufferSize: 64 << 10,
	}
	t.Protocols.SetHTTP1(true)
	if c.proxy != "" {
		t.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(c.proxy) }
	}
	if c.connect != "" {
		var d net.Dialer
		t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return d.DialContext(ctx, network, c.connect)
		}
	}
	return t
}

func (c *client) do(o Order) (Answer, error) {
	o.Conns = max(o.Conns, 1)
	if c.held != nil {
		c.held.CloseIdleConnections()
		c.held = nil
	}
	switch o.Kind {
	case Latency, Rate, Connect:
		return c.requests(o)
	case Hold:
		t := c.transport(o.Conns)
		c.held = t
		var g group
		for range o.Conns {
			g.start(func() error { return get(t, c.url+"/r?ms=50") })
		}
		return Answer{N: int64(o.Conns)}, g.wait()
	case Down:
		return c.down(o)
	case Up:
		return c.up(o)
	}
	return Answer{}, fmt.Errorf("no load %q", o.Kind)
}

// requests runs Conns workers. Each has warmed its connection before the clock
// starts, unless connections are what is measured.
func (c *client) requests(o Order) (Answer, error) {
	t := c.transport(o.Conns)
	defer t.CloseIdleConnections()
	t.DisableKeepAlives = o.Kind == Connect
	warm := 20
	if o.Kind == Connect {
		warm = 2
	}
	var g group
	for range o.Conns {
		g.start(func() error {
			for range warm {
				if err := get(t, c.url+"/r"); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.wait(); err != nil {
		return Answer{}, err
	}
	var mu sync.Mutex
	var took []time.Duration
	begin := time.Now()
	for range o.Conns {
		g.start(func() error {
			mine := make([]time.Duration, 0, 4096)
			var err error
			for last := begin; err == nil; {
				if o.N > 0 && int64(len(mine))*int64(o.Conns) >= o.N || o.For > 0 && last.Sub(begin) > o.For {
					break
				}
				err = get(t, c.url+"/r")
				now := time.Now()
				mine = append(mine, now.Sub(last))
				last = now
			}
			mu.Lock()
			took = append(took, mine...)
			mu.Unlock()
			return err
		})
	}
	err := g.wait()
	a := Answer{N: int64(len(took)), Took: time.Since(begin)}
	if err == nil && len(took) == 0 {
		err = errors.New("no request")
	}
	if err != nil {
		return Answer{}, err
	}
	slices.Sort(took)
	a.P50, a.P99 = took[len(took)/2], took[len(took)*99/100]
	return a, nil
}

func get(t *http.Transport, u string) error {
	req, err := http.NewRequest("GET", u, nil)
	if err != nil {
		return err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	return okay(resp)
}

func okay(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 1 {
		return fmt.Errorf("%s %s", resp.Proto, resp.Status)
	}
	return nil
}

// bulkTransport keeps its connection, so that a transfer measures a transfer.
func (c *client) bulkTransport() (*http.Transport, error) {
	if c.bulk == nil {
		c.bulk = c.transport(1)
	}
	return c.bulk, get(c.bulk, c.url+"/r")
}

func (c *client) down(o Order) (Answer, error) {
	t, err := c.bulkTransport()
	if err != nil {
		return Answer{}, err
	}
	req, err := http.NewRequest("GET", c.url+"/bulk?n="+strconv.FormatInt(o.N, 10), nil)
	if err != nil {
		return Answer{}, err
	}
	begin := time.Now()
	resp, err := t.RoundTrip(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	if err := okay(resp); err != nil {
		return Answer{}, err
	}
	var a Answer
	buf := make([]byte, 256<<10)
	for {
		n, err := resp.Body.Read(buf)
		a.N += int64(n)
		a.Took = time.Since(begin)
		if err == io.EOF || o.For > 0 && a.Took > o.For {
			return a, nil // what is left unread ends the connection
		}
		if err != nil {
			return Answer{}, err
		}
	}
}

func (c *client) up(o Order) (Answer, error) {
	t, err := c.bulkTransport()
	if err != nil {
		return Answer{}, err
	}
	body := &source{left: o.N, until: time.Now().Add(o.For), bounded: o.For > 0}
	req, err := http.NewRequest("POST", c.url+"/up", io.NopCloser(body))
	if err != nil {
		return Answer{}, err
	}
	begin := time.Now()
	resp, err := t.RoundTrip(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	if err := okay(resp); err != nil {
		return Answer{}, err
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return Answer{}, err
	}
	a := Answer{Took: time.Since(begin)}
	// What the server has received is what counts.
	if a.N, err = strconv.ParseInt(string(got), 10, 64); err == nil && a.N != body.sent {
		err = fmt.Errorf("%d bytes were sent and %d arrived", body.sent, a.N)
	}
	return a, err
}

// source is a body without contents.
type source struct {
	left, sent int64
	until      time.Time
	bounded    bool
}

func (s *source) Read(p []byte) (int, error) {
	n := min(int64(len(p)), s.left)
	if n == 0 || s.bounded && time.Now().After(s.until) {
		return 0, io.EOF
	}
	clear(p[:n])
	s.left -= n
	s.sent += n
	return int(n), nil
}

// WriteTo gives the library larger pieces than its own.
func (s *source) WriteTo(w io.Writer) (int64, error) {
	buf := make([]byte, 128<<10)
	for {
		n, err := s.Read(buf)
		if err == io.EOF {
			return s.sent, nil
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return s.sent, err
		}
	}
}

// group waits for workers and keeps the first error.
type group struct {
	wg    sync.WaitGroup
	once  sync.Once
	first error
}

func (g *group) start(f func() error) {
	g.wg.Go(func() {
		if err := f(); err != nil {
			g.once.Do(func() { g.first = err })
		}
	})
}

func (g *group) wait() error {
	g.wg.Wait()
	return g.first
}
