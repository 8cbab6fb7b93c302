package process

import (
	"bytes"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox/warden"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// openLayers opens what the warden makes overlays of; the files are the caller's,
// also with an error.
func openLayers(overlays []vocabulary.Mount) (layers []warden.Layer, files []*os.File, err error) {
	for _, m := range overlays {
		layers = append(layers, warden.Layer{Path: []byte(m.Source)})
		for _, dir := range []string{m.Source, path.Join(m.Layer, "upper"), path.Join(m.Layer, "work")} {
			fd, err := unix.Openat2(unix.AT_FDCWD, dir, &unix.OpenHow{
				Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
			})
			if err != nil {
				return nil, files, vocabulary.Exitf(vocabulary.ExitRefused, "%s: %w\nnothing was started", dir, err)
			}
			files = append(files, os.NewFile(uintptr(fd), dir))
		}
	}
	return layers, files, nil
}

// explainLayer is for a layer that this host can't mount.
func explainLayer(text string) error {
	remedy := "use mode rw, or a newer kernel: layers of ordinary users need Linux 5.11"
	if known, err := os.ReadFile("/proc/filesystems"); err == nil && !bytes.Contains(known, []byte("\toverlay\n")) {
		remedy = "load it: sudo modprobe overlay; or use mode rw"
	}
	return vocabulary.Exitf(vocabulary.ExitNoIsolation, "a staged workspace can't be made here: %s\n"+
		"the layer lies below $XDG_STATE_HOME, or ~/.local/state: that must be on a local filesystem with extended attributes (ext4, xfs, btrfs; no overlay, no network)\n%s", text, remedy)
}
