package terminal

import "fmt"

// modes notes what a stream switched on that would disturb the user's shell
// afterwards. Its zero value is a fresh terminal.
type modes struct {
	private   uint32 // one bit per row of privateModes that differs from normal
	kitty     int    // keyboard modes pushed (CSI > … u)
	kittyAlt  int    // the same, on the alternate screen, which has its own stack
	modifiers bool   // XTMODKEYS (CSI > … m)
	keypad    bool   // application keypad (ESC =)
	insert    bool   // IRM (CSI 4 h)
	scroll    bool   // a scroll region (CSI … r)
	charset   bool   // another character set in G0 (ESC ( 0)
	shifted   bool   // G1 is in use (SO)
	style     bool   // a cursor shape (CSI … SP q)
	colour    bool   // a rendition other than the default (CSI … m)
}

// privateModes are those of DECSET that matter, in the order in which they are
// taken back: updates held back first, the alternate screen late, the cursor
// last. Sources: xterm's ctlseqs, and the specifications of modes 2004, 2026,
// 2031 (colour scheme reports) and 2048 (size reports).
var privateModes = [...]struct {
	number   int
	normally bool
	alt      bool
}{
	{number: 2026},
	{number: 1}, {number: 5}, {number: 6}, {number: 66},
	{number: 9}, {number: 1000}, {number: 1001}, {number: 1002}, {number: 1003}, {number: 1004},
	{number: 1005}, {number: 1006}, {number: 1015}, {number: 1016},
	{number: 2004}, {number: 2031}, {number: 2048},
	{number: 7, normally: true},
	{number: 47, alt: true}, {number: 1047, alt: true}, {number: 1049, alt: true},
	{number: 25, normally: true},
}

func (m *modes) inAlt() bool {
	for i, p := range privateModes {
		if p.alt && m.private&(1<<i) != 0 {
			return true
		}
	}
	return false
}

// sequence is a parsed CSI.
type sequence struct {
	prefix       byte // one of < = > ?, or 0
	params       []int
	intermediate string
	final        byte
}

func (s sequence) param(i int) int {
	if i < len(s.params) {
		return s.params[i]
	}
	return 0
}

// parseCSI reads a complete sequence without its final byte. Controls within
// it are skipped, as terminals carry them out and go on.
func parseCSI(held []byte, final byte) sequence {
	s := sequence{final: final, params: []int{0}}
	begun := false
	for _, b := range held {
		switch {
		case !begun:
			begun = b == '[' || b == c1CSI
		case '<' <= b && b <= '?':
			s.prefix = b
		case '0' <= b && b <= '9':
			n := &s.params[len(s.params)-1]
			*n = min(*n*10+int(b-'0'), 1<<20)
		case b == ';' || b == ':':
			s.params = append(s.params, 0)
		case 0x20 <= b && b <= 0x2f:
			s.intermediate += string(rune(b))
		}
	}
	return s
}

// maxKitty is a bound on what is popped; terminals keep fewer.
const maxKitty = 64

func (m *modes) csi(s sequence) {
	switch {
	case s.prefix == '?' && (s.final == 'h' || s.final == 'l') && s.intermediate == "":
		for i, p := range privateModes {
			for _, n := range s.params {
				if n != p.number {
					continue
				}
				if (s.final == 'h') != p.normally {
					m.private |= 1 << i
				} else {
					m.private &^= 1 << i
				}
			}
		}
	case s.final == 'u' && (s.prefix == '>' || s.prefix == '=' || s.prefix == '<'):
		stack := &m.kitty
		if m.inAlt() {
			stack = &m.kittyAlt
		}
		switch s.prefix {
		case '<':
			*stack = max(0, *stack-max(1, s.param(0)))
		case '>':
			*stack = min(*stack+1, maxKitty)
		case '=':
			*stack = max(*stack, 1)
		}
	case s.final == 'm' && s.prefix == '>':
		m.modifiers = len(s.params) > 1 && s.params[1] != 0
	case s.final == 'm' && s.prefix == 0 && s.intermediate == "":
		m.colour = len(s.params) > 1 || s.params[0] != 0
	case s.final == 'r' && s.prefix == 0 && s.intermediate == "":
		m.scroll = s.param(0) != 0 || s.param(1) != 0
	case (s.final == 'h' || s.final == 'l') && s.prefix == 0 && s.intermediate == "":
		for _, n := range s.params {
			if n == 4 {
				m.insert = s.final == 'h'
			}
		}
	case s.final == 'q' && s.intermediate == " ":
		m.style = s.param(0) != 0
	}
}

func (m *modes) escape(intermediate []byte, final byte) {
	switch {
	case len(intermediate) == 0:
		switch final {
		case 'c': // a full reset
			*m = modes{}
		case '=':
			m.keypad = true
		case '>':
			m.keypad = false
		}
	case intermediate[0] == '(':
		m.charset = final != 'B'
	}
}

// off returns what takes everything back, nothing for a clean terminal.
func (m *modes) off() []byte {
	var out []byte
	put := func(on bool, s string) {
		if on {
			out = append(out, s...)
		}
	}
	popped := func(n int) {
		if n > 0 {
			// "=" may have set the bottom entry, which popping leaves.
			out = fmt.Appendf(out, "\x1b[<%du\x1b[=0u", n)
		}
	}
	put(m.keypad, "\x1b>")
	put(m.insert, "\x1b[4l")
	put(m.modifiers, "\x1b[>4;0m")
	put(m.scroll, "\x1b7\x1b[r\x1b8") // resetting the region moves the cursor
	put(m.charset, "\x1b(B")
	put(m.shifted, "\x0f")
	put(m.colour, "\x1b[m")
	put(m.style, "\x1b[0 q")
	if m.inAlt() {
		popped(m.kittyAlt)
	}
	for i, p := range privateModes {
		if m.private&(1<<i) != 0 {
			out = fmt.Appendf(out, "\x1b[?%d%c", p.number, letter(p.normally))
		}
	}
	popped(m.kitty)
	return out
}

// again returns what switches the private modes back on after a stop.
func (m *modes) again() []byte {
	var out []byte
	for i := len(privateModes) - 1; i >= 0; i-- {
		if p := privateModes[i]; m.private&(1<<i) != 0 {
			out = fmt.Appendf(out, "\x1b[?%d%c", p.number, letter(!p.normally))
		}
	}
	return out
}

func letter(on bool) rune {
	if on {
		return 'h'
	}
	return 'l'
}
