package thief

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A stage hears HTTP, TLS under any name, bare bytes, datagrams, Unix sockets
// and questions, and knows which place each came to.
func TestPlaces(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	free := func(network string) string {
		if network == "udp" {
			c, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			return c.LocalAddr().String()
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	web, names, datagrams := free("tcp"), free("udp"), free("udp")
	s, err := Open([]Place{
		{Name: "web", Network: "tcp", Address: web, Answer: "answer-7"}, {Name: "sock", Network: "unix", Address: sock},
		{Name: "names", Network: "dns", Address: names}, {Name: "datagrams", Network: "udp", Address: datagrams},
	}, map[string]netip.Addr{"known.example": netip.MustParseAddr("192.0.2.7")}, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.CAPEM())
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "any.example"}}
	client := &http.Client{Transport: tr, Timeout: 5 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for path, want := range map[string]string{"/in-http": "answer-7", "/echo": "X-Mark: in-header"} {
		for _, scheme := range []string{"http", "https"} {
			req, _ := http.NewRequest("GET", scheme+"://"+web+path, nil)
			req.Header.Set("X-Mark", "in-header")
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if !strings.Contains(string(body), want) {
				t.Errorf("%s %s: %q", scheme, path, body)
			}
		}
	}
	res, err := client.Get("http://" + web + "/redirect?to=http://x.example/")
	if err != nil || res.Header.Get("Location") != "http://x.example/" {
		t.Fatalf("%v %v", res, err)
	}
	res.Body.Close()
	tr.CloseIdleConnections()
	for network, addr := range map[string]string{"unix": sock, "udp": datagrams, "tcp": web} {
		c, err := net.Dial(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "bare over "+network)
		c.Close()
	}
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, names)
	}}
	if got, err := r.LookupHost(t.Context(), "known.example"); err != nil || got[0] != "192.0.2.7" {
		t.Errorf("%v %v", got, err)
	}
	if _, err := r.LookupHost(t.Context(), "secret-in.labels.example"); err == nil {
		t.Error("a name that is not there was answered")
	}
	s.Settle()
	got := map[string][]byte{}
	for _, d := range s.Received() {
		got[d.Place] = append(got[d.Place], d.Data...)
	}
	for place, wants := range map[string][]string{
		"web": {"GET /in-http", "X-Mark: in-header", "bare over tcp"}, "sock": {"bare over unix"}, "datagrams": {"bare over udp"}, "names": {"secret-in.labels.example."},
	} {
		for _, w := range wants {
			if !bytes.Contains(got[place], []byte(w)) {
				t.Errorf("%s: no %q", place, w)
			}
		}
	}
}

func TestAPlaceThatCannotBeOpened(t *testing.T) {
	for _, p := range []Place{{Network: "tcp", Address: "192.0.2.1:80"}, {Network: "carrier-pigeon"}, {Network: "unix", Address: "/nowhere/at/all"}} {
		if s, err := Open([]Place{p}, nil, netip.Addr{}); err == nil {
			s.Close()
			t.Errorf("%+v was opened", p)
		}
	}
}
