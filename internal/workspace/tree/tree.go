// Package tree touches files below a folder by handles: names are relative to a
// root that is held open, no element of them is followed if it is a link, and
// nothing outside the root can be reached, whoever changes the tree meanwhile.
//
// It runs in the controller with the user's privileges. Names are raw bytes:
// Check says which are valid, Show makes one safe for a terminal.
package tree

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxPath bounds names, as the kernel does.
const MaxPath = 4095

// Check accepts a clean relative name of something below a root.
func Check(path string) error {
	if path == "" || len(path) > MaxPath || strings.IndexByte(path, 0) >= 0 {
		return errors.New("a name is empty, too long or holds a zero byte")
	}
	for e := range strings.SplitSeq(path, "/") {
		if e == "" || e == "." || e == ".." || len(e) > 255 {
			return fmt.Errorf("%s is not a clean name below the workspace", Show(path))
		}
	}
	return nil
}

// Show makes a name safe for a terminal and for one line: what is not printable
// is written as Go writes it in a string, in quotes.
func Show(path string) string {
	for i, r := range path {
		if r == utf8.RuneError || !unicode.IsPrint(r) || r == '"' || i == 0 && r == ' ' {
			return quote(path)
		}
	}
	if path == "" || path[len(path)-1] == ' ' {
		return quote(path)
	}
	return path
}

func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case unicode.IsPrint(r) && r != utf8.RuneError:
			b.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u{%x}`, r)
		}
		s = s[n:]
	}
	b.WriteByte('"')
	return b.String()
}
