package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// tmux is a terminal emulator with a person at it: a server of the story's own,
// with one pane.
type tmux struct{ socket string }

func (m tmux) run(args ...string) ([]byte, error) {
	cmd := exec.Command("tmux", append([]string{"-f", "/dev/null", "-u", "-S", m.socket}, args...)...)
	// A pane gets its PATH from whoever asks for it, whatever -e says.
	cmd.Env = append(os.Environ(), "TMUX=", "PATH="+filepath.Join(shared, "bin")+":"+os.Getenv("PATH"))
	cmd.WaitDelay = patience
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("tmux %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return out, err
}

// visible returns what the screen shows, wrapped lines joined.
func (m tmux) visible() (string, error) {
	out, err := m.run("capture-pane", "-p", "-J", "-t", "0")
	return string(bytes.TrimRight(out, "\n")), err
}

// screen is a terminal with a person at it:
//
//	screen start COLSxROWS [PROGRAM…]  opens it with an interactive bash, prompt "outer> "
//	screen type TEXT                   types the text and Enter
//	screen keys KEY…                   presses keys (tmux(1)'s names: C-c, Up …)
//	screen expect REGEXP               waits until the screen shows it
//	screen lacks REGEXP                the screen does not show it now
//	screen resize COLSxROWS            as a person with a mouse would
//	screen paste FILE                  pastes, bracketed if the program asked for that
//	screen save FILE                   keeps what is shown
//	screen close                       closes the window
func cmdScreen(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: screen start|type|keys|expect|lacks|resize|paste|save|close …")
	}
	m := tmux{filepath.Join(ts.Getenv("WORK"), "tmux")}
	what, args := args[0], args[1:]
	if want := map[string]int{"type": 1, "expect": 1, "lacks": 1, "resize": 1, "paste": 1, "save": 1}[what]; want > 0 && len(args) != want {
		ts.Fatalf("screen %s needs %d argument", what, want)
	}
	var err error
	switch what {
	case "start":
		err = m.start(ts, args)
	case "type":
		if _, err = m.run("send-keys", "-t", "0", "-l", args[0]); err == nil {
			_, err = m.run("send-keys", "-t", "0", "Enter")
		}
	case "keys":
		_, err = m.run(append([]string{"send-keys", "-t", "0"}, args...)...)
	case "expect":
		m.expect(ts, args[0])
	case "lacks":
		var shown string
		if shown, err = m.visible(); err == nil && regexp.MustCompile("(?m)"+args[0]).MatchString(shown) {
			ts.Fatalf("the screen shows %q:\n%s", args[0], shown)
		}
	case "resize":
		cols, rows := size(ts, args[0])
		_, err = m.run("resize-window", "-t", "0", "-x", cols, "-y", rows)
	case "paste":
		if _, err = m.run("load-buffer", ts.MkAbs(args[0])); err == nil {
			_, err = m.run("paste-buffer", "-p", "-t", "0")
		}
	case "save":
		var shown string
		if shown, err = m.visible(); err == nil {
			err = os.WriteFile(ts.MkAbs(args[0]), []byte(shown+"\n"), 0o644)
		}
	case "close":
		_, err = m.run("kill-pane", "-t", "0")
	default:
		ts.Fatalf("screen %s?", what)
	}
	ts.Check(err)
}

func (m tmux) start(ts *testscript.TestScript, args []string) error {
	if len(args) == 0 {
		return errors.New("screen start needs a size")
	}
	cols, rows := size(ts, args[0])
	program := args[1:]
	if len(program) == 0 {
		program = []string{"bash", "--norc", "--noprofile", "-i"}
	}
	start := []string{"new-session", "-d", "-x", cols, "-y", rows, "-c", ts.Getenv("WS")}
	for _, name := range []string{"HOME", "WORK", "WS", "GIT_CONFIG_NOSYSTEM"} {
		start = append(start, "-e", name+"="+ts.Getenv(name))
	}
	start = append(start, "-e", "PS1=outer> ", "-e", "LC_ALL=C.UTF-8",
		"-e", "HISTFILE=/dev/null", // or a shell that is hung up writes into a home that is gone
		"--")
	if _, err := m.run(append(start, program...)...); err != nil {
		return err
	}
	ts.Defer(func() { m.run("kill-server") }) // fails if the window was closed: it was the last
	if len(args) == 1 {
		m.expect(ts, "^outer> ")
	}
	return nil
}

func (m tmux) expect(ts *testscript.TestScript, pattern string) {
	re := regexp.MustCompile("(?m)" + pattern)
	deadline := time.Now().Add(patience)
	for {
		shown, err := m.visible()
		ts.Check(err)
		if re.MatchString(shown) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("screen expect %q: not within %v; it shows\n%s", pattern, patience, shown)
		}
		time.Sleep(30 * time.Millisecond)
	}
}

func size(ts *testscript.TestScript, s string) (cols, rows string) {
	cols, rows, ok := strings.Cut(s, "x")
	if !ok {
		ts.Fatalf("%q is no COLSxROWS", s)
	}
	return cols, rows
}
