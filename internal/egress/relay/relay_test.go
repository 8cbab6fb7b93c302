package relay

import (
	"bytes"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

type rw struct {
	*bytes.Reader
	bytes.Buffer
}

func (r *rw) Read(p []byte) (int, error)  { return r.Reader.Read(p) }
func (r *rw) Write(p []byte) (int, error) { return r.Buffer.Write(p) }

func FuzzSOCKS(f *testing.F) {
	f.Add([]byte("\x01\x00\x05\x01\x00\x03\x09other.ab1\x01\xbb"))
	f.Add([]byte("\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x01\xbb"))
	f.Add([]byte("\x01\x00\x05\x01\x00\x03\x12evil.test\x00other.te\x01\xbb"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := &rw{Reader: bytes.NewReader(in)}
		if socksGreeting(c) != nil {
			return
		}
		dst, err := socksRequest(c)
		if err == nil {
			good(t, dst.Host.String(), int(dst.Port))
		}
	})
}

func FuzzConnectTarget(f *testing.F) {
	for _, s := range []string{"other.test:443", "127.0.0.1:443", "a@b:1", "[::1]:1", "a.b.:99999", "x\x00y:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if dst, err := connectTarget(s); err == nil {
			good(t, dst.Host.String(), int(dst.Port))
		}
		r := &http.Request{RequestURI: s}
		if u, err := url.Parse(s); err == nil {
			r.URL = u
			if dst, err := absoluteTarget(r); err == nil {
				good(t, dst.Host.String(), int(dst.Port))
				if !strings.EqualFold(strings.TrimSuffix(u.Hostname(), "."), dst.Host.String()) {
					t.Fatalf("%q: we read %s, the library %s", s, dst, u.Host)
				}
			}
		}
	})
}

func good(t *testing.T, host string, port int) {
	t.Helper()
	if port < 1 || port > 65535 || host == "" || strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
		t.Fatalf("accepted %q:%d", host, port)
	}
}
