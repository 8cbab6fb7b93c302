package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

const upstreamName = "bench.example"

// upstream is a TLS server on loopback with a CA of its own, led to by a
// policy's upstreams section.
type upstream struct {
	addr   string
	caFile string
	server *http.Server
}

// newCA makes a CA that lives for a day.
func newCA(name string, key crypto.Signer) (*x509.Certificate, []byte, error) {
	now := time.Now()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	ca, err = x509.ParseCertificate(der)
	return ca, der, err
}

func newUpstream(dir string) (*upstream, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca, caDER, err := newCA("bench CA", caKey)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{upstreamName, "localhost"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	u := &upstream{caFile: filepath.Join(dir, "ca.pem")}
	if err := os.WriteFile(u.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), 0o644); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	u.addr = l.Addr().String()
	u.server = &http.Server{
		Handler:   http.HandlerFunc(serveUpstream),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leafDER}, PrivateKey: key}}},
		ErrorLog:  log.New(io.Discard, "", 0), // of connections that ended in the middle
	}
	go u.server.ServeTLS(l, "", "")
	// A proxy may try the other loopback address first.
	if _, port, err := net.SplitHostPort(u.addr); err == nil {
		if l6, err := net.Listen("tcp", net.JoinHostPort("::1", port)); err == nil {
			go u.server.ServeTLS(l6, "", "")
		}
	}
	return u, nil
}

// upstreamMain is the server by itself, for profiles: its CA goes to the folder
// named, its address to standard output.
func upstreamMain(args []string) int {
	if len(args) != 1 {
		fmt.Fprintln(os.Stderr, "usage: bench upstream DIR")
		return 2
	}
	u, err := newUpstream(args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, "upstream:", err)
		return 1
	}
	fmt.Println(u.addr)
	select {}
}

var small, large = bytes.Repeat([]byte("x"), 1<<10), make([]byte, 256<<10)

// serveUpstream answers /r with 1 KiB (after ms milliseconds), /bulk with n
// bytes, and /up with the number of bytes that it got.
func serveUpstream(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/bulk":
		left, _ := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
		w.Header().Set("Content-Length", strconv.FormatInt(left, 10))
		for left > 0 {
			n, err := w.Write(large[:min(int64(len(large)), left)])
			if err != nil {
				return
			}
			left -= int64(n)
		}
	case "/up":
		buf := bulkBuffers.Get().(*[]byte)
		defer bulkBuffers.Put(buf)
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r.Body}, *buf)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, strconv.FormatInt(n, 10))
	default:
		if ms, err := strconv.Atoi(r.URL.Query().Get("ms")); err == nil {
			time.Sleep(time.Duration(min(ms, 1000)) * time.Millisecond)
		}
		w.Write(small)
	}
}

var bulkBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

func (u *upstream) close() { u.server.Close() }

func (u *upstream) policy() string {
	return fmt.Sprintf(`version: 1
workspace: {path: ., mode: rw}
grants:
  - http: https://%[1]s/**
    methods: [GET, POST]
upstreams:
  %[1]s: {connect: %[2]q, ca: %[3]q}
`, upstreamName, u.addr, u.caFile)
}

// request measures one keep-alive request, inside through the gateway and
// outside straight to the server, by the same program.
func (b *bench) request() error {
	u, err := newUpstream(b.dir)
	if err != nil {
		return err
	}
	defer u.close()
	dir, policy, err := b.workspace("request", u.policy())
	if err != nil {
		return err
	}
	client := filepath.Join(dir, "client")
	if err := copyFile(client, b.self); err != nil {
		return err
	}
	const total, rounds = 2000, 5
	n := fmt.Sprint(total / rounds)
	for _, proto := range []string{"1.1", "2"} {
		var inside, outside []time.Duration
		for range rounds {
			d, err := b.clientRun(dir, client, "client", "-n", n, "-http", proto, "-ca", u.caFile, "-connect", u.addr, "https://"+upstreamName+"/r")
			if err != nil {
				return fmt.Errorf("outside: %w", err)
			}
			outside = append(outside, d)
			d, err = b.clientRun(dir, b.bulkhead, "run", "--policy", policy, "--", client, "client", "-n", n, "-http", proto, "https://"+upstreamName+"/r")
			if err != nil {
				return fmt.Errorf("inside: %w", err)
			}
			inside = append(inside, d)
		}
		in, out := median(inside), median(outside)
		b.add(row{Question: "request", Name: "HTTP/" + proto + " direct", Median: ms(out)})
		r := row{Question: "request", Name: "HTTP/" + proto + " through the gateway", Median: ms(in),
			Ratio: fmt.Sprintf("%+.2f ms", ms(in-out))}
		b.add(goal(r, "≤ +0.5 ms", in-out <= 500*time.Microsecond))
	}
	return nil
}

// clientRun runs the client program and returns the median it prints.
func (b *bench) clientRun(dir string, argv ...string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(b.ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, firstLine(stderr.String()))
	}
	var r clientReport
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		return 0, fmt.Errorf("the client's answer %q: %w", firstLine(stdout.String()), err)
	}
	return r.P50, nil
}

type clientReport struct {
	P50 time.Duration `json:"p50_ns"`
	N   int           `json:"n"`
}

// clientMain is the program inside: n requests over one connection. Without
// -connect it knows nothing of gateways: name, address and trust are the
// system's.
func clientMain(args []string) int {
	fs := flag.NewFlagSet("client", flag.ExitOnError)
	n := fs.Int("n", 400, "requests")
	proto := fs.String("http", "1.1", "1.1 or 2")
	ca := fs.String("ca", "", "PEM file to trust")
	connect := fs.String("connect", "", "address to connect to whatever the name")
	fs.Parse(args)
	if fs.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: bench client [flags] URL")
		return 2
	}
	p50, err := measureRequests(fs.Arg(0), *n, *proto, *ca, *connect)
	if err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		return 1
	}
	json.NewEncoder(os.Stdout).Encode(clientReport{p50, *n})
	return 0
}

func measureRequests(url string, n int, proto, ca, connect string) (time.Duration, error) {
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.TLSClientConfig = &tls.Config{}
	tr.Protocols = new(http.Protocols)
	tr.Protocols.SetHTTP1(proto == "1.1")
	tr.Protocols.SetHTTP2(proto == "2")
	if ca != "" {
		data, err := os.ReadFile(ca)
		if err != nil {
			return 0, err
		}
		tr.TLSClientConfig.RootCAs = x509.NewCertPool()
		tr.TLSClientConfig.RootCAs.AppendCertsFromPEM(data)
	}
	if connect != "" {
		var d net.Dialer
		tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return d.DialContext(ctx, network, connect)
		}
	}
	client := &http.Client{Transport: tr, Timeout: 30 * time.Second}
	get := func() error {
		resp, err := client.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK || fmt.Sprint(resp.ProtoMajor) != proto[:1] {
			return fmt.Errorf("%s %s", resp.Proto, resp.Status)
		}
		return nil
	}
	for range 50 { // the handshake and the first paths through the code
		if err := get(); err != nil {
			return 0, err
		}
	}
	took := make([]time.Duration, n)
	for i := range took {
		begin := time.Now()
		if err := get(); err != nil {
			return 0, err
		}
		took[i] = time.Since(begin)
	}
	return median(took), nil
}

func copyFile(dst, src string) error {
	data, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	return os.WriteFile(dst, data, 0o755)
}
