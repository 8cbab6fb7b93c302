package catalog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/bulkhead-dev/bulkhead/internal/secret"
)

// maxDepth is how deep an inspected body may nest. Conversations with tool
// results nest about 10 deep, JSON schemas of tools about 20.
const maxDepth = 128

// bodySpec says which server-side features a JSON body uses. Places are written
// as object keys joined by dots; arrays are transparent, so "tools.type" is the
// type of each tool, however the array is spelled; "**" stands for any keys.
type bodySpec struct {
	name, kind string
	limit      int
	reader     bodyReader
	// keys are the section's own, files the fields that may be files.
	keys, files []string
	filesLimit  int
	// text places hold what people and programs write, credential-shaped or not,
	// and so does everything below them.
	text map[string][][]string
	// credentialKeys are places where the session's placeholder may stand.
	credentialKeys [][]string
	// wanted are the places of resource-at:.
	wanted []wantedPlace
	// closed lists the only keys that an object at a place may have.
	closed []closedObject
	// rules and opaque are indexed by the last key of their place.
	rules  map[string][]bodyRule
	opaque map[string][][]string
	unless []unlessRule
	// special are all keys that any place names, as they are spelled and in
	// lower case (true: spelled so): another spelling of one is refused, because
	// a lenient parser might fold it.
	special map[string]bool
	// otherwise is the feature operation for what isn't listed; "" refuses it.
	otherwise string
	// optional: a request without a body has no features.
	optional bool
	// gzip: the body may come compressed, and is decoded to be judged.
	gzip bool
	// repeat are the fields of a form that servers read as lists.
	repeat []string
	graph  graphSpec // of kind graphql
	lines  string    // bodyRule.lines for every text of a graphql body
}

// unlessRule: a body that has none of these keys, or only null there, uses the
// feature.
type unlessRule struct {
	keys []string
	op   string
}

type closedObject struct {
	at   []string
	keys map[string]bool
}

// wantedPlace is where the resource of an operation stands.
type wantedPlace struct {
	op *Operation
	at []string
}

type bodyRule struct {
	at []string
	// present: the field itself is the feature, whatever its value (but null).
	present string
	// lines: a text with a line that begins with a slash and a letter is the
	// feature: a command to the server.
	lines string
	// values sorts the field's strings: a glob and its operation, "" if harmless.
	values map[string]string
	// prefixes are the globs with a *, the longest first.
	prefixes []string
	where    string // for messages
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

// operations lists the features that a rule can find.
func (r *bodyRule) operations() []string {
	var out []string
	for _, op := range []string{r.present, r.lines} {
		if op != "" {
			out = append(out, op)
		}
	}
	for _, v := range r.values {
		if v != "" && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// mentions reports whether the section can find this feature.
func (b *bodySpec) mentions(op string) bool {
	if b.otherwise == op {
		return true
	}
	for _, rs := range b.rules {
		for _, r := range rs {
			if slices.Contains(r.operations(), op) {
				return true
			}
		}
	}
	return slices.ContainsFunc(b.unless, func(u unlessRule) bool { return u.op == op })
}

func (b *bodySpec) index() {
	b.special = map[string]bool{}
	note := func(at []string) {
		for _, k := range at {
			b.special[k] = true
			if lower := strings.ToLower(k); !b.special[lower] {
				b.special[lower] = false
			}
		}
	}
	for _, c := range b.closed {
		note(c.at)
		for k := range c.keys {
			note([]string{k})
		}
	}
	for _, u := range b.unless {
		note(u.keys)
	}
	for _, rs := range b.rules {
		for i := range rs {
			r := &rs[i]
			note(r.at)
			r.where = "the field " + strings.Join(r.at, ".")
			r.prefixes = nil
			for g := range r.values {
				if strings.Contains(g, "*") {
					r.prefixes = append(r.prefixes, g)
				}
			}
			slices.SortFunc(r.prefixes, func(a, b string) int { return len(b) - len(a) })
		}
	}
	for _, places := range []map[string][][]string{b.opaque, b.text} {
		for _, os := range places {
			for _, at := range os {
				note(at)
			}
		}
	}
	for _, at := range b.credentialKeys {
		note(at)
	}
	for _, p := range b.wanted {
		note(p.at)
	}
}

func newJSON(b *bodySpec) (bodyReader, error) {
	if len(b.keys) == 0 && len(b.closed) == 0 {
		return nil, errors.New("a body section needs limit: and keys:, once")
	}
	if len(b.files) > 0 {
		return nil, errors.New("files: belongs to kind: multipart")
	}
	return jsonBody{b}, nil
}

// jsonBody is one JSON object.
type jsonBody struct{ *bodySpec }

func (b jsonBody) need() Need { return Need{Whole: b.limit, Gzip: b.gzip} }

func (b jsonBody) features(op *Operation, _ string, r Request) (Contents, error) {
	if err := b.checkForm(r, "application/json", "application/x-amz-json-1.0", "application/x-amz-json-1.1", "application/vnd.git-lfs+json"); err != nil {
		return Contents{}, err
	}
	return b.scan(r.Body, op)
}

// checkForm holds a whole body to its limit, no content coding, and one
// Content-Type of these, in UTF-8.
func (b *bodySpec) checkForm(r Request, types ...string) error {
	for _, v := range r.Header.Values("Content-Encoding") {
		if v != "" && !strings.EqualFold(v, "identity") {
			return fmt.Errorf("%w: it is compressed, so it can't be judged; send it without Content-Encoding", ErrBadBody)
		}
	}
	values := r.Header.Values("Content-Type")
	if len(values) != 1 {
		return fmt.Errorf("%w: it needs one Content-Type: %s", ErrBadBody, types[0])
	}
	mt, params, err := mime.ParseMediaType(values[0])
	if err != nil || !slices.Contains(types, mt) || params["charset"] != "" && !strings.EqualFold(params["charset"], "utf-8") {
		return fmt.Errorf("%w: its Content-Type is not %s", ErrBadBody, types[0])
	}
	if len(r.Body) > b.limit {
		return fmt.Errorf("%w: it has more than %d bytes", ErrBadBody, b.limit)
	}
	return nil
}

// scan judges one JSON object.
func (b *bodySpec) scan(data []byte, op *Operation) (Contents, error) {
	w := bodyWalk{spec: b}
	if err := w.object(data); err != nil {
		return Contents{}, err
	}
	for _, u := range b.unless {
		if !slices.ContainsFunc(u.keys, func(k string) bool { return slices.Contains(w.stated, k) }) {
			w.use(u.op, "no field "+strings.Join(u.keys, " or "))
		}
	}
	return w.contents(op), nil
}

// object walks one JSON object and adds what it finds to the rest.
func (w *bodyWalk) object(data []byte) error {
	// The decoder below replaces bad UTF-8 silently and reports some grammar
	// errors only as an early end, so both are settled first.
	if !utf8.Valid(data) || !json.Valid(data) {
		return fmt.Errorf("%w: it is not one JSON value in UTF-8", ErrBadBody)
	}
	w.dec, w.path, w.stack = json.NewDecoder(bytes.NewReader(data)), w.path[:0], w.stack[:0]
	w.dec.UseNumber()
	if err := w.run(); err != nil {
		return fmt.Errorf("%w: %w", ErrBadBody, err)
	}
	return nil
}

// frame is an open object or array.
type frame struct {
	object  bool
	wantKey bool
	opaque  bool
	text    bool // in or below a text place
	secret  bool // below a key that is named like a credential
	keyed   bool // the current key is named like one
	depth   int  // length of the path of the container itself
	keys    keySet
}

// maxFound bounds what is remembered of one body.
const maxFound = 64

type bodyWalk struct {
	spec  *bodySpec
	dec   *json.Decoder
	path  []string
	stack []frame
	uses  []Use
	found []Found
	// anywhere: what looks like a credential may also stand inside a value.
	anywhere bool
	stated   []string // the outermost keys that have a value
	values   map[*wantedPlace][]string
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
		if top != nil {
			f.opaque, f.text, f.secret = top.opaque, top.text, top.secret || top.keyed
		}
		if !f.opaque {
			f.opaque = w.isAt(w.spec.opaque)
			f.text = f.text || w.isAt(w.spec.text)
		}
		if f.object && !f.opaque {
			w.value("", false)
		}
		w.stack = append(w.stack, f)
		return nil
	case nil:
	case string:
		if top != nil && !top.opaque {
			w.value(t, true)
			return w.scalar(top, t)
		}
	case json.Number:
		if top != nil && !top.opaque {
			w.value("", false)
			return w.scalar(top, t.String())
		}
	case bool:
		if top != nil && !top.opaque {
			w.value(strconv.FormatBool(t), true)
		}
	}
	if top != nil {
		w.valueDone(top)
	}
	return nil
}

// scalar looks for credentials: any value of a key that is named for one, and
// what looks like one by itself where no text is expected.
func (w *bodyWalk) scalar(top *frame, s string) error {
	kind := Named
	switch {
	case s == "":
	case top.secret || top.keyed:
		// A list of opaque places has strings of its own in them.
		if w.isAt(w.spec.opaque) {
			break
		}
		if slices.ContainsFunc(w.spec.credentialKeys, func(at []string) bool { return placeMatch(at, w.path) }) {
			kind = Placed
		}
		if err := w.credential(kind, s); err != nil {
			return err
		}
	case !top.text && (isTokenShaped(s) || w.anywhere && hasTokenShape(s)) && !w.isAt(w.spec.text) && !w.isAt(w.spec.opaque):
		if err := w.credential(Shaped, s); err != nil {
			return err
		}
	}
	w.valueDone(top)
	return nil
}

func (w *bodyWalk) credential(kind Kind, value string) error {
	if len(w.found) >= maxFound {
		return errors.New("it holds too many credentials")
	}
	w.found = append(w.found, Found{Slot{Body: safeKey(strings.Join(w.path, "."))}, kind, secret.New([]byte(value))})
	return nil
}

func (w *bodyWalk) valueDone(top *frame) {
	if top.object {
		top.wantKey, top.keyed = true, false
		w.path = w.path[:top.depth]
	}
}

func (w *bodyWalk) key(top *frame, key string) error {
	if !top.keys.add(key) {
		return fmt.Errorf("the key %s occurs twice in one object", safeKey(key))
	}
	return w.judgeKey(top, key)
}

func (w *bodyWalk) judgeKey(top *frame, key string) error {
	top.wantKey = false
	w.path = append(w.path[:top.depth], key)
	if top.opaque {
		return nil
	}
	if w.spec.otherSpelling(key) {
		return fmt.Errorf("the key %s is another spelling of a known one", safeKey(key))
	}
	top.keyed = isSecretField(key)
	if !top.text && hasTokenShape(key) {
		if err := w.credential(Shaped, key); err != nil {
			return err
		}
	}
	for i := range w.spec.closed {
		c := &w.spec.closed[i]
		if !c.keys[key] && !c.keys["*"] && placeMatch(c.at, w.path[:top.depth]) {
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
	if len(w.path) == 1 && len(w.spec.unless) > 0 {
		w.stated = append(w.stated, w.path[0])
	}
	for i := range w.spec.wanted {
		if p := &w.spec.wanted[i]; placeMatch(p.at, w.path) {
			if w.values == nil {
				w.values = map[*wantedPlace][]string{}
			}
			if !isString {
				s = "" // no resource is called that
			}
			if have := w.values[p]; !slices.Contains(have, s) {
				w.values[p] = append(have, s)
			}
		}
	}
	rules := w.spec.rules[w.path[len(w.path)-1]]
	for i := range rules {
		r := &rules[i]
		if !placeMatch(r.at, w.path) {
			continue
		}
		where := r.where
		if r.lines != "" {
			if isString && hasCommand(s) {
				w.use(r.lines, r.where+" with a line that begins with a slash")
			}
			continue
		}
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

func (w *bodyWalk) isAt(places map[string][][]string) bool {
	if len(w.path) == 0 || len(places) == 0 {
		return false
	}
	for _, at := range places[w.path[len(w.path)-1]] {
		if placeMatch(at, w.path) {
			return true
		}
	}
	return false
}

func (w *bodyWalk) use(op, where string) {
	if !slices.ContainsFunc(w.uses, func(u Use) bool { return u.Operation == op }) {
		w.uses = append(w.uses, Use{Operation: op, Where: where})
	}
}

// contents is what was found, with the resources of the features that have some
// of their own: one use for each.
func (w *bodyWalk) contents(op *Operation) Contents {
	out := Contents{Uses: w.uses, Credentials: w.found}
	for i := range w.spec.wanted {
		p := &w.spec.wanted[i]
		values := w.values[p]
		if p.op == op {
			// Of two different ones neither is the resource.
			if len(values) == 1 {
				out.Resource = op.resourceOf(values[0])
			}
			continue
		}
		at := slices.IndexFunc(out.Uses, func(u Use) bool { return u.Operation == p.op.Name })
		if at < 0 {
			continue
		}
		use := out.Uses[at]
		use.Own = true
		if len(values) == 0 {
			values = []string{""}
		}
		var each []Use
		for _, v := range values {
			use.Resource = p.op.resourceOf(v)
			each = append(each, use)
		}
		out.Uses = slices.Replace(slices.Clone(out.Uses), at, at+1, each...)
	}
	return out
}

func (b *bodySpec) otherSpelling(key string) bool {
	if spelled, known := b.special[key]; known {
		return !spelled
	}
	plain, ascii := true, true
	for i := 0; i < len(key); i++ {
		ascii = ascii && key[i] < 0x80
		plain = plain && ascii && !('A' <= key[i] && key[i] <= 'Z')
	}
	switch {
	case plain:
		return false
	case ascii:
		_, known := b.special[strings.ToLower(key)]
		return known
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
