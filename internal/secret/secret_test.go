package secret

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// Every ordinary way by which a value reaches a log, a file or a screen.
func TestValueIsNeverPrinted(t *testing.T) {
	const word = "hunter2-hunter2"
	v := New([]byte(word))
	holder := struct{ V Value }{v}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb, v, &v, holder)
	}
	fmt.Fprint(&out, v, holder)
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "v", v, "h", holder)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "v", v, "h", holder)
	if b, err := json.Marshal(holder); err == nil {
		t.Errorf("json: %s", b)
	}
	if err := gob.NewEncoder(&bytes.Buffer{}).Encode(holder); err == nil {
		t.Error("gob encodes it")
	}
	hex := fmt.Sprintf("%x", word)
	if s := out.String(); strings.Contains(s, word) || strings.Contains(s, hex) || strings.Contains(s, strings.ToUpper(hex)) {
		t.Errorf("printed: %s", s)
	}
}

func TestWipeReachesEveryCopy(t *testing.T) {
	v := New([]byte("abc"))
	c := v
	v.Wipe()
	if !v.Empty() || string(c.Reveal()) != "\x00\x00\x00" {
		t.Errorf("%q %q", v.Reveal(), c.Reveal())
	}
}

func TestNewCopies(t *testing.T) {
	b := []byte("abc")
	v := New(b)
	b[0] = 'x'
	if !v.Equal([]byte("abc")) || v.Equal([]byte("xbc")) || v.Equal(nil) {
		t.Error("the value changed with its source")
	}
}
