package process

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// seen is one line of an upstream's record: what really arrived.
type seen struct {
	Proto  string      `json:"proto"`
	Method string      `json:"method"`
	Host   string      `json:"host"`
	URI    string      `json:"uri"`
	Header http.Header `json:"header"`
	Body   string      `json:"body"`
}

// upstream NAME HOST…: starts a TLS server on loopback for these hosts, with a
// CA of its own. Sets NAME_ADDR (for connect:) and NAME_CA (for ca:), and
// records every request in $WORK/NAME.log as it arrives. It answers
//
//	/echo    with the request headers it got
//	/stream  with ten server-sent events, 100 ms apart
//	/away    with a redirect to https://elsewhere.example/
//	else     with {"ok":true,"path":…}
func cmdUpstream(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: upstream NAME HOST…")
	}
	name, hosts := args[0], args[1:]
	cert, caPEM, err := certificate(hosts)
	ts.Check(err)
	work := ts.Getenv("WORK") // outside the workspace: the sandbox can't touch the record
	caFile, logFile := filepath.Join(work, name+".ca.pem"), filepath.Join(work, name+".log")
	ts.Check(os.WriteFile(caFile, caPEM, 0o644))
	log, err := os.OpenFile(logFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	ts.Check(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	server := &http.Server{
		Handler:           &recorder{log: log},
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}},
		ReadHeaderTimeout: patience,
	}
	go server.ServeTLS(l, "", "")
	ts.Defer(func() {
		server.Close()
		log.Close()
	})
	ts.Setenv(name+"_ADDR", l.Addr().String())
	ts.Setenv(name+"_CA", caFile)
}

type recorder struct {
	mu  sync.Mutex
	log *os.File
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(req.Body, 1<<20))
	line, err := json.Marshal(seen{req.Proto, req.Method, req.Host, req.RequestURI, req.Header, string(body)})
	if err == nil {
		r.mu.Lock()
		_, err = r.log.Write(append(line, '\n'))
		r.mu.Unlock()
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	switch {
	case strings.HasSuffix(req.URL.Path, "/echo"), req.Header.Get("X-Test") == "echo":
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(req.Header)
	case strings.HasSuffix(req.URL.Path, "/stream"):
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 10 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	case strings.HasSuffix(req.URL.Path, "/away"):
		http.Redirect(w, req, "https://elsewhere.example/", http.StatusFound)
	default:
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"ok": true, "path": req.URL.Path})
	}
}

func certificate(hosts []string) (tls.Certificate, []byte, error) {
	var none tls.Certificate
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return none, nil, err
	}
	now := time.Now()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the upstream's own CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return none, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return none, nil, err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: hosts[0]}, DNSNames: hosts,
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return none, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), nil
}
