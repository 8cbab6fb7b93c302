package terminal

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
)

// pseudo is the sandbox's pseudo-terminal: its own controlling end, or a socket
// that leads to it with its settings aside.
type pseudo struct {
	*os.File
	line sandbox.Line
}

func (p *pseudo) resize(rows, cols uint16) {
	if p.line != nil {
		_ = p.line.Resize(rows, cols)
		return
	}
	control(p.File, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
}

func (p *pseudo) termios() (*unix.Termios, error) {
	if p.line == nil {
		return termiosOf(p.File)
	}
	m, err := p.line.Modes()
	return &unix.Termios{Iflag: m.Iflag, Oflag: m.Oflag, Cflag: m.Cflag, Lflag: m.Lflag, Cc: m.Cc}, err
}

func (p *pseudo) setTermios(t *unix.Termios) error {
	if p.line == nil {
		return control(p.File, func(fd int) error { return unix.IoctlSetTermios(fd, unix.TCSETS, t) })
	}
	return p.line.SetModes(sandbox.Modes{Iflag: t.Iflag, Oflag: t.Oflag, Cflag: t.Cflag, Lflag: t.Lflag, Cc: t.Cc})
}
