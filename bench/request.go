package main

import (
	"bytes"
	"context"
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
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
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

func newUpstream(dir string) (*upstream, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{upstreamName},
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
	body := bytes.Repeat([]byte("x"), 1024)
	u.server = &http.Server{
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leafDER}, PrivateKey: key}}},
	}
	go u.server.ServeTLS(l, "", "")
	return u, nil
}

func (u *upstream) close() { u.server.Close() }

func (u *upstream) policy() string {
	return fmt.Sprintf(`version: 1
workspace: {path: ., mode: rw}
grants:
  - http: https://%[1]s/**
    methods: [GET]
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
