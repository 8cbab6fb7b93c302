package login

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/secret"
)

// Request is what a sandbox posted to one of the description's endpoints. All of
// it is hostile.
type Request struct {
	URL         string
	ContentType string
	Body        []byte
}

// Reply is the answer for the sandbox: JSON without any real token.
type Reply struct {
	Status int
	Body   []byte
}

const (
	maxRequest = 32 << 10
	maxFields  = 32
	deviceCode = "urn:ietf:params:oauth:grant-type:device_code"
)

// Exchange answers a token request of the sandbox, by a request of the host's
// own if one is needed. The Outcome is to be recorded.
func (l *Login) Exchange(ctx context.Context, req Request) (Reply, Outcome) {
	x := exchange{l: l, ctx: ctx, note: Outcome{Attrs: map[string]string{"login": l.spec.Name}}}
	if l.isRevoked() {
		return x.deny("credential.refresh", http.StatusForbidden, "access_denied", "revoked", ErrRevoked.Error(), "start a new session")
	}
	fields, err := parseFields(req.ContentType, req.Body)
	if err != nil {
		return x.deny("credential.refresh", http.StatusBadRequest, "invalid_request", "bad-request", "a token request in a form that is not judged: "+err.Error(), "")
	}
	if c, ok := fields["client_id"]; ok && c != l.spec.Endpoint.Client {
		return x.deny("credential.login", http.StatusBadRequest, "invalid_client", "foreign-client", "a token request for another client than "+l.spec.Name+"'s", "")
	}
	if l.spec.Endpoint.Device != "" && req.URL == l.spec.Endpoint.Device {
		return x.deviceStart()
	}
	switch g := fields["grant_type"]; g {
	case "refresh_token":
		return x.refresh(fields["refresh_token"])
	case "authorization_code":
		return x.code(fields)
	case deviceCode:
		return x.devicePoll(fields["device_code"])
	default:
		return x.deny("credential.login", http.StatusBadRequest, "unsupported_grant_type", "operation-not-granted", fmt.Sprintf("a token request of the kind %q is never answered", clip(g)), "")
	}
}

// parseFields reads a flat object or a form, and refuses what two readers could
// read in two ways.
func parseFields(contentType string, body []byte) (map[string]string, error) {
	if len(body) > maxRequest {
		return nil, fmt.Errorf("it is longer than %d KiB", maxRequest>>10)
	}
	kind, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, errors.New("its content type is broken")
	}
	out := map[string]string{}
	switch kind {
	case "application/json":
		dec := json.NewDecoder(strings.NewReader(string(body)))
		if t, err := dec.Token(); err != nil || t != json.Delim('{') {
			return nil, errors.New("it is no JSON object")
		}
		for dec.More() {
			k, err := dec.Token()
			if err != nil {
				return nil, errors.New("it is no JSON object")
			}
			key, _ := k.(string)
			v, err := dec.Token()
			if err != nil {
				return nil, errors.New("it is no JSON object")
			}
			if _, dup := out[key]; dup {
				return nil, errors.New("it has a field twice")
			}
			switch v := v.(type) {
			case string:
				out[key] = v
			case float64, bool, nil:
				out[key] = fmt.Sprint(v)
			default:
				return nil, errors.New("it has a field that is not text")
			}
		}
		if _, err := dec.Token(); err != nil {
			return nil, errors.New("it is no JSON object")
		}
		if dec.More() {
			return nil, errors.New("something follows the JSON object")
		}
	case "application/x-www-form-urlencoded":
		v, err := url.ParseQuery(string(body))
		if err != nil {
			return nil, errors.New("it is no form")
		}
		for key, values := range v {
			if len(values) != 1 {
				return nil, errors.New("it has a field twice")
			}
			out[key] = values[0]
		}
	default:
		return nil, errors.New("it is neither JSON nor a form")
	}
	if len(out) > maxFields {
		return nil, fmt.Errorf("it has more than %d fields", maxFields)
	}
	return out, nil
}

func clip(s string) string {
	if len(s) > 80 {
		s = strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}

type exchange struct {
	l    *Login
	ctx  context.Context
	note Outcome
}

func (x *exchange) deny(action string, status int, oauth, code, message, remedy string) (Reply, Outcome) {
	x.note.Action, x.note.Allowed, x.note.Code, x.note.Message, x.note.Remedy = action, false, code, message, remedy
	text := "bulkhead: " + message
	if remedy != "" {
		text += "; " + remedy
	}
	return reply(status, map[string]any{"error": oauth, "error_description": text}), x.note
}

func reply(status int, v map[string]any) Reply {
	b, err := json.Marshal(v)
	if err != nil {
		return Reply{Status: http.StatusInternalServerError, Body: []byte(`{"error":"server_error"}`)}
	}
	return Reply{Status: status, Body: append(b, '\n')}
}

// tokens is a token answer (RFC 6749 section 5.1) of placeholders, with what the
// description lets through of the real one.
func (x *exchange) tokens(real map[string]any) Reply {
	l := x.l
	l.mu.Lock()
	defer l.mu.Unlock()
	v := map[string]any{"token_type": "Bearer", "access_token": l.accessPH}
	if l.refreshPH != "" {
		v["refresh_token"], v["expires_in"] = l.refreshPH, int(lifetime/time.Second)
	}
	if l.idPH != "" {
		v["id_token"] = l.idPH
	}
	if s, ok := harmless(l.have.scope, l.isReal); ok && l.have.scope != "" {
		v["scope"] = s
	}
	for _, at := range l.spec.Inside.Answer {
		if a, ok := harmless(lookupPlace(real, at), l.isReal); ok && a != nil {
			setPlace(v, at, a)
		}
	}
	return reply(http.StatusOK, v)
}

// refresh answers the sandbox's wish for a newer token. What it holds stays as
// it is; the real one is made newer, but not as often as anybody asks.
func (x *exchange) refresh(presented string) (Reply, Outcome) {
	const action = "credential.refresh"
	l := x.l
	if l.refreshPH == "" || !secret.New([]byte(l.refreshPH)).Equal([]byte(presented)) {
		return x.deny(action, http.StatusBadRequest, "invalid_grant", "foreign-credential", "the refresh token is not this session's", "")
	}
	l.mu.Lock()
	now := l.opts.Now()
	var f *flight
	if l.have.access.Empty() {
		l.mu.Unlock()
		return x.deny(action, http.StatusBadRequest, "invalid_grant", "no-login", "this host has no login of "+l.spec.Name, "log in again on the host: "+l.spec.Again)
	}
	ended := !l.have.expires.IsZero() && l.have.expires.Sub(now) <= early
	force := !ended && (l.forced.IsZero() || now.Sub(l.forced) >= forcedPause)
	if ended || force {
		if force {
			l.forced = now
		}
		f = l.begin(now, force)
	}
	why := l.why
	l.mu.Unlock()
	if f != nil {
		select {
		case <-f.done:
			why = f.err
		case <-l.revoked:
			why = ErrRevoked
		case <-x.ctx.Done():
			why = x.ctx.Err()
		}
	}
	l.mu.Lock()
	usable := !l.have.access.Empty() && (l.have.expires.IsZero() || l.have.expires.Sub(l.opts.Now()) > spare)
	refused := !l.dead.Empty() && l.dead.Equal(l.have.refresh.Reveal())
	l.mu.Unlock()
	if l.isRevoked() {
		return x.deny(action, http.StatusForbidden, "access_denied", "revoked", ErrRevoked.Error(), "start a new session")
	}
	if why != nil && (refused || !usable) {
		status, oauth := http.StatusServiceUnavailable, "temporarily_unavailable"
		if refused {
			status, oauth = http.StatusBadRequest, "invalid_grant"
		}
		return x.deny(action, status, oauth, "not-refreshed", why.Error(), "")
	}
	x.note.Action, x.note.Allowed, x.note.Code, x.note.Message = action, true, "answered", "the sandbox was told that its placeholder is good"
	return x.tokens(nil), x.note
}

const codeLogin = "credential.login"

// mayBegin refuses a login begun inside that nobody allowed, with the status
// given: GitHub CLI takes a 403 of the device endpoint for "no device logins
// here", and waits for a browser instead.
func (x *exchange) mayBegin(status int) (Reply, Outcome, bool) {
	if x.l.opts.AllowLogin {
		return Reply{}, Outcome{}, true
	}
	r, o := x.deny(codeLogin, status, "access_denied", "operation-not-granted", "a login of "+x.l.spec.Name+" was begun inside, which the policy does not allow",
		"log in on the host ("+x.l.spec.Again+"), or start with allow-login: true under the credential")
	return r, o, false
}

// code completes a login begun inside (RFC 6749 section 4.1.3, RFC 7636).
func (x *exchange) code(fields map[string]string) (Reply, Outcome) {
	if r, o, ok := x.mayBegin(http.StatusForbidden); !ok {
		return r, o
	}
	send := [][2]string{{"grant_type", "authorization_code"}}
	for _, name := range []string{"code", "redirect_uri", "code_verifier", "state"} {
		v, ok := fields[name]
		if !ok {
			continue
		}
		if v == "" || len(v) > 4<<10 || strings.ContainsFunc(v, func(r rune) bool { return r <= 0x20 || r >= 0x7f }) {
			return x.deny(codeLogin, http.StatusBadRequest, "invalid_request", "bad-request", "the field "+name+" of a login is not in a form that is forwarded", "")
		}
		send = append(send, [2]string{name, v})
	}
	if fields["code"] == "" {
		return x.deny(codeLogin, http.StatusBadRequest, "invalid_request", "bad-request", "a login without a code", "")
	}
	encode := x.l.spec.Endpoint.EncodeCode
	if encode == "" {
		encode = x.l.spec.Endpoint.Encode
	}
	return x.complete(send, x.l.spec.Endpoint.URL, encode)
}

// deviceStart begins a device login (RFC 8628 section 3.1) on the host's behalf.
// The device code is as good as the token once the person agrees: it stays here.
func (x *exchange) deviceStart() (Reply, Outcome) {
	if r, o, ok := x.mayBegin(http.StatusBadRequest); !ok {
		return r, o
	}
	l := x.l
	send := [][2]string{{"client_id", l.spec.Endpoint.Client}, {"scope", l.spec.Endpoint.Scope}}
	status, answer, err := l.opts.Network.post(x.ctx, l.spec.Endpoint.Device, "form", send)
	if err != nil {
		return x.deny(codeLogin, http.StatusServiceUnavailable, "temporarily_unavailable", "endpoint", err.Error(), "")
	}
	code := text(answer, Place{"device_code"})
	if status != http.StatusOK || code == "" {
		return x.deny(codeLogin, http.StatusBadRequest, "access_denied", "endpoint", fmt.Sprintf("%s did not begin a login (%s)", hostOf(l.spec.Endpoint.Device), errorCode(answer)), "")
	}
	l.mu.Lock()
	l.device.Wipe()
	l.device = secret.New([]byte(code))
	l.mu.Unlock()
	v := map[string]any{"device_code": l.devicePH}
	for _, key := range []string{"user_code", "verification_uri", "verification_uri_complete", "expires_in", "interval"} {
		if a, ok := harmless(answer[key], func(s string) bool { return strings.Contains(s, code) }); ok && a != nil {
			v[key] = a
		}
	}
	x.note.Action, x.note.Allowed, x.note.Code = codeLogin, true, "begun"
	x.note.Message = "a login was begun inside; it counts only if the account is the one that is known"
	return reply(http.StatusOK, v), x.note
}

func (x *exchange) devicePoll(presented string) (Reply, Outcome) {
	if r, o, ok := x.mayBegin(http.StatusBadRequest); !ok {
		return r, o
	}
	l := x.l
	l.mu.Lock()
	device := l.device.Clone()
	l.mu.Unlock()
	defer device.Wipe()
	if l.devicePH == "" || device.Empty() || !secret.New([]byte(l.devicePH)).Equal([]byte(presented)) {
		return x.deny(codeLogin, http.StatusBadRequest, "invalid_grant", "foreign-credential", "the device code is not this session's", "")
	}
	return x.complete([][2]string{{"grant_type", deviceCode}, {"device_code", string(device.Reveal())}}, l.spec.Endpoint.URL, "form")
}

// waiting are answers that say: not yet (RFC 8628 section 3.5).
var waiting = map[string]bool{"authorization_pending": true, "slow_down": true}

// complete makes the real request, and takes its tokens if they are the known
// account's.
func (x *exchange) complete(send [][2]string, to, encode string) (Reply, Outcome) {
	l := x.l
	// Not the sandbox's context: a code is spent by the request.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.ctx), requestTime)
	defer cancel()
	next, answer, err := l.opts.Network.grant(ctx, l.spec, to, encode, send)
	if err != nil {
		code := errorCode(answer)
		if waiting[code] {
			v := map[string]any{"error": code}
			if i, ok := harmless(answer["interval"], l.isReal); ok && i != nil {
				v["interval"] = i
			}
			return reply(http.StatusOK, v), Outcome{} // asked every few seconds: nothing happened
		}
		var refusal *refusalError
		if errors.As(err, &refusal) {
			return x.deny(codeLogin, http.StatusBadRequest, "invalid_grant", "refused", hostOf(to)+" did not take the login's code ("+refusal.code+")", "")
		}
		return x.deny(codeLogin, http.StatusServiceUnavailable, "temporarily_unavailable", "endpoint", err.Error(), "")
	}
	who := l.accountOf(claims(next.id), answer, "")
	if who.ID == nil && l.spec.Account.URL != "" {
		who = l.opts.Network.whoAmI(ctx, l.spec, next.access)
	}
	x.note.Attrs["account"] = clip(who.Name)
	if err := l.take(ctx, next, who); err != nil {
		next.wipe()
		var m *mismatchError
		if errors.As(err, &m) {
			x.note.Attrs["known"] = clip(m.known)
			return x.deny(codeLogin, http.StatusForbidden, "access_denied", "account-mismatch", err.Error(),
				"if it is your account, log in on the host ("+l.spec.Again+"), or name it: account: under the credential")
		}
		return x.deny(codeLogin, http.StatusForbidden, "access_denied", "not-kept", err.Error(), "log in on the host: "+l.spec.Again)
	}
	x.note.Action, x.note.Allowed, x.note.Code = codeLogin, true, "logged-in"
	x.note.Message = "a login begun inside was completed; its tokens are the host's"
	return x.tokens(answer), x.note
}

type mismatchError struct{ known, got string }

func (e *mismatchError) Error() string {
	switch {
	case e.got == "":
		return "a login begun inside does not say whose it is, so it was not taken"
	case e.known == "":
		return "a login of " + e.got + " was begun inside, and no account is known that it could be compared with; it was not taken"
	}
	return "a login of " + e.got + " was begun inside, and this session is " + e.known + "'s; it was not taken"
}

// take makes new tokens the host's login: only of the account that is known.
func (l *Login) take(ctx context.Context, next tokens, who Account) error {
	l.mu.Lock()
	known, from := l.have.account, l.have.from
	l.mu.Unlock()
	switch {
	case who.ID == nil:
		return &mismatchError{known: known.Name}
	case l.opts.Account != "":
		if !who.is(l.opts.Account) {
			return &mismatchError{known: l.opts.Account, got: who.Name}
		}
	case !known.same(who):
		return &mismatchError{known: known.Name, got: who.Name}
	}
	if from == nil {
		for _, p := range l.spec.places(l.host) {
			if p.Keyring == "" {
				from = p
				break
			}
		}
		if from == nil {
			return errors.New("there is no file to keep the login in")
		}
	}
	release, err := l.lock(ctx, from)
	if err != nil {
		return fmt.Errorf("the login could not be kept: %w", err)
	}
	defer release()
	if l.isRevoked() {
		return ErrRevoked
	}
	out, err := l.prepare(from)
	if err != nil {
		return fmt.Errorf("the login could not be kept: %w", err)
	}
	next.account, next.from = who, from
	if len(l.spec.At.Account) > 0 {
		next.account.File = who.ID[min(1, len(who.ID)-1)]
	}
	if err := out.commit(ctx, next); err != nil {
		return fmt.Errorf("the login could not be kept: %w", err)
	}
	have, err := l.load(ctx)
	if err != nil {
		return fmt.Errorf("the login could not be read back: %w", err)
	}
	have.account = who
	next.wipe()
	l.adopt(have)
	l.mu.Lock()
	l.why, l.fails = nil, 0
	l.mu.Unlock()
	return nil
}
