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

// AuthorizeRequest records an event and, only after it is recorded, asks for
// the credential that the recorded act needs: one round trip, in this order.
type AuthorizeRequest struct {
	Event      v1.Event       `json:"event"`
	Credential *CredentialUse `json:"credential,omitempty"`
}

// AuthorizeReply carries the real credential, if one was asked for.
type AuthorizeReply struct {
	Secret []byte `json:"secret,omitempty"`
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
	return func(_ context.Context, kind string, body json.RawMessage, _ *os.File) (any, error) {
		if kind == Roots {
			return RootsReply{roots}, nil
		}
		if kind != Authorize {
			return nil, fmt.Errorf("%w: a gateway does not ask for %q", ErrProtocol, clean(kind, 32))
		}
		var req AuthorizeRequest
		if err := json.Unmarshal(body, &req); err != nil {
			return nil, &RemoteError{CodeNoRecord, "unreadable event"}
		}
		if err := ctrl.Record(Clean(req.Event)); err != nil {
			return nil, &RemoteError{CodeNoRecord, err.Error()}
		}
		if req.Credential == nil {
			return AuthorizeReply{}, nil
		}
		use := *req.Credential
		v, err := ctrl.Credential(clean(use.Name, 128), vocabulary.Action(clean(string(use.Action), 128)), vocabulary.Resource(clean(string(use.Resource), maxField)))
		if err != nil {
			return nil, &RemoteError{CodeNoCredential, err.Error()}
		}
		return AuthorizeReply{Secret: v.Reveal()}, nil
	}
}

// Client is the gateway's view of its controller.
type Client struct{ Conn *Conn }

// Roots fetches the host's roots.
func (c Client) Roots(ctx context.Context) ([]byte, error) {
	var reply RootsReply
	err := c.Conn.Call(ctx, Roots, struct{}{}, &reply, nil)
	return reply.PEM, err
}

// Record implements event.Recorder.
func (c Client) Record(e v1.Event) error {
	return c.Conn.Call(context.Background(), Authorize, AuthorizeRequest{Event: e}, nil, nil)
}

// Authorize records e and returns the credential; use may be nil.
func (c Client) Authorize(ctx context.Context, e v1.Event, use *CredentialUse) (secret.Value, error) {
	var reply AuthorizeReply
	if err := c.Conn.Call(ctx, Authorize, AuthorizeRequest{e, use}, &reply, nil); err != nil {
		return secret.Value{}, err
	}
	if use == nil {
		return secret.Value{}, nil
	}
	v := secret.New(reply.Secret)
	clear(reply.Secret)
	if v.Empty() {
		return v, &RemoteError{CodeNoCredential, "the credential is empty"}
	}
	return v, nil
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
