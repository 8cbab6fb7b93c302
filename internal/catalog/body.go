package catalog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxDepth is how deep an inspected body may nest. Conversations with tool
// results nest about 10 deep, JSON schemas of tools about 20.
const maxDepth = 128

// bodySpec says which server-side features a JSON body uses. Places are written
// as object keys joined by dots; arrays are transparent, so "tools.type" is the
// type of each tool, however the array is spelled; "**" stands for any keys.
type bodySpec struct {
	limit int
	// closed lists the only keys that an object at a place may have.
	closed []closedObject
	// rules and opaque are indexed by the last key of their place.
	rules  map[string][]bodyRule
	opaque map[string][][]string
	// special are all keys that any place names, in lower case: another
	// spelling of one is refused, because a lenient parser might fold it.
	special map[string]bool
	// otherwise is the feature operation for what isn't listed; "" refuses it.
	otherwise string
}

type closedObject struct {
	at   []string
	keys map[string]bool
}

type bodyRule struct {
	at []string
	// present: the field itself is the feature, whatever its value (but null).
	present string
	// values sorts the field's strings: a glob and its operation, "" if harmless.
	values map[string]string
	// prefixes are the globs with a *, the longest first.
	prefixes []string
}

// sort says which glob of the rule a string belongs to: the string itself, or
// else the longest, so that the order of the file doesn't matter.
func (r *bodyRule) sort(s string) (glob string, known bool) {
	if _, ok := r.values[s]; ok {
		return s, true
	}
	for _, p := range r.prefixes {
		if globMatch(p, s) {
			return p, true
		}
	}
	return "", false
}

func (b *bodySpec) index() {
	b.special = map[string]bool{}
	note := func(at []string) {
		for _, k := range at {
			b.special[strings.ToLower(k)] = true
		}
	}
	for _, c := range b.closed {
		note(c.at)
		for k := range c.keys {
			b.special[strings.ToLower(k)] = true
		}
	}
	for _, rs := range b.rules {
		for i := range rs {
			r := &rs[i]
			note(r.at)
			r.prefixes = nil
			for g := range r.values {
				if strings.HasSuffix(g, "*") {
					r.prefixes = append(r.prefixes, g)
				}
			}
			slices.SortFunc(r.prefixes, func(a, b string) int { return len(b) - len(a) })
		}
	}
	for _, os := range b.opaque {
		for _, at := range os {
			note(at)
		}
	}
}

// features reads the body once and lists the features in it.
func (b *bodySpec) features(r Request) ([]Use, error) {
	for _, v := range r.Header.Values("Content-Encoding") {
		if v != "" && !strings.EqualFold(v, "identity") {
			return nil, fmt.Errorf("%w: it is compressed, so it can't be judged; send it without Content-Encoding", ErrBadBody)
		}
	}
	types := r.Header.Values("Content-Type")
	if len(types) != 1 {
		return nil, fmt.Errorf("%w: it needs one Content-Type: application/json", ErrBadBody)
	}
	mt, params, err := mime.ParseMediaType(types[0])
	if err != nil || mt != "application/json" || params["charset"] != "" && !strings.EqualFold(params["charset"], "utf-8") {
		return nil, fmt.Errorf("%w: its Content-Type is not application/json", ErrBadBody)
	}
	if len(r.Body) > b.limit {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrBadBody, b.limit)
	}
	return b.scan(r.Body)
}

// scan is features without the headers.
func (b *bodySpec) scan(data []byte) ([]Use, error) {
	// The decoder below replaces bad UTF-8 silently and reports some grammar
	// errors only as an early end, so both are settled first.
	if !utf8.Valid(data) || !json.Valid(data) {
		return nil, fmt.Errorf("%w: it is not one JSON value in UTF-8", ErrBadBody)
	}
	w := bodyWalk{spec: b, dec: json.NewDecoder(bytes.NewReader(data))}
	w.dec.UseNumber()
	if err := w.run(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadBody, err)
	}
	return w.uses, nil
}

// frame is an open object or array.
type frame struct {
	object  bool
	wantKey bool
	opaque  bool
	depth   int // length of the path of the container itself
	keys    keySet
}

type bodyWalk struct {
	spec  *bodySpec
	dec   *json.Decoder
	path  []string
	stack []frame
	uses  []Use
}

func (w *bodyWalk) run() error {
	first := true
	for {
		tok, err := w.dec.Token()
		if err == io.EOF && !first && len(w.stack) == 0 {
			return nil
		}
		if err != nil {
			return errors.New("it is not valid JSON")
		}
		if d, ok := tok.(json.Delim); first && (!ok || d != '{') {
			return errors.New("it is not a JSON object")
		}
		first = false
		if err := w.token(tok); err != nil {
			return err
		}
	}
}

func (w *bodyWalk) token(tok json.Token) error {
	var top *frame
	if len(w.stack) > 0 {
		top = &w.stack[len(w.stack)-1]
	}
	if top != nil && top.object && top.wantKey {
		if key, ok := tok.(string); ok {
			return w.key(top, key)
		}
	}
	switch t := tok.(type) {
	case json.Delim:
		if t == '}' || t == ']' {
			w.path = w.path[:top.depth]
			w.stack = w.stack[:len(w.stack)-1]
			if len(w.stack) > 0 {
				w.valueDone(&w.stack[len(w.stack)-1])
			}
			return nil
		}
		if len(w.stack) >= maxDepth {
			return fmt.Errorf("it nests deeper than %d", maxDepth)
		}
		f := frame{object: t == '{', wantKey: t == '{', depth: len(w.path)}
		f.opaque = top != nil && top.opaque || w.isOpaque()
		if f.object && !f.opaque {
			w.value("", false)
		}
		w.stack = append(w.stack, f)
		return nil
	case nil:
	case string:
		if top != nil && !top.opaque {
			w.value(t, true)
		}
	default:
		if top != nil && !top.opaque {
			w.value("", false)
		}
	}
	if top != nil {
		w.valueDone(top)
	}
	return nil
}

func (w *bodyWalk) valueDone(top *frame) {
	if top.object {
		top.wantKey = true
		w.path = w.path[:top.depth]
	}
}

func (w *bodyWalk) key(top *frame, key string) error {
	if !top.keys.add(key) {
		return fmt.Errorf("the key %s occurs twice in one object", safeKey(key))
	}
	top.wantKey = false
	w.path = append(w.path[:top.depth], key)
	if top.opaque {
		return nil
	}
	if w.spec.otherSpelling(key) {
		return fmt.Errorf("the key %s is another spelling of a known one", safeKey(key))
	}
	for _, c := range w.spec.closed {
		if len(c.at) == top.depth && slices.Equal(c.at, w.path[:top.depth]) && !c.keys[key] {
			w.use(w.spec.otherwise, "the field "+safeKey(strings.Join(w.path, ".")))
		}
	}
	return nil
}

// value judges a string, or anything else but null, at the current path.
func (w *bodyWalk) value(s string, isString bool) {
	if len(w.path) == 0 {
		return
	}
	for _, r := range w.spec.rules[w.path[len(w.path)-1]] {
		if !placeMatch(r.at, w.path) {
			continue
		}
		where := "the field " + strings.Join(r.at, ".")
		if r.present != "" {
			w.use(r.present, where)
			continue
		}
		glob, known := "", false
		if isString {
			glob, known = r.sort(s)
		}
		switch {
		case !known:
			w.use(w.spec.otherwise, where+" with a value that isn't known")
		case r.values[glob] != "":
			w.use(r.values[glob], where+" = "+glob)
		}
	}
}

func (w *bodyWalk) isOpaque() bool {
	if len(w.path) == 0 {
		return false
	}
	return slices.ContainsFunc(w.spec.opaque[w.path[len(w.path)-1]], func(at []string) bool { return placeMatch(at, w.path) })
}

func (w *bodyWalk) use(op, where string) {
	if !slices.ContainsFunc(w.uses, func(u Use) bool { return u.Operation == op }) {
		w.uses = append(w.uses, Use{op, where})
	}
}

func (b *bodySpec) otherSpelling(key string) bool {
	plain, ascii := true, true
	for i := 0; i < len(key); i++ {
		ascii = ascii && key[i] < 0x80
		plain = plain && ascii && !('A' <= key[i] && key[i] <= 'Z')
	}
	switch {
	case plain:
		return false
	case ascii:
		return b.special[strings.ToLower(key)]
	}
	// Letters such as the long s fold into ASCII.
	for k := range b.special {
		if strings.EqualFold(k, key) {
			return true
		}
	}
	return false
}

// placeMatch compares a place with a path of keys.
func placeMatch(at, path []string) bool {
	if len(at) == 0 {
		return len(path) == 0
	}
	if at[0] == "**" {
		for i := range len(path) + 1 {
			if placeMatch(at[1:], path[i:]) {
				return true
			}
		}
		return false
	}
	return len(path) > 0 && at[0] == path[0] && placeMatch(at[1:], path[1:])
}

// keySet finds duplicates; most objects have few keys.
type keySet struct {
	few  []string
	many map[string]struct{}
}

func (k *keySet) add(key string) bool {
	if k.many == nil {
		if slices.Contains(k.few, key) {
			return false
		}
		if len(k.few) < 16 {
			k.few = append(k.few, key)
			return true
		}
		k.many = make(map[string]struct{}, 64)
		for _, f := range k.few {
			k.many[f] = struct{}{}
		}
	}
	if _, dup := k.many[key]; dup {
		return false
	}
	k.many[key] = struct{}{}
	return true
}

// safeKey shows a key of a hostile body in a message: names only, never data.
func safeKey(k string) string {
	if len(k) > 40 || strings.Trim(k, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") != "" {
		return "(unusual name)"
	}
	return k
}
