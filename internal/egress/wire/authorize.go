package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode/utf8"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/event"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Controller is what the gateway may ask of the controller.
type Controller interface {
	event.Recorder
	// Credential returns the real credential for one use.
	Credential(name string, action vocabulary.Action, resource vocabulary.Resource) (secret.Value, error)
}

// CredentialUse says which credential is needed for what.
type CredentialUse struct {
	Name     string              `json:"name"`
	Action   vocabulary.Action   `json:"action"`
	Resource vocabulary.Resource `json:"resource"`
}

// Codes of a RemoteError that answers Authorize.
const (
	CodeNoRecord     = "no-record"
	CodeNoCredential = "no-credential"
)

// RootsReply carries the host's roots, PEM.
type RootsReply struct {
	PEM []byte `json:"pem"`
}

// ServeController is the controller's handler.
func ServeController(ctrl Controller, roots []byte) Handler {
	return func(ctx context.Context, kind string, body json.RawMessage, _ *os.File) (any, error) {
		if kind == Roots {
			return RootsReply{roots}, nil
		}
		if answer, handled, err := serveSign(ctx, ctrl, kind, body); handled {
			return answer, err
		}
		if answer, handled, err := serveExchange(ctx, ctrl, kind, body); handled {
			return answer, err
		}
		return nil, fmt.Errorf("%w: a gateway does not ask for %q", ErrProtocol, clean(kind, 32))
	}
}

// Roots fetches the host's roots.
func (c Client) Roots(ctx context.Context) ([]byte, error) {
	var reply RootsReply
	err := c.Conn.Call(ctx, Roots, struct{}{}, &reply, nil)
	return reply.PEM, err
}

// HasCode reports whether err is the other side's answer with this code.
func HasCode(err error, code string) bool {
	re := (*RemoteError)(nil)
	return errors.As(err, &re) && re.Code == code
}

// Bounds of what a hostile gateway may write into the log.
const (
	maxField = 2 << 10
	maxAttrs = 24
	maxAttr  = 512
)

// Clean bounds every field of an event from the gateway and replaces what
// could forge a line or reach a terminal. A gateway speaks for the sandbox or
// for itself, never for the controller or a user.
func Clean(e v1.Event) v1.Event {
	if e.Actor != "sandbox" {
		e.Actor = "gateway"
	}
	e.Session, e.Seq = "", 0
	e.Action = vocabulary.Action(clean(string(e.Action), 128))
	e.Resource = vocabulary.Resource(clean(string(e.Resource), maxField))
	e.Reason.Code = clean(e.Reason.Code, 64)
	e.Reason.Message = clean(e.Reason.Message, maxField)
	e.Reason.Remedy = clean(e.Reason.Remedy, maxField)
	e.Reason.Rule.File = clean(e.Reason.Rule.File, maxField)
	if len(e.Attrs) > 0 {
		attrs := make(map[string]string, min(len(e.Attrs), maxAttrs))
		for k, v := range e.Attrs {
			if len(attrs) == maxAttrs {
				break
			}
			attrs[clean(k, 64)] = clean(v, maxAttr)
		}
		e.Attrs = attrs
	}
	return e
}

func clean(s string, max int) string {
	if len(s) > max {
		cut := max
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "…"
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r < 0x20, 0x7f <= r && r < 0xa0, r == utf8.RuneError,
			0x200b <= r && r <= 0x200f, 0x2028 <= r && r <= 0x202e, 0x2066 <= r && r <= 0x2069, r == 0xfeff,
			0xe0000 <= r && r <= 0xe007f:
			return '\ufffd'
		}
		return r
	}, s)
}
