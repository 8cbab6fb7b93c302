package trace

import (
	"encoding/binary"
	"strings"
	"testing"
)

func message(kind uint16, lost uint32, body ...byte) []byte {
	h := make([]byte, headerSize)
	binary.NativeEndian.PutUint16(h, headerSize)
	binary.NativeEndian.PutUint16(h[2:], kind)
	binary.NativeEndian.PutUint32(h[4:], lost)
	return append(h, body...)
}

func text(n byte, s string) []byte { return append([]byte{n<<3 | 2, byte(len(s))}, s...) }

func number(n, v byte) []byte { return []byte{n << 3, v} }

func join(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func messages() map[string][]byte {
	context := text(1, string(join(number(4, 7), text(8, "/work"), text(9, "sh"))))
	return map[string][]byte{
		"exec":   message(typeExec, 3, join(context, text(2, "/usr/bin/git"), text(3, "git"), text(3, "status"), text(4, "TOKEN=x"))...),
		"exit":   message(typeExit, 0, join(context, number(2, 9))...),
		"fork":   message(typeClone, 0, join(context, number(3, 12), number(4, 12))...),
		"thread": message(typeClone, 0, join(context, number(3, 12), number(4, 7))...),
		"open":   message(typeOpen, 0, join(context, text(2, string(number(1, 3))), text(5, "/else"), text(6, "f"), number(7, 0x41))...),
		"full":   message(typeCall, 0, join(text(2, string(number(2, 11))), number(4, 56))...),
		"made":   message(typeCall, 0, join(text(2, string(number(1, 12))), number(4, 56))...),
		"failed": message(typeOpen, 0, join(context, text(2, string(number(2, 13))), text(6, "/f"))...),
		"other":  message(99, 1, 0xff),
	}
}

func TestRead(t *testing.T) {
	want := map[string]Point{
		"exec":   {Kind: Exec, PID: 7, Name: "sh", Path: "/usr/bin/git", At: "/work", Lost: 3},
		"exit":   {Kind: Exit, PID: 7, Name: "sh", At: "/work", Status: 9},
		"fork":   {Kind: Fork, PID: 7, Name: "sh", At: "/work", Child: 12},
		"thread": {Kind: Other, PID: 7, Name: "sh", At: "/work", Child: 7},
		"open":   {Kind: Open, PID: 7, Name: "sh", Path: "f", At: "/else", Flags: 0x41},
		"failed": {Kind: Open, PID: 7, Name: "sh", Path: "/f", At: "/work", Failed: true},
		"full":   {Kind: Refused},
		"made":   {},
		"other":  {Lost: 1},
	}
	for name, m := range messages() {
		got, err := Read(m)
		if err != nil || got != want[name] {
			t.Errorf("%s: %+v, %v\nwant %+v", name, got, err, want[name])
		}
	}
	for _, bad := range [][]byte{nil, {8, 0, 3, 0}, message(typeExec, 0, 0x0a, 0x7f), message(typeExec, 0, 0x07), message(typeExit, 0, 0x10)} {
		if p, err := Read(bad); err == nil {
			t.Errorf("%x: %+v", bad, p)
		}
	}
}

func TestInit(t *testing.T) {
	with, err := Init("@e", true, false)
	if err != nil || !strings.Contains(string(with), `"syscall/openat/exit"`) || !strings.Contains(string(with), `"endpoint":"@e"`) {
		t.Errorf("%s, %v", with, err)
	}
	if without, _ := Init("@e", false, true); strings.Contains(string(without), "open") || strings.Contains(string(without), "env") || !strings.Contains(string(without), `"syscall/sysno/435/exit"`) {
		t.Errorf("%s", without)
	}
}

// FuzzRead: whatever comes, nothing is made up: all text is in the message.
func FuzzRead(f *testing.F) {
	for _, m := range messages() {
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, m []byte) {
		p, err := Read(m)
		if err != nil {
			return
		}
		for _, s := range []string{p.Name, p.Path, p.At} {
			if !strings.Contains(string(m), s) {
				t.Fatalf("%q is not in %x", s, m)
			}
		}
	})
}
