package process

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
	// Arrival is "streamed" if the body came in over streamTime or longer,
	// "at-once" otherwise.
	Arrival string `json:"arrival"`
}

// streamTime tells a streamed body from a collected one: the clients of the
// stories send five pieces with 100 ms between them.
const streamTime = 250 * time.Millisecond

// upstream [-http1|-ipv6] NAME HOST…: starts a TLS server on loopback (-ipv6: on ::1 alone)
// for these hosts, with a CA of its own. Sets NAME_ADDR (for connect:) and NAME_CA (for ca:), and
// records every request in $WORK/NAME.log as it arrives. It speaks HTTP/2 to
// whoever offers it, except with -http1. It answers
//
//	/echo    with the request headers it got (also to the User-Agent echo)
//	         (to echo64 in base64 and in hex, and in a header of the answer)
//	/stream  with ten server-sent events, 100 ms apart
//	/away    with a redirect to ?to=, without it to https://elsewhere.example/
//	gRPC     with the messages of the call, three times with 100 ms between for
//	         …/Many, and the credential that came as grpc-message
//	else     with {"ok":true,"path":…}
func cmdUpstream(ts *testscript.TestScript, neg bool, args []string) {
	http1, ipv6 := len(args) > 0 && args[0] == "-http1", len(args) > 0 && args[0] == "-ipv6"
	if http1 || ipv6 {
		args = args[1:]
	}
	if neg || len(args) < 2 {
		ts.Fatalf("usage: upstream [-http1|-ipv6] NAME HOST…")
	}
	name, hosts := args[0], args[1:]
	work := ts.Getenv("WORK") // outside the workspace: the sandbox can't touch the record
	log, err := os.OpenFile(filepath.Join(work, name+".log"), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	ts.Check(err)
	ts.Defer(func() { log.Close() })
	at := "127.0.0.1:0"
	if ipv6 {
		at = "[::1]:0"
	}
	serveTLSAt(ts, at, name, hosts, http1, &recorder{log: log})
}

// serveTLS serves on loopback until the story ends.
func serveTLS(ts *testscript.TestScript, name string, hosts []string, http1 bool, h http.Handler) {
	serveTLSAt(ts, "127.0.0.1:0", name, hosts, http1, h)
}

func serveTLSAt(ts *testscript.TestScript, at, name string, hosts []string, http1 bool, h http.Handler) {
	cert, caPEM, err := certificate(hosts)
	ts.Check(err)
	caFile := filepath.Join(ts.Getenv("WORK"), name+".ca.pem")
	ts.Check(os.WriteFile(caFile, caPEM, 0o644))
	l, err := net.Listen("tcp", at)
	ts.Check(err)
	server := &http.Server{
		Handler:           h,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}},
		ReadHeaderTimeout: patience,
	}
	if http1 {
		server.Protocols = new(http.Protocols)
		server.Protocols.SetHTTP1(true)
	}
	go server.ServeTLS(l, "", "")
	ts.Defer(func() { server.Close() })
	ts.Setenv(name+"_ADDR", l.Addr().String())
	ts.Setenv(name+"_CA", caFile)
}

type recorder struct {
	mu  sync.Mutex
	log *os.File
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, arrival := readBody(io.LimitReader(req.Body, 1<<20))
	line, err := json.Marshal(seen{req.Proto, req.Method, req.Host, req.RequestURI, req.Header, body, arrival})
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
	case strings.HasSuffix(req.URL.Path, "/echo"), req.Header.Get("User-Agent") == "echo":
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(req.Header)
	case req.Header.Get("User-Agent") == "echo64":
		w.Header().Set("X-Echo", req.Header.Get("X-Api-Key"))
		dump := fmt.Sprint(req.Header)
		for _, s := range []string{dump, "x" + dump, "xx" + dump} {
			fmt.Fprintln(w, base64.StdEncoding.EncodeToString([]byte(s)))
		}
		for _, c := range []byte(dump) {
			fmt.Fprintf(w, "%02x", c)
		}
		fmt.Fprintln(w)
	case strings.HasSuffix(req.URL.Path, "/stream"):
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 10 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	case strings.HasPrefix(req.Header.Get("Content-Type"), "application/grpc"):
		// The messages of the call again, three times and apart for /Many.
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
		for i := 0; i == 0 || i < 3 && strings.HasSuffix(req.URL.Path, "/Many"); i++ {
			io.WriteString(w, body)
			w.(http.Flusher).Flush()
			time.Sleep(100 * time.Millisecond)
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set("Grpc-Message", req.Header.Get("Authorization"))
	case strings.HasSuffix(req.URL.Path, "/away"):
		to := req.URL.Query().Get("to")
		if to == "" {
			to = "https://elsewhere.example/"
		}
		http.Redirect(w, req, to, http.StatusFound)
	default:
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"ok": true, "path": req.URL.Path})
	}
}

func readBody(r io.Reader) (body, arrival string) {
	var all []byte
	var first time.Time
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && first.IsZero() {
			first = time.Now()
		}
		all = append(all, buf[:n]...)
		if err != nil {
			break
		}
	}
	if !first.IsZero() && time.Since(first) >= streamTime {
		return string(all), "streamed"
	}
	return string(all), "at-once"
}

// arrived FILE KEY=REGEXP…: the record of an upstream has a request (with !: has
// none) with all these. Keys are proto, method, host, uri, body, arrival and
// names of headers.
func cmdArrived(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: arrived FILE KEY=REGEXP…")
	}
	found := false
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		var s seen
		ts.Check(json.Unmarshal([]byte(line), &s))
		all := true
		for _, cond := range args[1:] {
			key, pattern, ok := strings.Cut(cond, "=")
			if !ok {
				ts.Fatalf("%q is not KEY=REGEXP", cond)
			}
			value, ok := map[string]string{"proto": s.Proto, "method": s.Method, "host": s.Host,
				"uri": s.URI, "body": s.Body, "arrival": s.Arrival}[key]
			if !ok {
				value = strings.Join(s.Header.Values(key), ", ")
			}
			all = all && regexp.MustCompile("^(?:"+pattern+")$").MatchString(value)
		}
		found = found || all
	}
	if found == neg {
		ts.Fatalf("request with %v: found %v\n%s", args[1:], found, ts.ReadFile(args[0]))
	}
}

// gitserver NAME HOST DIR: serves the repositories in DIR the way a forge does
// (TLS, git's own http-backend, pushes accepted) and records requests in
// $WORK/NAME.log. Sets NAME_ADDR and NAME_CA.
func cmdGitServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: gitserver NAME HOST DIR")
	}
	name, host, dir := args[0], args[1], ts.MkAbs(args[2])
	libexec, err := exec.Command("git", "--exec-path").Output()
	ts.Check(err)
	log, err := os.OpenFile(filepath.Join(ts.Getenv("WORK"), name+".log"), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	ts.Check(err)
	ts.Defer(func() { log.Close() })
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(libexec)), "git-http-backend"),
		Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "HOME=" + dir,
			"GIT_CONFIG_COUNT=2", "GIT_CONFIG_KEY_0=http.receivepack", "GIT_CONFIG_VALUE_0=true",
			"GIT_CONFIG_KEY_1=receive.advertisePushOptions", "GIT_CONFIG_VALUE_1=true"},
	}
	serveTLS(ts, name, []string{host}, false, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		line, _ := json.Marshal(seen{Proto: req.Proto, Method: req.Method, Host: req.Host, URI: req.RequestURI, Header: req.Header})
		if _, err := log.Write(append(line, '\n')); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		backend.ServeHTTP(w, req)
	}))
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
