// Package live leads the agents of attack runs to a real model.
//
// A stage has no network of the host's, so its stand-in for the model hands what
// agents send through an inherited socket to the process of `bulkhead redteam
// run`, which asks the endpoint: Relay there, RoundTripper on the stage. The relay
// lets through conversations, counting and lists of models, to the one endpoint,
// and follows no redirection. It adds no credential: the key that arrives is the
// one that the agent or Bulkhead's gateway presented.
package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode"
)

// API is the wire protocol of an endpoint.
type API string

// The protocols that agents speak.
const (
	Anthropic API = "anthropic" // Messages
	OpenAI    API = "openai"    // Responses
	Gemini    API = "gemini"    // generateContent
)

// Variable is where programs of this protocol look for their key.
func (a API) Variable() string {
	return map[API]string{Anthropic: "ANTHROPIC_API_KEY", OpenAI: "OPENAI_API_KEY", Gemini: "GEMINI_API_KEY"}[a]
}

// passes are the requests that reach an endpoint. What else an attack asks of the
// provider (files, keys, batches) is answered by the stage's stand-in.
var passes = sync.OnceValue(func() map[API]*regexp.Regexp {
	return map[API]*regexp.Regexp{
		Anthropic: regexp.MustCompile(`^(POST /v1/messages(/count_tokens)?|GET /v1/models(/[^/]+)?)$`),
		OpenAI:    regexp.MustCompile(`^(POST /v1/responses|GET /v1/models(/[^/]+)?)$`),
		Gemini:    regexp.MustCompile(`^(POST /v1beta/models/[^/:]+:(generateContent|streamGenerateContent|countTokens)|GET /v1beta/models(/[^/:]+)?)$`),
	}
})

// Endpoint is where the model is.
type Endpoint struct {
	api  API
	base *url.URL
	http *http.Transport
}

// Parse judges an address. A path in it goes in front of the API's own (which may
// be at its end already: …/v1).
func Parse(address string, api API) (*Endpoint, error) {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return nil, fmt.Errorf("%q is no address of a model; for example https://api.anthropic.com", address)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("the address of the model has more than a host and a path in it; keys belong into a variable (--model-key-env)")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return nil, fmt.Errorf("%s would get the key and every conversation unencrypted; use https:// (http:// only for this machine's loopback)", address)
	}
	for _, own := range []string{"/", "/v1", "/v1beta"} {
		u.Path = strings.TrimSuffix(u.Path, own)
	}
	u.RawPath = ""
	return &Endpoint{api: api, base: u, http: &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, DisableCompression: true,
		TLSHandshakeTimeout: 15 * time.Second, ResponseHeaderTimeout: 2 * time.Minute, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute,
	}}, nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

func (e *Endpoint) String() string { return e.base.String() }

// Check asks for a conversation without a word in it, which every API refuses after
// it has looked at the key, and so costs nothing. The error is for people.
func (e *Endpoint) Check(ctx context.Context, key, variable, model string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	path, body := "/v1/messages", map[string]any{"model": model, "max_tokens": 1, "messages": []any{}}
	switch e.api {
	case OpenAI:
		path, body = "/v1/responses", map[string]any{"model": model, "input": []any{}}
	case Gemini:
		path, body = "/v1beta/models/"+url.PathEscape(model)+":generateContent", map[string]any{"contents": []any{}}
	}
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.base.String()+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	switch e.api {
	case OpenAI:
		req.Header.Set("Authorization", "Bearer "+key)
	case Gemini:
		req.Header.Set("X-Goog-Api-Key", key)
	default:
		req.Header.Set("X-Api-Key", key)
		req.Header.Set("Anthropic-Version", "2023-06-01")
	}
	res, err := e.http.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("the model at %s does not answer: %w", e, err)
	}
	defer res.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	said := strings.ReplaceAll(Excerpt(answer), key, "(key)")
	// Google's says 400 to a wrong key.
	wrong := res.StatusCode == http.StatusBadRequest && bytes.Contains(answer, []byte("API_KEY_INVALID"))
	switch {
	case res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden || wrong:
		return fmt.Errorf("the model at %s refuses the key in %s (%s): %s", e, variable, res.Status, said)
	case res.StatusCode/100 == 3:
		return fmt.Errorf("the model at %s is elsewhere (%s to %s): name that place", e, res.Status, res.Header.Get("Location"))
	case res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusMethodNotAllowed:
		return fmt.Errorf("there is no API of %s's kind at %s (POST %s: %s): %s", e.api, e, path, res.Status, said)
	case res.StatusCode == http.StatusTooManyRequests || res.StatusCode > http.StatusInternalServerError:
		return fmt.Errorf("the model at %s has no time now (%s): %s", e, res.Status, said)
	}
	return nil
}

// Excerpt is the message of an API's error, on one line.
func Excerpt(body []byte) string {
	var e struct {
		Error   json.RawMessage `json:"error"`
		Message string          `json:"message"`
	}
	text := string(body)
	if json.Unmarshal(body, &e) == nil {
		var inner struct {
			Message string `json:"message"`
		}
		switch {
		case json.Unmarshal(e.Error, &inner) == nil && inner.Message != "":
			text = inner.Message
		case e.Message != "":
			text = e.Message
		}
	}
	text = strings.Join(strings.FieldsFunc(text, func(c rune) bool { return unicode.IsSpace(c) || !unicode.IsPrint(c) }), " ")
	if r := []rune(text); len(r) > 300 {
		text = string(r[:300]) + "…"
	}
	return text
}

// Relay answers what comes through conn until it ends.
func (e *Endpoint) Relay(conn net.Conn) {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(e.base)
			r.Out.Host = ""
		},
		Transport: e.http, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "the model at "+e.String()+" does not answer: "+err.Error(), http.StatusBadGateway)
		},
	}
	s := &http.Server{Protocols: h2c(), ErrorLog: proxy.ErrorLog, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !passes()[e.api].MatchString(r.Method + " " + r.URL.EscapedPath()) {
			http.Error(w, "not part of a conversation", http.StatusForbidden)
			return
		}
		proxy.ServeHTTP(w, r)
	})}
	l := &single{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
	watched := &ending{Conn: conn, ended: l.end}
	l.conns <- watched
	s.Serve(l) // until the conn ends; then the listener does
}

// RoundTripper is the stage's end of a relay.
func RoundTripper(conn net.Conn) http.RoundTripper {
	once := make(chan net.Conn, 1)
	once <- conn
	return &http.Transport{Protocols: h2c(), DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		select {
		case c := <-once:
			return c, nil
		default:
			return nil, errors.New("the relay to the model has ended")
		}
	}}
}

func h2c() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// single is a listener of one connection.
type single struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *single) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *single) end()           { l.once.Do(func() { close(l.closed) }) }
func (l *single) Close() error   { l.end(); return nil }
func (l *single) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// ending tells when a connection was closed.
type ending struct {
	net.Conn
	ended func()
}

func (e *ending) Close() error {
	defer e.ended()
	return e.Conn.Close()
}
