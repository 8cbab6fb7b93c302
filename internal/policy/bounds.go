package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Bounds is a policy that limits another one. It allows nothing by itself: what
// a list does not name is not allowed, and what the file does not mention stays
// as it is. Narrow applies it; the grants are judged act by act, by whoever
// compiles the policy (Policy.Within).
type Bounds struct {
	File   string // as positions name it
	By     Author
	Digest string // of its bytes: "sha256:" and hex

	Isolation At[vocabulary.Isolation] // at least; "" is not mentioned
	Workspace At[vocabulary.MountMode] // at most; "" is not mentioned

	Writable   AtMost[At[string]]  // of Workspace.Writable
	Workspaces AtMost[FolderBound] // where a workspace may be
	Mounts     AtMost[FolderBound]
	EnvPass    AtMost[At[string]]
	Grants     AtMost[Grant] // without credentials; a service without operations is all of them
	Publish    AtMost[Published]
	Upstreams  AtMost[Upstream] // only the administrator's
	Limits     Limits
	Trust      At[TrustBy] // "" is not mentioned
}

// Author says whose bounds they are.
type Author string

// The authors.
const (
	ByProject       Author = "the project's policy"
	ByAdministrator Author = "the administrator's policy"
)

// Remedy says who could widen the bounds.
func (b *Bounds) Remedy() string {
	if b.By == ByAdministrator {
		return "ask the administrator of this machine to allow it in " + b.File
	}
	return "change " + b.File + " and trust the folder again"
}

// AtMost is a list of all that is allowed. It is given if Pos is set; an empty
// one that is given allows nothing.
type AtMost[T any] struct {
	Pos   vocabulary.Position
	Items []T
}

// Given reports whether the file has the list.
func (a AtMost[T]) Given() bool { return a.Pos.File != "" }

// FolderBound is the most that may be done in a folder and below it. Path begins
// with "/" or "~/", and each element may be a pattern of path.Match.
type FolderBound struct {
	Path string
	Mode vocabulary.MountMode // NoMount: it may not be shown at all
	Pos  vocabulary.Position
}

// NoMount is the mode of what may not be mounted.
const NoMount vocabulary.MountMode = "none"

// TrustBy says how a project's configuration may come to be trusted.
type TrustBy string

// The ways, from the strictest.
const (
	TrustNever  TrustBy = "never"
	TrustAsk    TrustBy = "ask"    // by a person who is asked on a terminal
	TrustDigest TrustBy = "digest" // also by a digest on the command line
)

var (
	projectKeys = []string{"version", "isolation", "workspace", "mounts", "env", "grants", "publish", "limits"}
	adminKeys   = []string{"version", "isolation", "workspace", "workspaces", "mounts", "env", "grants", "publish", "upstreams", "limits", "trust"}
)

// ParseProject reads the policy that a trusted project brings along. The error
// is an ErrorList.
func ParseProject(file string, data []byte) (*Bounds, error) {
	return parseBounds(file, data, ByProject, projectKeys)
}

// ParseAdministrator reads the policy of a machine's administrator. The error is
// an ErrorList.
func ParseAdministrator(file string, data []byte) (*Bounds, error) {
	return parseBounds(file, data, ByAdministrator, adminKeys)
}

func parseBounds(file string, data []byte, by Author, keys []string) (*Bounds, error) {
	r := &reader{document: document{file: file}, limiting: by}
	sum := sha256.Sum256(data)
	b := &Bounds{File: file, By: by, Digest: "sha256:" + hex.EncodeToString(sum[:])}
	if root := r.root(data); root != nil {
		r.bounds(root, b, keys)
	}
	if err := r.errs.Err(); err != nil {
		return nil, err
	}
	return b, nil
}

// bounds reads the keys. Those that belong to a policy and can only add to one
// are refused with that reason.
func (r *reader) bounds(root *yaml.Node, b *Bounds, keys []string) {
	known := slices.Clone(keys)
	for _, k := range policyKeys {
		if !slices.Contains(known, k) {
			known = append(known, k)
		}
	}
	t, ok := r.table(root, string(b.By), known...)
	if !ok {
		return
	}
	for _, k := range known[len(keys):] {
		if n := t.key(k); n != nil {
			r.errorf(n, "remove it; your own policy is the place for it", "%s can only narrow: %s adds something", b.By, k)
		}
	}
	r.version(root, t)
	if n := t.get("isolation"); n != nil {
		if v, ok := r.str(n, "isolation"); ok {
			isolation, problem := parseIsolation(v.Value)
			if problem == nil && isolation == vocabulary.Auto {
				problem = &errAtLeast
			}
			if r.report(n, problem) {
				b.Isolation = At[vocabulary.Isolation]{isolation, v.Pos}
			}
		}
	}
	if n := t.get("workspace"); n != nil {
		if w, ok := r.only(n, "workspace", "path", "it lies where your own policy says", "mode", "writable"); ok {
			if n := w.get("mode"); n != nil {
				if m, ok := r.mode(n, true); ok {
					b.Workspace = At[vocabulary.MountMode]{m, r.pos(n)}
				}
			}
			if n := w.get("writable"); n != nil {
				b.Writable = AtMost[At[string]]{r.pos(w.key("writable")), r.writable(n)}
			}
		}
	}
	b.Workspaces = r.folders(t, "workspaces", vocabulary.ReadWrite)
	b.Mounts = r.folders(t, "mounts", vocabulary.ReadOnly)
	if n := t.get("env"); n != nil {
		if e, ok := r.only(n, "env", "set", "it would add a variable", "pass"); ok {
			if p := e.get("pass"); p != nil {
				b.EnvPass = AtMost[At[string]]{r.pos(e.key("pass")), r.env(n).pass}
			}
		}
	}
	if n := t.get("grants"); n != nil {
		b.Grants = AtMost[Grant]{r.pos(t.key("grants")), r.grants(n)}
	}
	if n := t.get("publish"); n != nil {
		b.Publish = AtMost[Published]{r.pos(t.key("publish")), r.publish(n)}
	}
	if n := t.get("upstreams"); n != nil && slices.Contains(keys, "upstreams") {
		b.Upstreams = AtMost[Upstream]{r.pos(t.key("upstreams")), r.upstreams(n)}
	}
	r.limits(t.get("limits"), &b.Limits)
	if n := t.get("trust"); n != nil && slices.Contains(keys, "trust") {
		if v, ok := r.str(n, "trust"); ok {
			ways := []string{string(TrustNever), string(TrustAsk), string(TrustDigest)}
			if slices.Contains(ways, v.Value) {
				b.Trust = At[TrustBy]{TrustBy(v.Value), v.Pos}
			} else {
				r.errorf(n, Suggest(v.Value, ways), "unknown way of trust %s", quoted(v.Value))
			}
		}
	}
}

var errAtLeast = problem{"auto is no isolation to ask for at least", "one of: process, container, vm"}

// only is table with one key that is known and does not belong here.
func (r *reader) only(n *yaml.Node, what, not, why string, keys ...string) (table, bool) {
	t, ok := r.table(n, what, append(slices.Clone(keys), not)...)
	if k := t.key(not); k != nil {
		r.errorf(k, "remove it", "%s.%s does not belong to %s: %s", what, not, r.limiting, why)
		delete(t.entries, not)
	}
	return t, ok
}

func (r *reader) folders(t table, key string, mode vocabulary.MountMode) (out AtMost[FolderBound]) {
	n := t.get(key)
	if n == nil {
		return out
	}
	out.Pos = r.pos(t.key(key))
	seen := map[string]vocabulary.Position{}
	for _, item := range r.items(n, key) {
		t, ok := r.table(item, "an entry of "+key, "path", "mode")
		if !ok {
			continue
		}
		f := FolderBound{Mode: mode, Pos: r.pos(item)}
		if n := t.get("mode"); n != nil {
			if n.Kind == yaml.ScalarNode && n.Value == string(NoMount) {
				f.Mode = NoMount
			} else {
				f.Mode, _ = r.mode(n, key == "workspaces")
			}
		}
		if n := t.get("path"); n == nil {
			r.missing(item, t, "path", "an entry of "+key+" has no path", "write {path: ~/folder, mode: ro}")
		} else if v, ok := r.path(n, "path"); ok {
			f.Path = v.Value
			first, has := seen[f.Path]
			switch {
			case f.Path != "/" && f.Path != "~" && !strings.HasPrefix(f.Path, "/") && !strings.HasPrefix(f.Path, "~/"):
				r.errorf(n, "begin it with / or ~/", "%s is relative to a folder that changes", quoted(f.Path))
			case !matchable(f.Path):
				r.errorf(n, "* and ? within one element only, no **", "%s is not a pattern of a path", quoted(f.Path))
			case has:
				r.errorf(n, "keep one of the two", "%s stands here a second time, the first is at %s", quoted(f.Path), first)
			default:
				seen[f.Path] = f.Pos
				out.Items = append(out.Items, f)
			}
		}
	}
	return out
}

func matchable(p string) bool {
	_, err := path.Match(p, "")
	return err == nil && !strings.Contains(p, "**")
}
