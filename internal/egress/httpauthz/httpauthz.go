// Package httpauthz decides on every single HTTP request of a sandbox and
// forwards what is allowed.
//
// In: a request, and the destination that its connection is bound to by DNS and
// SNI. The request is put into one canonical form or refused; the capability
// set decides on that form; the decision is recorded in the controller before
// anything happens, and the real credential, if the decision names one, comes
// back with the receipt of that record: no record, no act. What is forwarded is
// rebuilt from the canonical form, never copied from the wire. Out: the
// upstream's answer as it streams in, without the injected credential if the
// upstream echoes it, or a denial that people and agents can act on.
//
// Bodies are streamed and never held, except where the catalogue has to read
// one to decide; what is held at a time in one session is bounded. Redirects are
// passed on: the next request is judged like any other. An upgrade to WebSocket
// needs a grant of its own, other upgrades and unsolicited ones are refused.
// Requests under a credential ask for no content coding, and where a range is too
// short to find an echo in, for more than it; what servers mint for the real identity (cookies,
// tokens in headers) is removed from their answers, and for everybody what would
// lead a client elsewhere.
//
// Figures: Limits.
//
// Known holes: a server can tell the sandbox a credential in a form that the
// scrubber does not know (encrypted, compressed by itself, in pieces over
// several answers), or a credential of its own making in a body. Grants to
// servers that do so are weak grants. Of a range, up to minCut-1 bytes of an
// echoed credential stay at its edges. A client of HTTP/1.0 without TLS cannot
// tell an answer that was cut off from one that ended.
package httpauthz

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/catalog/sigv4"
	"github.com/bulkhead-dev/bulkhead/internal/egress/dial"
	"github.com/bulkhead-dev/bulkhead/internal/egress/framing"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Decider says what a request needs and whether it is granted.
type Decider interface {
	Body(catalog.Request) catalog.Need
	EscapedSlash(catalog.Request) bool
	Decide(catalog.Request, capability.Identity) capability.Decision
}

// Controller records, and answers with the credential that was asked for.
type Controller interface {
	Authorize(context.Context, v1.Event, *wire.CredentialUse) (secret.Value, error)
}

// Upstream sends a permitted request.
type Upstream interface {
	RoundTrip(*capability.Permit, *http.Request) (*http.Response, error)
}

// Handler serves the requests of one session. All fields are needed; a missing
// one refuses.
type Handler struct {
	Decider    Decider
	Identity   capability.Identity
	Controller Controller
	Upstream   Upstream
	// Denied hears of every denial before it is answered.
	Denied func(v1.Event)
	// Limits are read once, at the first request.
	Limits Limits

	start   sync.Once
	limits  Limits
	counter counter
	held    budget
	tokens  tokens
	revoked atomic.Bool
	mu      sync.Mutex
	active  map[*context.CancelCauseFunc]struct{}
}

var (
	errRevoked = errors.New("the credentials of this session were revoked")
	errQuiet   = errors.New("nothing came for too long")
)

// Revoke ends every request that carries a credential, and denies later ones.
func (h *Handler) Revoke() {
	h.revoked.Store(true)
	h.tokens.forget()
	h.mu.Lock()
	defer h.mu.Unlock()
	for cancel := range h.active {
		(*cancel)(errRevoked)
	}
}

// track makes ctx end with Revoke.
func (h *Handler) track(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	h.mu.Lock()
	if h.active == nil {
		h.active = map[*context.CancelCauseFunc]struct{}{}
	}
	h.active[&cancel] = struct{}{}
	h.mu.Unlock()
	return ctx, func() {
		h.mu.Lock()
		delete(h.active, &cancel)
		h.mu.Unlock()
		cancel(nil)
	}
}

// request is one request on its way.
type request struct {
	h      *Handler
	w      http.ResponseWriter
	r      *http.Request
	dst    hostport.HostPort
	secure bool

	c        *canonical
	aws4     *aws4 // a true signature of the placeholder key
	whole    bool  // c.Body is all of the body
	action   vocabulary.Action
	resource vocabulary.Resource

	// The subprotocol in which the placeholder stood, and what goes in its place.
	wsPlaceholder, wsReal string

	short    *span // a range in which an echo could not be found
	held     []*holding
	quiet    *time.Timer
	answered atomic.Bool           // the upstream's answer has begun
	bodyEnd  atomic.Pointer[error] // how reading the request's body ended

	ending sync.Mutex
	over   bool
}

// touch notes that something has come.
func (q *request) touch() {
	if q.quiet != nil {
		q.quiet.Reset(q.h.limits.Quiet)
	}
}

// Serve decides on one request that came over a connection bound to dst.
func (h *Handler) Serve(w http.ResponseWriter, r *http.Request, dst hostport.HostPort, secure bool) {
	q := &request{h: h, w: w, r: r, dst: dst, secure: secure, action: "http.request"}
	defer q.end()
	scheme := "http://"
	if secure {
		scheme = "https://"
	}
	q.resource = vocabulary.Resource(scheme + dst.String() + "/")
	h.start.Do(func() { h.limits, h.Identity.Issued = h.Limits.filled(), h.tokens.issued })
	if message, ok := h.counter.enter(dst, h.limits); !ok {
		q.busy(message)
		return
	}
	defer h.counter.leave(dst)
	defer func() {
		for _, o := range q.held {
			o.free()
		}
	}()
	q.serve(scheme)
}

func (q *request) serve(scheme string) {
	h := q.h
	if h.Decider == nil || h.Controller == nil || h.Upstream == nil {
		q.deny(http.StatusForbidden, vocabulary.Reason{Code: "no-grant", Message: "this session has no capability set"})
		return
	}
	var err error
	if q.c, err = canonicaliseFor(q.r, q.dst, q.secure, h.Decider); err != nil {
		q.refuse(err)
		return
	}
	q.resource = vocabulary.Resource(scheme + authority(q.dst, q.secure) + q.c.shownPath())
	body, length, err := q.body()
	if err != nil {
		q.refuse(err)
		return
	}
	d := h.Decider.Decide(q.c.Request, h.Identity)
	if d.Action != "" {
		q.action = d.Action
	}
	if d.Resource != "" {
		q.resource = d.Resource
	}
	if d.Verdict == vocabulary.Allow && d.Exchange != "" {
		q.exchange(d)
		return
	}
	if d.Verdict != vocabulary.Allow || d.Permit == nil {
		q.deny(http.StatusForbidden, d.Reason)
		return
	}
	if d.Filter != nil && body != nil {
		body = d.Filter(body)
	}
	q.forward(d, body, length)
}

// refuse answers a request without canonical form.
func (q *request) refuse(err error) {
	if errors.Is(err, errHeld) {
		q.busy(err.Error())
		return
	}
	if fe := (*framing.Error)(nil); errors.As(err, &fe) {
		// It is on record since the framing broke.
		reason := vocabulary.Reason{Code: CodeBadRequest, Message: err.Error()}
		Denial{Status: http.StatusBadRequest, Action: q.action, Resource: q.resource, Reason: reason}.Write(q.w, q.r)
		return
	}
	reason := vocabulary.Reason{Code: CodeBadRequest, Message: err.Error(), Remedy: "send the request in the plain form; nothing ambiguous is forwarded"}
	if r := (*refusal)(nil); errors.As(err, &r) {
		reason.Code = r.code
		if r.code != CodeBadRequest {
			reason.Remedy = ""
		}
	}
	q.deny(http.StatusForbidden, reason)
}

func (q *request) deny(status int, reason vocabulary.Reason) {
	q.denyWith(Denial{Status: status, Reason: reason})
}

// denyWith records a denial and answers with it.
func (q *request) denyWith(d Denial) {
	d.Action, d.Resource = q.action, q.resource
	q.record(d.Reason)
	d.Write(q.w, q.r)
}

// record puts a refusal on record.
func (q *request) record(reason vocabulary.Reason) {
	if q.h.Denied != nil {
		q.h.Denied(q.event(vocabulary.Deny, reason, nil))
	}
}

func (q *request) event(v vocabulary.Verdict, reason vocabulary.Reason, more map[string]string) v1.Event {
	attrs := map[string]string{"method": clip(q.r.Method), "host": q.dst.String(), "proto": q.r.Proto}
	if q.c != nil {
		attrs["path"] = q.c.shownPath()
	}
	for k, v := range more {
		attrs[k] = v
	}
	return v1.Event{Actor: "sandbox", Action: q.action, Resource: q.resource, Verdict: v, Reason: reason, Attrs: attrs}
}

func authority(dst hostport.HostPort, secure bool) string {
	if secure && dst.Port == 443 || !secure && dst.Port == 80 {
		return dst.Host.String()
	}
	return dst.String()
}

func (q *request) forward(d capability.Decision, body io.Reader, length int64) {
	h := q.h
	ctx, end := context.WithCancelCause(q.r.Context())
	defer end(nil)
	more := map[string]string{}
	var use *wire.CredentialUse
	if d.Swap != nil {
		// Tracked before the flag is read: a revocation finds one or the other.
		var done func()
		ctx, done = h.track(ctx)
		defer done()
		if h.revoked.Load() {
			q.deny(http.StatusForbidden, revoked(d.Reason.Rule))
			return
		}
		if !d.Swap.Issued {
			use = &wire.CredentialUse{Name: d.Swap.Credential, Action: q.action, Resource: q.resource}
		}
		if d.Swap.Credential != "" {
			more["credential"] = d.Swap.Credential
		}
	}
	if len(d.Dropped) > 0 {
		more["dropped"] = strings.Join(d.Dropped, ",")
	}
	body, length, err := q.verifyAWS4(d, body, length)
	if err == nil {
		err = q.prepare(d)
	}
	if err != nil {
		q.refuse(err)
		return
	}
	real, err := h.Controller.Authorize(ctx, q.event(vocabulary.Allow, d.Reason, more), use)
	if err != nil {
		q.unauthorized(err, d)
		return
	}
	if d.Swap != nil && d.Swap.Issued {
		real = h.tokens.real(q.c.header.Get(d.Swap.Slot.Header))
	}
	if d.Issues != "" {
		q.c.header.Set("Accept-Encoding", "identity") // the answer is read
	}
	var scrub *scrubber
	if d.Swap != nil {
		if scrub, err = q.swap(*d.Swap, real); err != nil {
			q.deny(http.StatusServiceUnavailable, vocabulary.Reason{Code: CodeNoCredential, Message: err.Error(), Rule: d.Reason.Rule})
			return
		}
		defer real.Wipe()
	}
	q.quiet = time.AfterFunc(h.limits.Quiet, func() { end(errQuiet) })
	defer q.quiet.Stop()
	if q.c.ws != nil {
		q.upgrade(ctx, d, scrub)
		return
	}
	if body != nil && q.r.ProtoMajor == 1 {
		// Or the server would read the rest of the body, which is the upstream's,
		// before an early answer.
		http.NewResponseController(q.w).EnableFullDuplex()
	}
	out, err := q.rebuild(ctx, body, length)
	if err != nil {
		q.refuse(err)
		return
	}
	resp, err := h.Upstream.RoundTrip(d.Permit, out)
	if err == nil && q.short != nil && resp.StatusCode == http.StatusPartialContent {
		io.CopyN(io.Discard, resp.Body, minRange)
		resp.Body.Close()
		out.Header.Set("Range", q.short.wider(scrub))
		resp, err = h.Upstream.RoundTrip(d.Permit, out)
	}
	if err != nil {
		q.failed(ctx, err, d, scrub)
		return
	}
	q.answer(ctx, resp, d, scrub)
}

func revoked(rule vocabulary.Position) vocabulary.Reason {
	return vocabulary.Reason{Code: CodeRevoked, Message: errRevoked.Error(), Rule: rule, Remedy: "start a new session"}
}

// unauthorized answers when the controller did not record or did not give the
// credential.
func (q *request) unauthorized(err error, d capability.Decision) {
	switch {
	case q.r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // the client went away
	case wire.HasCode(err, wire.CodeNoCredential) || q.h.revoked.Load():
		if q.h.revoked.Load() {
			q.deny(http.StatusForbidden, revoked(d.Reason.Rule))
			return
		}
		q.deny(http.StatusServiceUnavailable, vocabulary.Reason{Code: CodeNoCredential, Message: "the credential is not available: " + err.Error(), Rule: d.Reason.Rule})
	default:
		q.deny(http.StatusServiceUnavailable, vocabulary.Reason{Code: CodeNoRecord, Message: "the request could not be recorded, so it was not made", Rule: d.Reason.Rule, Remedy: "the event log of this session does not accept events (disk full?)"})
	}
}

// prepare removes or rewrites what the decision says must not be forwarded as
// it is, and refuses placeholders in other places than the decision's slot.
func (q *request) prepare(d capability.Decision) error {
	for name, value := range d.Rewrite {
		if q.c.header.Del(name); value != "" {
			q.c.header.Set(name, value)
		}
	}
	for name, placeholder := range q.h.Identity.Placeholders {
		if len(placeholder) < minScrub {
			continue
		}
		where := ""
		query, _ := url.QueryUnescape(q.c.rawQuery)
		if d.Swap != nil && d.Swap.Slot.Query != "" {
			query, _ = url.QueryUnescape(editQuery(q.c.rawQuery, d.Swap.Slot.Query, nil))
		}
		if strings.Contains(q.c.Path, placeholder) {
			where = "path"
		} else if strings.Contains(query, placeholder) {
			where = "query"
		}
		for header, values := range q.c.header {
			if d.Swap != nil && strings.EqualFold(header, d.Swap.Slot.Header) {
				if len(values) > 1 {
					return &refusal{CodeForeign, "the header " + header + " was sent more than once"}
				}
				continue
			}
			for _, v := range values {
				if strings.Contains(v, placeholder) || strings.Contains(header, placeholder) {
					where = "header " + header
				}
			}
		}
		if where != "" {
			return &refusal{CodePlaceholder, fmt.Sprintf("the placeholder of %q stands in the %s, where it is never replaced", name, where)}
		}
	}
	return nil
}

// editQuery removes the pairs with this key, or sets their value.
func editQuery(raw, key string, value *string) string {
	var out []string
	for pair := range strings.SplitSeq(raw, "&") {
		k, _, _ := strings.Cut(pair, "=")
		if name, err := url.QueryUnescape(k); err == nil && name == key {
			if value == nil {
				continue
			}
			pair = k + "=" + url.QueryEscape(*value)
		}
		out = append(out, pair)
	}
	return strings.Join(out, "&")
}

// swap puts the real credential where the decision says, and nowhere else, and
// returns what removes it from the answer.
func (q *request) swap(s capability.Swap, real secret.Value) (*scrubber, error) {
	if s.Slot.Scheme == sigv4.Scheme {
		return q.signAWS4(real)
	}
	value := string(real.Reveal())
	if value == "" || !httpguts.ValidHeaderFieldValue(value) {
		return nil, fmt.Errorf("the credential %q is empty or has characters that no header can carry", s.Credential)
	}
	placeholder := q.h.Identity.Placeholders[s.Credential]
	secrets := [][]byte{[]byte(value)}
	switch {
	case s.Slot.Query != "":
		q.c.rawQuery = editQuery(q.c.rawQuery, s.Slot.Query, &value)
	case s.Slot.Header == "":
		return nil, errors.New("the decision names no place for the credential")
	case s.Slot.Prefix != "":
		if q.c.ws == nil || placeholder == "" || !httpguts.ValidHeaderFieldName(value) {
			return nil, fmt.Errorf("the credential %q cannot stand in the name of a subprotocol", s.Credential)
		}
		q.wsPlaceholder, q.wsReal = s.Slot.Prefix+placeholder, s.Slot.Prefix+value
	case strings.EqualFold(s.Slot.Scheme, "Basic"):
		user, pass, err := basic(q.c.header.Get(s.Slot.Header))
		if err != nil {
			return nil, err
		}
		switch placeholder {
		case "":
			return nil, errors.New("the credential has no placeholder")
		case pass:
			pass = value
		case user:
			user = value
		default:
			return nil, errors.New("the basic credentials do not hold the placeholder")
		}
		pair := []byte(user + ":" + pass)
		secrets = append(secrets, pair)
		q.c.header.Set(s.Slot.Header, "Basic "+base64.StdEncoding.EncodeToString(pair))
	case s.Slot.Scheme != "":
		q.c.header.Set(s.Slot.Header, s.Slot.Scheme+" "+value)
	default:
		q.c.header.Set(s.Slot.Header, value)
	}
	if asked := q.c.header["Range"]; !searchable(asked) {
		if m := q.c.Method; m == http.MethodGet || m == http.MethodHead {
			q.short = shortRange(asked)
		}
		if q.short == nil {
			delete(q.c.header, "Range")
			delete(q.c.header, "If-Range")
		}
	}
	q.c.header.Set("Accept-Encoding", "identity")
	return newScrubber(secrets...), nil
}

func basic(header string) (user, pass string, err error) {
	enc, ok := cutPrefixFold(header, "Basic ")
	if !ok {
		return "", "", errors.New("the request has no basic credentials")
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(enc))
	if err != nil {
		return "", "", errors.New("the basic credentials are not base64")
	}
	user, pass, ok = strings.Cut(string(raw), ":")
	if !ok {
		return "", "", errors.New("the basic credentials have no colon")
	}
	return user, pass, nil
}

// rebuild makes the request that is sent, from the canonical form alone.
func (q *request) rebuild(ctx context.Context, body io.Reader, length int64) (*http.Request, error) {
	path := strings.ReplaceAll(q.c.Path, "%2F", "/") // as it decodes; only RawPath goes out
	u := &url.URL{Scheme: q.c.Scheme, Host: q.dst.String(), Path: path, RawPath: q.c.rawPath, RawQuery: q.c.rawQuery}
	if u.EscapedPath() != q.c.rawPath {
		return nil, bad("the path would be written in another way than it was judged")
	}
	out := (&http.Request{
		Method: q.r.Method, URL: u, Host: authority(q.dst, q.secure), Header: q.c.header,
		Proto: q.r.Proto, ProtoMajor: q.r.ProtoMajor, ProtoMinor: q.r.ProtoMinor,
	}).WithContext(ctx)
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = []string{""} // or the library would add its own
	}
	if body != nil {
		out.Body, out.ContentLength = &sending{body, q}, length
		if data := q.c.Body; q.whole {
			out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
		}
	}
	return out, nil
}

// failed answers when there is no answer from the upstream.
func (q *request) failed(ctx context.Context, err error, d capability.Decision, scrub *scrubber) {
	// An error of reading ends the context too, so this comes first.
	if end := q.bodyEnd.Load(); end != nil && q.blame(*end) {
		q.refuse(q.unread(*end))
		return
	}
	if q.r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the client went away
	}
	if known := (*refusal)(nil); errors.As(err, &known) { // of the body, on its way
		q.refuse(known)
		return
	}
	message := []byte(err.Error())
	if scrub != nil {
		scrub.bytes(message)
	}
	reason := vocabulary.Reason{Code: CodeUpstream, Message: "the upstream did not answer: " + string(message), Rule: d.Reason.Rule}
	status, late, quota := http.StatusBadGateway, (*capability.Refusal)(nil), (*dial.QuotaError)(nil)
	switch cause := context.Cause(ctx); {
	case q.h.revoked.Load() && d.Swap != nil:
		status, reason = http.StatusForbidden, revoked(d.Reason.Rule)
	case len(q.r.Header["Grpc-Timeout"]) > 0 && strings.Contains(err.Error(), "; CANCEL;"):
		status, reason.Message = http.StatusGatewayTimeout, "the upstream gave the call up" // its deadline is the client's too
	case cause == errQuiet:
		status, reason.Message = http.StatusGatewayTimeout, fmt.Sprintf("the upstream did not answer within %v", q.h.limits.Quiet)
	case errors.As(err, &late):
		status, reason = http.StatusForbidden, late.Reason
	case errors.Is(err, catalog.ErrBadBody):
		status, reason.Code, reason.Message = http.StatusForbidden, CodeBadRequest, err.Error()
	case errors.Is(err, errTooLong):
		status, reason.Code, reason.Message = http.StatusRequestEntityTooLarge, CodeBadRequest, err.Error()
	case errors.As(err, &quota):
		status, reason = http.StatusForbidden, QuotaReason(quota)
	case errors.Is(err, dial.ErrAddress):
		status, reason.Code, reason.Message = http.StatusForbidden, CodeAddress, string(message)
		reason.Remedy = "the operator's policy can say where the name really lives: upstreams: {" + q.dst.Host.String() + ": {connect: ip:port}}"
	case errors.Is(err, dial.ErrResolve):
		reason.Code, reason.Message = CodeResolve, string(message)
	case errors.Is(err, dial.ErrVerify):
		reason.Code, reason.Message = CodeUpstreamTLS, string(message)
	}
	q.deny(status, reason)
}
