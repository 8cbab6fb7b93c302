package httpauthz

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Exchanger answers token requests. A Controller may be one.
type Exchanger interface {
	Exchange(context.Context, wire.ExchangeRequest) (wire.ExchangeReply, error)
}

// exchange has a token request answered on the host. Nothing of it is forwarded
// from here: no header, no connection. What comes back holds placeholders.
func (q *request) exchange(d capability.Decision) {
	x, ok := q.h.Controller.(Exchanger)
	if !ok {
		q.deny(http.StatusForbidden, vocabulary.Reason{Code: CodeNoCredential, Message: "this session has no logins", Rule: d.Reason.Rule})
		return
	}
	ctx, done := q.h.track(q.r.Context())
	defer done()
	if q.h.revoked.Load() {
		q.deny(http.StatusForbidden, revoked(d.Reason.Rule))
		return
	}
	reply, err := x.Exchange(ctx, wire.ExchangeRequest{
		Event:      q.event(vocabulary.Allow, d.Reason, map[string]string{"credential": d.Exchange}),
		Credential: d.Exchange, URL: "https://" + authority(q.dst, q.secure) + q.c.Path,
		ContentType: q.c.header.Get("Content-Type"), Body: q.c.Body,
	})
	switch {
	case err != nil && q.r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // the client went away
	case q.h.revoked.Load():
		q.deny(http.StatusForbidden, revoked(d.Reason.Rule))
		return
	case err != nil:
		q.unexchanged(err, d)
		return
	}
	if reply.Status < 200 || reply.Status > 599 {
		q.unexchanged(errors.New("the controller's answer has no status"), d)
		return
	}
	h := q.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store") // RFC 6749 section 5.1
	h.Set("Content-Length", fmt.Sprint(len(reply.Body)))
	q.w.WriteHeader(reply.Status)
	q.w.Write(reply.Body)
}

func (q *request) unexchanged(err error, d capability.Decision) {
	if wire.HasCode(err, wire.CodeNoExchange) {
		q.deny(http.StatusServiceUnavailable, vocabulary.Reason{Code: CodeNoCredential, Message: "the login is not available: " + err.Error(), Rule: d.Reason.Rule})
		return
	}
	q.unauthorized(err, d)
}
