package modelstub

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxBody is the documented limit of the Messages endpoint.
const maxBody = 32 << 20

// models are offered by /v1/models; any other name is accepted in a request
// all the same, so that agents of any age can be driven.
var models = []model{
	{"model", "claude-sonnet-4-6", "Claude Sonnet 4.6", "2026-02-17T00:00:00Z"},
	{"model", "claude-opus-4-5-20251101", "Claude Opus 4.5", "2025-11-24T00:00:00Z"},
	{"model", "claude-sonnet-4-5-20250929", "Claude Sonnet 4.5", "2025-09-29T00:00:00Z"},
	{"model", "claude-haiku-4-5-20251001", "Claude Haiku 4.5", "2025-10-15T00:00:00Z"},
}

type model struct {
	Type        string `json:"type"`
	ID          string `json:"id"`
	DisplayName string `json:"display_name"`
	CreatedAt   string `json:"created_at"`
}

type (
	wireModels struct {
		Data    []model `json:"data"`
		HasMore bool    `json:"has_more"`
		FirstID string  `json:"first_id"`
		LastID  string  `json:"last_id"`
	}
	wireError struct {
		Type      string          `json:"type"`
		Error     wireErrorDetail `json:"error"`
		RequestID string          `json:"request_id"`
	}
	wireErrorDetail struct {
		Type    string `json:"type"`
		Message string `json:"message"`
	}
)

const maxRaw = 256 << 10

// keep copies a request and leaves it to be read.
func keep(r *http.Request) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s %s\nHost: %s\n", r.Method, r.RequestURI, r.Proto, r.Host)
	r.Header.Write(&b)
	head, _ := io.ReadAll(io.LimitReader(r.Body, maxRaw))
	b.Write(head)
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), r.Body), r.Body}
	return b.Bytes()
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	rec := Record{Time: time.Now(), Proto: r.Proto, Host: r.Host, Method: r.Method, Path: r.URL.Path, Status: http.StatusOK}
	if s.cfg.KeepRaw {
		rec.Raw = keep(r)
	}
	// A streamed answer is remembered before its last byte is sent, so that a
	// client that has seen the end also finds it in Records.
	id := ident("req_011C", 20)
	h := w.Header()
	h.Set("Request-Id", id)
	fail := func(status int, kind, message string) {
		rec.Status = status
		s.remember(rec)
		reply(w, status, wireError{Type: "error", Error: wireErrorDetail{kind, message}, RequestID: id})
	}

	presented, message := s.authenticate(r)
	rec.Credentials = presented
	if strings.HasPrefix(r.URL.Path, "/v1beta/") && message == "" {
		s.gemini(w, r, rec)
		return
	}
	if !strings.HasPrefix(r.URL.Path, "/v1/") {
		// Agents probe "/" without a credential to see whether there is a network.
		fail(http.StatusNotFound, "not_found_error", "Not Found")
		return
	}
	if message != "" {
		fail(http.StatusUnauthorized, "authentication_error", message)
		return
	}
	h.Set("Anthropic-Organization-Id", s.org)

	if r.URL.Path == "/v1/responses" {
		s.responses(w, r, rec)
		return
	}
	count := r.URL.Path == "/v1/messages/count_tokens"
	switch {
	case r.URL.Path == "/v1/messages" || count:
		if r.Method != http.MethodPost {
			fail(http.StatusMethodNotAllowed, "invalid_request_error", "Method Not Allowed")
			return
		}
	case s.cfg.Live != nil && r.Method == http.MethodGet && (r.URL.Path == "/v1/models" || strings.HasPrefix(r.URL.Path, "/v1/models/")):
		s.forward(w, r, rec, nil)
		return
	case r.URL.Path == "/v1/models" && r.Method == http.MethodGet:
		s.remember(rec)
		reply(w, http.StatusOK, wireModels{Data: models, FirstID: models[0].ID, LastID: models[len(models)-1].ID})
		return
	default:
		if name, ok := strings.CutPrefix(r.URL.Path, "/v1/models/"); ok && r.Method == http.MethodGet {
			for _, m := range models {
				if m.ID == name {
					s.remember(rec)
					reply(w, http.StatusOK, m)
					return
				}
			}
			fail(http.StatusNotFound, "not_found_error", "model: "+name)
			return
		}
		fail(http.StatusNotFound, "not_found_error", "Not found")
		return
	}

	if r.Header.Get("Anthropic-Version") == "" {
		fail(http.StatusBadRequest, "invalid_request_error", "anthropic-version: header is required")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		var big *http.MaxBytesError
		if errors.As(err, &big) {
			fail(http.StatusRequestEntityTooLarge, "request_too_large", "Request exceeds the maximum size")
			return
		}
		fail(http.StatusBadRequest, "invalid_request_error", "The request body could not be read")
		return
	}
	req, err := parseRequest(body, count)
	if s.cfg.Live != nil {
		if req != nil {
			rec.note(req)
		}
		s.forward(w, r, rec, body) // whether it is a good one is the endpoint's to say
		return
	}
	if err != nil {
		fail(http.StatusBadRequest, "invalid_request_error", err.Error())
		return
	}
	rec.note(req)
	in := tokens(len(body))
	if count {
		s.remember(rec)
		reply(w, http.StatusOK, map[string]any{"input_tokens": in})
		return
	}

	rateLimits(h, rec.Time)
	a, err := newAnswer(req, s.cfg.Script(req), in)
	if err != nil {
		fail(http.StatusInternalServerError, "api_error", "Internal server error")
		return
	}
	for _, b := range a.blocks {
		if b.call != "" {
			rec.Answered = append(rec.Answered, b.call)
		}
	}
	s.remember(rec)
	if req.Stream {
		a.stream(w, r, s.cfg.Pace)
		return
	}
	reply(w, http.StatusOK, a.message())
}

// authenticate returns what was presented, and the API's message if it does
// not pass.
func (s *Server) authenticate(r *http.Request) ([]Fingerprint, string) {
	var presented []Fingerprint
	message := ""
	check := func(slot, value, refusal string) {
		sum := sha256.Sum256([]byte(value))
		presented = append(presented, Fingerprint{Slot: slot, Prefix: hex.EncodeToString(sum[:6])})
		if s.cfg.Key == "" || subtle.ConstantTimeCompare([]byte(value), []byte(s.cfg.Key)) != 1 {
			message = refusal
		}
	}
	for _, v := range r.Header.Values("X-Api-Key") {
		check("x-api-key", v, "invalid x-api-key")
	}
	for _, v := range r.Header.Values("X-Goog-Api-Key") {
		check("x-goog-api-key", v, "API key not valid")
	}
	for _, v := range r.Header.Values("Authorization") {
		scheme, token, _ := strings.Cut(v, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			token = v
		}
		check("authorization", token, "Invalid bearer token")
	}
	if len(presented) == 0 {
		message = "x-api-key header is required"
	}
	return presented, message
}

// FingerprintOf is what Record.Credentials holds for a credential, for tests
// that know it.
func FingerprintOf(credential string) string {
	sum := sha256.Sum256([]byte(credential))
	return hex.EncodeToString(sum[:6])
}

func reply(w http.ResponseWriter, status int, v any) {
	b, err := marshal(v)
	if err != nil {
		panic(err) // only our own types get here
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b)
}

// rateLimits sets the documented rate-limit headers to a full budget.
func rateLimits(h http.Header, now time.Time) {
	reset := now.UTC().Add(time.Minute).Format(time.RFC3339)
	for name, limit := range map[string]int{"requests": 4000, "input-tokens": 2_000_000, "output-tokens": 400_000, "tokens": 2_400_000} {
		h.Set("anthropic-ratelimit-"+name+"-limit", strconv.Itoa(limit))
		h.Set("anthropic-ratelimit-"+name+"-remaining", strconv.Itoa(limit))
		h.Set("anthropic-ratelimit-"+name+"-reset", reset)
	}
}

// tokens estimates at four bytes a token.
func tokens(bytes int) int { return bytes/4 + 1 }

const base58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

// ident makes an identifier of the API's shape: a prefix and n base58 digits.
func ident(prefix string, n int) string {
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] = base58[int(b[i])%len(base58)]
	}
	return prefix + string(b)
}

func uuid() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
