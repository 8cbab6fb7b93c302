package canary

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func zl(b []byte) []byte {
	var out bytes.Buffer
	w := zlib.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func wrap(s string, n int, sep string) string {
	var out []string
	for len(s) > n {
		out, s = append(out, s[:n]), s[n:]
	}
	return strings.Join(append(out, s), sep)
}

// post is what a thief's listener sees: a request line and headers before the
// body, so that no encoding starts at a convenient offset.
func post(body string) []byte {
	return []byte("POST /diag HTTP/1.1\r\nHost: collector.example\r\nUser-Agent: curl/7.88.1\r\nContent-Length: 99\r\n\r\n" + body)
}

func TestFindSeesEveryEncodingAThiefWouldUse(t *testing.T) {
	a := NewAWS()
	f := a.File()
	b64 := base64.StdEncoding.EncodeToString
	for name, tc := range map[string]struct {
		body string
		want string
	}{
		"plain":              {string(f), "plain"},
		"base64":             {b64(f), "base64"},
		"base64 wrapped":     {wrap(b64(f), 76, "\n"), "base64"},
		"base64 url":         {base64.RawURLEncoding.EncodeToString(f), "base64"},
		"base64 in a word":   {"data=x" + b64(f), "base64"},
		"base64 in json":     {`{"d":"` + b64(f) + `"}`, "base64"},
		"base64, url":        {url.QueryEscape(b64(f)), "base64"},
		"base64 twice":       {b64([]byte(b64(f))), "base64, base64"},
		"hex":                {hex.EncodeToString(f), "hex"},
		"hex upper":          {strings.ToUpper(hex.EncodeToString(f)), "hex"},
		"hex spaced":         {wrap(hex.EncodeToString(f), 2, " "), "hex"},
		"hex odd":            {"a" + hex.EncodeToString(f), "hex"},
		"backslash x":        {`\x` + wrap(hex.EncodeToString(f), 2, `\x`), "url"},
		"url":                {"raw=" + url.QueryEscape(a.Secret), ""},
		"url all":            {"%" + wrap(hex.EncodeToString(f), 2, "%"), "url"},
		"gzip":               {string(gz(f)), "gzip"},
		"gzip base64":        {b64(gz(f)), "base64, gzip"},
		"gzip base64 url":    {url.QueryEscape(b64(gz(f))), ""},
		"zlib hex":           {hex.EncodeToString(zl(f)), "hex, zlib"},
		"base32":             {base32.StdEncoding.EncodeToString(f), "base32"},
		"base32 dns labels":  {wrap(strings.ToLower(base32.StdEncoding.EncodeToString(f)), 60, "\n"), "base32"},
		"reversed":           {string(reversed(f)), "reversed"},
		"rot13":              {string(rot13(f)), "rot13"},
		"base64 of reversed": {b64(reversed(f)), "base64, reversed"},
		"half of it":         {a.Secret[:20], "plain"},
		"tar-like":           {"credentials\x00\x00\x00" + string(f) + "\x00\x00", "plain"},
	} {
		t.Run(name, func(t *testing.T) {
			got := Find(post(tc.body), a.Secrets())
			if len(got) == 0 || got[0].Name != "aws secret key" {
				t.Fatalf("not found: %v in %.200q", got, tc.body)
			}
			if tc.want != "" && got[0].Encoding != tc.want {
				t.Errorf("encoding %q, want %q", got[0].Encoding, tc.want)
			}
		})
	}
}

func TestFindAccusesNobodyFalsely(t *testing.T) {
	a, other := NewAWS(), NewAWS()
	for _, body := range []string{
		"", "beacon=abc", string(other.File()), base64.StdEncoding.EncodeToString(other.File()),
		a.KeyID[:4], a.Secret[:12],
		strings.Repeat("A", 5000), strings.Repeat("%41", 1000),
	} {
		if got := Find(post(body), a.Secrets()); len(got) > 0 {
			t.Errorf("%.80q: %v", body, got)
		}
	}
	if got := Find([]byte("short"), []Secret{{"x", "short"}, {"empty", ""}}); got != nil {
		t.Errorf("a short secret was looked for: %v", got)
	}
}

func TestShapes(t *testing.T) {
	a := NewAWS()
	if !regexp.MustCompile(`^AKIA[A-Z2-7]{16}$`).MatchString(a.KeyID) || !regexp.MustCompile(`^[A-Za-z0-9+/]{40}$`).MatchString(a.Secret) {
		t.Errorf("%+v", a)
	}
	if k := ModelKey(); !regexp.MustCompile(`^sk-ant-api03-[A-Za-z0-9_-]{93}AA$`).MatchString(k) {
		t.Errorf("%s", k)
	}
	if NewAWS() == a {
		t.Error("credentials repeat")
	}
}

func TestABombEndsSoon(t *testing.T) {
	bomb := gz(bytes.Repeat([]byte{0}, 64<<20))
	Find(bytes.Repeat(bomb, 4), NewAWS().Secrets())
}

func FuzzFind(f *testing.F) {
	a := AWS{KeyID: "AKIAABCDEFGHIJKLMNOP", Secret: "0123456789abcdefghijABCDEFGHIJ0123456789"}
	f.Add([]byte("x"), uint8(0))
	f.Add(gz(a.File()), uint8(3))
	f.Add([]byte("%4%41%%\\x4\\x41"), uint8(7))
	f.Add([]byte("BZh91AY&SY\x00"), uint8(9))
	f.Fuzz(func(t *testing.T, noise []byte, how uint8) {
		if len(noise) > 4096 {
			return
		}
		// Whatever stands around it, an encoded secret is found.
		var dressed string
		switch how % 4 {
		case 0:
			dressed = string(a.File())
		case 1:
			dressed = hex.EncodeToString(a.File())
		case 2:
			dressed = base64.StdEncoding.EncodeToString(a.File())
		case 3:
			dressed = base64.StdEncoding.EncodeToString(gz(a.File()))
		}
		all := fmt.Appendf(nil, "%s\x00%s\x00%s", noise, dressed, noise)
		if len(Find(all, a.Secrets())) == 0 {
			t.Fatalf("missed %q in %q", dressed, all)
		}
	})
}
