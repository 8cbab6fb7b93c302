package egress

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
)

// BenchmarkReady measures from Start to a gateway that serves.
func BenchmarkReady(b *testing.B) {
	ca := newCA(b, "session CA")
	cfg := config(b, sandbox.NetNone, ca)
	for b.Loop() {
		g, err := Start(context.Background(), cfg, &recorder{})
		if err != nil {
			b.Fatal(err)
		}
		if err := g.Attach(nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		g.Close()
		b.StartTimer()
	}
}

func medianOf(b *testing.B, do func()) time.Duration {
	b.Helper()
	for range 50 {
		do()
	}
	times := make([]time.Duration, 1000)
	for i := range times {
		start := time.Now()
		do()
		times[i] = time.Since(start)
	}
	slices.Sort(times)
	return times[len(times)/2]
}

func fetch(b testing.TB, c *http.Client, url, auth string) func() {
	return func() {
		req, _ := http.NewRequest("GET", url, nil)
		if auth != "" {
			req.Header.Set("Authorization", auth)
		}
		resp, err := c.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
			b.Fatal(resp.Status, err)
		}
		resp.Body.Close()
	}
}

// BenchmarkKeepAlive compares one keep-alive HTTPS request through the gateway
// with the same request direct, side by side.
func BenchmarkKeepAlive(b *testing.B) {
	up := serve(b, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }), "api.test", "other.test")
	r := startRelay(b, nil, up)
	direct := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: up.ca.pool()}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, n, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, n, up.addr)
		},
	}}
	for b.Loop() {
		d := medianOf(b, fetch(b, direct, "https://other.test/", ""))
		c := r.client()
		p := medianOf(b, fetch(b, c, "https://other.test/", ""))
		k := medianOf(b, fetch(b, c, "https://api.test/", "Bearer "+placeholder))
		b.ReportMetric(float64(d.Microseconds()), "direct-µs")
		b.ReportMetric(float64((p - d).Microseconds()), "added-µs")
		b.ReportMetric(float64((k - d).Microseconds()), "added-with-credential-µs")
	}
}
