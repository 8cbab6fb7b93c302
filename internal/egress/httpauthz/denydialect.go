package httpauthz

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// Statuses of gRPC (its status codes, not HTTP's).
const (
	grpcDeadlineExceeded  = 4
	grpcPermissionDenied  = 7
	grpcResourceExhausted = 8
	grpcUnavailable       = 14
)

// writeGRPC answers a gRPC call with trailers alone, which is how gRPC says no:
// HTTP itself succeeds.
func (d Denial) writeGRPC(w http.ResponseWriter, r *http.Request) bool {
	ct := r.Header.Get("Content-Type")
	if ct != "application/grpc" && !strings.HasPrefix(ct, "application/grpc+") && !strings.HasPrefix(ct, "application/grpc-web") {
		return false
	}
	status := grpcPermissionDenied
	switch {
	case d.Reason.Code == CodeBusy:
		status = grpcResourceExhausted
	case d.Status == http.StatusGatewayTimeout:
		status = grpcDeadlineExceeded
	case d.Status >= 500:
		status = grpcUnavailable
	}
	h := w.Header()
	h["Content-Type"] = []string{ct}
	h.Set("Grpc-Status", strconv.Itoa(status))
	h.Set("Grpc-Message", grpcMessage(strings.TrimSuffix(d.Text(), "\n")))
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusOK)
	return true
}

// grpcMessage is the percent-encoding of gRPC's protocol over HTTP/2: printable
// ASCII without the percent sign stays.
func grpcMessage(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// writePip answers pip's question for an index page. Of an error pip shows
// nothing at all and says that there is no such package; of a page that it can't
// read it shows the content type. So the words go there, with a status that is
// neither a success nor an error.
func (d Denial) writePip(w http.ResponseWriter, r *http.Request) bool {
	if !strings.HasPrefix(r.UserAgent(), "pip/") || !strings.Contains(r.Header.Get("Accept"), "application/vnd.pypi.simple") {
		return false
	}
	words := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return '\''
		}
		return c
	}, d.line())
	body := d.Text()
	h := w.Header()
	h.Set("Content-Type", `text/plain; charset=utf-8; denied="`+words[:min(len(words), maxPacket)]+`"`)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusMultipleChoices)
	if r.Method != http.MethodHead {
		w.Write([]byte(body))
	}
	return true
}

// maxPacket is the payload of one of git's packets that we fill at most.
const maxPacket = 1000

// writeGit answers git's two POSTs. Of a status that is not 200 git shows the
// number and no body; what comes in its own protocol it shows to the user. (Of
// its GET /info/refs git shows a body of text/plain, line by line, by itself.)
func (d Denial) writeGit(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodPost {
		return false
	}
	var service string
	switch path := r.URL.Path; {
	case strings.HasSuffix(path, "/git-upload-pack") && r.Header.Get("Content-Type") == "application/x-git-upload-pack-request":
		service = "upload-pack"
	case strings.HasSuffix(path, "/git-receive-pack") && r.Header.Get("Content-Type") == "application/x-git-receive-pack-request":
		service = "receive-pack"
	default:
		return false
	}
	var b strings.Builder
	if service == "upload-pack" {
		b.WriteString(packet("ERR " + clean(d.Text())))
	} else {
		// The second band is what the remote says, the third what it died of.
		for l := range strings.Lines(d.Text()) {
			b.WriteString(packet("\x02" + clean(l)))
		}
		b.WriteString(packet("\x03refused by bulkhead\n"))
	}
	h := w.Header()
	h.Set("Content-Type", "application/x-git-"+service+"-result")
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(http.StatusOK)
	w.Write([]byte(b.String()))
	return true
}

func packet(payload string) string {
	if len(payload) > maxPacket {
		payload = strings.ToValidUTF8(payload[:maxPacket-1], "") + "\n"
	}
	return fmt.Sprintf("%04x%s", len(payload)+4, payload)
}

// clean keeps a terminal from acting on what a request made us say.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || 0x7f <= r && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
