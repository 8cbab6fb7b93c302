package httpauthz

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Whatever a request made the words say, each rendering is well-formed in its
// own language, and names the code in the one header.
func FuzzDenial(f *testing.F) {
	for _, kind := range []int{0, 1, 2, 3, 4, 5, 6} {
		f.Add("no grant covers \"https://x.test/é\"\r\nX: y\x1b[31m 50%", "add under grants: - {http: …}\n\n0000", kind)
	}
	f.Add(strings.Repeat("é", 5000), strings.Repeat("\x00", 100), 2)
	f.Fuzz(func(t *testing.T, message, remedy string, kind int) {
		d := Denial{Status: 403, Action: "http.request", Resource: "https://x.test/", Reason: vocabulary.Reason{Code: "no-grant", Message: message, Remedy: remedy, Rule: vocabulary.Position{File: "p.yaml", Line: 3}}}
		method, path, head := "GET", "/", http.Header{}
		switch kind % 7 {
		case 1:
			method, path = "POST", "/a.S/M"
			head.Set("Content-Type", "application/grpc+proto")
		case 2, 3:
			service := [2]string{"upload-pack", "receive-pack"}[kind%7-2]
			method, path = "POST", "/o/r.git/git-"+service
			head.Set("Content-Type", "application/x-git-"+service+"-request")
		case 4:
			head.Set("User-Agent", "pip/25")
			head.Set("Accept", "application/vnd.pypi.simple.v1+json")
		case 5:
			head.Set("User-Agent", "npm/11")
		case 6:
			path = "/v2/x/blobs/y"
			head.Set("Accept", "application/json")
		}
		r := httptest.NewRequest(method, "https://x.test"+path, nil)
		r.Header = head
		w := httptest.NewRecorder()
		d.Write(w, r)
		if w.Header().Get(DeniedHeader) != "no-grant" {
			t.Fatalf("%v", w.Header())
		}
		for k, vs := range w.Header() {
			for _, v := range vs {
				if !httpguts.ValidHeaderFieldName(k) || !httpguts.ValidHeaderFieldValue(v) {
					t.Fatalf("header %q: %q", k, v)
				}
			}
		}
		body := w.Body.String()
		switch kind % 7 {
		case 1:
			got, err := url.PathUnescape(w.Header().Get("Grpc-Message"))
			if err != nil || got != strings.TrimSuffix(d.Text(), "\n") || w.Code != 200 || w.Header().Get("Grpc-Status") != "7" || body != "" {
				t.Fatalf("%q %v %q", got, err, body)
			}
		case 2, 3:
			if w.Code != 200 {
				t.Fatal(w.Code)
			}
			for body != "" {
				n, err := strconv.ParseUint(body[:min(4, len(body))], 16, 16)
				if err != nil || n < 5 || int(n) > len(body) {
					t.Fatalf("packet %q: %v", body, err)
				}
				if strings.ContainsAny(body[5:n], "\x00\x1b\r") {
					t.Fatalf("packet %q", body[:n])
				}
				body = body[n:]
			}
		case 4:
			if w.Code != 300 {
				t.Fatal(w.Code)
			}
		case 5, 6:
			var m map[string]any
			if err := json.Unmarshal([]byte(body), &m); err != nil || m["error"] == nil {
				t.Fatalf("%v: %s", err, body)
			}
		default:
			if !strings.HasPrefix(body, "bulkhead: ") || w.Code != 403 {
				t.Fatalf("%d %q", w.Code, body)
			}
		}
	})
}

func TestRetryAfter(t *testing.T) {
	w := httptest.NewRecorder()
	r := httptest.NewRequest("POST", "https://x.test/", nil)
	r.Header.Set("Accept", "application/json")
	Denial{Status: 503, RetryAfter: 2, Reason: vocabulary.Reason{Code: CodeBusy}}.Write(w, r)
	if w.Header().Get("Retry-After") != "2" || w.Header().Get("X-Should-Retry") != "" {
		t.Errorf("%v", w.Header())
	}
}

func TestSteeringLinks(t *testing.T) {
	for in, want := range map[string]string{
		`<https://a.test/?page=2>; rel="next", <https://a.test/?page=9>; rel="last"`: `<https://a.test/?page=2>; rel="next", <https://a.test/?page=9>; rel="last"`,
		`<https://evil.test/>; rel=preconnect`:                                       "", `</a,b;rel=next>; rel="Preload"; as="x,y"`: "",
		`<a>; title="rel=preload, not"; rel=next`: "", `<a>; rel="next preconnect"`: "", `no link at all`: "", `<a>; rel=next, <b>; rel=dns-prefetch, <c>; rel=prev`: `<a>; rel=next, <c>; rel=prev`,
	} {
		if got := strings.Join(withoutSteering([]string{in}), "|"); got != want {
			t.Errorf("%s: %q", in, got)
		}
	}
}
