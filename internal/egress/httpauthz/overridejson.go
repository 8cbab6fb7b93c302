package httpauthz

import (
	"encoding/json"
	"strconv"
)

// maxJSONKey is more than the name of any parameter that overrides a method has,
// each character escaped.
const maxJSONKey = 512

// jsonKeys reads the keys of a JSON body's outermost objects on its way. What
// readers of JSON take differently (comments, keys without quotes, other
// encodings) is refused; values are not looked at.
type jsonKeys struct {
	depth  int
	object bool // the outermost value is one
	next   bool // at its depth, a key is what may follow

	text, escaped bool // within quotes
	isKey, long   bool
	key           []byte
	mark          int // bytes of a byte order mark at the beginning
}

const byteOrderMark = "\xef\xbb\xbf"

func (j *jsonKeys) see(p []byte, _ bool) error {
	for _, c := range p {
		if j.mark < len(byteOrderMark) {
			if c == byteOrderMark[j.mark] {
				j.mark++
				continue
			}
			j.mark = len(byteOrderMark)
		}
		var err error
		if j.text {
			err = j.inText(c)
		} else {
			err = j.between(c)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (j *jsonKeys) inText(c byte) error {
	switch {
	case j.escaped:
		j.escaped = false
	case c == '\\':
		j.escaped = true
	case c == '"':
		j.text = false
		return j.judge()
	}
	if j.isKey {
		if j.long = j.long || len(j.key) == maxJSONKey; !j.long {
			j.key = append(j.key, c)
		}
	}
	return nil
}

func (j *jsonKeys) between(c byte) error {
	key := j.depth == 1 && j.object && j.next
	switch {
	case c == ' ' || c == '\t' || c == '\r' || c == '\n':
	case c == '\x1e' && j.depth == 0: // between the values of a sequence
	case c == '"':
		j.text, j.isKey, j.long, j.key = true, key, false, j.key[:0]
	case c == '{' || c == '[':
		if j.depth == 0 {
			j.object, j.next = c == '{', true
		}
		j.depth++
	case c == '}' || c == ']':
		j.depth = max(j.depth-1, 0)
	case c == ',' || c == ':':
		if j.depth == 1 {
			j.next = c == ','
		}
	case !key && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '+' || c == '.'):
	default:
		return bad("the body is said to be JSON, and has %s where JSON has nothing like it", strconv.QuoteRune(rune(c)))
	}
	return nil
}

func (j *jsonKeys) judge() error {
	if !j.isKey || j.long {
		return nil
	}
	var key string
	if json.Unmarshal([]byte(`"`+string(j.key)+`"`), &key) != nil {
		return bad("the body is said to be JSON, and its key %s is none of JSON's", strconv.Quote(clip(string(j.key))))
	}
	if overridesMethod(key) {
		return overriddenBy(key)
	}
	return nil
}
