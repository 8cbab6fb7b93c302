package httpauthz

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// hasty is an upstream that answers before it has read the body, and keeps the
// body, as a transport's connection may.
type hasty struct{ body io.ReadCloser }

func (h *hasty) RoundTrip(_ *capability.Permit, r *http.Request) (*http.Response, error) {
	h.body = r.Body
	return &http.Response{StatusCode: 200, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
}

// owned is a writer that must not be touched after its request: net/http's for
// HTTP/2 panics then.
type owned struct {
	*httptest.ResponseRecorder
	late func()
}

func (o *owned) SetReadDeadline(time.Time) error {
	if o.late != nil {
		o.late()
	}
	return nil
}

type streaming struct{ allowed }

func (streaming) Body(catalog.Request) catalog.Need { return catalog.Need{Stream: 100} }

func TestABodyThatIsReadTooLate(t *testing.T) {
	for _, major := range []int{1, 2} {
		up := &hasty{}
		a := streaming{allowed{capability.Decision{Verdict: vocabulary.Allow, Permit: &capability.Permit{}}}}
		h := &Handler{Decider: a, Controller: a, Upstream: up}
		r := httptest.NewRequest("POST", "https://a.example/x", strings.NewReader("abcdefgh"))
		r.RequestURI, r.Host, r.ProtoMajor = "/x", "a.example", major
		w := &owned{ResponseRecorder: httptest.NewRecorder()}
		h.Serve(w, r, destination(t, "a.example:443"), true)
		if up.body == nil || w.Code != 200 {
			t.Fatalf("HTTP/%d: answered %d %s", major, w.Code, w.Body)
		}
		w.late = func() { t.Errorf("HTTP/%d: the writer is used after its request", major) }
		_, _ = io.ReadAll(up.body)
		up.body.Close()
	}
}
