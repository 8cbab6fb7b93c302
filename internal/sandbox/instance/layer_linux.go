package instance

import (
	"bytes"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox/warden"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Layers says what the warden makes overlays of.
func Layers(overlays []vocabulary.Mount) (layers []warden.Layer, err error) {
	for _, m := range overlays {
		var st unix.Stat_t
		if err := unix.Lstat(m.Source, &st); err != nil {
			return nil, vocabulary.Exitf(vocabulary.ExitRefused, "%s: %w\nnothing was started", m.Source, err)
		}
		layers = append(layers, warden.Layer{Path: []byte(m.Source), Upper: []byte(path.Join(m.Layer, "upper")), Work: []byte(path.Join(m.Layer, "work")),
			Device: uint64(st.Dev), Inode: st.Ino})
	}
	return layers, nil
}

// ExplainLayer is for a layer that this host can't mount.
func ExplainLayer(text string) error {
	remedy := "use mode rw, or a newer kernel: layers of ordinary users need Linux 5.11"
	if known, err := os.ReadFile("/proc/filesystems"); err == nil && !bytes.Contains(known, []byte("\toverlay\n")) {
		remedy = "load it: sudo modprobe overlay; or use mode rw"
	}
	return vocabulary.Exitf(vocabulary.ExitNoIsolation, "a staged workspace can't be made here: %s\n"+
		"the layer lies below $XDG_STATE_HOME, or ~/.local/state: that must be on a local filesystem with extended attributes (ext4, xfs, btrfs; no overlay, no network)\n%s", text, remedy)
}

// ExplainExchanged says that something else stands where a folder was judged.
func ExplainExchanged(path string) error {
	return vocabulary.Exitf(vocabulary.ExitRefused, "%s was exchanged for something else while the sandbox was set up; nothing was started\ntry again, and see who writes there", path)
}
