package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/switches"
	"golang.org/x/sys/unix"
)

// applier puts layers into a folder that nobody else touches. Every name is
// walked from the folder's handle, element by element and without following
// anything; a link on the way is followed here, if it is relative and stays
// inside, and refused if it is not. Links and hard links are made, never followed
// out. No more is held than one layer's names.
type applier struct {
	root    int
	lim     Limits
	bytes   int64
	entries int

	made  map[string]bool // what this layer put there: marks of removal leave it
	lastN string
	last  *place
}

// place is a folder by handle, and its name from the root, without links.
type place struct {
	fd   int
	name []string
}

func (p *place) of(base string) string { return strings.Join(append(slices.Clone(p.name), base), "/") }

const (
	wipe   = ".wh..wh..opq" // nothing of lower layers is seen in this folder
	remove = ".wh."         // before the name of what is gone
)

// layer applies one layer, uncompressed.
func (a *applier) layer(r io.Reader) error {
	a.made = map[string]bool{}
	defer a.forget()
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("its tar file: %s", Printable(err.Error()))
		}
		if a.entries++; a.entries > a.lim.Entries {
			return fmt.Errorf("it holds more than %d files", a.lim.Entries)
		}
		if err := a.entry(h, t); err != nil {
			return fmt.Errorf("%s: %w", Printable(h.Name), err)
		}
	}
}

// split is a name in its elements. A leading slash means the root.
func (a *applier) split(name string) ([]string, error) {
	if len(name) > a.lim.Path {
		return nil, fmt.Errorf("a path of %d bytes; %d are the most", len(name), a.lim.Path)
	}
	var out []string
	for e := range strings.SplitSeq(name, "/") {
		switch {
		case e == "" || e == ".":
			continue
		case e == ".." && !switches.Off("unpacking"):
			return nil, errors.New("its path leads upwards (..)")
		case len(e) > maxName:
			return nil, fmt.Errorf("a name of %d bytes; %d are the most", len(e), maxName)
		case strings.ContainsRune(e, 0):
			return nil, errors.New("its name has a zero byte")
		}
		out = append(out, e)
	}
	if len(out) > a.lim.Depth {
		return nil, fmt.Errorf("folders %d deep; %d are the most", len(out), a.lim.Depth)
	}
	return out, nil
}

func (a *applier) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	elements, err := a.split(h.Name)
	if err != nil {
		return err
	}
	if len(elements) == 0 {
		if h.Typeflag != tar.TypeDir {
			return errors.New("it would replace the root")
		}
		return nil
	}
	folder, base := elements[:len(elements)-1], elements[len(elements)-1]
	for _, e := range folder {
		if strings.HasPrefix(e, remove) {
			return errors.New("it lies in a mark of removal")
		}
	}
	if strings.HasPrefix(base, remove) {
		return a.mark(folder, base)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if elements[0] == "dev" {
			return nil
		}
		return errors.New("it is a device or a pipe")
	default:
		return fmt.Errorf("it is of a kind that is not known (%q)", h.Typeflag)
	}
	p, err := a.folder(folder, true)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		err = a.dir(p, base, perm(h.Mode, 0o700, 0o1777))
	case tar.TypeReg:
		err = a.file(p, base, h, content)
	case tar.TypeSymlink:
		err = a.symlink(p, base, h.Linkname)
	case tar.TypeLink:
		err = a.link(p, base, h.Linkname)
	}
	if err != nil {
		return err
	}
	a.made[p.of(base)] = true
	return nil
}

// perm is what stays of a mode: never set-user-ID or set-group-ID, and the owner,
// who is whoever runs this, can always read, write and search.
func perm(mode int64, owner, keep uint32) uint32 { return uint32(mode)&keep | owner }

// folder walks to a folder, and makes what is missing of it.
func (a *applier) folder(elements []string, create bool) (*place, error) {
	as := strings.Join(elements, "/")
	if a.last != nil && as == a.lastN {
		return a.last, nil
	}
	a.forget()
	fd, err := unix.FcntlInt(uintptr(a.root), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	fds, name := []int{fd}, []string{}
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	links := 0
	for pending := slices.Clone(elements); len(pending) > 0; {
		e := pending[0]
		pending = pending[1:]
		if e == ".." && !switches.Off("unpacking") {
			if len(name) == 0 {
				return nil, errors.New("a link on its way leads out of the image")
			}
			unix.Close(fds[len(fds)-1])
			fds, name = fds[:len(fds)-1], name[:len(name)-1]
			continue
		}
		at := fds[len(fds)-1]
		next, err := openDir(at, e)
		switch {
		case errors.Is(err, unix.ENOENT):
			if !create {
				return nil, err
			}
			if err := unix.Mkdirat(at, e, 0o755); err != nil {
				return nil, err
			}
			a.made[strings.Join(append(slices.Clone(name), e), "/")] = true
			if next, err = openDir(at, e); err != nil {
				return nil, err
			}
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			text, lerr := readlink(at, e)
			if lerr != nil {
				return nil, fmt.Errorf("%s is not a folder", Printable(e))
			}
			if links++; links > 40 {
				return nil, errors.New("too many links on its way")
			}
			if path.IsAbs(text) {
				return nil, fmt.Errorf("it lies behind the link %s to %s", Printable(e), Printable(text))
			}
			var more []string
			for t := range strings.SplitSeq(text, "/") {
				if t != "" && t != "." {
					more = append(more, t)
				}
			}
			pending = append(more, pending...)
			continue
		case err != nil:
			return nil, err
		}
		fds, name = append(fds, next), append(name, e)
		if len(name) > a.lim.Depth {
			return nil, fmt.Errorf("folders more than %d deep", a.lim.Depth)
		}
	}
	a.last, a.lastN = &place{fds[len(fds)-1], name}, as
	fds = fds[:len(fds)-1]
	return a.last, nil
}

// forget is for when a folder may have gone.
func (a *applier) forget() {
	if a.last != nil {
		unix.Close(a.last.fd)
		a.last = nil
	}
}

func openDir(at int, name string) (int, error) {
	return unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

func readlink(at int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(at, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func (a *applier) dir(p *place, base string, mode uint32) error {
	var st unix.Stat_t
	err := unix.Fstatat(p.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if err := unix.Unlinkat(p.fd, base, 0); err != nil {
			return err
		}
		err = unix.ENOENT
	}
	if errors.Is(err, unix.ENOENT) {
		err = unix.Mkdirat(p.fd, base, 0o700)
	}
	if err != nil {
		return err
	}
	fd, err := openDir(p.fd, base)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fchmod(fd, mode)
}

func (a *applier) file(p *place, base string, h *tar.Header, content io.Reader) error {
	if h.Size < 0 || h.Size > a.lim.Bytes-a.bytes {
		return fmt.Errorf("the image is larger than %d bytes", a.lim.Bytes)
	}
	if err := removeAll(p.fd, base); err != nil {
		return err
	}
	fd, err := unix.Openat(p.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	n, err := io.Copy(f, io.LimitReader(content, h.Size))
	a.bytes += n
	if err == nil && n != h.Size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = unix.Fchmod(fd, perm(h.Mode, 0o600, 0o777))
	}
	if t := h.ModTime; err == nil && t.After(time.Unix(0, 0)) && t.Year() < 2200 {
		// Python's compiled files know their source by its time.
		ts := unix.NsecToTimespec(t.UnixNano())
		err = unix.UtimesNanoAt(p.fd, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (a *applier) symlink(p *place, base, to string) error {
	if to == "" || len(to) >= unix.PathMax || strings.ContainsRune(to, 0) {
		return errors.New("a link to nothing that can be a path")
	}
	if err := removeAll(p.fd, base); err != nil {
		return err
	}
	a.bytes += int64(len(to))
	return unix.Symlinkat(to, p.fd, base)
}

func (a *applier) link(p *place, base, to string) error {
	elements, err := a.split(to)
	if err != nil {
		return fmt.Errorf("a hard link to %s: %w", Printable(to), err)
	}
	if len(elements) == 0 {
		return errors.New("a hard link to the root")
	}
	// Of its own: what is looked for next may take p's place.
	dir, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	self := p.of(base)
	from, err := a.folder(elements[:len(elements)-1], false)
	if err != nil {
		return fmt.Errorf("a hard link to %s: %w", Printable(to), err)
	}
	last := elements[len(elements)-1]
	if from.of(last) == self {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(from.fd, last, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("a hard link to %s: %w", Printable(to), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("a hard link to %s, which is not a file", Printable(to))
	}
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return errors.New("a hard link in the place of a folder")
	}
	if err := removeAll(dir, base); err != nil {
		return err
	}
	return unix.Linkat(from.fd, last, dir, base, 0)
}

// mark carries out a mark of removal, which is about lower layers only.
func (a *applier) mark(folder []string, base string) error {
	if base != wipe && strings.HasPrefix(base, remove+remove) {
		return nil // of the file system that made the layer
	}
	p, err := a.folder(folder, false)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if base == wipe {
		return a.prune(p.fd, p.name)
	}
	gone := strings.TrimPrefix(base, remove)
	if gone == "" || gone == "." || gone == ".." {
		return errors.New("a mark that removes nothing")
	}
	return a.pruneOne(p.fd, p.name, gone)
}

// prune removes from a folder what this layer did not put there.
func (a *applier) prune(fd int, name []string) error {
	list, err := list(fd)
	if err != nil {
		return err
	}
	for _, n := range list {
		if err := a.pruneOne(fd, name, n); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) pruneOne(fd int, folder []string, base string) error {
	name := append(slices.Clone(folder), base)
	if !a.made[strings.Join(name, "/")] {
		return removeAll(fd, base)
	}
	sub, err := openDir(fd, base)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(sub)
	return a.prune(sub, name)
}

func list(fd int) ([]string, error) {
	own, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(own), "folder")
	defer f.Close()
	return f.Readdirnames(-1)
}

// removeAll removes what is called base, with all in it. That it is not there is
// no error. A folder is never deeper than Limits.Depth.
func removeAll(at int, base string) error {
	err := unix.Unlinkat(at, base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	fd, err := openDir(at, base)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := list(fd)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAll(fd, n); err != nil {
			return err
		}
	}
	return unix.Unlinkat(at, base, unix.AT_REMOVEDIR)
}
