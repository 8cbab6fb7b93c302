package unpack

import (
	"bufio"
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

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
)

// Run fills a folder, through a confined process, and tells how many bytes of the
// layers have come, of how many. It returns when that process has ended.
func Run(ctx context.Context, folder *os.File, layers []Layer, lim Limits, progress func(have, all int64)) (Result, error) {
	r, err := run(ctx, folder, layers, lim, progress)
	return r.Result, err
}

func run(ctx context.Context, folder *os.File, layers []Layer, lim Limits, progress func(have, all int64)) (r result, err error) {
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
	said := &Tail{}
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
		err := feed(ctx, inW, layers, lim, progress)
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
		return r, fmt.Errorf("the unpacker ended before the image did (%v) %s", werr, Printable(said.String()))
	}
	return r, nil
}

// feed sends the layers, each of which has to be what the manifest says.
func feed(ctx context.Context, to io.Writer, layers []Layer, lim Limits, progress func(have, all int64)) error {
	w := bufio.NewWriterSize(to, 1<<16)
	t := task{Limits: lim}
	for _, l := range layers {
		t.Contents = append(t.Contents, l.Content)
	}
	if err := gob.NewEncoder(w).Encode(t); err != nil {
		return err
	}
	var have, all int64
	for _, l := range layers {
		all += l.Size
	}
	buf := make([]byte, 1<<18)
	for i, l := range layers {
		err := func() error {
			from, err := l.Open()
			if err != nil {
				return err
			}
			defer from.Close()
			stop := context.AfterFunc(ctx, func() { from.Close() })
			defer stop()
			sum := sha256.New()
			left := l.Size
			for {
				n, err := from.Read(buf)
				if left -= int64(n); left < 0 {
					return fmt.Errorf("it is longer than the %d bytes that were announced", l.Size)
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
				return fmt.Errorf("it ended %d bytes before the %d that were announced", left, l.Size)
			}
			if is := "sha256:" + hex.EncodeToString(sum.Sum(nil)); l.Digest != "" && is != l.Digest {
				return fmt.Errorf("%s was asked for, and came %s", l.Digest, is)
			}
			return binary.Write(w, binary.BigEndian, uint32(0))
		}()
		if err != nil {
			if ctx.Err() != nil && !errors.Is(err, unix.EPIPE) && strings.Contains(err.Error(), "closed") {
				err = ctx.Err()
			}
			return fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
		}
	}
	return w.Flush()
}

// Tail keeps the end of what a child says.
type Tail struct{ text []byte }

func (t *Tail) Write(b []byte) (int, error) {
	t.text = append(t.text, b...)
	if len(t.text) > 2000 {
		t.text = t.text[len(t.text)-2000:]
	}
	return len(b), nil
}

func (t *Tail) String() string { return string(t.text) }
