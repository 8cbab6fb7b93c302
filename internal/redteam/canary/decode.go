package canary

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"compress/zlib"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"hash/maphash"
	"io"
	"slices"
)

const (
	maxLayers = 4
	// maxWork bounds the bytes that one search looks at, whatever it is given.
	maxWork = 64 << 20
	// maxInflated bounds what one compressed piece may become.
	maxInflated = 1 << 20
	// Shorter runs cannot hold half of a secret.
	minBase64, minBase32, minHex = 12, 14, 20
)

type blob struct {
	data   []byte
	layers string
	depth  int
}

// search offers data and everything that it decodes to, outermost first,
// until visit returns false.
func search(data []byte, visit func(b []byte, layers string) bool) {
	seed := maphash.MakeSeed()
	seen := map[uint64]bool{}
	queue := []blob{{data: data}}
	work := 0
	for len(queue) > 0 {
		b := queue[0]
		queue = queue[1:]
		h := maphash.Bytes(seed, b.data)
		if len(b.data) == 0 || seen[h] {
			continue
		}
		seen[h] = true
		if work += len(b.data); work > maxWork {
			return
		}
		if !visit(b.data, b.layers) ||
			!visit(reversed(b.data), join(b.layers, "reversed")) ||
			!visit(rot13(b.data), join(b.layers, "rot13")) {
			return
		}
		if b.depth == maxLayers {
			continue
		}
		add := func(layer string, d []byte) {
			queue = append(queue, blob{d, join(b.layers, layer), b.depth + 1})
		}
		decodings(b.data, add)
		// Wrapped encodings: the same without white space.
		if s := squeezed(b.data); len(s) != len(b.data) {
			if !visit(s, join(b.layers, "wrapped")) {
				return
			}
			decodings(s, add)
		}
	}
}

func decodings(b []byte, add func(layer string, d []byte)) {
	if d, ok := percent(b); ok {
		add("url", d)
	}
	inflate(b, add)
	for _, run := range runs(b, minHex, isHex) {
		for off := range 2 {
			r := run[off:]
			d := make([]byte, len(r)/2)
			if _, err := hex.Decode(d, r[:len(r)/2*2]); err == nil {
				add("hex", d)
			}
		}
	}
	for _, run := range runs(b, minBase64, isBase64) {
		std := bytes.Map(func(c rune) rune {
			switch c {
			case '-':
				return '+'
			case '_':
				return '/'
			}
			return c
		}, run)
		for off := range 4 {
			r := std[off:]
			if len(r)%4 == 1 {
				r = r[:len(r)-1]
			}
			d := make([]byte, base64.RawStdEncoding.DecodedLen(len(r)))
			if n, err := base64.RawStdEncoding.Decode(d, r); err == nil {
				add("base64", d[:n])
			}
		}
	}
	for _, run := range runs(b, minBase32, isBase32) {
		up := bytes.ToUpper(run)
		for off := range 8 {
			r := up[off:]
			r = r[:len(r)/8*8]
			d := make([]byte, base32.StdEncoding.DecodedLen(len(r)))
			if n, err := base32.StdEncoding.Decode(d, r); err == nil {
				add("base32", d[:n])
			}
		}
	}
}

// inflate tries every place that looks like the start of a compressed piece,
// at most 64 of them.
func inflate(b []byte, add func(layer string, d []byte)) {
	tries := 0
	for i := 0; i+4 < len(b) && tries < 64; i++ {
		var r io.Reader
		var err error
		layer := ""
		switch {
		case b[i] == 0x1f && b[i+1] == 0x8b && b[i+2] == 8:
			layer = "gzip"
			r, err = gzip.NewReader(bytes.NewReader(b[i:]))
		case b[i] == 'B' && b[i+1] == 'Z' && b[i+2] == 'h':
			layer = "bzip2"
			r = bzip2.NewReader(bytes.NewReader(b[i:]))
		case b[i] == 0x78 && (b[i+1] == 0x01 || b[i+1] == 0x5e || b[i+1] == 0x9c || b[i+1] == 0xda):
			layer = "zlib"
			r, err = zlib.NewReader(bytes.NewReader(b[i:]))
		default:
			continue
		}
		tries++
		if err != nil {
			continue
		}
		// A torn stream still yields what came before the tear.
		if d, _ := io.ReadAll(io.LimitReader(r, maxInflated)); len(d) > 0 {
			add(layer, d)
		}
	}
}

func percent(b []byte) ([]byte, bool) {
	if !bytes.ContainsAny(b, `%\`) {
		return nil, false
	}
	out, changed := make([]byte, 0, len(b)), false
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '%' && i+2 < len(b) && isHex(b[i+1]) && isHex(b[i+2]):
			out, changed = append(out, nibble(b[i+1])<<4|nibble(b[i+2])), true
			i += 2
		case b[i] == '\\' && i+3 < len(b) && b[i+1] == 'x' && isHex(b[i+2]) && isHex(b[i+3]):
			out, changed = append(out, nibble(b[i+2])<<4|nibble(b[i+3])), true
			i += 3
		default:
			out = append(out, b[i])
		}
	}
	return out, changed
}

// runs returns the maximal stretches of at least min bytes that all satisfy in.
func runs(b []byte, min int, in func(byte) bool) [][]byte {
	var out [][]byte
	start := -1
	for i := 0; i <= len(b); i++ {
		if i < len(b) && in(b[i]) {
			if start < 0 {
				start = i
			}
			continue
		}
		if start >= 0 && i-start >= min {
			out = append(out, b[start:i])
		}
		start = -1
	}
	return out
}

func squeezed(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for _, c := range b {
		if c != ' ' && c != '\n' && c != '\r' && c != '\t' {
			out = append(out, c)
		}
	}
	return out
}

func reversed(b []byte) []byte {
	out := slices.Clone(b)
	slices.Reverse(out)
	return out
}

func rot13(b []byte) []byte {
	out := make([]byte, len(b))
	for i, c := range b {
		switch {
		case c >= 'a' && c <= 'z':
			c = 'a' + (c-'a'+13)%26
		case c >= 'A' && c <= 'Z':
			c = 'A' + (c-'A'+13)%26
		}
		out[i] = c
	}
	return out
}

func join(layers, layer string) string {
	if layers == "" {
		return layer
	}
	return layers + ", " + layer
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func isBase64(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '+' || c == '/' || c == '-' || c == '_'
}

func isBase32(c byte) bool {
	return c >= '2' && c <= '7' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func nibble(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}
