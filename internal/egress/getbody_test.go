package egress

import (
	"net/http"
	"strings"
	"testing"
)

// A GET with a body does not reach an upstream, which may not read the body and
// take it for the next request (PXY-19); a POST with the same body does.
func TestBodyOfGetIsRefused(t *testing.T) {
	seen := 0
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen++; echo(w, r) }), "other.test")
	r := startRelay(t, nil, up)
	for method, ok := range map[string]bool{"GET": false, "HEAD": false, "POST": true} {
		seen = 0
		req, err := http.NewRequest(method, "https://other.test/a", strings.NewReader("GET /b HTTP/1.1\r\nHost: other.test\r\n\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := r.client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if (resp.StatusCode == 200) != ok || (seen > 0) != ok {
			t.Errorf("%s: %s, upstream saw %d", method, resp.Status, seen)
		}
	}
}
