package warden

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// mountLayers mounts the layers, whose descriptors are the last files, and returns
// the others. Each is attached to the very folder that its descriptor holds.
func (k *keeper) mountLayers(files []*os.File) ([]*os.File, error) {
	rest := len(files) - layerFiles*len(k.cfg.Layers)
	if len(k.cfg.Layers) == 0 {
		return files, nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return files, fmt.Errorf("warden: separating its mounts: %w", err)
	}
	for i, l := range k.cfg.Layers {
		parts := files[rest+layerFiles*i:][:layerFiles]
		device, err := mountLayer(parts[0], parts[1], parts[2])
		if err != nil {
			return files, fmt.Errorf("%s%s: %w", layerFailed, l.Path, err)
		}
		k.report(Report{Kind: KindLayer, Device: device})
	}
	for _, f := range files[rest:] {
		f.Close()
	}
	return files[:rest], nil
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

func mountLayer(lower, upper, work *os.File) (device uint64, err error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("overlay: %w", err)
	}
	defer unix.Close(fs)
	self := func(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
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
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return 0, fmt.Errorf("overlay: %w%s", err, kernelSays(fs))
	}
	defer unix.Close(mount)
	var st unix.Stat_t
	if err := unix.Fstat(mount, &st); err != nil {
		return 0, fmt.Errorf("overlay: %w", err)
	}
	if err := unix.MoveMount(mount, "", int(lower.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return 0, fmt.Errorf("attaching it: %w", err)
	}
	return uint64(st.Dev), nil
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
