package unpack

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/gob"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
)

// Child is the unpacker's name in the child registry.
const Child = "unpacker"

func init() { childproc.Register(Child, unpacker) }

// Descriptors of the unpacker: layers come, a result goes, and the folder to fill.
const (
	layersFD = 3
	resultFD = 4
	folderFD = 5
)

// task is what the unpacker gets before the layers, each of which comes in
// chunks: a length of four bytes, then so many bytes; 0 ends a layer.
type task struct {
	Limits   Limits
	Contents []string
}

// result is what it says at its end.
type result struct {
	Error string
	Result
}

// unpacker applies the layers that come over a pipe, confined before the first
// byte of an image.
func unpacker() int {
	out := os.NewFile(resultFD, "result")
	r, err := unpackHere()
	if err != nil {
		r.Error = err.Error()
	}
	if err := gob.NewEncoder(out).Encode(r); err != nil {
		return 1
	}
	return 0
}

func unpackHere() (r result, err error) {
	if err := childproc.CloseInherited(layersFD, resultFD, folderFD); err != nil {
		return r, err
	}
	unix.Umask(0)
	if err := confine(folderFD); err != nil {
		return r, fmt.Errorf("the unpacker could not be confined, and does not run without that: %w", err)
	}
	in := bufio.NewReaderSize(os.NewFile(layersFD, "layers"), 1<<16)
	var t task
	if err := gob.NewDecoder(in).Decode(&t); err != nil {
		return r, fmt.Errorf("orders: %w", err)
	}
	a := &applier{root: folderFD, lim: t.Limits}
	for i, want := range t.Contents {
		if err := a.verified(&chunks{from: in}, want); err != nil {
			return r, fmt.Errorf("layer %d of %d: %w", i+1, len(t.Contents), err)
		}
	}
	return result{Result: Result{a.bytes, a.entries}}, nil
}

// verified applies a layer and looks whether it was the one that the
// configuration tells of.
func (a *applier) verified(from io.Reader, want string) error {
	plain, err := uncompressed(from)
	if err != nil {
		return err
	}
	sum := sha256.New()
	// Beside what files hold, a tar has its headers.
	bounded := &bounded{from: io.TeeReader(plain, sum), left: a.lim.Bytes + 4096*int64(min(a.lim.Entries, 1<<20))}
	if err := a.layer(bounded); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, bounded); err != nil { // what follows the last file
		return err
	}
	if is := "sha256:" + hex.EncodeToString(sum.Sum(nil)); is != want {
		return fmt.Errorf("%s was announced, and it is %s", want, is)
	}
	if _, err := io.Copy(io.Discard, from); err != nil {
		return err
	}
	return nil
}

// bounded ends a stream that is larger than it may be.
type bounded struct {
	from io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errors.New("it is larger, uncompressed, than an image may be")
	}
	return n, err
}

func uncompressed(from io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(from, 1<<16)
	magic, _ := b.Peek(4)
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(b)
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderLowmem(true))
	}
	return b, nil
}

// chunks is one layer of the stream.
type chunks struct {
	from io.Reader
	left uint32
	end  bool
}

func (c *chunks) Read(p []byte) (int, error) {
	if c.left == 0 && !c.end {
		var n [4]byte
		if _, err := io.ReadFull(c.from, n[:]); err != nil {
			return 0, io.ErrUnexpectedEOF
		}
		c.left = binary.BigEndian.Uint32(n[:])
		c.end = c.left == 0
	}
	if c.end {
		return 0, io.EOF
	}
	n, err := c.from.Read(p[:min(len(p), int(c.left))])
	c.left -= uint32(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
