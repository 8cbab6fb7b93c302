package httpauthz

import (
	"bytes"
	"compress/gzip"
	"io"
	"strings"
	"testing"
)

func zipped(text string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	io.WriteString(z, text)
	z.Close()
	return b.Bytes()
}

// TestUnzip: what is judged and forwarded is all of one gzip stream, or nothing.
func TestUnzip(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", unzippedAtOnce/8)
	for _, text := range []string{"", "0000", strings.Repeat("x", unzippedAtOnce), long} {
		r, length, err := unzip(bytes.NewReader(zipped(text)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		want := int64(len(text))
		if want > unzippedAtOnce {
			want = -1
		}
		if err != nil || string(got) != text || length != want {
			t.Errorf("%d bytes: got %d, length %d, %v", len(text), len(got), length, err)
		}
	}
	bad := map[string][]byte{
		"plain": []byte("0000"), "empty": nil, "two members": append(zipped("0000"), zipped("0000")...), "trailing": append(zipped("0000"), 0),
		"cut": zipped("0000")[:20], "checksum": func() []byte { b := zipped("0000"); b[len(b)-6] ^= 1; return b }(),
		"long and trailing": append(zipped(long), 0), "long and cut": zipped(long)[:len(zipped(long))-4],
	}
	for name, b := range bad {
		r, _, err := unzip(bytes.NewReader(b))
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// A bomb costs what is collected at once, and then what the operation takes.
	r, _, err := unzip(bytes.NewReader(zipped(strings.Repeat("\x00", 64<<20))))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, &bounded{src: r, left: 1 << 20}); err != errTooLong || n > 1<<20+1 {
		t.Errorf("%d bytes of a bomb, %v", n, err)
	}
}
