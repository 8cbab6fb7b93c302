package warden

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// mountLayers mounts the layers in this process's own view. All parts are opened
// here: the kernel takes none of another view.
func (k *keeper) mountLayers() error {
	if len(k.cfg.Layers) == 0 {
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("warden: separating its mounts: %w", err)
	}
	for _, l := range k.cfg.Layers {
		device, err := l.mount()
		if err != nil {
			return fmt.Errorf("%s%s: %w", layerFailed, l.Path, err)
		}
		k.report(Report{Kind: KindLayer, Device: device})
	}
	return nil
}

func (l *Layer) mount() (uint64, error) {
	var parts []int
	defer func() {
		for _, fd := range parts {
			unix.Close(fd)
		}
	}()
	for _, path := range [][]byte{l.Path, l.Upper, l.Work} {
		fd, err := unix.Openat2(unix.AT_FDCWD, string(path), &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		parts = append(parts, fd)
	}
	var st unix.Stat_t
	if err := unix.Fstat(parts[0], &st); err != nil {
		return 0, err
	}
	if uint64(st.Dev) != l.Device || st.Ino != l.Inode {
		return 0, errors.New("another folder has taken its place")
	}
	return overlay(parts[0], parts[1], parts[2])
}

// layerFailed begins the text of an error about a layer.
const layerFailed = "mounting a layer over "

// LayerFailed returns what a warden said about a layer that it could not mount.
func LayerFailed(text string) (string, bool) { return strings.CutPrefix(text, layerFailed) }

// Everything that a layer could refer to by itself is off: it is read as it lies on
// the disk, by people and by workspace commands.
var layerOptions = [][2]string{
	{"redirect_dir", "nofollow"}, {"metacopy", "off"}, {"index", "off"}, {"nfs_export", "off"},
}

// overlay mounts one over the folder lower, and returns its device.
func overlay(lower, upper, work int) (device uint64, err error) {
	mount, err := Overlay(lower, upper, work)
	if err != nil {
		return 0, err
	}
	defer unix.Close(mount)
	var st unix.Stat_t
	if err := unix.Fstat(mount, &st); err != nil {
		return 0, fmt.Errorf("overlay: %w", err)
	}
	if err := unix.MoveMount(mount, "", lower, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return 0, fmt.Errorf("attaching it: %w", err)
	}
	return uint64(st.Dev), nil
}

// Overlay makes one of three open folders, nodev and nosuid, that is not attached
// yet. Warden and cradle call it, in a mount namespace of their own with /proc.
func Overlay(lower, upper, work int) (mount int, err error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("overlay: %w", err)
	}
	defer unix.Close(fs)
	self := func(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) } // no name has to be quoted
	options := append([][2]string{{"source", "overlay"}, {"lowerdir", self(lower)}, {"upperdir", self(upper)}, {"workdir", self(work)}}, layerOptions...)
	for _, o := range options {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return 0, fmt.Errorf("overlay %s: %w%s", o[0], err, kernelSays(fs))
		}
	}
	if err := unix.FsconfigSetFlag(fs, "userxattr"); err != nil {
		return 0, fmt.Errorf("overlay userxattr: %w%s", err, kernelSays(fs))
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return 0, fmt.Errorf("overlay: %w%s", err, kernelSays(fs))
	}
	mount, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return 0, fmt.Errorf("overlay: %w%s", err, kernelSays(fs))
	}
	return mount, nil
}

// kernelSays is the reason that the kernel writes to a mount's context.
func kernelSays(fs int) string {
	buf := make([]byte, 1024)
	n, err := unix.Read(fs, buf)
	if err != nil || n <= 2 {
		return ""
	}
	return " (" + strings.TrimSpace(string(buf[2:n])) + ")"
}
