// Package trust says whether the user has trusted the configuration that a
// project brings along, at the content that it has now.
//
// It runs in the controller, with the user's privileges, before anything of a
// session exists. Scan finds what the embedded list (catalog/trust.yaml) names,
// and reads it by handle: below the folder only, regular files only, never
// waiting, within bounds. Nothing is parsed; a Digest is over names, kinds,
// execute bits, link targets and bytes. What can't be read safely, or is past a
// bound, makes a folder that can't be trusted, with the reason.
//
// A Store keeps one record for each trusted folder, below the user's state
// directory, which no sandbox sees. A store that others could have written is
// an error.
//
// Known holes: a program or script outside the listed paths that a trusted file
// names is not part of the digest; what appears in the folder from outside
// after the scan is visible.
package trust

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/bulkhead-dev/bulkhead/internal/policy"
)

// Bounds of a scan. Past one of them a folder can't be trusted.
const (
	MaxFiles   = 10_000
	MaxFile    = 1 << 20
	MaxContent = 16 << 20
	maxDirs    = 400_000
	maxKept    = 64 << 10 // content of one file that a record keeps
	maxRecord  = 4 << 20
)

// Kinds of items.
const (
	KindFile  = "file"
	KindDir   = "dir"
	KindLink  = "link"
	KindOther = "other"
)

// Item is one file, folder or link that the list names, or that lies in a
// folder that it names. Path is relative to the scanned folder.
type Item struct {
	Path string            `json:"path"`
	Kind string            `json:"kind"`
	Exec bool              `json:"exec,omitempty"`
	Link string            `json:"link,omitempty"` // a link's text
	Size int64             `json:"size,omitempty"`
	Hash string            `json:"hash,omitempty"` // SHA-256 of the content, hex
	Text []byte            `json:"text,omitempty"` // content, up to a bound; not judged by
	Of   policy.TrustClass `json:"class"`
}

// Found is a place of the list that exists: what is hidden as a whole.
type Found struct {
	Path   string
	Dir    bool
	Listed policy.TrustPath
}

// Scan is the state of a folder.
type Scan struct {
	Folder string // real path
	Found  []Found
	Items  []Item // sorted by path; those that run or widen, and those that instruct
	// Problem says why this content can't be trusted; empty: it can.
	Problem string
}

// Judged reports whether there is anything to be trusted.
func (s *Scan) Judged() bool {
	return slices.ContainsFunc(s.Found, func(f Found) bool { return f.Listed.Class != policy.TrustInstructs })
}

// Digest names the content that is to be trusted: "sha256:" and hex. What only
// instructs is no part of it.
func (s *Scan) Digest() string { return digest(s.Items) }

func digest(items []Item) string {
	h := sha256.New()
	put := func(b string) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write([]byte(b))
	}
	put("bulkhead trust 1")
	for _, i := range items {
		if i.Of == policy.TrustInstructs {
			continue
		}
		put(i.Path)
		put(i.Kind)
		put(fmt.Sprint(i.Exec))
		put(i.Link)
		put(i.Hash)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// Change is one difference between two states of a folder.
type Change struct {
	Path     string
	What     string // added, removed, changed
	Old, New *Item
}

// Compare lists what differs in the classes that class accepts.
func Compare(before, after []Item, class func(policy.TrustClass) bool) []Change {
	old := map[string]*Item{}
	for i := range before {
		if class(before[i].Of) {
			old[before[i].Path] = &before[i]
		}
	}
	var out []Change
	for i := range after {
		n := &after[i]
		if !class(n.Of) {
			continue
		}
		o := old[n.Path]
		delete(old, n.Path)
		switch {
		case o == nil:
			out = append(out, Change{n.Path, "added", nil, n})
		case o.Kind != n.Kind || o.Exec != n.Exec || o.Link != n.Link || o.Hash != n.Hash:
			out = append(out, Change{n.Path, "changed", o, n})
		}
	}
	for p, o := range old {
		out = append(out, Change{p, "removed", o, nil})
	}
	slices.SortFunc(out, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// Empty is what a hidden file shows: what its reader takes for no settings.
func Empty(name string) []byte {
	switch base := fold(name[strings.LastIndexByte(name, '/')+1:]); {
	case strings.HasSuffix(base, "mcp.json"):
		return []byte("{\"mcpServers\":{}}\n")
	case strings.HasSuffix(base, ".json"), strings.HasSuffix(base, ".jsonc"), strings.HasSuffix(base, ".code-workspace"):
		return []byte("{}\n")
	}
	return nil
}

// fold brings the spellings of a name that a file system without case takes for
// one into one: case is folded, characters without width are dropped.
func fold(name string) string {
	plain := true
	for i := 0; i < len(name); i++ {
		if c := name[i]; c >= 0x80 || 'A' <= c && c <= 'Z' {
			plain = false
			break
		}
	}
	if plain {
		return name
	}
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Variation_Selector, r) || r == 0x34f {
			return -1
		}
		least := r
		for n := unicode.SimpleFold(r); n != r; n = unicode.SimpleFold(n) {
			least = min(least, n)
		}
		return unicode.ToLower(least)
	}, name)
}

// Show makes text of a stranger safe for a terminal.
func Show(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '\t' || unicode.IsPrint(r) && r != unicode.ReplacementChar {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "<%U>", r)
		}
	}
	return b.String()
}
