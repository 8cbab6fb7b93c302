package egress

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// What limits.upload and the like allow is not exceeded, over either protocol
// and however many connections there are; a bound that is reached ends what is
// under way, and is on record once.
func TestQuotaOfBytes(t *testing.T) {
	const bound = 1 << 20
	limit := Bound{Bytes: bound, Pos: line(90)}
	for _, protocol := range []string{"http/1.1", "h2"} {
		start := func(t *testing.T, quota Quota) (*rig, *atomic.Int64) {
			seen := &atomic.Int64{}
			up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				n, _ := io.Copy(io.Discard, req.Body)
				seen.Add(n)
				if req.URL.Path == "/big" {
					io.Copy(w, io.LimitReader(zeros{}, 8*bound))
				}
			}), "other.test", "readonly.test", "api.test")
			return startRelay(t, func(c *Config) { c.Limits.Quota = quota }, up), seen
		}
		client := func(r *rig) *http.Client {
			c := r.client()
			c.Transport.(*http.Transport).ForceAttemptHTTP2 = protocol == "h2"
			return c
		}
		post := func(r *rig, host string, size int) (*http.Response, string) {
			resp, err := client(r).Post("https://"+host+"/up", "text/plain", bytes.NewReader(make([]byte, size)))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			return resp, string(b)
		}
		t.Run("upload "+protocol, func(t *testing.T) {
			r, seen := start(t, Quota{Upload: limit})
			refused := 0
			for range 12 {
				resp, body := post(r, "other.test", bound/8)
				if resp.StatusCode != 200 {
					refused++
					if resp.StatusCode != 403 || resp.Header.Get("Bulkhead-Denied") != "byte-limit" || !strings.Contains(body, "limits.upload") || !strings.Contains(body, "policy.yaml:90") {
						t.Errorf("%s %v %s", resp.Status, resp.Header, body)
					}
				}
			}
			if refused < 4 || refused == 12 || seen.Load() > bound {
				t.Errorf("%d of 12 uploads were refused, %d bytes arrived", refused, seen.Load())
			}
			r.once(t)
		})
		t.Run("download "+protocol, func(t *testing.T) {
			r, _ := start(t, Quota{Download: limit})
			resp, err := client(r).Get("https://other.test/big")
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil || len(b) > bound {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			if resp, body := post(r, "readonly.test", 0); resp.StatusCode != 403 {
				t.Errorf("another host afterwards: %s %s", resp.Status, body)
			}
			r.once(t)
		})
		t.Run("each "+protocol, func(t *testing.T) {
			r, _ := start(t, Quota{UploadEach: limit})
			if resp, body := post(r, "other.test", 2*bound); resp.StatusCode != 403 || !strings.Contains(body, "other.test") {
				t.Errorf("%s %s", resp.Status, body)
			}
			if resp, body := get(t, client(r), "https://api.test/", bearer(placeholder)); resp.StatusCode != 200 {
				t.Errorf("another host: %s %s", resp.Status, body)
			}
			r.once(t)
		})
	}
}

// once waits for the record that a bound was reached, and that there is one.
func (r *rig) once(t *testing.T) {
	t.Helper()
	r.rec.wait(t, "byte-limit")
	time.Sleep(50 * time.Millisecond)
	n := 0
	for _, e := range r.rec.with("byte-limit") {
		if e.Action == "session.bytes" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d records of the bound", n)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
