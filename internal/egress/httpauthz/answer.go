package httpauthz

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/egress/framing"
	"github.com/bulkhead-dev/bulkhead/internal/egress/gather"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

var buffers = sync.Pool{New: func() any { b := make([]byte, gather.Size); return &b }}

// answer passes the upstream's answer on as it comes.
func (q *request) answer(ctx context.Context, resp *http.Response, d capability.Decision, scrub *scrubber) {
	defer resp.Body.Close()
	q.answered.Store(true)
	q.touch()
	rc := http.NewResponseController(q.w)
	rc.SetReadDeadline(time.Time{})
	refuse := func(code, message string) {
		q.deny(http.StatusBadGateway, vocabulary.Reason{Code: code, Message: message, Rule: d.Reason.Rule})
	}
	if resp.StatusCode < 200 || resp.StatusCode > 999 {
		refuse(CodeProtocolRefused, fmt.Sprintf("the upstream answered %d, an upgrade that nobody asked for", resp.StatusCode))
		return
	}
	if !plainForm(resp) {
		refuse(CodeUpstream, "the upstream's answer is malformed: its version or a header has no proper form")
		return
	}
	cleanse(resp.Header, scrub != nil)
	var body io.Reader = resp.Body
	if scrub != nil {
		if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
			refuse(CodeEncoded, "the upstream encoded its answer ("+clip(e)+") although it was asked not to; an echo of the credential could hide in it")
			return
		}
		if strings.HasPrefix(strings.ToLower(strings.TrimSpace(resp.Header.Get("Content-Type"))), "multipart/byteranges") {
			refuse(CodeEncoded, "the upstream cut its answer into pieces; an echo of the credential could hide in them")
			return
		}
		report := q.echo(d)
		if scrub.header(resp.Header) {
			report()
		}
		clean := scrub.reader(resp.Body, report)
		clean.part = resp.StatusCode == http.StatusPartialContent
		body = clean
	}
	if q.short != nil && resp.StatusCode == http.StatusPartialContent {
		part, err := q.short.of(resp, body, q.r.Method == http.MethodHead)
		if err != nil {
			refuse(CodeUpstream, err.Error())
			return
		}
		body = part
	}
	if d.Issues != "" && resp.StatusCode < 300 {
		if body = q.issue(resp, body, d); body == nil {
			refuse(CodeUpstream, "the answer of the token endpoint is not the JSON object that registries send")
			return
		}
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
	if q.early() {
		h.Set("Connection", "close")
	}
	q.w.WriteHeader(resp.StatusCode)
	if resp.ContentLength < 0 {
		rc.Flush()
	}
	if err, theirs := q.copyBody(body, rc, resp.ContentLength); err != nil {
		if theirs && q.r.Context().Err() == nil && !(q.h.revoked.Load() && scrub != nil) {
			message := []byte(err.Error())
			if scrub != nil {
				scrub.bytes(message)
			}
			if context.Cause(ctx) == errQuiet {
				message = []byte(errQuiet.Error())
			}
			q.record(vocabulary.Reason{Code: CodeTruncated, Message: "the upstream's answer broke off, and so did ours: " + string(message), Rule: d.Reason.Rule})
		}
		q.abort()
	}
	if !properHeader(resp.Trailer) {
		q.record(vocabulary.Reason{Code: CodeTruncated, Message: "the upstream's trailers have no proper form, and our answer broke off", Rule: d.Reason.Rule})
		q.abort()
	}
	cleanse(resp.Trailer, scrub != nil)
	if scrub != nil && scrub.header(resp.Trailer) {
		q.echo(d)()
	}
	for k, v := range resp.Trailer {
		for _, value := range v {
			h.Add(http.TrailerPrefix+k, value)
		}
	}
}

// plainForm reports whether an answer has a version that exists and headers that
// everybody reads alike; the library lets more pass.
func plainForm(resp *http.Response) bool {
	known := resp.ProtoMajor == 2 || resp.ProtoMajor == 1 && resp.ProtoMinor <= 1
	return known && properHeader(resp.Header)
}

func properHeader(h http.Header) bool {
	for name, values := range h {
		if !httpguts.ValidHeaderFieldName(name) {
			return false
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return false
			}
		}
	}
	return true
}

// early reports whether the answer came before the request's end was read:
// where that is, nobody can tell then, and the connection must end.
func (q *request) early() bool {
	if q.r.ProtoMajor != 1 || q.r.Body == nil || q.r.Body == http.NoBody || q.r.ContentLength == 0 {
		return false
	}
	end := q.bodyEnd.Load()
	return end == nil || *end != io.EOF
}

// abort ends the client's connection so that what was sent does not look whole.
func (q *request) abort() {
	if q.r.ProtoMajor == 1 && q.r.ProtoMinor == 0 {
		framing.From(q.r.Context()).Abort()
	}
	panic(http.ErrAbortHandler)
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

// copyBody reports in theirs whether reading failed, and not writing. Of a body
// of unknown length (-1) every piece goes on at once, else what is there when the
// length is reached, also if the upstream does not end there and then.
func (q *request) copyBody(body io.Reader, rc *http.ResponseController, length int64) (err error, theirs bool) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for total := int64(0); ; {
		n, err := body.Read(*buf)
		q.touch()
		if n > 0 {
			rc.SetWriteDeadline(time.Now().Add(q.h.limits.Stall))
			if _, werr := q.w.Write((*buf)[:n]); werr != nil {
				return werr, false
			}
			if total += int64(n); length < 0 || total == length {
				if ferr := rc.Flush(); ferr != nil {
					return ferr, false
				}
			}
		}
		if err == io.EOF {
			rc.SetWriteDeadline(time.Time{})
			return nil, false
		}
		if err != nil {
			return err, true
		}
	}
}
