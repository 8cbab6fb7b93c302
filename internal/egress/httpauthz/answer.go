package httpauthz

import (
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// steering headers would lead the client around the gateway or speak for it.
var steering = []string{"Alt-Svc", DeniedHeader, "Proxy-Authenticate", "Proxy-Authentication-Info", "Proxy-Connection", "Keep-Alive", "Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// answer passes the upstream's answer on as it comes.
func (q *request) answer(resp *http.Response, d capability.Decision, scrub *scrubber) {
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 999 {
		q.deny(http.StatusBadGateway, vocabulary.Reason{Code: CodeProtocolRefused, Message: fmt.Sprintf("the upstream answered %d, an upgrade that nobody asked for", resp.StatusCode), Rule: d.Reason.Rule})
		return
	}
	for _, line := range resp.Header["Connection"] {
		for token := range strings.SplitSeq(line, ",") {
			resp.Header.Del(textproto.TrimString(token))
		}
	}
	for _, name := range steering {
		delete(resp.Header, name)
	}
	var body io.Reader = resp.Body
	if scrub != nil {
		if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
			q.deny(http.StatusBadGateway, vocabulary.Reason{Code: CodeEncoded, Message: "the upstream encoded its answer (" + clip(e) + ") although it was asked not to; an echo of the credential could hide in it", Rule: d.Reason.Rule})
			return
		}
		report := q.echo(d)
		if scrub.header(resp.Header) {
			report()
		}
		body = scrub.reader(resp.Body, report)
	}
	h := q.w.Header()
	for k, v := range resp.Header {
		h[k] = v
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // or the library would guess one
	}
	for k := range resp.Trailer {
		h.Add("Trailer", k)
	}
	rc := http.NewResponseController(q.w)
	q.w.WriteHeader(resp.StatusCode)
	streaming := resp.ContentLength < 0
	if streaming {
		rc.Flush()
	}
	if err := copyBody(q.w, body, rc, streaming); err != nil {
		// What was sent looks whole unless the connection breaks.
		panic(http.ErrAbortHandler)
	}
	if scrub != nil && scrub.header(resp.Trailer) {
		q.echo(d)()
	}
	for k, v := range resp.Trailer {
		if k == DeniedHeader || k == "Alt-Svc" {
			continue
		}
		for _, value := range v {
			h.Add(http.TrailerPrefix+k, value)
		}
	}
}

// echo returns what records, once, that the credential came back.
func (q *request) echo(d capability.Decision) func() {
	var once sync.Once
	return func() {
		once.Do(func() {
			if q.h.Denied != nil {
				e := q.event(vocabulary.Deny, vocabulary.Reason{Code: "credential-echo", Message: "the upstream sent the session's real credential back; it was removed from the answer", Rule: d.Reason.Rule}, map[string]string{"credential": d.Swap.Credential})
				e.Actor, e.Action = "gateway", "credential.echo"
				q.h.Denied(e)
			}
		})
	}
}

func copyBody(w http.ResponseWriter, body io.Reader, rc *http.ResponseController, flush bool) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		n, err := body.Read(*buf)
		if n > 0 {
			rc.SetWriteDeadline(time.Now().Add(stall))
			if _, werr := w.Write((*buf)[:n]); werr != nil {
				return werr
			}
			if flush {
				if ferr := rc.Flush(); ferr != nil {
					return ferr
				}
			}
		}
		if err == io.EOF {
			rc.SetWriteDeadline(time.Time{})
			return nil
		}
		if err != nil {
			return err
		}
	}
}
