package httpauthz

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/gobwas/ws"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/egress/framing"
	"github.com/bulkhead-dev/bulkhead/internal/egress/websocket"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// upgrade opens a granted WebSocket and carries it to its end. The decision and
// the credential have been dealt with.
func (q *request) upgrade(ctx context.Context, d capability.Decision, scrub *scrubber) {
	refuse := func(status int, message string) {
		q.deny(status, vocabulary.Reason{Code: CodeProtocolRefused, Message: message, Rule: d.Reason.Rule})
	}
	if d.WebSocket == nil {
		refuse(http.StatusForbidden, "an upgrade to WebSocket is not granted")
		return
	}
	k := q.c.ws
	k.Protocols = q.offered(d.WebSocket)
	delete(q.c.header, "Sec-Websocket-Protocol")
	k.Offer(q.c.header)
	out, err := q.rebuild(ctx, nil, 0)
	if err != nil {
		q.refuse(err)
		return
	}
	resp, err := q.h.Upstream.RoundTrip(d.Permit, out)
	if err != nil {
		q.failed(ctx, err, d, scrub)
		return
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		q.answer(ctx, resp, d, scrub)
		return
	}
	defer resp.Body.Close()
	protocol, err := k.Verify(resp)
	stream, ok := resp.Body.(io.ReadWriteCloser)
	if err == nil && !ok {
		err = errors.New("the upstream's connection cannot be written to")
	}
	if err != nil {
		refuse(http.StatusBadGateway, err.Error())
		return
	}
	client, err := takeOver(q.w, q.r)
	if err != nil {
		q.record(vocabulary.Reason{Code: CodeBadRequest, Message: err.Error(), Rule: d.Reason.Rule})
		return
	}
	defer client.Close()
	q.quiet.Stop()
	if _, err := client.Write(k.Answer(q.presented(protocol))); err != nil {
		return
	}
	err = websocket.Relay(ctx, client, stream, q.messages(d, scrub))
	if v := (*websocket.Violation)(nil); errors.As(err, &v) && v.Code != ws.StatusPolicyViolation {
		q.record(vocabulary.Reason{Code: CodeProtocolRefused, Message: "the WebSocket was ended; " + clip(v.Reason), Rule: d.Reason.Rule})
	}
}

// offered are the client's subprotocols that may go to the upstream, with the
// real credential in the one where its placeholder stood (see swap).
func (q *request) offered(g *capability.WebSocket) []string {
	allowed := g.Subprotocol
	if allowed == nil {
		allowed = plainName
	}
	var out []string
	for _, p := range q.c.ws.Protocols {
		switch {
		case p == q.wsPlaceholder && p != "":
			out = append(out, q.wsReal)
		case allowed(p):
			out = append(out, p)
		}
	}
	return out
}

// presented is the subprotocol as the client knows it.
func (q *request) presented(protocol string) string {
	if protocol == q.wsReal && protocol != "" {
		return q.wsPlaceholder
	}
	return protocol
}

// plainName tells names of protocols from what people smuggle in their place.
func plainName(p string) bool {
	lower := strings.ToLower(p)
	for _, word := range []string{"key", "token", "auth", "bearer", "secret", "passw", "jwt", "cred", "base64"} {
		if strings.Contains(lower, word) {
			return false
		}
	}
	for part := range strings.FieldsFuncSeq(p, func(r rune) bool { return r == '.' || r == '-' }) {
		if len(part) > 20 {
			return false
		}
	}
	return len(p) <= 64
}

// takeOver takes the connection from the server. What the client sent ahead of
// the answer is refused.
func takeOver(w http.ResponseWriter, r *http.Request) (net.Conn, error) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	early := errors.New("the client went on before it was answered")
	if rw.Reader.Buffered() > 0 {
		conn.Close()
		return nil, early
	}
	if fc, ok := conn.(*framing.Conn); ok {
		inner, err := fc.Release()
		if err != nil {
			conn.Close()
			return nil, err
		}
		conn = inner
	}
	return conn, nil
}

// messages says what becomes of the messages.
func (q *request) messages(d capability.Decision, scrub *scrubber) websocket.Options {
	l := q.h.limits
	o := websocket.Options{MaxMessage: l.Message, Stall: l.Stall, Idle: l.Quiet}
	if scrub != nil {
		report := q.echo(d)
		o.Scrub = func(m io.Reader) io.Reader { return scrub.reader(m, report) }
		o.Clean = func(b []byte) {
			if scrub.bytes(b) {
				report()
			}
		}
	}
	judge := d.WebSocket.Message
	if judge == nil {
		return o
	}
	limit := l.Judged
	if n := int64(d.WebSocket.MessageLimit); n > 0 {
		limit = min(limit, n)
	}
	refused := func(message string) error {
		q.record(vocabulary.Reason{Code: CodeMessage, Message: message, Rule: d.Reason.Rule})
		return &websocket.Violation{Code: ws.StatusPolicyViolation, Reason: "bulkhead: " + message}
	}
	o.Judge = func(m io.Reader) ([]byte, func(), error) {
		held := &holding{h: q.h, ctx: q.r.Context()}
		switch err := held.fill(m, limit, nil); {
		case errors.Is(err, errLong):
			held.free()
			return nil, nil, refused("a message has to be read to decide, and is longer than it may be")
		case errors.Is(err, errHeld):
			held.free()
			return nil, nil, refused(err.Error())
		case err != nil:
			held.free()
			return nil, nil, err
		}
		if err := judge(held.buf); err != nil {
			held.free()
			if late := (*capability.Refusal)(nil); errors.As(err, &late) {
				q.record(late.Reason)
				return nil, nil, &websocket.Violation{Code: ws.StatusPolicyViolation, Reason: Denial{Reason: late.Reason}.line()}
			}
			return nil, nil, refused(err.Error())
		}
		return held.buf, held.free, nil
	}
	return o
}
