package workspace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// place is a file or directory that was opened and then looked at.
type place struct {
	path     string // real: no element is a link
	mode     uint32 // st_mode
	dev, ino uint64
}

func (p place) isDir() bool  { return p.mode&unix.S_IFMT == unix.S_IFDIR }
func (p place) isFile() bool { return p.mode&unix.S_IFMT == unix.S_IFREG }

// open resolves name and returns what the handle itself says about where it
// is. A place that moves while it is looked at is an error.
func open(name string) (place, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return place{}, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return place{}, err
	}
	real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return place{}, err
	}
	p := place{path: real, mode: st.Mode, dev: st.Dev, ino: st.Ino}
	again, err := openExact(real)
	if err != nil || again.dev != p.dev || again.ino != p.ino {
		return place{}, fmt.Errorf("%s moved while it was looked at", show(name))
	}
	return p, nil
}

// openExact opens a path in which no element may be a link.
func openExact(name string) (place, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return place{}, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return place{}, err
	}
	return place{path: name, mode: st.Mode, dev: st.Dev, ino: st.Ino}, nil
}

// link is a symbolic link met on the way; at is link-free but for its last
// element.
type link struct{ at, text string }

var errLinks = errors.New("too many levels of symbolic links")

// chase follows name element by element, without needing its end to exist, and
// returns the link-free path with the links met. 40 is the kernel's limit.
func chase(name string) (real string, links []link, err error) {
	real = "/"
	rest := strings.Split(filepath.Clean(name), "/")
	for len(rest) > 0 {
		e := rest[0]
		rest = rest[1:]
		switch e {
		case "", ".":
			continue
		case "..":
			real = filepath.Dir(real)
			continue
		}
		at := filepath.Join(real, e)
		text, err := os.Readlink(at)
		if err != nil { // no link, or nothing there: the name stands as it is
			real = at
			continue
		}
		if len(links) == 40 {
			return "", nil, errLinks
		}
		links = append(links, link{at, text})
		if strings.HasPrefix(text, "/") {
			real = "/"
		}
		rest = append(strings.Split(text, "/"), rest...)
	}
	return real, links, nil
}

// within reports whether p is dir or lies in it. Both are clean and absolute.
func within(p, dir string) bool {
	return p == dir || dir == "/" || (len(p) > len(dir) && p[len(dir)] == '/' && p[:len(dir)] == dir)
}
