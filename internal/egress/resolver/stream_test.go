package resolver

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// tape is a connection that plays what was recorded.
type tape struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (c *tape) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *tape) Write(p []byte) (int, error) { return c.out.Write(p) }
func (c *tape) Close() error                { return nil }
func (*tape) SetDeadline(time.Time) error   { return nil }

// Over TCP every answer has its length in front, belongs to a query, and comes
// after at most streamQueries of them.
func FuzzServe(f *testing.F) {
	framed := func(queries ...[]byte) []byte {
		var b []byte
		for _, q := range queries {
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(q))), q...)
		}
		return b
	}
	one := query(f, "api.example.com.", dnsmessage.TypeA, dnsmessage.ClassINET)
	other := query(f, "secret.bad.test.", dnsmessage.TypeTXT, dnsmessage.ClassINET)
	f.Add(framed(one, other, one))
	f.Add(framed(one)[:9])
	f.Add([]byte{0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		var refused []Refusal
		c := &tape{in: bytes.NewReader(in)}
		testResolver(&refused).Serve(c)
		answers, out := 0, c.out.Bytes()
		for ; len(out) > 0; answers++ {
			if len(out) < 2 || len(out)-2 < int(binary.BigEndian.Uint16(out)) {
				t.Fatalf("%q is no sequence of answers", c.out.Bytes())
			}
			n := 2 + int(binary.BigEndian.Uint16(out))
			var p dnsmessage.Parser
			if h, err := p.Start(out[2:n]); err != nil || !h.Response {
				t.Fatalf("%q is no answer: %v", out[2:n], err)
			}
			out = out[n:]
		}
		if answers > streamQueries || answers*14 > len(in) {
			t.Fatalf("%d answers to %d bytes", answers, len(in))
		}
	})
}
