package connect

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// relay answers one CONNECT.
func relay(t *testing.T, answer func(r *http.Request, c net.Conn, in *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		in := bufio.NewReader(c)
		if r, err := http.ReadRequest(in); err == nil {
			answer(r, c, in)
		}
	}()
	return l.Addr().String()
}

func TestRun(t *testing.T) {
	dst, err := hostport.Parse("github.com:22")
	if err != nil {
		t.Fatal(err)
	}
	addr := relay(t, func(r *http.Request, c net.Conn, in *bufio.Reader) {
		if r.Method != http.MethodConnect || r.RequestURI != "github.com:22" {
			t.Errorf("%s %s", r.Method, r.RequestURI)
		}
		io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\nSSH-2.0-early\r\n")
		said, _ := io.ReadAll(in) // until our input ends
		fmt.Fprintf(c, "got %s", said)
	})
	var out bytes.Buffer
	if err := run(addr, dst, strings.NewReader("SSH-2.0-client\r\n"), &out); err != nil || out.String() != "SSH-2.0-early\r\ngot SSH-2.0-client\r\n" {
		t.Errorf("%v %q", err, out.String())
	}
	addr = relay(t, func(_ *http.Request, c net.Conn, _ *bufio.Reader) {
		io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 25\r\n\r\nbulkhead: no (no-grant)\n!more")
	})
	if err := run(addr, dst, strings.NewReader(""), &out); err == nil || err.Error() != "bulkhead: no (no-grant)\n!" {
		t.Errorf("refused: %v", err)
	}
	addr = relay(t, func(_ *http.Request, c net.Conn, _ *bufio.Reader) { io.WriteString(c, "no HTTP\r\n\r\n") })
	if err := run(addr, dst, strings.NewReader(""), &out); err == nil {
		t.Error("garbage is accepted")
	}
}
