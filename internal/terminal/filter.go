package terminal

// filter passes the sandbox's output to the user's terminal unchanged, apart
// from the few sequences by which output reaches out of the screen (TTY-04):
//
//   - OSC 52, OSC 5522, OSC 1337;Copy…: write or read the clipboard
//   - CSI 20 t, CSI 21 t, ENQ, DECRQSS (DCS $ q), OSC 50: make the terminal type
//     back text that the sandbox chose
//   - DECRQCRA (CSI … * y): lets the sandbox read what stands on the screen
//   - DCS tmux;… and DCS @kitty-cmd…: hand sequences or commands to the
//     multiplexer or the terminal program behind the filter's back
//
// It also notes which modes are on, so that they can be switched off at the end.
//
// It is a state machine in the manner of the DEC parser (vt100.net/emu), in 7-bit,
// 8-bit and UTF-8 spellings of C1. At most maxHeld bytes are kept between calls.
// A sequence that is cut off by another is dropped, never passed in part:
// otherwise two harmless halves could become a harmful whole. Text in a
// single-byte encoding whose terminal reads C1 inside what is valid UTF-8 is
// out of scope; no terminal of today does.
type filter struct {
	clipboard bool // let OSC 52 and its kin through

	state state
	kind  byte // in a string: ']' OSC, 'P' DCS, '_' others
	open  bool // the terminal is in a string whose beginning was passed
	held  []byte
	num   int  // the number of an OSC; -1 before its first digit
	last  byte // the previous byte of a passed string

	c2   bool // a 0xC2 is held by the lexer
	need int  // UTF-8 continuation bytes to come

	modes   modes
	queries uint64 // how many sequences passed that make the terminal answer
}

type state uint8

const (
	ground state = iota
	escape
	csi
	csiDrop
	oscNumber
	oscITerm
	dcsHead
	passString
	dropString
	passStringEsc
	dropStringEsc
)

const maxHeld = 256

const (
	enq = 0x05
	bel = 0x07
	so  = 0x0e
	si  = 0x0f
	can = 0x18
	sub = 0x1a
	esc = 0x1b
	del = 0x7f

	c1DCS = 0x90
	c1SOS = 0x98
	c1CSI = 0x9b
	c1ST  = 0x9c
	c1OSC = 0x9d
	c1PM  = 0x9e
	c1APC = 0x9f
)

// Append filters src and appends what passes to dst.
func (f *filter) Append(dst, src []byte) []byte {
	for i := 0; i < len(src); i++ {
		if f.state == ground && !f.c2 && f.need == 0 { // most of all output
			run := i
			for run < len(src) && 0x20 <= src[run] && src[run] < del {
				run++
			}
			dst = append(dst, src[i:run]...)
			if i = run; i == len(src) {
				break
			}
		}
		dst = f.lex(dst, src[i])
	}
	return dst
}

// lex tells C1 controls from the continuation bytes of UTF-8.
func (f *filter) lex(dst []byte, b byte) []byte {
	if f.c2 {
		f.c2 = false
		if 0x80 <= b && b <= 0x9f {
			return f.step(dst, b, true, 0xc2, b)
		}
		dst = f.step(dst, 0xc2, false, 0xc2)
		if 0xa0 <= b && b <= 0xbf {
			return f.step(dst, b, false, b)
		}
	}
	if f.need > 0 {
		if 0x80 <= b && b <= 0xbf {
			f.need--
			return f.step(dst, b, false, b)
		}
		f.need = 0
	}
	switch {
	case b < 0x20, b == del:
		return f.step(dst, b, true, b)
	case b < 0x80:
	case b < 0xa0:
		return f.step(dst, b, true, b)
	case b == 0xc2:
		f.c2 = true
		return dst
	case 0xc3 <= b && b < 0xe0:
		f.need = 1
	case 0xe0 <= b && b < 0xf0:
		f.need = 2
	case 0xf0 <= b && b < 0xf5:
		f.need = 3
	}
	return f.step(dst, b, false, b)
}

// step takes one symbol: a control or a byte of text, and how it was spelled.
func (f *filter) step(dst []byte, c byte, control bool, raw ...byte) []byte {
	if control {
		switch {
		case c == enq:
			return dst
		case c == esc:
			return f.stepEscape(dst)
		case c == can || c == sub:
			dropping := f.state == dropString || f.state == dropStringEsc
			f.held, f.state, f.open = f.held[:0], ground, false
			if dropping {
				return dst
			}
			return append(dst, raw...)
		case c >= 0x80:
			return f.stepC1(dst, c, raw)
		}
	}
	switch f.state {
	case ground:
		if c == so || c == si {
			f.modes.shifted = c == so
		}
		return append(dst, raw...)

	case escape:
		if control {
			return f.hold(dst, raw)
		}
		switch {
		case c >= 0x80:
			return append(f.drop(dst), raw...)
		case c < 0x30: // an intermediate byte
			return f.hold(dst, raw)
		case len(f.held) == 1 && (c == '[' || c == ']' || c == 'P' || c == 'X' || c == '^' || c == '_' || c == 'k'):
			return f.begin(dst, c, raw)
		}
		f.modes.escape(f.held[1:], c)
		if c == 'Z' {
			f.queries++
		}
		return f.pass(dst, raw, ground)

	case csi, csiDrop:
		switch {
		case c >= 0x80:
			return append(f.drop(dst), raw...)
		case control || c < 0x40:
			if f.state == csiDrop {
				return dst
			}
			if len(f.held) >= maxHeld {
				f.state = csiDrop
			}
			f.held = append(f.held, raw...)
			return dst
		case f.state == csiDrop || f.refuseCSI(c):
			return f.drop(dst)
		}
		return f.pass(dst, raw, ground)

	case oscNumber:
		return f.stepOSCNumber(dst, c, control, raw)

	case oscITerm:
		if c == bel && control {
			return f.pass(dst, raw, ground)
		}
		if control {
			return f.hold(dst, raw)
		}
		f.held = append(f.held, raw...)
		got := payload(f.held)
		const copyPrefix = "Copy"
		if len(got) < len(copyPrefix) && got == copyPrefix[:len(got)] {
			return f.checkHeld(dst)
		}
		if got == copyPrefix && !f.clipboard {
			return f.dropTheString(dst)
		}
		return f.pass(dst, nil, passString)

	case dcsHead:
		if control {
			return f.hold(dst, raw)
		}
		if c < 0x40 {
			return f.hold(dst, raw)
		}
		f.held = append(f.held, raw...)
		intermediates := between(f.held, 0x20, 0x2f)
		switch {
		case intermediates == "$" && c == 'q', c == 't', c == '@', c >= 0x80:
			return f.dropTheString(dst)
		case intermediates == "+" && c == 'q':
			f.queries++
		}
		return f.pass(dst, nil, passString)

	case passString:
		if c == bel && control && f.kind == ']' {
			f.state, f.open = ground, false
		}
		if c == '?' && f.last == ';' && f.kind == ']' {
			f.queries++
		}
		f.last = c
		return append(dst, raw...)

	case dropString:
		if c == bel && control && f.kind == ']' {
			return f.drop(dst)
		}
		return dst

	case passStringEsc:
		if c == '\\' && !control {
			f.open = false
			return f.pass(dst, raw, ground)
		}
		f.state = escape // the string is cut off: the escape begins another sequence
		return f.step(dst, c, control, raw...)

	case dropStringEsc:
		if c == '\\' && !control {
			return f.drop(dst)
		}
		f.state = escape
		return f.step(dst, c, control, raw...)
	}
	panic("terminal: unknown state")
}

// stepEscape begins a sequence, and cuts off the one before it.
func (f *filter) stepEscape(dst []byte) []byte {
	switch f.state {
	case passString:
		f.state = passStringEsc
	case dropString:
		f.state = dropStringEsc
	default:
		f.state = escape
	}
	f.held = append(f.held[:0], esc)
	return dst
}

// stepC1 handles 8-bit controls, which mean ESC and a letter.
func (f *filter) stepC1(dst []byte, c byte, raw []byte) []byte {
	wasPassing := f.state == passString
	wasDropping := f.state == dropString
	f.held = append(f.held[:0], raw...)
	switch c {
	case c1CSI, c1OSC, c1DCS, c1SOS, c1PM, c1APC:
		f.held = f.held[:0]
		return f.begin(dst, c-0x40, raw)
	case c1ST:
		if wasDropping {
			return f.drop(dst)
		}
		if wasPassing {
			f.open = false
		}
	case 0x9a: // DECID
		f.queries++
	}
	return f.pass(dst, nil, ground)
}

// begin enters the sequence whose introducer ends with c.
func (f *filter) begin(dst []byte, c byte, raw []byte) []byte {
	f.held = append(f.held, raw...)
	f.num, f.last, f.kind = -1, 0, c
	switch c {
	case '[':
		f.state = csi
	case ']':
		f.state = oscNumber
	case 'P':
		f.state = dcsHead
	default:
		f.kind = '_'
		return f.pass(dst, nil, passString)
	}
	return dst
}

func (f *filter) stepOSCNumber(dst []byte, c byte, control bool, raw []byte) []byte {
	switch {
	case c == bel && control:
		return f.pass(dst, raw, ground)
	case control:
		return f.hold(dst, raw)
	case '0' <= c && c <= '9':
		f.num = min(max(f.num, 0)*10+int(c-'0'), 1<<20)
		return f.hold(dst, raw)
	case c == ';' && f.num == 1337:
		f.state = oscITerm
		return f.hold(dst, raw)
	case c == ';' && (f.num == 50 || !f.clipboard && (f.num == 52 || f.num == 5522)):
		return f.dropTheString(dst)
	case c != ';' && f.num >= 0: // "52x;": terminals disagree on what it means
		return f.dropTheString(dst)
	}
	f.last = c
	return f.pass(dst, raw, passString)
}

// refuseCSI judges a complete sequence, and notes it if it may pass.
func (f *filter) refuseCSI(final byte) bool {
	s := parseCSI(f.held, final)
	first := s.param(0)
	switch {
	case final == 't' && s.prefix == 0 && s.intermediate == "" && (first == 20 || first == 21):
		return true
	case final == 'y' && s.intermediate == "*":
		return true
	}
	switch {
	case (final == 'c' || final == 'n') && s.intermediate == "",
		final == 't' && s.prefix == 0 && 11 <= first && first <= 19,
		final == 'p' && s.intermediate == "$",
		(final == 'u' || final == 'm') && s.prefix == '?',
		final == 'q' && s.prefix == '>',
		final == 'x' || final == 'w':
		f.queries++
	}
	f.modes.csi(s)
	return false
}

func (f *filter) hold(dst, raw []byte) []byte {
	f.held = append(f.held, raw...)
	return f.checkHeld(dst)
}

// checkHeld gives up on a head that no terminal would accept either.
func (f *filter) checkHeld(dst []byte) []byte {
	if len(f.held) <= maxHeld {
		return dst
	}
	if f.state == escape {
		return f.drop(dst)
	}
	return f.dropTheString(dst)
}

func (f *filter) dropTheString(dst []byte) []byte {
	dst = f.drop(dst)
	f.state = dropString
	return dst
}

// drop forgets what is held. If the terminal is still within a string that the
// dropped sequence would have cut off, the string is ended.
func (f *filter) drop(dst []byte) []byte {
	f.held, f.state = f.held[:0], ground
	if f.open {
		f.open = false
		dst = append(dst, esc, '\\')
	}
	return dst
}

func (f *filter) pass(dst, raw []byte, next state) []byte {
	dst = append(dst, f.held...)
	dst = append(dst, raw...)
	f.held, f.state = f.held[:0], next
	f.open = next == passString
	return dst
}

// payload is what stands behind the first ';', without controls.
func payload(held []byte) string {
	var out []byte
	seen := false
	for _, b := range held {
		if seen && b >= 0x20 && b != del {
			out = append(out, b)
		}
		seen = seen || b == ';'
	}
	return string(out)
}

// between returns the bytes of a range.
func between(held []byte, lo, hi byte) string {
	var out []byte
	for _, b := range held {
		if lo <= b && b <= hi {
			out = append(out, b)
		}
	}
	return string(out)
}
