package gitssh

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bulkhead-dev/bulkhead/internal/catalog/gitwire"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// connect is a client of our own, for what OpenSSH's would not do.
func (b *bench) connect(t testing.TB, rekey uint64) *ssh.Client {
	t.Helper()
	c, err := ssh.Dial("tcp", b.addr, &ssh.ClientConfig{Config: ssh.Config{RekeyThreshold: rekey}, User: "git", HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A repository of random bytes goes through without being held.
func TestLargeCloneIsBounded(t *testing.T) {
	b := newBench(t, nil)
	const size = 64 << 20
	b.sh(t, fmt.Sprintf(`mkdir acme; git init -q --bare -b main acme/widgets.git; git init -q -b main w; cd w
		head -c %d /dev/urandom >big; git add big; git -c core.compression=0 -c core.looseCompression=0 commit -q -m big; git push -q ../acme/widgets.git main; cd ..; rm -rf w`, size))
	stop, peak := make(chan struct{}), make(chan uint64)
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	go func() {
		var most uint64
		for {
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(20 * time.Millisecond):
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapInuse)
			}
		}
	}()
	start := time.Now()
	b.ok(t, "git", "clone", "-q", widgets)
	took := time.Since(start)
	close(stop)
	grown := int64(<-peak) - int64(before.HeapInuse)
	t.Logf("%d MiB in %v (%.0f MiB/s), heap grew by %d KiB at most", size>>20, took.Round(time.Millisecond), float64(size>>20)/took.Seconds(), grown>>10)
	if grown > 24<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	if st, err := os.Stat(filepath.Join(b.dir, "widgets/big")); err != nil || st.Size() != size {
		t.Errorf("%v %v", st, err)
	}
}

func TestRevokeEndsWhatIsUnderWay(t *testing.T) {
	b := newBench(t, nil)
	b.sh(t, "mkdir acme")
	b.repository(t, "acme/widgets")
	c := b.connect(t, 0)
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	in, _ := s.StdinPipe()
	out, _ := s.StdoutPipe()
	var said bytes.Buffer
	s.Stderr = &said
	if err := s.Start("git-upload-pack 'acme/widgets.git'"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 4)); err != nil { // it runs, and waits for our wants
		t.Fatal(err)
	}
	go io.Copy(io.Discard, out)
	start := time.Now()
	b.server.Revoke()
	err = s.Wait()
	in.Close()
	var exit *ssh.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != failed || !strings.Contains(said.String(), "("+CodeRevoked+")") || time.Since(start) > time.Second {
		t.Errorf("%v after %v: %q", err, time.Since(start), said.String())
	}
	signed := b.desk.signed
	if out, err := b.client(t, "git", "ls-remote", widgets); err == nil || !strings.Contains(out, "("+CodeRevoked+")") || b.desk.signed != signed {
		t.Errorf("later: %v %q", err, out)
	}
}

func TestOneCommandAtATime(t *testing.T) {
	b := newBench(t, nil)
	b.sh(t, "mkdir acme")
	b.repository(t, "acme/widgets")
	c := b.connect(t, 0)
	first, _, err := c.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n < maxChannels; n++ {
		if _, _, err := c.OpenChannel("session", nil); err == nil {
			t.Fatalf("a second channel, the %d. that was asked for", n)
		}
	}
	first.Close()
	// The connection has used up its channels, and ends. A channel asked for at
	// that moment may never be answered by x/crypto's client: nobody waits here.
	ended, later := make(chan struct{}), make(chan bool)
	go func() { c.Wait(); close(ended) }()
	go func() {
		for range 50 {
			_, _, err := c.OpenChannel("session", nil)
			later <- err == nil
		}
	}()
	for {
		select {
		case opened := <-later:
			if opened {
				t.Fatal("a channel after too many")
			}
		case <-ended:
			return
		case <-time.After(30 * time.Second):
			t.Fatal("the connection stays")
		}
	}
}

func TestChannelsOfOtherKinds(t *testing.T) {
	b := newBench(t, nil)
	c := b.connect(t, 0)
	for _, kind := range []string{"direct-tcpip", "forwarded-tcpip", "x11", "auth-agent@openssh.com", "direct-streamlocal@openssh.com", "tun@openssh.com", ""} {
		var refused *ssh.OpenChannelError
		if _, _, err := c.OpenChannel(kind, nil); !errors.As(err, &refused) {
			t.Errorf("%q: %v", kind, err)
		}
	}
	for _, kind := range []string{"tcpip-forward", "streamlocal-forward@openssh.com", "no-more-sessions@openssh.com", "hostkeys-prove-00@openssh.com"} {
		if ok, _, err := c.SendRequest(kind, true, nil); ok || err != nil {
			t.Errorf("%q: %v %v", kind, ok, err)
		}
	}
	ch, requests, err := c.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(requests)
	env := func(k, v string) []byte { return ssh.Marshal(struct{ K, V string }{k, v}) }
	for _, r := range []struct {
		kind    string
		payload []byte
		ok      bool
	}{
		{"pty-req", nil, false}, {"auth-agent-req@openssh.com", nil, false}, {"x11-req", nil, false}, {"signal", nil, false},
		{"env", env("LD_PRELOAD", "/tmp/x"), false}, {"env", env("LD_PRELOAD", "version=2"), false}, {"env", env("GIT_PROTOCOL", "version=2:x"), false}, {"env", env("GIT_PROTOCOL", "version=2"), true},
		{"env", []byte{1}, false}, {"exec", []byte{1}, false},
	} {
		if ok, err := ch.SendRequest(r.kind, true, r.payload); ok != r.ok || err != nil {
			t.Errorf("%s: %v %v", r.kind, ok, err)
		}
	}
	b.desk.has(t, vocabulary.Deny, "ssh.forward", "github.com", CodeProtocolRefused)
}

// Who does not get on with it is cut off, and holds up nobody.
func TestSlowClients(t *testing.T) {
	old, oldRest := handshakeTimeout, restTimeout
	handshakeTimeout, restTimeout = 300*time.Millisecond, 300*time.Millisecond
	defer func() { handshakeTimeout, restTimeout = old, oldRest }()
	b := newBench(t, nil)
	b.sh(t, "mkdir acme")
	b.repository(t, "acme/widgets")
	ends := func(c net.Conn) bool {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err := io.Copy(io.Discard, c)
		var timeout net.Error
		return !(errors.As(err, &timeout) && timeout.Timeout())
	}
	var wg sync.WaitGroup
	for name, say := range map[string]string{"silent": "", "no end": strings.Repeat("A", 4000), "version only": "SSH-2.0-x\r\n", "http": "GET / HTTP/1.1\r\n\r\n", "huge packet": "SSH-2.0-x\r\n\xff\xff\xff\xff\x04aaaa"} {
		wg.Go(func() {
			c, err := net.Dial("tcp", b.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(c, say)
			if !ends(c) {
				t.Errorf("%s: the connection stays", name)
			}
		})
	}
	wg.Wait()
	idle := b.connect(t, 0)
	done := make(chan struct{})
	go func() { idle.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("a connection without a command stays")
	}
	b.desk.has(t, vocabulary.Deny, "ssh.connect", "github.com", CodeProtocolRefused)
	b.ok(t, "git", "ls-remote", widgets)
}

func TestConnectionsAreBounded(t *testing.T) {
	b := newBench(t, nil)
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for range MaxConns {
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
		io.ReadFull(c, make([]byte, 4)) // it is served
	}
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d bytes, %v", n, err)
	}
	b.desk.has(t, vocabulary.Deny, "ssh.connect", "github.com", CodeBusy)
}

// A client that asks for new keys all the time costs time, not memory, and
// others are served.
func TestRekeyFlood(t *testing.T) {
	b := newBench(t, nil)
	b.sh(t, "mkdir acme")
	b.repository(t, "acme/widgets")
	c := b.connect(t, 256) // the library's least: a few packets
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			if _, _, err := c.SendRequest("keepalive@openssh.com", true, make([]byte, 300)); err != nil {
				return
			}
		}
	}()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before := m.HeapInuse
	b.ok(t, "git", "ls-remote", widgets)
	<-ctx.Done()
	runtime.GC()
	runtime.ReadMemStats(&m)
	if m.HeapInuse > before+(32<<20) {
		t.Errorf("the heap grew from %d to %d", before, m.HeapInuse)
	}
}

func TestHeadIsBounded(t *testing.T) {
	oid := strings.Repeat("1", 40)
	packet := func(s string) string { return fmt.Sprintf("%04x%s", len(s)+4, s) }
	one := packet(oid+" "+oid+" refs/heads/a\x00report-status") + "0000"
	push, head, err := readHead(strings.NewReader(one + "PACK…"))
	if err != nil || string(head) != one || len(push.Updates) != 1 {
		t.Errorf("%v %q %v", push, head, err)
	}
	options := packet(oid+" "+oid+" refs/heads/a\x00report-status push-options") + "0000" + packet("ci.skip") + "0000"
	if push, head, err := readHead(strings.NewReader(options + "PACK")); err != nil || string(head) != options || len(push.Options) != 1 {
		t.Errorf("%v %q %v", push, head, err)
	}
	if _, _, err := readHead(strings.NewReader("")); err != io.EOF {
		t.Errorf("nothing: %v", err)
	}
	for _, bad := range []string{"000", "0004", "0001", "00GGx", "ffff", "0010abc", packet("x"), packet("push-cert\x00x") + "0000", packet(oid + " " + oid + " HEAD\n")} {
		if _, _, err := readHead(strings.NewReader(bad)); err == nil || err == io.EOF {
			t.Errorf("%q: %v", bad, err)
		}
	}
	flood := strings.Repeat(packet(oid+" "+oid+" refs/heads/"+strings.Repeat("a", 900)), gitwire.MaxHead/900)
	if _, _, err := readHead(strings.NewReader(flood)); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("flood: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"git-upload-pack 'acme/widgets.git'", "git upload-pack acme/widgets", "git-receive-pack '/a/b'", "git-upload-pack 'a'; id", "sh", "git-lfs-authenticate a/b upload", "git-upload-pack ''"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		c, err := parse(in)
		if err != nil {
			return
		}
		// What the upstream gets has one reading, which is what was judged.
		again, err := parse(line(c.Program, c.Path))
		if err != nil || again.Path != c.Path || again.Program != c.Program {
			t.Fatalf("%q becomes %q: %+v %v", in, line(c.Program, c.Path), again, err)
		}
		if strings.ContainsAny(c.Path, "'\"\\$`;&|<>()*?[]{}~# \n\t!") || strings.Contains("/"+c.Path+"/", "/../") || strings.Contains("/"+c.Path, "/-") && strings.HasPrefix(c.Path, "-") {
			t.Fatalf("%q has the path %q", in, c.Path)
		}
	})
}

func FuzzHead(f *testing.F) {
	f.Add([]byte("0000"))
	f.Add([]byte("0070" + strings.Repeat("1", 40)))
	f.Fuzz(func(t *testing.T, in []byte) {
		_, head, err := readHead(bytes.NewReader(in))
		if err == nil && !bytes.HasPrefix(in, head) {
			t.Fatalf("%q became %q", in, head)
		}
	})
}

type script struct {
	net.Conn
	io.Reader
}

func (s script) Read(p []byte) (int, error) { return s.Reader.Read(p) }

// What a hostile server sends before encryption ends nothing and holds nothing.
func FuzzWitness(f *testing.F) {
	reply := append([]byte{31}, ssh.Marshal(struct{ A, B, C []byte }{[]byte("key"), []byte("q"), []byte("sig")})...)
	packet := binary.BigEndian.AppendUint32(nil, uint32(len(reply)+1+4))
	packet = append(append(append(packet, 4), reply...), 0, 0, 0, 0)
	f.Add(append([]byte("hello\r\nSSH-2.0-x\r\n"), packet...), 7)
	f.Add([]byte("SSH-2.0-x\n\x00\x00\x00\x02\x00\x15"), 1)
	f.Fuzz(func(t *testing.T, in []byte, step int) {
		w := &witness{Conn: script{Reader: bytes.NewReader(in)}}
		buf := make([]byte, 1+(step&0xff))
		for {
			if _, err := w.Read(buf); err != nil {
				break
			}
		}
		if len(w.seen) > maxSeen {
			t.Fatalf("%d bytes are kept", len(w.seen))
		}
		if key, sig, ok := w.proof(); ok && (len(key) == 0 || len(sig) == 0) {
			t.Fatal("an empty proof")
		}
	})
}
