package framing

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

type source struct {
	net.Conn
	r io.Reader
}

func (s source) Read(p []byte) (int, error) { return s.r.Read(p) }

// requests parses what passes with net/http, as the server does.
func requests(t testing.TB, r io.Reader) (lines []string, c *Conn, refused string, err error) {
	c = New(source{r: r}, func(m string) { refused = m })
	br := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return lines, c, refused, err
		}
		if m, ok := Refusal(req.WithContext(Context(t.Context(), c))); ok {
			refused = m
			continue
		}
		body, err := io.ReadAll(req.Body)
		lines = append(lines, req.Method+" "+req.RequestURI+" "+string(body))
		if err != nil {
			return lines, c, refused, err
		}
		if req.Method == "CONNECT" {
			return lines, c, refused, io.EOF
		}
	}
}

func TestOrdinaryRequestsPass(t *testing.T) {
	const in = "GET /a HTTP/1.1\r\nHost: x\r\nAccept:*/*\r\n\r\nPOST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloPUT /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: Chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\nPOST /d HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\nGET /e HTTP/1.0\r\n\r\n"
	want := "GET /a |POST /b hello|PUT /c hello0123456789|POST /d |GET /e "
	for name, r := range map[string]io.Reader{"whole": strings.NewReader(in), "by bytes": iotest.OneByteReader(strings.NewReader(in)), "by halves": iotest.HalfReader(strings.NewReader(in))} {
		if got, _, refused, err := requests(t, r); strings.Join(got, "|") != want || err != io.EOF || refused != "" {
			t.Errorf("%s: %q, %v, %q", name, got, err, refused)
		}
	}
}

func TestAmbiguousRequestsEnd(t *testing.T) {
	for _, in := range []string{
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3,3\r\n\r\nabc", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
		"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
		"GET / HTTP/1.1\nHost: x\n\n", "GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n y\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\rX: y\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "GET / HTTP/1.1\r\n\r\n",
		"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / x HTTP/1.1\r\nHost: x\r\n\r\n", "GET /\t HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.2\r\nHost: x\r\n\r\n", "GET / HTTP/2.0\r\nHost: x\r\n\r\n", "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET /\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX0\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\r\nhello\r\n0\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n000000005\r\nhello\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", MaxHead) + "\r\n\r\n",
	} {
		got, _, refused, err := requests(t, strings.NewReader(in+"GET /sentinel HTTP/1.1\r\nHost: x\r\n\r\n"))
		if refused == "" || err == nil || strings.Contains(strings.Join(got, "|"), "sentinel") {
			t.Errorf("%.120q: %q, refused %q, %v", in, got, refused, err)
		}
	}
}

func TestTransparentAfterConnect(t *testing.T) {
	c := New(source{r: strings.NewReader("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n\x16\x03\x01\nraw")}, func(m string) { t.Error(m) })
	br := bufio.NewReader(c)
	if _, err := http.ReadRequest(br); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(br); string(b) != "\x16\x03\x01\nraw" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// Where we see the end of a request, net/http sees it too.
func FuzzFraming(f *testing.F) {
	f.Add([]byte("GET /a HTTP/1.1\r\nHost: x\r\n\r\nPOST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"))
	f.Add([]byte("PUT /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := New(source{r: bytes.NewReader(in)}, func(string) {})
		br := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if req.Method == "CONNECT" {
				return
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			if _, ok := Refusal(req.WithContext(Context(t.Context(), c))); ok {
				if _, err := http.ReadRequest(br); err != io.EOF {
					t.Fatalf("after a refusal: %v", err)
				}
				return
			}
			if c.state != inHead || c.pass != 0 || br.Buffered() != 0 {
				t.Fatalf("net/http is done, we are in state %d with %d to deliver and %d delivered", c.state, c.pass, br.Buffered())
			}
		}
	})
}

// A client cannot make a request that passes for the one that stands for a
// refused head, and only the next answer gets the phrase.
func TestRefusalIsOurs(t *testing.T) {
	for _, in := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\nBulkhead-Refused: \r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nBulkhead-Refused: guess\r\n\r\n",
	} {
		if got, _, refused, err := requests(t, strings.NewReader(in)); len(got) != 1 || refused != "" || err != io.EOF {
			t.Errorf("%q: %q %q %v", in, got, refused, err)
		}
	}
	var out bytes.Buffer
	c := New(sink{w: &out}, nil)
	c.Phrase(403, "no grant\r\nX: y é")
	for _, s := range []string{"HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 403 Forbidden\r\nA: b\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n\r\n"} {
		if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
			t.Error(n, err)
		}
	}
	if want := "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 no grant  X: y  \r\nA: b\r\n\r\nHTTP/1.1 403 Forbidden\r\n\r\n"; out.String() != want {
		t.Errorf("%q", out.String())
	}
}

type sink struct {
	net.Conn
	w io.Writer
}

func (s sink) Write(b []byte) (int, error) { return s.w.Write(b) }
