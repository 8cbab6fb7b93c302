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
	// A function, because fmt calls no method on another struct's unexported
	// field: there it would print a slice's bytes, and even a pointer's for a
	// verb that does not fit. Of a function it knows only the address. Functions
	// can't be compared either.
	bytes func() []byte
}

// New takes a copy of b.
func New(b []byte) Value {
	c := append([]byte(nil), b...)
	return Value{func() []byte { return c }}
}

// Clone returns a copy that Wipe of v leaves alone.
func (v Value) Clone() Value { return New(v.Reveal()) }

// Empty reports whether there is nothing in it.
func (v Value) Empty() bool { return len(v.Reveal()) == 0 }

// Reveal returns the bytes. Callers write them to the wire and drop them.
func (v Value) Reveal() []byte {
	if v.bytes == nil {
		return nil
	}
	return v.bytes()
}

// Equal compares in constant time for a given length.
func (v Value) Equal(candidate []byte) bool {
	return subtle.ConstantTimeCompare(v.Reveal(), candidate) == 1
}

// Wipe overwrites the bytes: v is empty afterwards, and every copy of it but a
// Clone holds only zeros.
func (v *Value) Wipe() {
	clear(v.Reveal())
	v.bytes = nil
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
