package differential

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// What stands between requests, between the frames of one, and between header
// fields, of which each is name=value.
const (
	nextRequest = "\x1e"
	nextFrame   = "\x1d"
	nextField   = "\x1f"
)

// frames is a client that writes what in says, in the language above. The first
// frame of a request is its header list. Of a further one the first byte is its
// kind: D data, T a header list behind data, C the header list before it in two
// frames, R a reset, F any frame: type, flags, payload. The last frame ends the
// stream, unless it is X.
func (l *lane) frames(in string) play { return l.framesTo(name, in) }

// framesTo is frames, to a host.
func (l *lane) framesTo(host, in string) play {
	return func(raw net.Conn) error {
		c := tls.Client(raw, &tls.Config{ServerName: host, RootCAs: l.session, NextProtos: []string{"h2"}})
		if err := c.Handshake(); err != nil {
			return err
		}
		w := &client2{f: http2.NewFramer(c, c), open: map[uint32]bool{}, changed: make(chan struct{}, 1)}
		w.f.AllowIllegalWrites = true
		go w.read()
		if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
			return err
		}
		w.write(func() error { return w.f.WriteSettings() })
		id := uint32(1)
		for request := range strings.SplitSeq(in, nextRequest) {
			w.request(id, strings.Split(request, nextFrame))
			id += 2
		}
		return w.wait()
	}
}

type client2 struct {
	writing sync.Mutex // not held by who reads: a pipe has no buffer
	f       *http2.Framer

	mu      sync.Mutex
	open    map[uint32]bool // ended by us, and not answered
	gone    bool
	err     error
	changed chan struct{}
}

func (w *client2) write(f func() error) {
	w.writing.Lock()
	defer w.writing.Unlock()
	if err := f(); err != nil {
		w.mu.Lock()
		w.err = err
		w.mu.Unlock()
	}
}

// opened notes whether an answer to the stream is to be awaited.
func (w *client2) opened(id uint32, awaited bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[id] = awaited
}

func (w *client2) request(id uint32, frames []string) {
	ends := len(frames) == 1
	split := !ends && strings.HasPrefix(frames[1], "C")
	if split {
		frames = append(frames[:1:1], frames[2:]...)
		ends = len(frames) == 1
	}
	w.opened(id, frames[len(frames)-1] != "X")
	w.write(func() error {
		b := list(frames[0])
		half := len(b)
		if split {
			half /= 2
		}
		err := w.f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b[:half], EndHeaders: !split, EndStream: ends})
		if split && err == nil {
			err = w.f.WriteContinuation(id, true, b[half:])
		}
		return err
	})
	for i, frame := range frames[1:] {
		kind, rest := "X", ""
		if frame != "" {
			kind, rest = frame[:1], frame[1:]
		}
		last := i == len(frames)-2
		w.write(func() error {
			switch kind {
			case "D":
				return w.f.WriteData(id, last, []byte(rest))
			case "T":
				return w.f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: list(rest), EndHeaders: true, EndStream: last})
			case "R":
				w.opened(id, false)
				return w.f.WriteRSTStream(id, http2.ErrCodeCancel)
			case "F":
				if len(rest) >= 2 {
					return w.f.WriteRawFrame(http2.FrameType(rest[0]), http2.Flags(rest[1]), id, []byte(rest[2:]))
				}
			}
			return nil
		})
	}
}

// list encodes name=value fields.
func list(s string) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for field := range strings.SplitSeq(s, nextField) {
		n, v, _ := strings.Cut(field, "=")
		enc.WriteField(hpack.HeaderField{Name: n, Value: v})
	}
	return b.Bytes()
}

func (w *client2) read() {
	for {
		f, err := w.f.ReadFrame()
		w.mu.Lock()
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				go w.write(func() error { return w.f.WriteSettingsAck() })
			}
		case *http2.HeadersFrame:
			if f.StreamEnded() {
				delete(w.open, f.StreamID)
			}
		case *http2.DataFrame:
			if f.StreamEnded() {
				delete(w.open, f.StreamID)
			}
		case *http2.RSTStreamFrame:
			delete(w.open, f.StreamID)
		case *http2.GoAwayFrame:
			w.gone = true
		}
		w.gone = w.gone || err != nil
		w.mu.Unlock()
		select {
		case w.changed <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// wait returns when every request that has been sent is answered.
func (w *client2) wait() error {
	timeout := time.After(behind)
	for {
		w.mu.Lock()
		left := 0
		for _, ended := range w.open {
			if ended {
				left++
			}
		}
		gone, err := w.gone, w.err
		w.mu.Unlock()
		if gone && err == nil {
			err = io.ErrClosedPipe // what is under way breaks off with the connection
		}
		if left == 0 || err != nil {
			return err
		}
		select {
		case <-w.changed:
		case <-timeout:
			return nil
		}
	}
}

func try2(t testing.TB, l *lane, h2 bool, in string) *result {
	r, err := l.through(destination(t, name+":443"), true, h2, answererOf([]byte(in)), l.frames(in))
	if err != nil {
		t.Errorf("%q: %v", in, err)
		return nil
	}
	for _, d := range r.differences(false) {
		t.Errorf("%q (upstream speaks HTTP/2: %v)\n\t%s", in, h2, d)
	}
	return r
}

// Each seed goes on in one of the two protocols, in turn; the fuzz target has
// every one with either.
func TestSeeds2(t *testing.T) {
	ls := lanesOf(t, "https")
	turn := map[string]bool{}
	for i, s := range seeds2() {
		turn[s] = i%2 == 0
	}
	stats(t, each(ls, seeds2(), func(l *lane, in string) *result { return try2(t, l, turn[in], in) }))
}

func TestWalk2(t *testing.T) {
	ls := lanesOf(t, "https")
	inputs := walk(700, seeds2(), ordinary2(), tokens2)
	stats(t, each(ls, inputs, func(l *lane, in string) *result { return try2(t, l, len(in)%2 == 0, in) }))
}

func FuzzHTTP2(f *testing.F) {
	for i, s := range seeds2() {
		if fuzzing() {
			f.Add([]byte(s), i%2 == 0)
		}
	}
	ls := lanesOf(f, "https")
	f.Fuzz(func(t *testing.T, b []byte, h2 bool) {
		if len(b) > 32<<10 {
			return
		}
		try2(t, ls[0], h2, string(b))
	})
}

func fields(pairs ...string) string { return strings.Join(pairs, nextField) }

func get2(path string, more ...string) string {
	return fields(append([]string{":method=GET", ":scheme=https", ":authority=up.test", ":path=" + path}, more...)...)
}

func post2(path string, more ...string) string {
	return fields(append([]string{":method=POST", ":scheme=https", ":authority=up.test", ":path=" + path}, more...)...)
}

const data = nextFrame + "D"

// seeds2 are seeds1 in the words of HTTP/2, and what HTTP/2 adds; each is
// followed by a request that a grant covers.
func seeds2() []string {
	var out []string
	add := func(s string) { out = append(out, s+nextRequest+get2("/docs/next")) }
	for _, p := range paths {
		add(get2(p))
	}
	for _, more := range [][]string{
		{}, {"accept=*/*", "user-agent=x"}, {"user-agent="}, {"cookie=a=b", "cookie=c=d"}, {"cookie=a=b; c=d"}, {"cookie=session=attackers"}, {"x-a=1", "x-a=2"}, {"x-empty="}, {"x-space= a "}, {"x-tab=\ta\t"}, {"x-latin=\xe9\xff"}, {"x!#$%&'*+.^`|~9=tokens"},
		{"host=up.test"}, {"host=evil.test"}, {":authority=evil.test"}, {":path=/secret"}, {":method=DELETE"}, {":scheme=http"}, {":odd=x"}, {":status=200"}, {"a=b", ":path=/secret"}, {":protocol=websocket"}, {":=x"},
		{"X-Upper=x"}, {"x y=z"}, {"x:y=z"}, {"=z"}, {"x=y\r\nhost: evil.test"}, {"x=y\nz"}, {"x=y\rz"}, {"x=y\x00z"}, {"x\r\nhost=evil.test"}, {"x\x00=y"}, {"x=y\r\n\r\nGET /secret HTTP/1.1\r\nHost: up.test\r\n\r\n"}, {"x=\x7f"}, {"x= folded\r\n more"},
		{"transfer-encoding=chunked"}, {"Transfer-Encoding=chunked"}, {"connection=x-a"}, {"connection=close"}, {"keep-alive=1"}, {"upgrade=websocket", "sec-websocket-key=dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-version=13"}, {"upgrade=h2c", "http2-settings=AAMAAABk"}, {"proxy-connection=x"}, {"te=gzip"}, {"te=trailers"}, {"te=trailers, gzip"}, {"trailer=x"}, {"expect=100-continue"}, {"content-length=0"}, {"content-length=43"}, {"content-length=-1"}, {"content-length=0", "content-length=43"}, {"content-length=+0"}, {"content-length="}, {"content-length=0, 43"},
		{"x_api_key=1"}, {"content_length=43"}, {"x-http-method-override=DELETE"}, {"x-original-url=/secret"}, {"x-forwarded-host=evil.test", "forwarded=host=evil"}, {"authorization=Bearer " + placeholder}, {"range=bytes=0-1"}, {"accept-encoding=gzip", "accept-encoding=br"}, {"priority=u=1"}, {"via=1.1 x"},
	} {
		add(get2("/docs/a", more...))
		add(get2("/keyed/a", more...))
		add(get2("/keyed/a", append([]string{"authorization=Bearer " + placeholder}, more...)...))
		add(post2("/items/1", more...) + data + sentinel)
		add(post2("/items/1", more...))
	}
	for _, head := range []string{
		":method=GET", ":path=/docs/a", "", "x=y", ":method=GET\x1f:scheme=https\x1f:authority=up.test", ":method=GET\x1f:scheme=https\x1f:path=/docs/a", ":method=GET\x1f:authority=up.test\x1f:path=/docs/a", ":method=GET\x1f:scheme=https\x1f:path=/docs/a\x1fhost=up.test", ":method=GET\x1f:scheme=https\x1f:path=/docs/a\x1fhost=evil.test",
	} {
		add(head)
	}
	for _, m := range []string{"HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "CONNECT", "get", "GET /secret HTTP/1.1\r\nHost: up.test\r\n\r\nGET", "GET ", "", "P\x00ST", "DEBUG", "PRI"} {
		for _, p := range []string{"/docs/a", "/items/1"} {
			add(fields(":method="+m, ":scheme=https", ":authority=up.test", ":path="+p))
		}
	}
	for _, p := range []string{"", "*", "docs/a", "https://up.test/docs/a", "/docs/a HTTP/1.1\r\nX: y", "/docs/a b", "/docs/a\r\n", "/docs/a\x00", "/docs/a\nx", "//up.test/docs/a", "/docs/a#b", "?/docs/a"} {
		add(get2(p))
	}
	for _, a := range []string{"evil.test@up.test", "up.test:443", "up.test:444", "UP.test.", "", "up.test\r\nX: y", "up.test, evil.test", "127.0.0.1", "up.test/docs"} {
		add(fields(":method=GET", ":scheme=https", ":authority="+a, ":path=/docs/a"))
	}
	for _, body := range []string{
		data + "hello", data + "he" + data + "llo", data, data + "hello" + nextFrame + "Tx-late=1", data + "hello" + nextFrame + "T:path=/secret", data + "hello" + nextFrame + "Tcontent-length=3", data + "hello" + nextFrame + "X", nextFrame + "X", data + "hello" + nextFrame + "R", nextFrame + "R",
		nextFrame + "C", nextFrame + "C" + data + "hello", data + sentinel, data + "0\r\n\r\n" + sentinel, data + "5\r\nhello\r\n0\r\n\r\n", data + "hello" + nextFrame + "F\x01\x05\x82", nextFrame + "F\x00\x09\x02hello\x00\x00", nextFrame + "F\x00\x09\xffhello", nextFrame + "F\x08\x00\x7f\xff\xff\xff", nextFrame + "F\x09\x04\x82", nextFrame + "F\x05\x04\x00\x00\x00\x02\x82", nextFrame + "F\x20\x00x" + data + "y", nextFrame + "F\x02\x00\x00\x00\x00\x01\x10" + data, data + "hello" + data + "again" + nextFrame + "Tx=y" + data + "more",
		data + strings.Repeat("x", 16000),
	} {
		for _, cl := range []string{"", "content-length=5", "content-length=4", "content-length=6", "content-length=43", "content-length=0", "content-length=16000"} {
			more := []string{"content-type=text/plain"}
			if cl != "" {
				more = append(more, cl)
			}
			add(post2("/items/1", more...) + body)
		}
		add(get2("/docs/a") + body)
		add(post2("/projects/acme%2Fwidgets/issues", "content-type=application/json") + body)
	}
	return append(append(out, ordinary2()...), strings.Join(ordinary2(), nextRequest))
}

// ordinary2 are requests that pass.
func ordinary2() []string {
	return []string{
		get2("/docs/a/b?x=y&z=%20", "accept=*/*", "cookie=a=b"), get2("/docs/caf%C3%A9"), post2("/items/1", "content-length=5") + data + "hello", post2("/items/1") + data + "he" + data + "llo", post2("/v1/messages") + data + sentinel,
		get2("/keyed/a", "authorization=Bearer "+placeholder, "accept-encoding=gzip"), post2("/keyed/b", "authorization=Bearer "+placeholder) + data + "{}", get2("/projects/acme%2Fwidgets/issues?page=2"),
		post2("/projects/acme%2Fwidgets/issues", "content-type=application/json") + data + `{"title":"hi"}`, fields(":method=HEAD", ":scheme=https", ":authority=up.test", ":path=/docs/a"), fields(":method=DELETE", ":scheme=https", ":authority=up.test", ":path=/items/1"), get2("/tree/acme/widgets/list", "x-dropped=1"),
		get2("/docs/a") + nextRequest + post2("/items/1") + data + "hi" + nextRequest + get2("/docs/b"),
	}
}

// tokens2 are what a walk puts in.
var tokens2 = append([]string{
	nextRequest, nextFrame, nextField, data, nextFrame + "X", nextFrame + "R", nextFrame + "C", nextFrame + "Tx=y", nextFrame + "F\x08\x00\x00\x00\x00\x01", nextFrame + "F\x00\x08", nextField + "content-length=5", nextField + "content-length=0", nextField + "transfer-encoding=chunked", nextField + "host=evil.test", nextField + "te=trailers", nextField + ":path=/secret", nextField + "x=y", nextField + "cookie=a", "=", ":path=/docs/a", ":method=POST",
}, tokens1...)
