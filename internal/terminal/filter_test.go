package terminal

import (
	"bytes"
	"math/rand"
	"regexp"
	"strings"
	"testing"
)

func filtered(s string) string {
	var f filter
	return string(f.Append(nil, []byte(s)))
}

func TestFilterPassesUnchanged(t *testing.T) {
	for _, s := range []string{
		"plain text\r\n\ttab\b\a\v\f",
		"UTF-8: ä € 😀 “quotes” \u00a0 é",
		"\x1b[1;31mred\x1b[0m \x1b[38;2;1;2;3mrgb\x1b[m \x1b[4:3mcurly\x1b[m",
		"\x1b[2J\x1b[H\x1b[10;20H\x1b[K\x1b[?1049h\x1b[?25l\x1b[?2004h",
		"\x1b]0;a title ÄÖ\a\x1b]2;another\x1b\\\x1b]8;;https://example.com\alink\x1b]8;;\a",
		"\x1b]10;?\a\x1b]11;?\x1b\\\x1b[6n\x1b[c\x1b[>c\x1b[>q\x1b[?u",
		"\x1b]133;A\a\x1b]9;4;1;50\a\x1b]777;notify;a;b\a\x1b]1337;File=inline=1:AAAA\a\x1b]1337;SetMark\a\x1b]1337;C\a",
		"\x1bPq#0;2;0;0;0#0~~@@vv\x1b\\", // sixel
		"\x1b_Gf=24,s=1,v=1;AAAA\x1b\\",  // kitty graphics
		"\x1bP+q544e\x1b\\",              // XTGETTCAP
		"\x1b(0lqk\x1b(B\x1b7\x1b8\x1b=\x1b>\x1bM\x1b#8\x1b%G",
		"\x1b[8;24;80t\x1b[14t\x1b[22;0t\x1b[23;0t",
		"\x1b[>1u\x1b[<u\x1b[>4;2m\x1b[2 q\x1b[!p\x1b[1;10r",
		"\u009b31mc1 in UTF-8\u009b0m",
		"latin1 \xe4\xf6\xfc \xc2 \xff\xfe end",
		"\x1b]52\a", // no data: nothing to write
		"\x1b[200~", "\x1b[I",
		"a\x18b\x1ac",
	} {
		if got := filtered(s); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
}

func TestFilterRefuses(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		// the clipboard
		{"a\x1b]52;c;c2VjcmV0\ab", "ab"},
		{"a\x1b]52;c;?\x1b\\b", "ab"},
		{"a\x1b]52;c;" + strings.Repeat("A", 100000) + "\x1b\\b", "ab"},
		{"a\x1b]052;c;x\ab", "ab"},
		{"a\x1b]" + strings.Repeat("0", 1000) + "52;c;x\ab", "ab"},
		{"a\x1b]5\x002;c;x\ab", "ab"},
		{"a\u009d52;c;x\u009cb", "ab"},
		{"a\x9d52;c;x\x9cb", "ab"},
		{"a\x1b]5522;type=write;x\x1b\\b", "ab"},
		{"a\x1b]1337;Copy=:c2VjcmV0\ab", "ab"},
		{"a\x1b]1337;CopyToClipboard=\ab", "ab"},
		// behind a multiplexer's or a terminal's back
		{"a\x1bPtmux;\x1b\x1b]52;c;x\a\x1b\\b", "a\x1b\\b"},
		{"a\x1bPtmux;anything\x1b\\b", "ab"},
		{"a\x1bP\x1b]52;c;x\a\x1b\\b", "a\x1b\\b"},
		{"a\x1bP@kitty-cmd{\"cmd\":\"launch\"}\x1b\\b", "ab"},
		// answers with text of the sandbox's choosing
		{"a\x1b[21tb", "ab"}, {"a\x1b[20tb", "ab"}, {"a\x1b[021tb", "ab"}, {"a\x1b[21;0tb", "ab"},
		{"a\x1b[2\n1tb", "ab"}, {"a\x9b21tb", "ab"}, {"a\u009b21tb", "ab"},
		{"a\x1b[" + strings.Repeat("0", 1000) + "21tb", "ab"},
		{"a\x1bP$qm\x1b\\b", "ab"}, {"a\x1bP1$qm\x1b\\b", "ab"}, {"a\u0090$qm\u009cb", "ab"},
		{"a\x05b", "ab"}, {"\x1b]0;a\x05b\a", "\x1b]0;ab\a"},
		{"a\x1b]50;?\ab", "ab"},
		// the screen
		{"a\x1b[1;1;1;1;1;1*yb", "ab"},
		// halves that would become a whole
		{"\x1b\x1b[21t]52;c;x\a", "]52;c;x\a"},
		{"\x1b[2\x1b[21t1t", "1t"},
		{"\x1b]5\x1b[21t2;c;x\a", "2;c;x\a"},
		{"\x1b\x05]52;c;x\ab", "b"},
		{"\xc2\x1b[21t\x9d52;c;x\ab", "\xc2b"},
		{"\x1b]1337;\x1b[21tCopy=:x\a", "Copy=:x\a"},
		{"\x1b]0;title\x1b[21tshown", "\x1b]0;title\x1b\\shown"},
		{"\x1b[2\x181tb", "\x181tb"},
		{"\x1b]52;c;x\x18b", "b"},
		// never ended
		{"a\x1b]52;c;xxx", "a"},
		{"a\x1b[21", "a"},
	} {
		if got := filtered(c.in); got != c.want {
			t.Errorf("%.80q gave %.80q, want %q", c.in, got, c.want)
		}
	}
	f := filter{clipboard: true}
	if s := "\x1b]52;c;x\a\x1b]5522;x\a\x1b]1337;Copy=:x\a"; string(f.Append(nil, []byte(s))) != s {
		t.Error("the clipboard was asked for and not given")
	}
}

func TestModesAreTakenBack(t *testing.T) {
	for _, c := range []struct{ in, off, again string }{
		{"plain \x1b[31mred\x1b[0m", "", ""},
		{"\x1b[?1049h\x1b[?25l", "\x1b[?1049l\x1b[?25h", "\x1b[?25l\x1b[?1049h"},
		{"\x1b[?1049h\x1b[?25l\x1b[?25h\x1b[?1049l", "", ""},
		{"\x1b[?1000;1006h\x1b[?2004h", "\x1b[?1000l\x1b[?1006l\x1b[?2004l", "\x1b[?2004h\x1b[?1006h\x1b[?1000h"},
		{"\x1b[?2026h", "\x1b[?2026l", "\x1b[?2026h"},
		{"\x1b[?7l", "\x1b[?7h", "\x1b[?7l"},
		{"\u009b?1003h", "\x1b[?1003l", "\x1b[?1003h"},
		{"\x1b[31mred", "\x1b[m", ""},
		{"\x1b=\x1b[4h\x1b[>4;2m\x1b[2;9r\x1b(0\x0e\x1b[5 q", "\x1b>\x1b[4l\x1b[>4;0m\x1b7\x1b[r\x1b8\x1b(B\x0f\x1b[0 q", ""},
		{"\x1b=\x1b[4h\x1b[>4;2m\x1b[2;9r\x1b(0\x1b[5 q\x1b[?1002h\x1bc", "", ""},
		{"\x1b[>1u\x1b[>3u\x1b[<u", "\x1b[<1u\x1b[=0u", ""},
		{"\x1b[>1u\x1b[<u", "", ""},
		{"\x1b[?1049h\x1b[>1u", "\x1b[<1u\x1b[=0u\x1b[?1049l", "\x1b[?1049h"},
		{"\x1b[?12345h\x1b[?h\x1b[h\x1b[?;;h", "", ""},
	} {
		var f filter
		f.Append(nil, []byte(c.in))
		if got := string(f.modes.off()); got != c.off {
			t.Errorf("%q: off %q, want %q", c.in, got, c.off)
		}
		if got := string(f.modes.again()); got != c.again {
			t.Errorf("%q: again %q, want %q", c.in, got, c.again)
		}
		f.Append(nil, f.modes.off())
		if f.modes.private != 0 {
			t.Errorf("%q: what takes the modes back does not", c.in)
		}
	}
}

// dangerous is written apart from the filter, for 7-bit spellings.
var dangerous = regexp.MustCompile(`\x1b\]0*(52|5522|50);|\x1b\[0*2[01](;[0-9;]*)?t|\x1b\]0*1337;Copy|\x1bP[0-9;]*\$q|\x1bPtmux;|\x1bP@kitty-cmd|\x05|\x1b\[[0-9;]*\*y`)

func checkFilter(t *testing.T, data []byte, cuts int64) {
	var whole filter
	out := whole.Append(nil, data)
	if m := dangerous.Find(out); m != nil {
		t.Fatalf("%q passed in %q", m, out)
	}
	if len(whole.held) > maxHeld+8 {
		t.Fatalf("%d bytes held", len(whole.held))
	}
	if len(out) > 2*len(data)+2 {
		t.Fatalf("%d bytes became %d", len(data), len(out))
	}
	var again filter
	twice := again.Append(nil, out)
	twice = append(twice, again.held...) // waits for what comes next
	if again.c2 {
		twice = append(twice, 0xc2)
	}
	if !bytes.Equal(twice, out) {
		t.Fatalf("%q: passed %q, which a second filter changes to %q", data, out, twice)
	}
	var pieces filter
	var got []byte
	rng := rand.New(rand.NewSource(cuts))
	for rest := data; len(rest) > 0; {
		n := 1 + rng.Intn(min(len(rest), 7))
		got = pieces.Append(got, rest[:n])
		rest = rest[n:]
	}
	if !bytes.Equal(got, out) {
		t.Fatalf("%q: in pieces %q, whole %q", data, got, out)
	}
	if whole.modes != pieces.modes {
		t.Fatalf("%q: modes differ", data)
	}
	var m filter
	m.Append(nil, data)
	off := m.modes.off()
	var clean filter
	clean.modes = m.modes
	clean.Append(nil, off)
	if clean.modes.private != 0 {
		t.Fatalf("%q: %q leaves modes on", data, off)
	}
	if dangerous.Match(off) {
		t.Fatalf("off is %q", off)
	}
}

var seeds = []string{
	"text", "\x1b]52;c;x\a", "\x1b]0;t\x1b\\", "\x1b[21t", "\x1b[?1049h\x1b[?25l", "\x1bPtmux;\x1b\x1b]52;c;x\a\x1b\\",
	"\xc2\x9d52;c;x\xc2\x9c", "\xe2\x80\x9d", "\x1b\x1b[21t]52;c;x\a", "\x1b_G\x1b\\", "\x1b]1337;Copy=x\a", "\x05\x18\x1a",
	"\xc2\x1b[21t\x9b21t", "\x1b]0;x\xe2\x9c\x85y\a", "\x1b[>1u\x1b[<9u\x1b[=1u", "\x1bP$qm\x1b\\", "\x1b[1;2*y",
}

func FuzzFilter(f *testing.F) {
	for i, s := range seeds {
		f.Add([]byte(s), int64(i))
	}
	f.Fuzz(checkFilter)
}

// TestFilterOnMixtures runs on every machine what fuzzing looks for longer:
// random mixtures of the pieces that sequences are made of.
func TestFilterOnMixtures(t *testing.T) {
	pieces := append([]string{"\x1b", "[", "]", "P", "\\", "\x07", "\x9c", "\x9b", "\x9d", "\x90", "\xc2", "\xe2", "5", "2", "52;", "21t",
		"0;", "1337;", "Copy", "tmux;", "$q", "*y", "\x18", "\x05", "x", "\n", "?", "h", "l", "1049", "u", ">"}, seeds...)
	rng := rand.New(rand.NewSource(7))
	for i := range 20000 {
		var b bytes.Buffer
		for range 1 + rng.Intn(12) {
			b.WriteString(pieces[rng.Intn(len(pieces))])
		}
		checkFilter(t, b.Bytes(), int64(i))
	}
}

func BenchmarkFilter(b *testing.B) {
	for name, data := range map[string][]byte{
		"text": bytes.Repeat([]byte("a line of ordinary program output, not too long\r\n"), 1000),
		"tui":  bytes.Repeat([]byte("\x1b[12;3H\x1b[38;5;12m│ item ✓\x1b[0m\x1b[K"), 1000),
	} {
		b.Run(name, func(b *testing.B) {
			var f filter
			dst := make([]byte, 0, 2*len(data))
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				dst = f.Append(dst[:0], data)
			}
		})
	}
}
