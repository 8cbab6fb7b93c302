package httpauthz

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"testing"
)

// No Link that makes a client connect by itself stays, and what stays is no more
// than what came.
func FuzzLinks(f *testing.F) {
	for _, s := range []string{`</a>; rel="next", <https://bad.test>; rel=preconnect`, `<a,b>; title="x, <y>; rel=preload"; rel=last`, `</x>; rel="\"pre\load"`, `no link`, `<a>; REL=DNS-PREFETCH`, "<", `"`, `<a>;rel=next,<b>`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h := http.Header{"Link": {s}}
		cleanse(h, true)
		kept := strings.Join(h["Link"], ", ")
		for _, link := range splitLinks(kept) {
			_, params, ok := strings.Cut(link, ">")
			if kept != "" && !ok {
				t.Fatalf("%q became %q", s, kept)
			}
			for _, rel := range linked {
				if strings.Contains(strings.ToLower(params), rel) {
					t.Fatalf("%q became %q", s, kept)
				}
			}
		}
		again := http.Header{"Link": {kept}}
		cleanse(again, true)
		if kept != "" && strings.Join(again["Link"], ", ") != kept {
			t.Fatalf("%q became %q, and that %q", s, kept, again["Link"])
		}
	})
}

// A body that is taken for gzip is exactly one stream, and reads as the library
// reads it.
func FuzzUnzip(f *testing.F) {
	zip := func(s string) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		io.WriteString(w, s)
		w.Close()
		return b.Bytes()
	}
	f.Add(zip("0032want 0123"))
	f.Add(zip(""))
	f.Add(append(zip("a"), zip("b")...))
	f.Add(append(zip("a"), 0))
	f.Add(zip(strings.Repeat("0", 1<<19)))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, length, err := unzip(bytes.NewReader(in))
		if err != nil {
			return
		}
		got, err := io.ReadAll(io.LimitReader(r, 4<<20))
		if err != nil || len(got) == 4<<20 {
			return
		}
		if length >= 0 && length != int64(len(got)) {
			t.Fatalf("%d bytes, said to be %d", len(got), length)
		}
		in2 := bytes.NewReader(in)
		z, err := gzip.NewReader(in2)
		if err != nil {
			t.Fatalf("accepted: %v", err)
		}
		z.Multistream(false)
		want, err := io.ReadAll(z)
		if err != nil || !bytes.Equal(got, want) || in2.Len() != 0 {
			t.Fatalf("read as %q, by the library as %q, %v, %d bytes behind it", got, want, err, in2.Len())
		}
	})
}

// Basic credentials are read in one way only, and written back as they were read.
func FuzzBasic(f *testing.F) {
	for _, s := range []string{"Basic dTpw", "basic dTpw", "Basic dTpw=", "Basic  dTpw", "Basic dQ==", "Basic Og==", "Bearer dTpw", "Basic dTpw, Basic dTpw", "Basic dTpw\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		user, pass, err := basic(s)
		if err != nil {
			return
		}
		if strings.Contains(user, ":") {
			t.Fatalf("%q has the user %q", s, user)
		}
		r := &http.Request{Header: http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+pass))}}}
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != pass {
			t.Fatalf("%q: %q and %q, by the library %q and %q", s, user, pass, u, p)
		}
	})
}
