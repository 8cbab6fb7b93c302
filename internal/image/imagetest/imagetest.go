// Package imagetest makes layers, for tests of packages about images. It runs in
// test binaries only.
package imagetest

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
)

// Entry is one entry of a layer.
type Entry struct {
	Name string
	Kind byte   // tar's; 0 is a file, or a folder if the name ends in /
	Text string // what a file holds, or where a link leads
	Mode int64  // 0 is 0644
}

// Tar returns a layer; what no archive can hold ends the test.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.Name, Typeflag: e.Kind, Mode: e.Mode, ModTime: time.Unix(1e9, 0), Format: tar.FormatPAX, Uid: 4711, Gid: 4711}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.Name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		text := e.Text
		switch h.Typeflag {
		case tar.TypeReg:
			h.Size = int64(len(text))
		default:
			h.Linkname, text = text, ""
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
