// Package gitwire reads the heads of the bodies that git sends to a server:
// which refs a push would change, and what a fetch asks for (gitprotocol-pack,
// gitprotocol-v2, gitprotocol-http of git 2.39 to 2.50).
//
// It is pure: bytes in, values out. It runs in the gateway, on bytes that a
// sandbox chose, and accepts only what git's own clients write: what two servers
// could read in two ways (capabilities on a later line, a section that ends with
// another packet than a flush, capital letters in a length, refs that are not
// refs) is an error. A head that is not complete yet is ErrShort; lengths are
// bytes.
//
// Known holes: the pack behind the head is not read, so what a push stores is
// whatever the pack holds; that a push rewrites history can't be seen in it.
package gitwire

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	// MaxPacket is the longest pkt-line, its length included.
	MaxPacket = 65520
	// MaxHead is what the head of a push or fetch may have.
	MaxHead = 256 << 10
	// MaxUpdates is how many refs one push may change.
	MaxUpdates = 1000
	// MaxOptions is how many push options one push may carry.
	MaxOptions = 32
	maxRef     = 1024
	maxShallow = 2000
)

// ErrShort: the head goes on behind the bytes that are there.
var ErrShort = errors.New("the head of the git request is not complete")

// Update is one ref that a push wants to change. Old and New are object names
// in hexadecimal.
type Update struct{ Old, New, Ref string }

// Deletes reports whether the ref is to be removed.
func (u Update) Deletes() bool { return strings.Trim(u.New, "0") == "" }

// Push is the head of a git-receive-pack body. One without updates is git's
// question whether it may push at all; servers change nothing for it.
type Push struct {
	Updates []Update
	// Options are what --push-option sent. Hosts act on them.
	Options []string
	Atomic  bool
	Shallow int
	// Pack says that a pack follows.
	Pack bool
}

// capabilities that clients may ask of git-receive-pack.
var pushCapabilities = []string{
	"report-status", "report-status-v2", "side-band", "side-band-64k", "quiet", "atomic", "ofs-delta", "delete-refs", "no-thin",
	"push-options", "agent", "session-id", "object-format",
}

// ReadPush reads the head of a git-receive-pack body, and how long it is.
func ReadPush(b []byte) (Push, int, error) {
	r := packets{rest: b}
	var p Push
	var options bool
	size := 0 // of an object name; 0: not known yet
	seen := map[string]bool{}
	for {
		line, kind, err := r.next()
		if err != nil {
			return Push{}, 0, err
		}
		if kind == flush {
			break
		}
		if kind != data {
			return Push{}, 0, errors.New("the list of refs does not end with a flush packet")
		}
		if oid, ok := strings.CutPrefix(line, "shallow "); ok {
			if p.Shallow++; p.Shallow > maxShallow || !isObject(oid, &size) || len(p.Updates) > 0 {
				return Push{}, 0, errors.New("a shallow line that is not of git's form")
			}
			continue
		}
		command, caps, hasCaps := strings.Cut(line, "\x00")
		switch {
		case command == "push-cert":
			return Push{}, 0, errors.New("a signed push, which can't be judged; push without --signed")
		case hasCaps && len(p.Updates) > 0:
			return Push{}, 0, errors.New("capabilities on another line than the first")
		case hasCaps:
			if options, p.Atomic, err = readCapabilities(caps); err != nil {
				return Push{}, 0, err
			}
		}
		u, err := readUpdate(command, &size)
		if err != nil {
			return Push{}, 0, err
		}
		if seen[u.Ref] {
			return Push{}, 0, errors.New("it updates one ref twice")
		}
		seen[u.Ref] = true
		if p.Updates = append(p.Updates, u); len(p.Updates) > MaxUpdates {
			return Push{}, 0, fmt.Errorf("it updates more than %d refs; push in several steps", MaxUpdates)
		}
		p.Pack = p.Pack || !u.Deletes()
	}
	if len(p.Updates) == 0 && p.Shallow > 0 {
		return Push{}, 0, errors.New("shallow lines without refs")
	}
	for options {
		line, kind, err := r.next()
		if err != nil {
			return Push{}, 0, err
		}
		if kind == flush {
			break
		}
		if kind != data || len(p.Options) == MaxOptions || !isText(line) {
			return Push{}, 0, errors.New("push options that are not of git's form")
		}
		p.Options = append(p.Options, line)
	}
	return p, r.taken, nil
}

func readUpdate(s string, size *int) (Update, error) {
	old, rest, ok1 := strings.Cut(s, " ")
	id, ref, ok2 := strings.Cut(rest, " ")
	if !ok1 || !ok2 || !isObject(old, size) || !isObject(id, size) {
		return Update{}, errors.New("a line that is not old new ref")
	}
	if !IsRef(ref) {
		return Update{}, errors.New("a ref that git does not accept")
	}
	return Update{old, id, ref}, nil
}

func readCapabilities(s string) (options, atomic bool, err error) {
	if !isText(s) {
		return false, false, errors.New("capabilities that are not text")
	}
	for c := range strings.SplitSeq(s, " ") {
		name, _, _ := strings.Cut(c, "=")
		if name != "" && !slices.Contains(pushCapabilities, name) {
			return false, false, errors.New("a capability that is not known")
		}
		options = options || name == "push-options"
		atomic = atomic || name == "atomic"
	}
	return options, atomic, nil
}

// Fetch is the head of a git-upload-pack body.
type Fetch struct {
	// Version is 0 (which 1 looks like) or 2.
	Version int
	// Command is "fetch" for version 0; "" is a request for nothing.
	Command string
}

var fetchCommands = []string{"ls-refs", "fetch", "object-info", "bundle-uri"}

// ReadFetch reads the head of a git-upload-pack body, and how long it is: in
// version 2 the command with its capabilities, else the first want.
func ReadFetch(b []byte) (Fetch, int, error) {
	r := packets{rest: b}
	size := 0
	line, kind, err := r.next()
	if err != nil {
		return Fetch{}, 0, err
	}
	if kind == flush {
		return Fetch{}, r.taken, nil
	}
	if command, ok := strings.CutPrefix(line, "command="); ok && kind == data {
		if !slices.Contains(fetchCommands, command) {
			return Fetch{}, 0, errors.New("a command that is not one of fetching")
		}
		for n := 0; ; n++ {
			line, kind, err := r.next()
			switch {
			case err != nil:
				return Fetch{}, 0, err
			case kind == flush || kind == delimiter:
				return Fetch{2, command}, r.taken, nil
			case kind != data || n > 64 || !isText(line) || strings.HasPrefix(line, "command="):
				return Fetch{}, 0, errors.New("capabilities that are not of git's form")
			}
		}
	}
	want, ok := strings.CutPrefix(line, "want ")
	oid, caps, _ := strings.Cut(want, " ")
	if kind != data || !ok || !isObject(oid, &size) || !isText(caps) {
		return Fetch{}, 0, errors.New("it begins with neither a want nor a command")
	}
	return Fetch{0, "fetch"}, r.taken, nil
}

type kind uint8

const (
	data kind = iota
	flush
	delimiter
	other
)

// packets splits pkt-lines off the front of a body.
type packets struct {
	rest  []byte
	taken int
}

// next returns the text of a pkt-line without the newline at its end.
func (p *packets) next() (string, kind, error) {
	if len(p.rest) < 4 {
		for _, c := range p.rest {
			if unhex(c) < 0 {
				return "", 0, errors.New("it is not made of pkt-lines")
			}
		}
		return "", 0, ErrShort
	}
	n := 0
	for _, c := range p.rest[:4] {
		d := unhex(c)
		if d < 0 {
			return "", 0, errors.New("it is not made of pkt-lines")
		}
		n = n<<4 | d
	}
	if n < 4 {
		p.rest, p.taken = p.rest[4:], p.taken+4
		return "", []kind{flush, delimiter, other, other}[n], nil
	}
	if n < 5 || n > MaxPacket {
		return "", 0, errors.New("a pkt-line of a length that git does not write")
	}
	if p.taken+n > MaxHead {
		return "", 0, fmt.Errorf("its head has more than %d bytes", MaxHead)
	}
	if len(p.rest) < n {
		return "", 0, ErrShort
	}
	line := string(p.rest[4:n])
	p.rest, p.taken = p.rest[n:], p.taken+n
	return strings.TrimSuffix(line, "\n"), data, nil
}

// unhex knows the digits that git writes.
func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}

// isObject accepts an object name; all of a request have the same length.
func isObject(s string, size *int) bool {
	if *size == 0 && (len(s) == 40 || len(s) == 64) {
		*size = len(s)
	}
	return len(s) > 0 && len(s) == *size && strings.Trim(s, "0123456789abcdef") == ""
}

func isText(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) < 0
}

// IsRef reports whether s is a full name of a ref, as git-check-ref-format has
// it, in UTF-8.
func IsRef(s string) bool {
	rest, ok := strings.CutPrefix(s, "refs/")
	if !ok || rest == "" || len(s) > maxRef || !isText(s) || strings.ContainsAny(s, " ~^:?*[\\") ||
		strings.Contains(s, "..") || strings.Contains(s, "@{") || strings.HasSuffix(s, ".") {
		return false
	}
	for part := range strings.SplitSeq(rest, "/") {
		if part == "" || part[0] == '.' || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	return true
}

// IsRefPattern reports whether s is what a grant may say: a full name of a ref
// in which at most one * stands for any characters, slashes too, as in git's
// own refspecs.
func IsRefPattern(s string) bool {
	if strings.Count(s, "*") > 1 {
		return false
	}
	// Whatever stands for the * is part of a good name; so are these letters.
	return IsRef(strings.Replace(s, "*", "x", 1))
}

// RefMatch reports whether a ref is what the pattern of a grant covers.
func RefMatch(pattern, ref string) bool {
	before, after, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == ref
	}
	return len(ref) > len(before)+len(after) && strings.HasPrefix(ref, before) && strings.HasSuffix(ref, after)
}
