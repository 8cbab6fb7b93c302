package httpauthz

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
)

// Registries answer a request for a token, made under the session's credential
// or under none, with one that their other hosts take. The token stays here: the
// sandbox gets a stand-in, which is good for this session and this service, at
// the operations that are granted there, until the session is revoked or ends.

const (
	// maxTokens bounds what a session's stand-ins hold. A client asks for one
	// for each repository; the oldest goes first, and its owner asks again.
	maxTokens = 256
	// maxTokenAnswer is above what registries answer with (1 to 8 KiB).
	maxTokenAnswer = 64 << 10
	standInPrefix  = "bulkhead-token-"
)

type tokens struct {
	mu   sync.Mutex
	list []token // the oldest first
}

type token struct {
	service, credential string
	standIn             string
	real                secret.Value
}

// issued is capability.Identity's.
func (t *tokens) issued(service string, value secret.Value) (credential string, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.list {
		if k.service == service && value.Equal([]byte(k.standIn)) {
			return k.credential, true
		}
	}
	return "", false
}

// real returns a copy of the token for which a header with a stand-in stands; it
// is empty if there is none.
func (t *tokens) real(header string) secret.Value {
	standIn, _ := cutPrefixFold(header, "Bearer ")
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.list {
		if subtle.ConstantTimeCompare([]byte(k.standIn), []byte(standIn)) == 1 {
			return k.real.Clone()
		}
	}
	return secret.Value{}
}

func (t *tokens) add(service, credential, real string) (standIn string) {
	standIn = standInPrefix + rand.Text() + rand.Text()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.list) >= maxTokens {
		t.list[0].real.Wipe()
		t.list = t.list[1:]
	}
	t.list = append(t.list, token{service, credential, standIn, secret.New([]byte(real))})
	return standIn
}

func (t *tokens) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.list {
		t.list[i].real.Wipe()
	}
	t.list = nil
}

// tokenAnswer is what of such an answer is passed on: nothing that stands for the
// real identity, such as a refresh token, and nothing that is not known.
type tokenAnswer struct {
	Token       string `json:"token,omitempty"`
	AccessToken string `json:"access_token,omitempty"`
	ExpiresIn   int64  `json:"expires_in,omitempty"`
	IssuedAt    string `json:"issued_at,omitempty"`
	// Of Hugging Face's storage, Xet.
	XetToken string `json:"accessToken,omitempty"`
	XetUntil int64  `json:"exp,omitempty"`
	XetAt    string `json:"casUrl,omitempty"`
}

// issue puts a stand-in in the place of the token, and returns the body to
// answer with; nil: the answer has no token in the known form.
func (q *request) issue(resp *http.Response, body io.Reader, d capability.Decision) io.Reader {
	if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(body, maxTokenAnswer+1))
	var a tokenAnswer
	if err != nil || len(data) > maxTokenAnswer || json.Unmarshal(data, &a) != nil {
		return nil
	}
	real := cmp.Or(a.Token, a.AccessToken, a.XetToken)
	if len(real) < minScrub {
		return nil
	}
	credential := ""
	if d.Swap != nil {
		credential = d.Swap.Credential
	}
	standIn := q.h.tokens.add(d.Issues, credential, real)
	xet := a.Token == "" && a.AccessToken == ""
	if xet {
		a.XetToken = standIn
	} else {
		a.Token, a.AccessToken, a.XetToken = standIn, standIn, ""
	}
	if _, err := hostport.ParseHost(strings.TrimPrefix(a.XetAt, "https://")); err != nil {
		a.XetAt = ""
	}
	if _, err := time.Parse(time.RFC3339Nano, a.IssuedAt); err != nil || len(a.IssuedAt) > 40 {
		a.IssuedAt = ""
	}
	out, err := json.Marshal(a)
	if err != nil {
		return nil
	}
	for name := range resp.Header {
		if name != "Date" && name != "Cache-Control" {
			delete(resp.Header, name)
		}
	}
	if xet { // some clients read this
		resp.Header.Set("X-Xet-Access-Token", standIn)
		resp.Header.Set("X-Xet-Token-Expiration", strconv.FormatInt(a.XetUntil, 10))
		resp.Header.Set("X-Xet-Cas-Url", a.XetAt)
	}
	resp.Header.Set("Content-Type", "application/json")
	resp.ContentLength = int64(len(out))
	resp.Header["Content-Length"] = []string{strconv.Itoa(len(out))}
	resp.Trailer = nil
	return bytes.NewReader(out)
}
