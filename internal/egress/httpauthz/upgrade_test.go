package httpauthz

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	v1 "github.com/bulkhead-dev/bulkhead/api/v1"
	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/egress/wire"
	"github.com/bulkhead-dev/bulkhead/internal/secret"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// allowed is a decider with one answer, and a controller with one credential.
type allowed struct{ capability.Decision }

func (a allowed) Body(catalog.Request) catalog.Need                               { return catalog.Need{} }
func (a allowed) EscapedSlash(catalog.Request) bool                               { return false }
func (a allowed) Decide(catalog.Request, capability.Identity) capability.Decision { return a.Decision }
func (a allowed) Authorize(context.Context, v1.Event, *wire.CredentialUse) (secret.Value, error) {
	return secret.New([]byte("sk-real-5fJ29xPqLm0ZsWc7")), nil
}

type toward struct{ addr string }

func (u toward) RoundTrip(_ *capability.Permit, r *http.Request) (*http.Response, error) {
	return (&http.Transport{DialContext: func(ctx context.Context, n, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, n, u.addr)
	}}).RoundTrip(r)
}

// A credential that stands in the name of a subprotocol, as browsers send it, is
// swapped there; the upstream's choice of that name comes back as the client
// knows it, and names that were not granted are left out.
func TestCredentialAsSubprotocol(t *testing.T) {
	seen := make(chan string, 1)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Get("Sec-Websocket-Protocol")
		if c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"key.sk-real-5fJ29xPqLm0ZsWc7"}}); err == nil {
			c.Close(1000, "")
		}
	}))
	defer up.Close()
	a := allowed{capability.Decision{
		Verdict: vocabulary.Allow, Permit: &capability.Permit{}, WebSocket: &capability.WebSocket{Subprotocol: func(n string) bool { return n == "realtime" }},
		Swap: &capability.Swap{Credential: "key", Slot: catalog.Slot{Header: "Sec-Websocket-Protocol", Prefix: "key."}},
	}}
	h := &Handler{Decider: a, Controller: a, Upstream: toward{up.Listener.Addr().String()}, Identity: capability.Identity{Placeholders: map[string]string{"key": "sk-bulk-held"}}}
	us := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.Serve(w, r, destination(t, "api.test:80"), false) }))
	defer us.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, resp, err := websocket.Dial(ctx, strings.Replace(us.URL, "http", "ws", 1), &websocket.DialOptions{Host: "api.test", Subprotocols: []string{"realtime", "key.sk-bulk-held", "other"}})
	if err != nil {
		t.Fatal(resp, err)
	}
	defer c.CloseNow()
	if got := <-seen; got != "realtime, key.sk-real-5fJ29xPqLm0ZsWc7" {
		t.Errorf("the upstream was offered %q", got)
	}
	if c.Subprotocol() != "key.sk-bulk-held" || strings.Contains(resp.Header.Get("Sec-Websocket-Protocol"), "real-") {
		t.Errorf("the client was told %q", c.Subprotocol())
	}
	// No decision about WebSockets is no permission for one.
	a.WebSocket = nil
	h.Decider = a
	if _, resp, err := websocket.Dial(ctx, strings.Replace(us.URL, "http", "ws", 1), &websocket.DialOptions{Host: "api.test"}); err == nil || resp.StatusCode != 403 {
		t.Errorf("without a decision: %v", err)
	}
}
