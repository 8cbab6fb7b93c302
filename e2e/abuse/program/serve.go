//go:build linux

package main

import (
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// Names of the stand-ins, which the policies of the test grant.
const (
	openHost  = "open.abuse.example"   // all below /open/
	plainHost = "plain.abuse.example"  // the same by plain http
	quietHost = "quiet.abuse.example"  // of the session that is measured
	modelHost = "api.anthropic.com"    // bodies are inspected, answers are scrubbed
	denied    = "nobody.abuse.example" // not granted
	pong      = "pong"
)

// serve serves TLS and, at a second port, plain http on loopback until its
// standard input ends.
func serve(hosts []string) error {
	cert, ca, err := certificate(hosts)
	if err != nil {
		return err
	}
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	// Two: the first Serve of a server decides whether it speaks HTTP/2.
	server := func() *http.Server {
		return &http.Server{Handler: http.HandlerFunc(answer), TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, ReadHeaderTimeout: time.Minute}
	}
	go server().ServeTLS(secure, "", "")
	go server().Serve(plain)
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"tls": secure.Addr().String(), "plain": plain.Addr().String(), "ca": string(ca)}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func answer(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Header.Get("Upgrade") != "":
		webSocket(w, r)
	case strings.HasSuffix(r.URL.Path, "/endless"):
		for block := make([]byte, 64<<10); ; {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	case strings.HasSuffix(r.URL.Path, "/bomb"), r.Host == modelHost:
		io.Copy(io.Discard, io.LimitReader(r.Body, 1<<20))
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		for block := make([]byte, 64<<10); ; {
			if _, err := z.Write(block); err != nil {
				return
			}
		}
	case strings.HasSuffix(r.URL.Path, "/drops"):
		for i := range 1 << 20 {
			if _, err := w.Write([]byte{byte(i)}); err != nil || http.NewResponseController(w).Flush() != nil {
				return
			}
		}
	default:
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, pong)
	}
}

// webSocket takes whatever comes.
func webSocket(w http.ResponseWriter, r *http.Request) {
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+base64.StdEncoding.EncodeToString(sum[:])+"\r\n\r\n")
	io.Copy(io.Discard, rw)
}

func certificate(hosts []string) (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "abuse lane"}, DNSNames: hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
