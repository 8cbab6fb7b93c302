// Package terminal relays between the user's standard streams and a command in
// a sandbox, so that the command behaves as it does outside: full-screen
// programs, job control, resizing, pasting, pipes, no terminal at all.
//
// It runs in the controller. Plan looks at the three streams and says what the
// sandbox gets (Stdio, Terminal, Size); Run carries the bytes until the command
// ends and returns its exit code. The sandbox has a pseudo-terminal of its own
// and never a descriptor of the user's: nothing can be typed into the user's
// terminal from inside (TTY-01), and no key that the user types to anyone else
// can be read there (TTY-05). While the relay is in the background it neither
// reads nor changes the user's terminal.
//
// What is handed in as it is: anonymous pipes and /dev/null. Everything else is
// carried through a pipe of ours, a regular file opened for reading too: its
// owner could reopen a read-only descriptor for writing through /proc/self/fd,
// or change its mode with fchmod, past every mount and past Landlock. The
// position in such a file is moved back at the end to what was consumed, so
// that "(bulkhead run -- CMD; cat) <file" goes on where CMD stopped.
//
// Output (TTY-04) is passed as it is, apart from the few sequences listed at
// filter, which reach out of the screen. A terminal's answers to queries
// (cursor position, colours, device attributes) are keyboard input, and go
// nowhere but into the sandbox; those that a query shortly before the end may
// still bring are thrown away with the rest of the unread input. Modes that the
// command left on are switched off at the end and while it is stopped. Known
// gaps: titles, links (OSC 8) and notifications may say what the sandbox likes,
// and an answer that takes longer than a tenth of a second after the end can
// land in the shell's line as numbers or colours, never as text of the
// sandbox's choosing.
//
// When the user's terminal is used raw: at once if standard input and output
// are both terminals. In a pipeline (only one of them is) the terminal belongs
// to its other programs too, so it is left alone until the program inside
// switches its own terminal to reading keys; until then lines are read if
// standard input is the terminal, and only while no pager has it.
//
// Linux only; elsewhere Plan fails.
package terminal

import (
	"errors"
	"os"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
)

// ErrHungUp is the error of a run whose terminal was closed and whose command
// did not end by that. Whoever started it is to end it: nobody can reach it any
// more.
var ErrHungUp = errors.New("the terminal was closed")

// Process is what Run needs of a command in a sandbox; sandbox.Process has it.
type Process interface {
	// Terminal is the controlling end of the command's pseudo-terminal, nil
	// without one. Run closes it.
	Terminal() *os.File
	// Line is nil if Terminal is a pseudo-terminal, otherwise for the settings of
	// the one behind it.
	Line() sandbox.Line
	// Wait returns the exit code, or an error if the sandbox died.
	Wait() (int, error)
	// Signal sends a signal to the command's process group.
	Signal(os.Signal) error
	// Stopped delivers a value each time the foreground job stopped.
	Stopped() <-chan struct{}
}

// Options of a run. The zero value is the safe one.
type Options struct {
	// Clipboard lets the sandbox write and read the user's clipboard.
	Clipboard bool
	// Moved is told of output that was carried, from any goroutine; nil: nobody.
	Moved func()
}
