package wire

import (
	"context"
	"encoding/json"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
)

// Exchange asks the controller to answer a token request of the sandbox: the
// refresh of a login, or the end of one that was begun inside. The real request,
// if there is one, is the controller's; refresh tokens never come here.
const Exchange = "exchange" // ExchangeRequest → ExchangeReply

// CodeNoExchange answers an exchange that there can't be.
const CodeNoExchange = "no-exchange"

// ExchangeRequest is a request to a token endpoint, without its headers. The
// event is recorded before anything is done.
type ExchangeRequest struct {
	Event       v1.Event `json:"event"`
	Credential  string   `json:"credential"`
	URL         string   `json:"url"`
	ContentType string   `json:"contentType"`
	Body        []byte   `json:"body"`
}

// ExchangeReply is the answer: JSON that holds placeholders only.
type ExchangeReply struct {
	Status int    `json:"status"`
	Body   []byte `json:"body"`
}

// Exchanger is a Controller that has logins. It trusts nothing in a request.
type Exchanger interface {
	Exchange(context.Context, ExchangeRequest) (ExchangeReply, error)
}

const maxExchangeBody = 32 << 10

// serveExchange answers an exchange; handled says whether kind is one.
func serveExchange(ctx context.Context, ctrl Controller, kind string, body json.RawMessage) (answer any, handled bool, err error) {
	if kind != Exchange {
		return nil, false, nil
	}
	x, ok := ctrl.(Exchanger)
	if !ok {
		return nil, true, &RemoteError{CodeNoExchange, "this session has no logins"}
	}
	var r ExchangeRequest
	if json.Unmarshal(body, &r) != nil || len(r.Body) > maxExchangeBody {
		return nil, true, &RemoteError{CodeNoExchange, "unreadable token request"}
	}
	r.Credential, r.URL, r.ContentType = clean(r.Credential, 128), clean(r.URL, maxField), clean(r.ContentType, 256)
	if err := ctrl.Record(Clean(r.Event)); err != nil {
		return nil, true, &RemoteError{CodeNoRecord, err.Error()}
	}
	reply, err := x.Exchange(ctx, r)
	if err != nil {
		return nil, true, &RemoteError{CodeNoExchange, err.Error()}
	}
	return reply, true, nil
}

// Exchange records r's event and returns the controller's answer.
func (c Client) Exchange(ctx context.Context, r ExchangeRequest) (ExchangeReply, error) {
	var reply ExchangeReply
	err := c.Conn.Call(ctx, Exchange, r, &reply, nil)
	return reply, err
}
