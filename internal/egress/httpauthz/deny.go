package httpauthz

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/egress/dial"
	"github.com/bulkhead-dev/bulkhead/internal/egress/framing"
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
	CodeTruncated       = "upstream-truncated"
	CodeMessage         = "message-refused"
	CodeQuota           = "byte-limit"
)

// QuotaReason is the reason of what a bound of bytes ends.
func QuotaReason(q *dial.QuotaError) vocabulary.Reason {
	return vocabulary.Reason{Code: CodeQuota, Message: q.Error(), Rule: q.Bound.Pos, Remedy: "raise or remove limits." + q.Limit + ", and start another session"}
}

// DeniedHeader carries the reason's code; an upstream's own header of this name
// never gets through.
const DeniedHeader = "Bulkhead-Denied"

// Denial is what is told to who asked. It is the one source of the words; how
// they are written depends on who reads them.
type Denial struct {
	Status   int
	Action   vocabulary.Action
	Resource vocabulary.Resource
	Reason   vocabulary.Reason
	// RetryAfter, in seconds, says that it may be otherwise then; 0 says nothing.
	RetryAfter int
}

type denialBody struct {
	Type  string `json:"type,omitempty"`
	Error any    `json:"error"` // denialError; a text for npm
	// Message is what clients of GitHub and of many other services print.
	Message  string         `json:"message"`
	Reason   string         `json:"reason,omitempty"`
	Errors   []registryItem `json:"errors,omitempty"`
	Bulkhead struct {
		Code     string              `json:"code"`
		Action   vocabulary.Action   `json:"action"`
		Resource vocabulary.Resource `json:"resource"`
		Rule     string              `json:"rule"`
		Remedy   string              `json:"remedy,omitempty"`
	} `json:"bulkhead"`
}

type denialError struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

// registryItem is how a registry says no: of OCI by code and message, of Cargo by
// detail.
type registryItem struct {
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
	Detail  string `json:"detail,omitempty"`
}

// Text is the refusal in at most three lines.
func (d Denial) Text() string {
	s := "bulkhead: " + d.Reason.Message + " (" + d.Reason.Code + ")\n"
	if rule := d.Reason.Rule.String(); rule != "-" {
		s += "rule: " + rule + "\n"
	}
	if d.Reason.Remedy != "" {
		s += "to allow it: " + d.Reason.Remedy + "\n"
	}
	return s
}

// line is the refusal in one line, for places that show no more.
func (d Denial) line() string {
	s := strings.TrimSuffix(d.Text(), "\n")
	return strings.ReplaceAll(s, "\n", "; ")
}

// Write answers with the denial in the language of who asked: gRPC's status,
// git's packets, JSON in the shapes that clients of model APIs, registries and
// npm print, and plain text for everybody else. It never says 401: that would
// make clients ask for a password.
func (d Denial) Write(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set(DeniedHeader, d.Reason.Code)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if r.ProtoMajor == 1 {
		h.Set("Connection", "close")
	}
	if d.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(d.RetryAfter))
	}
	if d.writeGRPC(w, r) {
		return // its clients know what a reset after the end means
	}
	defer drain(w, r)
	if d.writeGit(w, r) || d.writePip(w, r) || d.writeAWS(w, r) {
		return
	}
	body := []byte(d.Text())
	if wantsJSON(r) {
		h.Set("Content-Type", "application/json")
		if d.Status < 500 {
			h.Set("X-Should-Retry", "false") // the model SDKs' word for: this will not change
		}
		if enc, err := json.Marshal(d.json(r)); err == nil {
			body = append(enc, '\n')
		}
	} else {
		h.Set("Content-Type", "text/plain; charset=utf-8")
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if isTokenRequest(r) && isContainersImage(r) {
		// It shows what a 401 says and nothing of another status. Without a
		// challenge it asks for no password.
		d.Status = http.StatusUnauthorized
	}
	if !isNPM(r) { // it shows both
		framing.From(r.Context()).Phrase(d.Status, http.StatusText(d.Status)+" by "+d.line())
	}
	w.WriteHeader(d.Status)
	if r.Method != http.MethodHead {
		w.Write(body)
	}
}

// What a refused client still sends is read and dropped for a while: some clients
// forget the answer if the stream is reset, or the connection, while they send.
const (
	drainTime  = 5 * time.Second
	drainBytes = 64 << 20
)

func drain(w http.ResponseWriter, r *http.Request) {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 || len(r.Header["Expect"]) > 0 {
		return // reading would say: go on
	}
	rc := http.NewResponseController(w)
	if rc.Flush() != nil || rc.SetReadDeadline(time.Now().Add(drainTime)) != nil {
		return
	}
	io.CopyN(io.Discard, r.Body, drainBytes)
}

func (d Denial) json(r *http.Request) denialBody {
	b := denialBody{Type: "error", Message: strings.TrimSuffix(d.Text(), "\n")}
	b.Error = denialError{"permission_error", b.Message}
	b.Bulkhead.Code, b.Bulkhead.Action, b.Bulkhead.Resource = d.Reason.Code, d.Action, d.Resource
	b.Bulkhead.Rule, b.Bulkhead.Remedy = d.Reason.Rule.String(), d.Reason.Remedy
	if isNPM(r) {
		b.Type, b.Error, b.Reason = "", b.Message, b.Message
	}
	switch {
	case strings.HasPrefix(r.URL.Path, "/v2/"), isTokenRequest(r):
		b.Errors = []registryItem{{Code: "DENIED", Message: b.Message}}
	case isCargoAPI(r):
		b.Errors = []registryItem{{Detail: b.Message}}
	}
	return b
}

func wantsJSON(r *http.Request) bool {
	if isNPM(r) || isCargoAPI(r) || isOCI(r) || isTokenRequest(r) {
		return true
	}
	for _, list := range [][]string{r.Header["Accept"], r.Header["Content-Type"]} {
		for _, v := range list {
			v = strings.ToLower(v)
			if strings.Contains(v, "json") || strings.Contains(v, "text/event-stream") {
				return true
			}
		}
	}
	return false
}

// isNPM knows npm, pnpm and yarn by how they name themselves.
func isNPM(r *http.Request) bool {
	ua := r.UserAgent()
	return strings.HasPrefix(ua, "npm/") || strings.HasPrefix(ua, "pnpm/") || strings.HasPrefix(ua, "yarn/")
}

// isCargoAPI knows what cargo asks of a registry's API, not of its index: there
// it prints the errors of an answer in JSON, and of any other all headers.
func isCargoAPI(r *http.Request) bool {
	return strings.HasPrefix(r.UserAgent(), "cargo") && strings.HasPrefix(r.URL.Path, "/api/v1/crates")
}

// isOCI knows requests to registries of images, some of which accept nothing in
// particular.
func isOCI(r *http.Request) bool {
	path, ok := strings.CutPrefix(r.URL.Path, "/v2")
	if !ok {
		return false
	}
	for _, part := range []string{"/manifests/", "/blobs/", "/tags/", "/referrers/"} {
		if strings.Contains(path, part) {
			return true
		}
	}
	return path == "/" || path == "/_catalog"
}

// isTokenRequest knows the requests for a token of a registry of images, on
// whichever host it hands them out.
func isTokenRequest(r *http.Request) bool {
	q := r.URL.Query()
	return r.Method == http.MethodGet && q.Get("service") != "" && strings.Contains(q.Get("scope"), ":")
}

// isContainersImage knows skopeo, podman and buildah by how they name themselves.
func isContainersImage(r *http.Request) bool {
	ua := r.UserAgent()
	return strings.HasPrefix(ua, "skopeo/") || strings.HasPrefix(ua, "libpod/") || strings.HasPrefix(ua, "Buildah/") || strings.HasPrefix(ua, "containers/")
}
