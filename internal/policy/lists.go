package policy

import (
	"path"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// SecretPath is a place of the host that stays unreachable even below a broad
// mount. Path begins with "~/" or "/", and each element may be a pattern of
// path.Match; or it is "**/NAME", a file of that name at any depth.
type SecretPath struct {
	Path   string
	Kind   SecretKind
	Reason string
	Pos    vocabulary.Position
}

// SecretKind says what is expected at a path. It is for the reader and for
// choosing a mask; what really stands there decides.
type SecretKind string

// The kinds.
const (
	SecretFile   SecretKind = "file"
	SecretDir    SecretKind = "dir"
	SecretSocket SecretKind = "socket"
)

// ProtectedPath is a file or folder of a workspace that the host runs or
// obeys later. Path is relative to any folder of the workspace; each element
// may be a pattern of path.Match.
type ProtectedPath struct {
	Path   string
	Reason string
	// Kind is "", or what Workspace.Writable calls it.
	Kind string
	Pos  vocabulary.Position
}

// ParseSecrets reads catalog/secrets.yaml. The error is an ErrorList.
func ParseSecrets(data []byte) ([]SecretPath, error) {
	var out []SecretPath
	d := document{file: "secrets.yaml"}
	d.listing(data, func(key string, e entry, why string) {
		s := SecretPath{Path: e.key, Kind: SecretFile, Reason: why, Pos: d.pos(e.node)}
		if rest, ok := strings.CutSuffix(e.key, "/"); ok {
			s.Path, s.Kind = rest, SecretDir
		}
		if key == "sockets" {
			s.Kind = SecretSocket
		}
		rest, anywhere := strings.CutPrefix(s.Path, "**/")
		below, home := strings.CutPrefix(s.Path, "~/")
		switch {
		case anywhere && !strings.Contains(rest, "/"):
			below = rest
		case home:
		case strings.HasPrefix(s.Path, "/"):
			below = s.Path[1:]
		default:
			d.errorf(e.node, "begin it with ~/ or /, or write **/NAME", "%s is not a place", quoted(e.key))
			return
		}
		if d.pattern(e.node, below) {
			out = append(out, s)
		}
	}, "secrets", "sockets")
	return out, d.errs.Err()
}

// ParseProtected reads catalog/protected.yaml: the protected paths, and the
// names of folders of installed packages, below which only git's entries are
// protected. The error is an ErrorList.
func ParseProtected(data []byte) (protected []ProtectedPath, installed []string, err error) {
	d := document{file: "protected.yaml"}
	d.listing(data, func(key string, e entry, why string) {
		switch {
		case strings.HasPrefix(e.key, "~"):
			d.errorf(e.node, "write it relative to a folder of the workspace", "%s is not relative", quoted(e.key))
		case !d.pattern(e.node, e.key):
		case key == "protected":
			protected = append(protected, ProtectedPath{Path: e.key, Reason: why, Pos: d.pos(e.node)})
		case key == Environments:
			protected = append(protected, ProtectedPath{e.key, why, key, d.pos(e.node)})
		case strings.ContainsAny(e.key, `/*?[\`):
			d.errorf(e.node, "name a folder", "%s is not a name", quoted(e.key))
		default:
			installed = append(installed, e.key)
		}
	}, "protected", Environments, "installed")
	return protected, installed, d.errs.Err()
}

// listing reads a file in which each of keys, all of them needed, holds a
// mapping of paths to reasons.
func (d *document) listing(data []byte, each func(key string, e entry, why string), keys ...string) {
	root := d.root(data)
	if root == nil {
		return
	}
	t, ok := d.table(root, "the file", keys...)
	if !ok {
		return
	}
	for _, key := range keys {
		if t.get(key) == nil {
			if t.missing(key) {
				d.errorf(root, "", "%s is missing", key)
			}
			continue
		}
		for _, e := range d.entries(t.get(key), key) {
			if why, ok := d.str(e.value, "the reason"); ok {
				each(key, e, why.Value)
			}
		}
	}
}

// pattern checks that every element is a name or a pattern of path.Match.
func (d *document) pattern(n *yaml.Node, p string) bool {
	if _, err := path.Match(p, ""); err != nil || path.Clean(p) != p || path.IsAbs(p) || p == "." || p == ".." || strings.HasPrefix(p, "../") || strings.Contains(p, "**") {
		d.errorf(n, "no // . or .. in it, and * within one element only", "%s is not a clean path", quoted(p))
		return false
	}
	return true
}
