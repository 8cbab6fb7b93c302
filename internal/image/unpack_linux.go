package image

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/gob"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

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
	Limits  Limits
	DiffIDs []digest
}

// result is what it says at its end.
type result struct {
	Error   string
	Bytes   int64
	Files   int
	Skipped int
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
	for i, want := range t.DiffIDs {
		if err := a.verified(&chunks{from: in}, want); err != nil {
			return r, fmt.Errorf("layer %d of %d: %w", i+1, len(t.DiffIDs), err)
		}
	}
	return result{Bytes: a.bytes, Files: a.entries, Skipped: a.skipped}, nil
}

// verified applies a layer and looks whether it was the one that the
// configuration tells of.
func (a *applier) verified(from io.Reader, want digest) error {
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
	if is := digest("sha256:" + hex.EncodeToString(sum.Sum(nil))); is != want {
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

// unpack fills a folder, through a confined process, with an image's layers. It
// returns when that process has ended.
func (s *source) unpack(ctx context.Context, folder *os.File, lim Limits, progress Progress) (r result, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	inR, inW, err := os.Pipe()
	if err != nil {
		return r, err
	}
	defer inW.Close()
	outR, outW, err := os.Pipe()
	if err != nil {
		inR.Close()
		return r, err
	}
	defer outR.Close()
	said := &tail{}
	cmd := exec.CommandContext(ctx, childproc.Self())
	cmd.Args = []string{childproc.Argv0(Child)}
	cmd.Env = []string{"GODEBUG=containermaxprocs=0,updatemaxprocs=0", "GOTRACEBACK=single", "GOMAXPROCS=2", fmt.Sprintf("GOMEMLIMIT=%d", softMemory)}
	cmd.Dir, cmd.Stderr, cmd.WaitDelay = "/", said, 5*time.Second
	cmd.ExtraFiles = []*os.File{inR, outW, folder}
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	inR.Close()
	outW.Close()
	if err != nil {
		return r, fmt.Errorf("starting the unpacker: %w", err)
	}
	fed := make(chan error, 1)
	go func() {
		err := s.feed(ctx, inW, lim, progress)
		if err != nil && !errors.Is(err, unix.EPIPE) {
			cancel() // it would wait for more
		}
		inW.Close()
		fed <- err
	}()
	derr := gob.NewDecoder(io.LimitReader(outR, 1<<16)).Decode(&r)
	if derr != nil || r.Error != "" {
		cancel()
	}
	werr := cmd.Wait()
	ferr := <-fed
	switch {
	case ferr != nil && !errors.Is(ferr, unix.EPIPE):
		return r, ferr
	case derr == nil && r.Error != "":
		return r, errors.New(r.Error)
	case derr != nil || werr != nil || ferr != nil:
		return r, fmt.Errorf("the unpacker ended before the image did (%v) %s", werr, printable(said.String()))
	}
	return r, nil
}

// feed sends the layers, each of which has to be what the manifest says.
func (s *source) feed(ctx context.Context, to io.Writer, lim Limits, progress Progress) error {
	w := bufio.NewWriterSize(to, 1<<16)
	t := task{Limits: lim, DiffIDs: s.config.RootFS.DiffIDs}
	if err := gob.NewEncoder(w).Encode(t); err != nil {
		return err
	}
	var have, all int64
	for _, l := range s.layers {
		all += l.size
	}
	buf := make([]byte, 1<<18)
	for i, l := range s.layers {
		err := func() error {
			from, err := l.open()
			if err != nil {
				return err
			}
			defer from.Close()
			stop := context.AfterFunc(ctx, func() { from.Close() })
			defer stop()
			sum := sha256.New()
			left := l.size
			for {
				n, err := from.Read(buf)
				if left -= int64(n); left < 0 {
					return fmt.Errorf("it is longer than the %d bytes that were announced", l.size)
				}
				if n > 0 {
					sum.Write(buf[:n])
					have += int64(n)
					progress(have, all)
					if err := binary.Write(w, binary.BigEndian, uint32(n)); err != nil {
						return err
					}
					if _, err := w.Write(buf[:n]); err != nil {
						return err
					}
				}
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					return err
				}
			}
			if left > 0 {
				return fmt.Errorf("it ended %d bytes before the %d that were announced", left, l.size)
			}
			if is := digest("sha256:" + hex.EncodeToString(sum.Sum(nil))); l.digest != "" && is != l.digest {
				return fmt.Errorf("%s was asked for, and came %s", l.digest, is)
			}
			return binary.Write(w, binary.BigEndian, uint32(0))
		}()
		if err != nil {
			if ctx.Err() != nil && !errors.Is(err, unix.EPIPE) && strings.Contains(err.Error(), "closed") {
				err = ctx.Err()
			}
			return fmt.Errorf("layer %d of %d: %w", i+1, len(s.layers), err)
		}
	}
	return w.Flush()
}

// tail keeps the end of what a child says.
type tail struct{ text []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.text = append(t.text, b...)
	if len(t.text) > 2000 {
		t.text = t.text[len(t.text)-2000:]
	}
	return len(b), nil
}

func (t *tail) String() string { return string(t.text) }
