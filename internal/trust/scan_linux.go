package trust

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

type scanner struct {
	Scan
	list     []policy.TrustPath
	fd       int
	anywhere map[string]bool // folded first elements
	globs    []string
	dirs     int
	content  int64
	seen     map[string]int // path → index of Items
}

// ScanFolder looks at a folder, whose path must be real. The error is about the
// folder itself; what is wrong in it is the Scan's Problem.
func ScanFolder(folder string, list []policy.TrustPath) (*Scan, error) {
	return scan(folder, list, maxDirs)
}

func scan(folder string, list []policy.TrustPath, limit int) (*Scan, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, folder, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Show(folder), err)
	}
	defer unix.Close(fd)
	s := &scanner{Scan: Scan{Folder: folder}, list: list, fd: fd, anywhere: map[string]bool{}, seen: map[string]int{}, dirs: limit}
	for _, p := range list {
		if !p.Anywhere {
			continue
		}
		if strings.ContainsAny(p.Elements[0], `*?[\`) {
			s.globs = append(s.globs, p.Elements[0])
		} else {
			s.anywhere[p.Elements[0]] = true
		}
	}
	if err := s.walk(); err != nil {
		return nil, err
	}
	slices.SortFunc(s.Found, func(a, b Found) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(s.Items, func(a, b Item) int { return strings.Compare(a.Path, b.Path) })
	return &s.Scan, nil
}

func (s *scanner) problem(format string, args ...any) {
	if s.Problem == "" {
		s.Problem = fmt.Sprintf(format, args...)
	}
}

// walk goes through the whole folder, without following links.
func (s *scanner) walk() error {
	stack := []string{"."}
	for len(stack) > 0 {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if s.dirs--; s.dirs < 0 {
			return vocabulary.Exitf(vocabulary.ExitRefused, "%s has more than %d folders: configuration in it can't all be found\nname a smaller folder", Show(s.Folder), maxDirs)
		}
		entries, err := s.entries(dir, unix.RESOLVE_NO_SYMLINKS)
		if err != nil {
			if errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
				continue // closed to the user, hence inside too; or gone
			}
			return fmt.Errorf("searching %s: %w", Show(path.Join(s.Folder, dir)), err)
		}
		for _, e := range entries {
			at := path.Join(dir, e.Name())
			name := fold(e.Name())
			if dir == "." || s.anywhere[name] || slices.ContainsFunc(s.globs, func(g string) bool { return matches(g, name) }) {
				s.match(dir, at, name)
			}
			if e.IsDir() && name != ".git" {
				stack = append(stack, at)
			}
		}
	}
	return nil
}

func matches(pattern, name string) bool {
	ok, _ := path.Match(pattern, name)
	return ok
}

// match looks for the listed places that begin with at, in dir.
func (s *scanner) match(dir, at, name string) {
	for _, p := range s.list {
		if (p.Anywhere || dir == ".") && matches(p.Elements[0], name) {
			s.follow(at, p, p.Elements[1:])
		}
	}
}

func (s *scanner) follow(at string, p policy.TrustPath, rest []string) {
	if len(rest) == 0 {
		s.take(at, p)
		return
	}
	// A link on the way is part of what leads to the file.
	entries, err := s.entries(at, 0)
	if err != nil {
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ELOOP) {
			s.take(at, p)
		}
		return
	}
	for _, e := range entries {
		if matches(rest[0], fold(e.Name())) {
			if st, err := s.stat(at); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
				s.item(at, p.Class, 0)
			}
			s.follow(path.Join(at, e.Name()), p, rest[1:])
		}
	}
}

// take records one listed place that exists.
func (s *scanner) take(at string, p policy.TrustPath) {
	st, err := s.stat(at)
	if err != nil {
		return
	}
	for i, f := range s.Found {
		if f.Path == at {
			if f.Listed.Class == policy.TrustInstructs && p.Class != policy.TrustInstructs {
				s.Found[i].Listed = p
				s.item(at, p.Class, 0)
			}
			return
		}
	}
	s.Found = append(s.Found, Found{at, st.Mode&unix.S_IFMT == unix.S_IFDIR, p})
	s.item(at, p.Class, 0)
}

// item records what stands at a path and, of a folder, all in it; and where a
// link leads to.
func (s *scanner) item(at string, class policy.TrustClass, depth int) {
	if i, ok := s.seen[at]; ok {
		if s.Items[i].Of != policy.TrustInstructs || class == policy.TrustInstructs {
			return
		}
	}
	fail := func(format string, args ...any) {
		if class != policy.TrustInstructs {
			s.problem("%s %s", Show(at), fmt.Sprintf(format, args...))
		}
	}
	if len(s.Items) >= MaxFiles || depth > 32 {
		s.problem("there are more than %d files of configuration", MaxFiles)
		return
	}
	st, err := s.stat(at)
	if err != nil {
		fail("can't be looked at: %v", err)
		return
	}
	it := Item{Path: at, Of: class, Kind: KindOther}
	index, again := s.seen[at]
	add := func() {
		if again {
			s.Items[index] = it
			return
		}
		s.seen[at] = len(s.Items)
		s.Items = append(s.Items, it)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		it.Kind, it.Exec, it.Size = KindFile, st.Mode&0o111 != 0, st.Size
		if err := s.read(at, &it); err != nil {
			fail("%v", err)
		}
		add()
	case unix.S_IFDIR:
		it.Kind = KindDir
		add()
		entries, err := s.entries(at, unix.RESOLVE_NO_SYMLINKS)
		if err != nil {
			fail("can't be listed: %v", err)
		}
		for _, e := range entries {
			s.item(path.Join(at, e.Name()), class, depth+1)
		}
	case unix.S_IFLNK:
		it.Kind = KindLink
		if it.Link, err = s.readlink(at); err != nil {
			fail("can't be read: %v", err)
		}
		add()
		end, err := s.resolve(at)
		switch {
		case errors.Is(err, unix.ENOENT):
		case err != nil:
			fail("is a link that leads out of the folder, to %s", Show(it.Link))
		case end != ".":
			s.item(end, class, depth+1)
		default:
			fail("is a link to the folder itself")
		}
	default:
		fail("is neither a file nor a folder")
		add()
	}
}

func (s *scanner) open(at string, flags int, resolve uint64) (int, error) {
	return unix.Openat2(s.fd, at, &unix.OpenHow{
		Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | resolve,
	})
}

func (s *scanner) stat(at string) (st unix.Stat_t, err error) {
	fd, err := s.open(at, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	return st, unix.Fstat(fd, &st)
}

func (s *scanner) readlink(at string) (string, error) {
	fd, err := s.open(at, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(fd, "", buf)
	return string(buf[:max(n, 0)]), err
}

// resolve says where in the folder a link leads to.
func (s *scanner) resolve(at string) (string, error) {
	fd, err := s.open(at, unix.O_PATH, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", err
	}
	if real == s.Folder {
		return ".", nil
	}
	rel, ok := strings.CutPrefix(real, strings.TrimSuffix(s.Folder, "/")+"/")
	if !ok {
		return "", unix.EXDEV
	}
	return rel, nil
}

func (s *scanner) entries(at string, resolve uint64) ([]os.DirEntry, error) {
	fd, err := s.open(at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, resolve)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), at)
	defer f.Close()
	return f.ReadDir(-1)
}

// read takes in a regular file's content. What was looked at is what is read.
func (s *scanner) read(at string, it *Item) error {
	fd, err := s.open(at, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, unix.RESOLVE_NO_SYMLINKS)
	if errors.Is(err, unix.ELOOP) { // a link on the way: its end is recorded on its own
		fd, err = s.open(at, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return fmt.Errorf("can't be read: %w", err)
	}
	f := os.NewFile(uintptr(fd), at)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("was exchanged while it was looked at")
	}
	it.Exec = st.Mode&0o111 != 0
	if st.Size > MaxFile {
		return fmt.Errorf("has %d bytes, more than %d", st.Size, MaxFile)
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return fmt.Errorf("can't be read: %w", err)
	}
	if len(data) > MaxFile {
		return fmt.Errorf("has more than %d bytes", MaxFile)
	}
	if s.content += int64(len(data)); s.content > MaxContent {
		return fmt.Errorf("is past the bound of %d bytes for all of it together", int64(MaxContent))
	}
	sum := sha256.Sum256(data)
	it.Hash, it.Size = hex.EncodeToString(sum[:]), int64(len(data))
	if len(data) <= maxKept {
		it.Text = bytes.Clone(data)
	}
	return nil
}
