//go:build unix

package wire

import (
	"context"
	"errors"
	"strings"
	"testing"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
)

type loginController struct {
	controller
	asked []ExchangeRequest
}

func (c *loginController) Exchange(_ context.Context, r ExchangeRequest) (ExchangeReply, error) {
	c.asked = append(c.asked, r)
	if r.Credential != "claude" {
		return ExchangeReply{}, errors.New("no such login")
	}
	return ExchangeReply{Status: 200, Body: []byte(`{"access_token":"placeholder"}`)}, nil
}

// An exchange is recorded before it is made, bounded, and refused where there
// are no logins.
func TestExchange(t *testing.T) {
	ctrl := &loginController{}
	_, g := ends(t, ctrl, nil)
	client := Client{g}
	reply, err := client.Exchange(t.Context(), ExchangeRequest{Event: v1.Event{Actor: "controller", Action: "login.exchange"}, Credential: "claude", URL: "https://a.example/token\n", Body: []byte("{}")})
	if err != nil || reply.Status != 200 || string(reply.Body) != `{"access_token":"placeholder"}` {
		t.Fatalf("%+v %v", reply, err)
	}
	if ctrl.events[0].Actor != "gateway" || strings.Contains(ctrl.asked[0].URL, "\n") {
		t.Errorf("not cleaned: %+v %+v", ctrl.events[0], ctrl.asked[0])
	}
	if _, err := client.Exchange(t.Context(), ExchangeRequest{Credential: "other"}); !HasCode(err, CodeNoExchange) {
		t.Errorf("%v", err)
	}
	n := len(ctrl.asked)
	if _, err := client.Exchange(t.Context(), ExchangeRequest{Credential: "claude", Body: make([]byte, maxExchangeBody+1)}); !HasCode(err, CodeNoExchange) || len(ctrl.asked) != n {
		t.Errorf("%v", err)
	}
	ctrl.fail = errors.New("disk full")
	if _, err := client.Exchange(t.Context(), ExchangeRequest{Credential: "claude"}); !HasCode(err, CodeNoRecord) || len(ctrl.asked) != n {
		t.Errorf("no record, and yet: %v", err)
	}
	_, plain := ends(t, &controller{}, nil)
	if _, err := (Client{plain}).Exchange(t.Context(), ExchangeRequest{Credential: "claude"}); !HasCode(err, CodeNoExchange) {
		t.Errorf("%v", err)
	}
}
