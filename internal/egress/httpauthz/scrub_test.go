package httpauthz

import (
	"bytes"
	"encoding/base32"
	"encoding/base64"
	"fmt"
	"html"
	"io"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
)

// Every way in which servers write a text that they reflect is found wherever it
// stands, also with neighbours inside the encoded text.
func TestScrubForms(t *testing.T) {
	for _, secret := range []string{"sk-real-5fJ29xPqLm0ZsWc7", `p/a+s=s"w&o<r>d'1`, "abcdef"} {
		s := newScrubber([]byte(secret))
		for name, form := range map[string]string{
			"raw": secret, "query": url.QueryEscape(secret), "path": url.PathEscape(secret), "query, lower": lowerEscapes(url.QueryEscape(secret)), "query twice": url.QueryEscape(url.QueryEscape(secret)),
			"html": html.EscapeString(secret), "json": strings.Trim(fmt.Sprintf("%q", secret), `"`), "php": strings.ReplaceAll(secret, "/", `\/`),
			"unicode": spelled([]byte(secret), `\u00`, "0123456789abcdef", ""), "python": `\x` + strings.ReplaceAll(fmt.Sprintf("% x", secret), " ", `\x`), "percent": "%" + strings.ReplaceAll(fmt.Sprintf("% X", secret), " ", "%"), "entities": spelled([]byte(secret), "&#", "", ";"),
			"hex": fmt.Sprintf("%x", secret), "HEX": fmt.Sprintf("%X", secret),
			"base64": base64.StdEncoding.EncodeToString([]byte(secret)), "in base64": base64.StdEncoding.EncodeToString([]byte("u:" + secret + "!")), "base64 in php": strings.ReplaceAll(base64.StdEncoding.EncodeToString([]byte("a"+secret)), "/", `\/`),
			"base64 in a query": url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(secret))), "base64url": base64.RawURLEncoding.EncodeToString([]byte("xyz" + secret)),
			"base32": base32.StdEncoding.EncodeToString([]byte(secret)), "in base32": strings.ToLower(base32.StdEncoding.EncodeToString([]byte("abc" + secret + "d"))),
		} {
			b := []byte("<" + form + ">" + form)
			if !s.bytes(b) || bytes.Count(b, []byte("**")) == 0 || bytes.Contains(b, []byte(form)) || bytes.Contains(b, []byte(secret)) {
				t.Errorf("%q as %s: %q became %q", secret, name, form, b)
			}
		}
		if b := []byte("nothing of it here: sk-real- abcde"); s.bytes(b) {
			t.Errorf("%q: found in %q", secret, b)
		}
	}
}

// A range may begin and end within the secret: what is cut is removed too, from
// minCut bytes on.
func TestScrubCut(t *testing.T) {
	const secret = "sk-real-5fJ29xPqLm0ZsWc7"
	s := newScrubber([]byte(secret))
	page := strings.Repeat("x", 300) + secret + strings.Repeat("y", 300)
	for from := 280; from < 340; from++ {
		for _, piece := range []string{page[from:], page[:from]} {
			for _, src := range []io.Reader{strings.NewReader(piece), iotest.OneByteReader(strings.NewReader(piece)), iotest.DataErrReader(strings.NewReader(piece))} {
				r := s.reader(src, nil)
				r.part = true
				out, err := io.ReadAll(r)
				if err != nil || len(out) != len(piece) {
					t.Fatalf("%d of %d, %v", len(out), len(piece), err)
				}
				for i := 0; i+minCut <= len(secret); i++ {
					if bytes.Contains(out, []byte(secret[i:i+minCut])) {
						t.Fatalf("cut at %d: %q", from, strings.Trim(string(out), "xy"))
					}
				}
			}
		}
	}
}

// The search finds what a plain search finds.
func FuzzScrubSearch(f *testing.F) {
	f.Add([]byte("sk-real-secret"), []byte("xx sk-real-secret yy c2stcmVhbC1zZWNyZXQ"))
	f.Add([]byte("aaaaaa"), []byte("aaaaaaaaaaaaaaaa"))
	f.Fuzz(func(t *testing.T, secret, in []byte) {
		if len(secret) > 200 {
			return
		}
		s := newScrubber(secret)
		want := false
		for _, form := range s.forms {
			want = want || bytes.Contains(in, form)
		}
		out := bytes.Clone(in)
		if got := s.bytes(out); got != want {
			t.Fatalf("found %v, want %v", got, want)
		}
		if len(secret) >= minScrub && !bytes.Contains(secret, []byte("*")) && bytes.Contains(out, secret) {
			t.Fatalf("%q became %q", in, out)
		}
	})
}

func BenchmarkScrubber(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		newScrubber([]byte("sk-real-5fJ29xPqLm0ZsWc7-5fJ29xPqLm0ZsWc7"))
	}
}

func BenchmarkScrub(b *testing.B) {
	s := newScrubber([]byte("sk-real-5fJ29xPqLm0ZsWc7-5fJ29xPqLm0ZsWc7"))
	text := bytes.Repeat([]byte(`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}`+"\n"), 380)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		s.bytes(text)
		s.held(text)
	}
}

// Two sides that wait for each other do not stand still because a message ends
// with a byte that a form of the secret begins with; and what is split after such
// a byte is found all the same.
func TestScrubLetsConversationsGoOn(t *testing.T) {
	secret := []byte("sk-real-5fJ29xPqLm0ZsWc7")
	s := newScrubber(secret)
	pr, pw := io.Pipe()
	r := s.reader(pr, nil)
	buf := make([]byte, 64)
	for c := range 256 {
		go pw.Write([]byte{'x', byte(c)})
		if n, err := r.Read(buf); n != 2 || err != nil {
			t.Fatalf("%#x: %d %v", c, n, err)
		}
	}
	for cut := 1; cut < len(secret); cut++ {
		go func() {
			pw.Write(secret[:cut])
			pw.Write(append(secret[cut:], ' '))
		}()
		var got []byte
		for !bytes.HasSuffix(got, []byte(" ")) {
			n, err := r.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, buf[:n]...)
		}
		if left := bytes.Trim(got, "* "); len(left) >= minCut || len(got) != len(secret)+1 {
			t.Errorf("cut at %d: %q", cut, got)
		}
	}
}
