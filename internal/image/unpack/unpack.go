// Package unpack fills a folder with the layers of an image.
//
// In: layers by whoever has them, what they are to be, and a folder that nobody
// else touches. Out: the folder, or an error. All that layers say is hostile: the
// caller sees nothing of it. It only passes their bytes on, verified against their
// digests, to a process of their own (childproc "unpacker"), which Landlock leaves
// that folder and seccomp no socket and no program, before it reads the first byte.
// That process verifies each layer once more, uncompressed.
//
// A layer is applied by handles (apply_linux.go): no name leads out of the folder.
// Owners are not kept: all files are the user's, as all processes inside are.
// Set-user-ID bits and extended attributes are dropped; devices below /dev are
// left out, since a container has its own, and refused elsewhere.
package unpack

import (
	"fmt"
	"io"
	"strings"
)

// Layer opens a layer's bytes, compressed or not. Digest ("sha256:" and hex) is ""
// where only the content says what it is.
type Layer struct {
	Digest string
	Size   int64
	Open   func() (io.ReadCloser, error)
	// Content is the digest of what it holds, uncompressed.
	Content string
}

// Result is what came of it.
type Result struct {
	Bytes int64 // in files
	Files int   // and folders, links and marks
}

// Limits bound an image. The zero value lets nothing in.
type Limits struct {
	Bytes   int64 // of all layers, uncompressed, and of what they hold
	Entries int   // files, folders, links and marks of all layers together
	Layers  int
	Depth   int // folders in one another
	Path    int // bytes of a path
}

const maxName = 255 // of one file, as file systems have it

// Printable is text of an image, for a terminal.
func Printable(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "…"
	}
	if strings.ContainsFunc(s, func(r rune) bool {
		return r < 0x20 || r == 0x7f || r == 0xfffd || r >= 0x80 && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
	}) {
		return fmt.Sprintf("%q", s)
	}
	return s
}
