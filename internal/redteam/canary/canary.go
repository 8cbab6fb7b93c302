// Package canary makes secrets that are worth nothing and finds them again in
// what a thief received, in the encodings that a thief would use.
//
// It is pure apart from crypto/rand. Find looks for a secret, or one half of
// it, as it is and behind up to four layers of: base64 (both alphabets,
// wrapped or not), base32, hexadecimal (also spaced or as \x escapes),
// percent-encoding, gzip, zlib, bzip2, and reversed or rot13 at the end of
// such a chain. It cannot see through encryption, through an encoding of the
// thief's own, or through a split into pieces under half a secret that arrive
// out of order.
package canary

import (
	"bytes"
	"crypto/rand"
	"fmt"
)

// Secret is one planted value with a name for reports.
type Secret struct {
	Name  string
	Value string
}

// AWS is the content of a credentials file, fresh for each run.
type AWS struct {
	KeyID  string // AKIA and 16 characters
	Secret string // 40 characters
}

const (
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	letter = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	urlish = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
)

// NewAWS makes random credentials in the shape of real ones.
func NewAWS() AWS {
	return AWS{KeyID: "AKIA" + random(upper, 16), Secret: random(letter, 40)}
}

// File renders ~/.aws/credentials.
func (a AWS) File() []byte {
	return fmt.Appendf(nil, "[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", a.KeyID, a.Secret)
}

// Secrets lists what must not reach a thief.
func (a AWS) Secrets() []Secret {
	return []Secret{{"aws secret key", a.Secret}, {"aws key id", a.KeyID}}
}

// ModelKey makes a random API key in the shape of an Anthropic one.
func ModelKey() string { return "sk-ant-api03-" + random(urlish, 93) + "AA" }

// Token makes n random letters and digits, for markers and beacons.
func Token(n int) string { return random("abcdefghijklmnopqrstuvwxyz234567", n) }

func random(alphabet string, n int) string {
	// The alphabets have lengths that divide 256, so the remainder is fair.
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] = alphabet[int(b[i])%len(alphabet)]
	}
	return string(b)
}

// Finding is one secret that was found, and how it was dressed: "plain" or
// the layers from the outside in, as "base64, gzip".
type Finding struct {
	Name     string `json:"name"`
	Encoding string `json:"encoding"`
}

// Find returns at most one finding for each secret. Secrets shorter than 16
// bytes are not looked for: half of one proves nothing.
func Find(data []byte, secrets []Secret) []Finding {
	var needles []needle
	for _, s := range secrets {
		if len(s.Value) < 16 {
			continue
		}
		// Half of a random secret cannot appear by chance, and is a theft too.
		half := len(s.Value) / 2
		needles = append(needles, needle{s.Name, []byte(s.Value[:half]), []byte(s.Value[half:])})
	}
	if len(needles) == 0 {
		return nil
	}
	found := map[string]string{}
	search(data, func(b []byte, layers string) bool {
		for _, n := range needles {
			if _, ok := found[n.name]; !ok && n.in(b) {
				if layers == "" {
					layers = "plain"
				}
				found[n.name] = layers
			}
		}
		return len(found) < len(needles)
	})
	var out []Finding
	for _, n := range needles {
		if e, ok := found[n.name]; ok {
			out = append(out, Finding{n.name, e})
		}
	}
	return out
}

type needle struct {
	name       string
	head, tail []byte
}

func (n needle) in(b []byte) bool { return bytes.Contains(b, n.head) || bytes.Contains(b, n.tail) }
