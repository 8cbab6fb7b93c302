// Package modelstub is a stand-in for the Anthropic Messages API whose model
// does what a script says. Red-team runs lead agents to it: the agent cannot
// tell it from the real endpoint on the wire, and it obeys every prompt.
//
// It speaks TLS (HTTP/1.1 and HTTP/2) with a certificate of its own authority
// for api.anthropic.com, localhost and the loopback addresses, and listens on
// 127.0.0.1 only. It serves POST /v1/messages (streamed and not), POST
// /v1/messages/count_tokens and GET /v1/models, and answers everything else
// with the API's not_found_error. A request that presents no credential, or
// any credential other than Config.Key in x-api-key or as a bearer token, gets
// the API's authentication_error; when several are presented all must be right
// (that is stricter than the real service and shows a second, foreign one).
//
// With Config.Live a real model answers conversations instead of a script. All
// else is as above: other paths and other keys get no further than here.
//
// Formats are those of the public reference (Messages, Streaming, Errors,
// Models; anthropic-version 2023-06-01). It runs in the process of the
// red-team harness or of a test, and keeps no credential but a fingerprint.
package modelstub

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// Config says what the endpoint accepts and does. Script or Live is required; an
// empty Key accepts nothing.
type Config struct {
	// Key is the only credential that passes.
	Key string
	// Script is the model.
	Script Script
	// Live answers conversations, counting and lists of models instead.
	Live http.RoundTripper
	// Pace is the pause between two stream events. Zero sends at once.
	Pace time.Duration
	// KeepRaw keeps what was sent, up to 256 KiB of each request, credentials
	// and prompts included: for stages, on which all of them are worthless.
	KeepRaw bool
	// Listen is the address and port; "" is a free one of 127.0.0.1.
	Listen string
}

// Server is a running endpoint.
type Server struct {
	cfg   Config
	ca    []byte
	org   string
	http  *http.Server
	ln    net.Listener
	ended chan struct{}

	mu      sync.Mutex
	records []Record
}

// Record is what is remembered of one request. It holds no credential and no
// prompt; Results holds what the agent's tools returned in its last message.
type Record struct {
	Time   time.Time
	Proto  string // HTTP/1.1 or HTTP/2.0
	Host   string
	Method string
	Path   string
	Status int
	Model  string
	Stream bool
	Tools  []string // names of the tools the request offered
	// Credentials that were presented, in the order x-api-key, authorization.
	Credentials []Fingerprint
	// Results are the tool results of the last message, each cut at 64 KiB.
	Results []Result
	// Answered names the tools that the answer called; nil for a text.
	Answered []string
	// Raw is the request as it came, with Config.KeepRaw.
	Raw []byte
	// Of a live model: what it said, the arguments of its calls, and why the
	// endpoint did not answer.
	Said, Asked, Failure string
}

func (rec *Record) note(r *Request) {
	rec.Model, rec.Stream, rec.Results = r.Model, r.Stream, r.Results()
	for _, t := range r.Tools {
		rec.Tools = append(rec.Tools, t.Name)
	}
}

// Fingerprint identifies a credential without holding it.
type Fingerprint struct {
	Slot   string // header name in lower case
	Prefix string // first 12 hex digits of its SHA-256
}

// Result is one tool result as the agent sent it.
type Result struct {
	Text    string
	IsError bool
}

// Start listens and serves until Close.
func Start(cfg Config) (*Server, error) {
	if cfg.Script == nil && cfg.Live == nil {
		return nil, errors.New("model stand-in: no script given")
	}
	at := cfg.Listen
	if at == "" {
		at = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", at)
	if err != nil {
		return nil, fmt.Errorf("model stand-in: %w", err)
	}
	ca, cert, err := newCertificate(ln.Addr().(*net.TCPAddr).IP)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("model stand-in: %w", err), ln.Close())
	}
	s := &Server{cfg: cfg, ca: ca, org: uuid(), ln: ln, ended: make(chan struct{})}
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	go func() {
		defer close(s.ended)
		s.http.ServeTLS(ln, "", "")
	}()
	return s, nil
}

// Addr is the listener's ip:port.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// URL is the base URL for a client that is led here directly.
func (s *Server) URL() string { return "https://" + s.Addr() }

// CAPEM is the certificate of the authority that signed the endpoint's own.
func (s *Server) CAPEM() []byte { return s.ca }

// Records returns what arrived so far, oldest first.
func (s *Server) Records() []Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Record(nil), s.records...)
}

// Close stops listening and cuts what is still open after a second.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	<-s.ended
	return err
}

// remember returns where in Records it is.
func (s *Server) remember(r Record) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records = append(s.records, r)
	return len(s.records) - 1
}
