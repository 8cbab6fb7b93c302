package vocabulary

// MountKind says how a path comes to stand inside a sandbox.
type MountKind uint8

// The kinds of mounts, the same in every tier.
const (
	// BindRO shows the host's Source at Target, read-only, nosuid, nodev.
	BindRO MountKind = iota
	// BindRW shows the host's Source at Target, writable, nosuid, nodev.
	BindRW
	// Tmpfs is an empty private directory at Target, Size bytes at most
	// (0: the backend's default), with mode Perm (0: 0755).
	Tmpfs
	// Data is a read-only private file at Target with the bytes in Data.
	Data
	// Symlink is a link at Target pointing to Source (a path inside).
	Symlink
	// MaskFile puts an unreadable, unwritable file over an existing one.
	MaskFile
	// MaskDir puts an empty, unwritable directory with mode Perm over an existing
	// one; mode 0 can't be listed.
	MaskDir
	// File is a private file at Target, in a Tmpfs of the same plan, that begins
	// with the bytes in Data and is the sandbox's own: it may be changed there.
	File
	// Overlay shows the host's Source at Target, the same path, writable, nosuid,
	// nodev; what is changed goes to the folder "upper" in Layer, and nothing
	// reaches Source. What lies in other mounts below Source is not shown.
	Overlay
	// Root shows the host's Source as the sandbox's root: Target is "/", and no
	// other mount comes before. What is written there goes to a private layer of
	// Size bytes at most (0: the backend's default) that ends with the sandbox.
	Root
	// Dir is a private directory at Target with mode Perm (0: 0755) that holds what
	// later mounts of the plan put into it, and nothing else: inside it is read-only.
	Dir
)

// ShowsHost reports whether files of the host are seen through such a mount.
func (k MountKind) ShowsHost() bool { return k == BindRO || k == BindRW || k == Overlay }

// Mount is one line of a sandbox's mount plan. Plans are ordered: a later
// mount covers an earlier one. Source and Target are absolute and clean, and
// Source is already resolved: it holds no symbolic link.
type Mount struct {
	Kind   MountKind
	Source string
	Target string
	// Layer is a folder of the host, of an Overlay: with "upper", and "work" beside
	// it for the kernel.
	Layer string
	Data  []byte
	Size  int64
	Perm  uint32
	// Why says where the mount comes from: a policy position, a preset, or
	// "system directories"; shown by policy show and in posture reports.
	Why string
}
