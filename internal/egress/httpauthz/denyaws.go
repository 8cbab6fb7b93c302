package httpauthz

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/catalog/sigv4"
)

// writeAWS answers signed requests in the form in which AWS's tools print the
// reason: a JSON error, S3's or EC2's, or the query protocol's.
func (d Denial) writeAWS(w http.ResponseWriter, r *http.Request) bool {
	if !strings.HasPrefix(r.Header.Get("Authorization"), sigv4.Algorithm+" ") {
		return false
	}
	code, h := "AccessDenied", w.Header()
	if d.Status >= 500 {
		code = "ServiceUnavailable"
	}
	text := strings.TrimSuffix(d.Text(), "\n")
	var plain strings.Builder
	xml.EscapeText(&plain, []byte(text))
	host, _, _ := strings.Cut(r.Host, ".")
	var body string
	switch ct := r.Header.Get("Content-Type"); {
	case r.Header.Get("X-Amz-Target") != "", strings.Contains(ct, "json"), host == "lambda", host == "bedrock-runtime":
		h.Set("Content-Type", "application/x-amz-json-1.0")
		h.Set("X-Amzn-Errortype", code+"Exception")
		b, err := json.Marshal(map[string]string{"__type": code + "Exception", "message": text})
		if err != nil {
			return false
		}
		body = string(b)
	case host == "ec2":
		h.Set("Content-Type", "text/xml")
		body = fmt.Sprintf("<Response><Errors><Error><Code>%s</Code><Message>%s</Message></Error></Errors><RequestID>bulkhead</RequestID></Response>", code, plain.String())
	case strings.HasPrefix(ct, "application/x-www-form-urlencoded"):
		h.Set("Content-Type", "text/xml")
		body = fmt.Sprintf("<ErrorResponse><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>bulkhead</RequestId></ErrorResponse>", code, plain.String())
	default:
		h.Set("Content-Type", "application/xml")
		body = fmt.Sprintf("<Error><Code>%s</Code><Message>%s</Message><RequestId>bulkhead</RequestId></Error>", code, plain.String())
	}
	h.Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(d.Status)
	if r.Method != http.MethodHead {
		w.Write([]byte(body))
	}
	return true
}
