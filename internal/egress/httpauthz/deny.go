package httpauthz

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Codes of refusals that this package itself decides; the capability set has
// further ones.
const (
	CodeBadRequest      = "bad-request"
	CodeIPLiteral       = "ip-literal"
	CodeNameMismatch    = "name-mismatch"
	CodeProtocolRefused = "protocol-refused"
	CodePlaceholder     = "placeholder-misplaced"
	CodeForeign         = "foreign-credential"
	CodeRevoked         = "revoked"
	CodeNoRecord        = "no-record"
	CodeNoCredential    = "no-credential"
	CodeBusy            = "request-limit"
	CodeAddress         = "address-refused"
	CodeResolve         = "resolve-failed"
	CodeUpstreamTLS     = "upstream-tls"
	CodeUpstream        = "upstream-failed"
	CodeEncoded         = "upstream-encoding"
)

// DeniedHeader carries the reason's code; an upstream's own header of this name
// never gets through.
const DeniedHeader = "Bulkhead-Denied"

// Denial is what is told to who asked.
type Denial struct {
	Status   int
	Action   vocabulary.Action
	Resource vocabulary.Resource
	Reason   vocabulary.Reason
}

type denialBody struct {
	Type  string `json:"type"`
	Error struct {
		Type    string `json:"type"`
		Message string `json:"message"`
	} `json:"error"`
	Bulkhead struct {
		Code     string              `json:"code"`
		Action   vocabulary.Action   `json:"action"`
		Resource vocabulary.Resource `json:"resource"`
		Rule     string              `json:"rule"`
		Remedy   string              `json:"remedy,omitempty"`
	} `json:"bulkhead"`
}

// text is the refusal in at most three lines.
func (d Denial) text() string {
	s := fmt.Sprintf("bulkhead: %s (%s)\n", d.Reason.Message, d.Reason.Code)
	if rule := d.Reason.Rule.String(); rule != "-" {
		s += "rule: " + rule + "\n"
	}
	if d.Reason.Remedy != "" {
		s += "to allow it: " + d.Reason.Remedy + "\n"
	}
	return s
}

// Write answers with the denial: JSON in the shape that clients of model APIs
// print, plain text for tools that did not ask for JSON. It never says 401: that
// would make clients ask for a password.
func (d Denial) Write(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set(DeniedHeader, d.Reason.Code)
	h.Set("Cache-Control", "no-store")
	if r.ProtoMajor == 1 {
		h.Set("Connection", "close")
	}
	body := []byte(d.text())
	if wantsJSON(r) {
		h.Set("Content-Type", "application/json")
		h.Set("X-Should-Retry", "false") // the model SDKs' word for: this will not change
		var b denialBody
		b.Type = "error"
		b.Error.Type = "permission_error"
		b.Error.Message = strings.TrimSuffix(d.text(), "\n")
		b.Bulkhead.Code, b.Bulkhead.Action, b.Bulkhead.Resource = d.Reason.Code, d.Action, d.Resource
		b.Bulkhead.Rule, b.Bulkhead.Remedy = d.Reason.Rule.String(), d.Reason.Remedy
		if enc, err := json.Marshal(b); err == nil {
			body = append(enc, '\n')
		}
	} else {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("X-Content-Type-Options", "nosniff")
	}
	h.Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(d.Status)
	if r.Method != http.MethodHead {
		w.Write(body)
	}
}

func wantsJSON(r *http.Request) bool {
	for _, v := range append(r.Header["Accept"], r.Header["Content-Type"]...) {
		v = strings.ToLower(v)
		if strings.Contains(v, "json") || strings.Contains(v, "text/event-stream") {
			return true
		}
	}
	return false
}
