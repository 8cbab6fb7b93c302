// Package secret holds the one type that may carry a real credential.
//
// A Value can't be printed, compared, hashed or marshalled; it is revealed
// only by Reveal, whose few callers internal/archtest lists. Any process may
// hold a Value; only the controller's broker and the gateway's swap reveal it.
package secret

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
)

// Value is a secret. The zero Value is empty.
type Value struct {
	_ [0]func() // not comparable
	b []byte
}

// New takes a copy of b.
func New(b []byte) Value { return Value{b: append([]byte(nil), b...)} }

// Empty reports whether there is nothing in it.
func (v Value) Empty() bool { return len(v.b) == 0 }

// Reveal returns the bytes. Callers write them to the wire and drop them.
func (v Value) Reveal() []byte { return v.b }

// Equal compares in constant time for a given length.
func (v Value) Equal(candidate []byte) bool {
	return subtle.ConstantTimeCompare(v.b, candidate) == 1
}

// Wipe overwrites the bytes; every copy of this Value is empty afterwards.
func (v *Value) Wipe() {
	clear(v.b)
	v.b = nil
}

const redacted = "[secret]"

var errMarshal = errors.New("secret: refusing to marshal")

func (v Value) String() string                 { return redacted }
func (v Value) GoString() string               { return redacted }
func (v Value) Format(s fmt.State, _ rune)     { io.WriteString(s, redacted) }
func (v Value) MarshalText() ([]byte, error)   { return nil, errMarshal }
func (v Value) MarshalJSON() ([]byte, error)   { return nil, errMarshal }
func (v Value) MarshalYAML() (any, error)      { return nil, errMarshal }
func (v Value) GobEncode() ([]byte, error)     { return nil, errMarshal }
func (v Value) MarshalBinary() ([]byte, error) { return nil, errMarshal }
