package egress

import (
	"net/http"
	"testing"
)

// The host's roots verify an upstream that names no CA of its own; without
// roots, and with another host's, nothing is sent.
func TestHostRootsVerifyUpstreams(t *testing.T) {
	seen := 0
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen++; echo(w, r) }), "other.test")
	for _, c := range []struct {
		name  string
		roots []byte
		ok    bool
	}{
		{"its own", up.ca.pem(), true}, {"none", nil, false}, {"another", newCA(t, "another CA").pem(), false},
	} {
		seen = 0
		r := startRelay(t, func(cfg *Config) {
			cfg.Upstreams = []Upstream{{Host: "other.test", Connect: up.addr}}
			cfg.RootsPEM = c.roots
		})
		resp, body := get(t, r.client(), "https://other.test/")
		if ok := resp.StatusCode == 200; ok != c.ok || (seen > 0) != c.ok {
			t.Errorf("%s: %s %q, upstream saw %d requests", c.name, resp.Status, body, seen)
		}
	}
}
