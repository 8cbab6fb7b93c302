package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const (
	// maxFile is far above any policy that a person can review.
	maxFile = 1 << 20
	// maxDepth: the deepest thing of the grammar is at depth 5.
	maxDepth = 16
	// maxItems bounds lists and mappings, and with them the checks that
	// compare their items with each other.
	maxItems = 1000
)

// document reads one YAML file into nodes and collects every mistake.
type document struct {
	file   string
	errs   ErrorList
	broken map[*yaml.Node]bool // already reported; nothing more to say about it
}

func (d *document) pos(n *yaml.Node) vocabulary.Position {
	return vocabulary.Position{File: d.file, Line: n.Line, Column: n.Column}
}

func (d *document) errorAt(pos vocabulary.Position, hint, format string, args ...any) {
	d.errs = append(d.errs, Error{pos, fmt.Sprintf(format, args...), hint})
}

func (d *document) errorf(n *yaml.Node, hint, format string, args ...any) {
	d.errorAt(d.pos(n), hint, format, args...)
}

// root returns the top of the only document of data, or nil when there is
// nothing to go on with. The checks that need no grammar are done here, for
// all nodes at once.
func (d *document) root(data []byte) *yaml.Node {
	d.broken = map[*yaml.Node]bool{}
	top := vocabulary.Position{File: d.file, Line: 1, Column: 1}
	if len(data) > maxFile {
		d.errorAt(top, "split what belongs together into presets", "the file has %d bytes, more than %d", len(data), maxFile)
		return nil
	}
	if !d.text(data) {
		return nil
	}
	nodes, err := decode(data)
	if err != nil {
		d.errs = append(d.errs, syntaxError(d.file, data, err))
	}
	if len(nodes) == 0 || len(nodes[0].Content) == 0 {
		if err == nil {
			d.errorAt(top, "begin with: version: 1", "the file is empty")
		}
		return nil
	}
	if len(nodes) > 1 {
		d.errorf(nodes[1], "one file is one policy; remove the line ---", "a second document begins here")
	}
	root := nodes[0].Content[0]
	if !d.walk(root, 1) {
		return nil
	}
	return root
}

// text refuses bytes that look different from what they mean: not UTF-8,
// control characters, and characters that are invisible or reorder a line.
func (d *document) text(data []byte) bool {
	ok := true
	rest := bytes.TrimPrefix(data, []byte("\ufeff"))
	line, column := 1, 1
	for len(rest) > 0 {
		r, size := utf8.DecodeRune(rest)
		pos := vocabulary.Position{File: d.file, Line: line, Column: column}
		switch {
		case r == utf8.RuneError && size == 1:
			d.errorAt(pos, "save the file as UTF-8", "byte 0x%02x is not UTF-8", rest[0])
			return false
		case r == '\r' && (len(rest) == 1 || rest[1] != '\n'), r == 0x85, r == 0x2028, r == 0x2029:
			d.errorAt(pos, "end lines with a line feed", "line break %U", r)
			ok = false
		case r == '\n' || r == '\r' || r == '\t':
		case invisible(r):
			d.errorAt(pos, "remove it; it cannot be seen in an editor", "control or invisible character %U", r)
			ok = false
		}
		if len(d.errs) >= 20 {
			return false
		}
		if column++; r == '\n' {
			line, column = line+1, 1
		}
		rest = rest[size:]
	}
	return ok
}

// invisible is true for control, format (zero-width, bidirectional), unassigned
// and private characters, for surrogates, and for separators other than space.
func invisible(r rune) bool { return !unicode.IsPrint(r) }

// decode returns the first two documents. A panic of the YAML library on
// malformed input is an error of that input, not of Bulkhead.
func decode(data []byte) (nodes []*yaml.Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: %v", r)
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for len(nodes) < 2 {
		n := new(yaml.Node)
		if err := dec.Decode(n); errors.Is(err, io.EOF) {
			return nodes, nil
		} else if err != nil {
			return nodes, err
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// syntaxError gives the YAML library's error a position: the line after the
// longest beginning of the file that can be read, and its first character.
// The library itself names the line where the surrounding block begins, which
// can be far away, or none.
func syntaxError(file string, data []byte, err error) Error {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if number, text, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				line, msg = n, text
			}
		}
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	if len(lines)*len(data) <= 4<<20 { // else too slow, about 0.2 s
		for line = len(lines); line > 1; line-- {
			if _, err := decode(bytes.Join(lines[:line-1], nil)); err == nil {
				break
			}
		}
	}
	line = min(max(line, 1), len(lines))
	text := lines[line-1]
	return Error{
		Pos:  vocabulary.Position{File: file, Line: line, Column: 1 + len(text) - len(bytes.TrimLeft(text, " \t"))},
		Msg:  "not valid YAML: " + msg,
		Hint: "check indentation, quotes and brackets from this line on",
	}
}

// walk reports what no place of the grammar allows. It is false when the
// nesting is so deep that going on makes no sense.
func (d *document) walk(n *yaml.Node, depth int) bool {
	if depth > maxDepth {
		d.errorf(n, "", "nested more than %d levels deep", maxDepth)
		return false
	}
	if n.Anchor != "" {
		d.errorf(n, "write the value out where it is used", "anchor &%s is not allowed", n.Anchor)
	}
	switch {
	case n.Kind == yaml.AliasNode:
		d.errorf(n, "write the value out", "alias *%s is not allowed", n.Value)
		d.broken[n] = true
		return true // never followed: an alias can lead back up
	case n.Style&yaml.TaggedStyle != 0:
		d.errorf(n, "remove it; the place says what is meant", "tag %s is not allowed", n.Tag)
		d.broken[n] = true
	case n.Kind == yaml.ScalarNode && strings.ContainsFunc(n.Value, invisible):
		i := strings.IndexFunc(n.Value, invisible)
		r, _ := utf8.DecodeRuneInString(n.Value[i:])
		hint := "remove it"
		if r == '\n' {
			hint = "write the value on one line"
		}
		d.errorf(n, hint, "control or invisible character %U in a value", r)
		d.broken[n] = true
	}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			if !d.key(c) {
				d.broken[c] = true
				d.broken[n.Content[i+1]] = true
			}
			if c.Kind == yaml.ScalarNode {
				if c.Anchor != "" {
					d.errorf(c, "write the value out where it is used", "anchor &%s is not allowed", c.Anchor)
				}
				continue
			}
		}
		if !d.walk(c, depth+1) {
			return false
		}
	}
	return true
}

// key reports whether a mapping's key is plain text.
func (d *document) key(k *yaml.Node) bool {
	switch {
	case k.Kind == yaml.AliasNode: // reported by walk
		return false
	case k.Kind != yaml.ScalarNode:
		d.errorf(k, "a key is one word", "a key cannot be a list or a mapping")
		return false
	case k.Style&yaml.TaggedStyle != 0:
		d.errorf(k, "remove it", "tag %s is not allowed", k.Tag)
		return false
	case k.Tag == "!!merge":
		d.errorf(k, "write the values out, or use a preset", "merge key << is not allowed")
		return false
	case strings.ContainsFunc(k.Value, invisible):
		d.errorf(k, "remove it", "control or invisible character in a key")
		return false
	case k.Tag == "!!null":
		d.errorf(k, "", "a key is missing in front of the colon")
		return false
	}
	return true
}

// entry is one key of a mapping with its value.
type entry struct {
	key   string
	node  *yaml.Node // the key's
	value *yaml.Node
}

// entries returns the readable entries of a mapping, each key once.
func (d *document) entries(n *yaml.Node, what string) []entry {
	if !d.kind(n, yaml.MappingNode, what) || !d.fits(n, len(n.Content)/2, what) {
		return nil
	}
	seen := map[string]*yaml.Node{}
	var out []entry
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if d.broken[k] {
			continue
		}
		if first, dup := seen[k.Value]; dup {
			d.errorf(k, "keep one of the two", "key %s stands here a second time, the first is at line %d", quoted(k.Value), first.Line)
			continue
		}
		seen[k.Value] = k
		out = append(out, entry{k.Value, k, n.Content[i+1]})
	}
	return out
}

// table is a mapping whose keys are known.
type table struct {
	entries map[string]entry
	// tried are known keys that unreadable or misspelled ones may have meant:
	// that they are missing is not a second mistake.
	tried map[string]bool
}

func (d *document) table(n *yaml.Node, what string, known ...string) (table, bool) {
	t := table{map[string]entry{}, map[string]bool{}}
	if !d.kind(n, yaml.MappingNode, what) {
		return t, false
	}
	for i := 0; i < len(n.Content); i += 2 {
		if d.broken[n.Content[i]] {
			for _, k := range known {
				t.tried[k] = true
			}
		}
	}
	for _, e := range d.entries(n, what) {
		if !slices.Contains(known, e.key) {
			t.tried[nearest(e.key, known)] = true
			d.errorf(e.node, Suggest(e.key, known), "unknown key %s in %s", quoted(e.key), what)
			continue
		}
		t.entries[e.key] = e
	}
	return t, true
}

// get returns the value of a key, or nil.
func (t table) get(key string) *yaml.Node { return t.entries[key].value }

// missing reports whether a key is not there and was not meant to be.
func (t table) missing(key string) bool { return t.get(key) == nil && !t.tried[key] }

// key returns the node of the key itself, or nil.
func (t table) key(key string) *yaml.Node { return t.entries[key].node }

// kind reports a node of another kind than the grammar wants here.
func (d *document) kind(n *yaml.Node, want yaml.Kind, what string) bool {
	if d.broken[n] {
		return false
	}
	if n.Kind == want {
		return true
	}
	names := map[yaml.Kind]string{yaml.MappingNode: "a mapping (key: value)", yaml.SequenceNode: "a list [a, b]", yaml.ScalarNode: "a single value"}
	got := names[n.Kind]
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		got = "nothing"
	}
	hint := ""
	if got == "nothing" {
		hint = "give it a value or remove the key"
	}
	d.errorf(n, hint, "%s must be %s, not %s", what, names[want], got)
	return false
}

// items returns the elements of a list.
func (d *document) items(n *yaml.Node, what string) []*yaml.Node {
	if n == nil || !d.kind(n, yaml.SequenceNode, what) || !d.fits(n, len(n.Content), what) {
		return nil
	}
	return n.Content
}

func (d *document) fits(n *yaml.Node, count int, what string) bool {
	if count > maxItems {
		d.errorf(n, "", "%s has %d entries, more than %d", what, count, maxItems)
	}
	return count <= maxItems
}

// str reads a scalar that is text, not empty.
func (d *document) str(n *yaml.Node, what string) (At[string], bool) {
	v, ok := d.anyText(n, what)
	if ok && v.Value == "" {
		d.errorf(n, "give it a value or remove the key", "%s is empty", what)
		return v, false
	}
	return v, ok
}

// anyText reads a scalar that is text, perhaps empty.
func (d *document) anyText(n *yaml.Node, what string) (At[string], bool) {
	v := At[string]{Pos: d.pos(n)}
	if !d.kind(n, yaml.ScalarNode, what) {
		return v, false
	}
	switch n.Tag {
	case "!!str":
		v.Value = n.Value
		return v, true
	case "!!null":
		d.errorf(n, "give it a value or remove the key", "%s is empty", what)
	case "!!merge":
		d.errorf(n, `put it in quotes: "<<"`, "%s must be text", what)
	default:
		d.errorf(n, "put it in quotes: "+strconv.Quote(n.Value), "%s must be text, not a %s", what,
			map[string]string{"!!int": "number", "!!float": "number", "!!bool": "truth value", "!!timestamp": "date"}[n.Tag])
	}
	return v, false
}

// strs reads a list of texts without repetitions. An empty list is an error
// when something must be in it.
func (d *document) strs(n *yaml.Node, what string, each func(n *yaml.Node, v string) bool) []At[string] {
	var out []At[string]
	seen := map[string]int{}
	for _, item := range d.items(n, what) {
		v, ok := d.str(item, "an entry of "+what)
		if !ok || each != nil && !each(item, v.Value) {
			continue
		}
		if line, dup := seen[v.Value]; dup {
			d.errorf(item, "keep one of the two", "%s stands in %s a second time, the first is at line %d", quoted(v.Value), what, line)
			continue
		}
		seen[v.Value] = item.Line
		out = append(out, v)
	}
	return out
}

// someStrs is strs for a list that must not be empty.
func (d *document) someStrs(n *yaml.Node, what, hint string, each func(n *yaml.Node, v string) bool) []At[string] {
	if n != nil && n.Kind == yaml.SequenceNode && len(n.Content) == 0 && !d.broken[n] {
		d.errorf(n, hint, "%s is empty, which grants nothing", what)
	}
	return d.strs(n, what, each)
}

func (d *document) boolean(n *yaml.Node, what string) (value, ok bool) {
	if !d.kind(n, yaml.ScalarNode, what) {
		return false, false
	}
	if n.Tag == "!!bool" && (n.Value == "true" || n.Value == "false") {
		return n.Value == "true", true
	}
	d.errorf(n, "", "%s must be true or false, not %s", what, quoted(n.Value))
	return false, false
}

// quoted renders a value of the file for a message: at most 60 bytes, and with
// nothing in it that a terminal would obey.
func quoted(s string) string {
	if len(s) > 60 {
		s = s[:60] + "…"
	}
	return strconv.Quote(s)
}
