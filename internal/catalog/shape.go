package catalog

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Shape is how a credential looks: literal text with runs of random letters,
// as in "sk-ant-api03-{base64url:93}AA".
type Shape string

// Generic is the shape where no service says better.
const Generic Shape = "placeholder-{base62:40}"

const base62 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

var alphabets = map[string]string{
	"base62":    base62,
	"base64url": base62 + "-_",
	"hex":       "0123456789abcdef",
	"base32":    "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
}

// Placeholder makes a placeholder of the spec's usual shape (Generic without a
// spec). With a cryptographic source it is unique to its caller. It is "" if
// rand fails; an empty placeholder matches nothing.
func Placeholder(spec *CredentialSpec, rand io.Reader) string {
	shape := Generic
	if spec != nil && spec.Placeholder != "" {
		shape = spec.Placeholder
	}
	return shape.New(rand)
}

// New fills the shape with letters from rand.
func (s Shape) New(rand io.Reader) string {
	var b strings.Builder
	err := s.each(func(literal string) error {
		b.WriteString(literal)
		return nil
	}, func(alphabet string, n int) error {
		// Bytes at or over the largest multiple of the alphabet's length would
		// favour its first letters.
		limit := 256 - 256%len(alphabet)
		var one [64]byte
		for n > 0 {
			if _, err := io.ReadFull(rand, one[:]); err != nil {
				return err
			}
			for _, c := range one {
				if int(c) < limit && n > 0 {
					b.WriteByte(alphabet[int(c)%len(alphabet)])
					n--
				}
			}
		}
		return nil
	})
	if err != nil {
		return ""
	}
	return b.String()
}

func (s Shape) check() error {
	random := 0
	err := s.each(func(string) error { return nil }, func(alphabet string, n int) error { random += n; return nil })
	if err == nil && random < 20 {
		err = errors.New("has fewer than 20 random letters")
	}
	return err
}

func (s Shape) each(literal func(string) error, random func(alphabet string, n int) error) error {
	rest := string(s)
	for {
		text, after, ok := strings.Cut(rest, "{")
		if err := literal(text); err != nil || !ok {
			return err
		}
		spec, after, ok := strings.Cut(after, "}")
		name, count, ok2 := strings.Cut(spec, ":")
		n, err := strconv.Atoi(count)
		if !ok || !ok2 || err != nil || n < 1 || n > 1024 || alphabets[name] == "" {
			return fmt.Errorf("%q is not {alphabet:count}", spec)
		}
		if err := random(alphabets[name], n); err != nil {
			return err
		}
		rest = after
	}
}
