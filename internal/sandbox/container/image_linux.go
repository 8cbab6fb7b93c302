package container

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/warden"
	"github.com/bulkhead-dev/bulkhead/internal/switches"
	"golang.org/x/sys/unix"
)

// root mounts an overlay of the image and a layer in the cradle's memory, in which
// mount points and the sandbox's own files come to stand. The image itself is
// never written to.
func (s step) root() error {
	var parts [3]int
	for i, p := range []string{hostDir + s.Source, scratchDir + "/image", scratchDir + "/work"} {
		if i > 0 {
			if err := os.Mkdir(p, 0o755); err != nil {
				return err
			}
		}
		fd, err := unix.Openat2(unix.AT_FDCWD, p, &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != nil {
			return fmt.Errorf("the image: %w", err)
		}
		defer unix.Close(fd)
		parts[i] = fd
	}
	var st unix.Stat_t
	if err := unix.Fstat(parts[0], &st); err != nil || s.Ino != 0 && (st.Dev != s.Dev || st.Ino != s.Ino) {
		return errors.New(guest.Exchanged + s.Source)
	}
	if switches.Off("root") {
		if err := os.Mkdir(s.At, 0o755); err != nil {
			return err
		}
		return bind(hostDir+s.Source, s.At, safe)
	}
	mount, err := warden.Overlay(parts[0], parts[1], parts[2])
	if err != nil {
		return fmt.Errorf("%s%w", imageFailed, err)
	}
	defer unix.Close(mount)
	if err := os.Mkdir(s.At, 0o755); err != nil {
		return err
	}
	return unix.MoveMount(mount, "", unix.AT_FDCWD, s.At, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// imageFailed begins what is said of an image that can't be mounted.
const imageFailed = "mounting the image: "

// inImage calls f with the folder that At lies in, by handle, and its last name.
// What an image has in the way is taken out of it in the layer; none of its links
// is followed.
func (s step) inImage(f func(at int, name string) error) error {
	err := s.walkImage(f)
	if errors.Is(err, unix.EOVERFLOW) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w%s", err, imageForeign)
	}
	return err
}

// imageForeign ends what is said of a root of which parts are somebody else's.
const imageForeign = ": what is in its way in the root belongs to another user or group"

func (s step) walkImage(f func(at int, name string) error) error {
	rel := strings.TrimPrefix(strings.TrimPrefix(s.At, rootTree), "/")
	at, err := unix.Open(rootTree, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { unix.Close(at) }()
	if dir := path.Dir(rel); dir != "." {
		for name := range strings.SplitSeq(dir, "/") {
			next, err := dirAt(at, name)
			if err != nil {
				return err
			}
			unix.Close(at)
			at = next
		}
	}
	return f(at, path.Base(rel))
}

// dirAt opens the folder called name, or makes it in the place of what is there.
func dirAt(at int, name string) (int, error) {
	for range 2 {
		fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			if err := unix.Unlinkat(at, name, 0); err != nil {
				return -1, err
			}
		case !errors.Is(err, unix.ENOENT):
			return -1, err
		}
		if err := unix.Mkdirat(at, name, 0o755); err != nil {
			return -1, err
		}
	}
	return -1, unix.ENOTDIR
}

// writeAt makes a file in the place of what is there, which is not a folder.
func writeAt(at int, name string, data []byte, perm uint32) error {
	if err := unix.Unlinkat(at, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	fd, err := unix.Openat(at, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, perm)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// linkAt makes a link, unless the image has a folder there.
func linkAt(at int, name, to string) error {
	err := unix.Unlinkat(at, name, 0)
	if errors.Is(err, unix.EISDIR) {
		return nil
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return unix.Symlinkat(to, at, name)
}
