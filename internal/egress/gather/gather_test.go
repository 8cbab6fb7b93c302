package gather

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// counted counts the writes that reach the network.
type counted struct {
	*net.TCPConn
	writes atomic.Int32
}

func (c *counted) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.TCPConn.Write(p)
}

// pair is TLS over loopback, gathered at both ends.
func pair(t testing.TB) (client, server *Conn, net1 *counted) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"x"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	net1 = &counted{TCPConn: a.(*net.TCPConn)}
	ta, tb := Under(net1), Under(b)
	ca := tls.Client(ta, &tls.Config{InsecureSkipVerify: true}) // of this test's own server
	cb := tls.Server(tb, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	go cb.Handshake()
	if err := ca.Handshake(); err != nil {
		t.Fatal(err)
	}
	return Over(ca, ta), Over(cb, tb), net1
}

// What goes in comes out, in whatever pieces.
func TestBytesAreTheSame(t *testing.T) {
	client, server, _ := pair(t)
	want := make([]byte, 5<<20)
	for i := range want {
		want[i] = byte(mrand.Uint32())
	}
	go func() {
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 1+mrand.IntN(200<<10))
			if _, err := client.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
		client.CloseWrite()
	}()
	var got bytes.Buffer
	buf := make([]byte, Size)
	for {
		n, err := server.Read(buf[:1+mrand.IntN(len(buf))])
		got.Write(buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d of %d bytes, or other ones", got.Len(), len(want))
	}
}

// A large Write is one write of the transport once TLS has grown its records
// (crypto/tls begins with small ones), and everything has arrived after it.
func TestWritesAreGathered(t *testing.T) {
	client, server, transport := pair(t)
	go func() {
		for range 20 {
			client.Write(make([]byte, Size))
		}
	}()
	if _, err := io.ReadFull(server, make([]byte, 20*Size)); err != nil {
		t.Fatal(err)
	}
	before := transport.writes.Load()
	go client.Write(make([]byte, Size))
	if _, err := io.ReadFull(server, make([]byte, Size)); err != nil {
		t.Fatal(err)
	}
	if n := transport.writes.Load() - before; n != 1 {
		t.Errorf("%d writes for %d bytes", n, Size)
	}
}

// Read never waits for more than there is, also where a record is torn.
func TestReadDoesNotWait(t *testing.T) {
	client, server, _ := pair(t)
	buf := make([]byte, Size)
	begin := time.Now()
	for _, n := range []int{1, record, record + 1, 2 * record, Size - 1} {
		if _, err := client.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		server.SetReadDeadline(time.Now().Add(5 * time.Second))
		for got := 0; got < n; {
			m, err := server.Read(buf)
			if err != nil {
				t.Fatalf("%d of %d bytes: %v", got, n, err)
			}
			got += m
		}
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("it waited %v for what nobody sends", took)
	}
	// The same when the deadline passes, and afterwards.
	server.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := server.Read(buf); err == nil {
		t.Error("read of nothing")
	}
	server.SetReadDeadline(time.Time{})
	go client.Write([]byte("after"))
	if n, err := server.Read(buf); err != nil || string(buf[:n]) != "after" {
		t.Errorf("%q %v", buf[:n], err)
	}
}
