package terminal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// console is a user at a terminal: a pseudo-terminal with a program in it.
type console struct {
	t    *testing.T
	pty  *os.File
	cmd  *exec.Cmd
	dir  string
	mu   sync.Mutex
	all  []byte
	seen int
	gone bool
}

// openConsole starts an interactive bash with "run" on its PATH.
func openConsole(t *testing.T) *console {
	t.Helper()
	lookFor(t, "bash", "job control under an interactive shell")
	dir := programs(t)
	cmd := exec.Command("bash", "--norc", "--noprofile", "--noediting", "-i")
	cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "PS1=", "PS2=", "TERM=xterm", "HOME=" + dir, "LC_ALL=C.UTF-8"}
	cmd.Dir = dir
	c := start(t, cmd, &pty.Winsize{Rows: 30, Cols: 100})
	c.dir = dir
	c.send("stty -echo; PS1='<PS''1>'\n")
	c.expect("<PS1>")
	return c
}

func start(t *testing.T, cmd *exec.Cmd, size *pty.Winsize) *console {
	t.Helper()
	blocking, err := pty.StartWithSize(cmd, size)
	if err != nil {
		t.Fatal(err)
	}
	f, err := duplicate(blocking) // one that Close really closes, while it is read
	if err != nil {
		t.Fatal(err)
	}
	blocking.Close()
	c := &console{t: t, pty: f, cmd: cmd}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			n, err := f.Read(buf)
			c.mu.Lock()
			c.all = append(c.all, buf[:n]...)
			c.gone = err != nil
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		f.Close() // hangs up what runs there
		exited := make(chan struct{})
		go func() { cmd.Wait(); close(exited) }()
		select {
		case <-exited:
		case <-time.After(5 * time.Second):
			cmd.Process.Kill()
		}
		<-done
	})
	return c
}

func (c *console) send(s string) {
	c.t.Helper()
	c.pty.SetWriteDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.pty.WriteString(s); err != nil {
		c.t.Fatalf("sending %.20q: %v", s, err)
	}
}

// expect waits for s and returns what came before it.
func (c *console) expect(s string) string {
	c.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		c.mu.Lock()
		rest := c.all[c.seen:]
		i := bytes.Index(rest, []byte(s))
		if i >= 0 {
			c.seen += i + len(s)
			c.mu.Unlock()
			return string(rest[:i])
		}
		tail := string(rest[max(0, len(rest)-400):])
		gone := c.gone
		c.mu.Unlock()
		if gone || time.Now().After(deadline) {
			c.t.Fatalf("waiting for %q (gone: %v), have …%q\n%s", s, gone, tail, c.processes())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// processes are what the shell has started, with their groups, states and signals
// (SigPnd, ShdPnd, SigBlk, SigIgn, SigCgt).
func (c *console) processes() string {
	out, err := exec.Command("ps", "-eo", "pid,ppid,pgid,sid,tpgid,stat,wchan:20,pending,blocked,ignored,caught,args").Output()
	if err != nil {
		return err.Error()
	}
	known := map[string]bool{strconv.Itoa(c.cmd.Process.Pid): true}
	var b strings.Builder
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if f[0] == "PID" || known[f[0]] || known[f[1]] {
			known[f[0]] = true
			b.WriteString(line)
		}
	}
	return b.String()
}

// never checks that s does not appear for a while.
func (c *console) never(s string, d time.Duration) {
	c.t.Helper()
	time.Sleep(d)
	c.mu.Lock()
	defer c.mu.Unlock()
	if bytes.Contains(c.all[c.seen:], []byte(s)) {
		c.t.Fatalf("%q appeared in %q", s, c.all[c.seen:])
	}
}

// mode waits until the terminal is in raw mode, or not.
func (c *console) mode(raw bool) {
	c.t.Helper()
	for range 2500 {
		if m, err := termiosOf(c.pty); err != nil {
			c.t.Fatal(err)
		} else if raw == (m.Lflag&unix.ICANON == 0) {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	c.t.Fatalf("the terminal did not come to raw=%v", raw)
}

// prompt waits for the shell, and that the terminal is as the shell wants it.
func (c *console) prompt() string {
	c.t.Helper()
	out := c.expect("<PS1>")
	m, err := termiosOf(c.pty)
	if err != nil {
		c.t.Fatal(err)
	}
	if m.Lflag&unix.ICANON == 0 || m.Lflag&unix.ISIG == 0 || m.Oflag&unix.OPOST == 0 || m.Iflag&unix.ICRNL == 0 {
		c.t.Errorf("the terminal was not restored: %+v", m)
	}
	return out
}

func TestTerminalInside(t *testing.T) {
	c := openConsole(t)
	c.send("run sh -c 'tty; for i in 0 1 2; do [ -t $i ] && echo tty $i; done; stty size'; tty\n")
	out := c.prompt()
	for _, want := range []string{"tty 0", "tty 1", "tty 2", "30 100"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
	if names := strings.Fields(out); len(names) < 2 || names[0] == names[len(names)-1] {
		t.Errorf("the sandbox has the user's terminal: %q", out)
	}
	c.send("run sh -c 'exit 9'; echo code $?\n")
	c.expect("code 9")
	c.prompt()
	c.send("run no-such-program; echo code $?\n")
	c.expect("code 127")
	c.prompt()
}

func TestResize(t *testing.T) {
	c := openConsole(t)
	c.send("run bash -c 'trap \"stty size\" WINCH; trap exit INT; echo up; while :; do sleep 0.05; done'\n")
	c.expect("up")
	if err := pty.Setsize(c.pty, &pty.Winsize{Rows: 51, Cols: 133}); err != nil {
		t.Fatal(err)
	}
	c.expect("51 133")
	c.send("\x03")
	c.prompt()
}

func TestInterrupt(t *testing.T) {
	c := openConsole(t)
	c.send("run sleep 30; echo code $?\n")
	c.mode(true)
	time.Sleep(50 * time.Millisecond)
	c.send("\x03")
	c.expect("code 130")
	c.prompt()
	c.send("run sleep 30; echo code $?\n")
	c.mode(true)
	time.Sleep(50 * time.Millisecond)
	c.send("\x1c")
	c.expect("code 131")
	c.prompt()
}

func TestEndOfFile(t *testing.T) {
	c := openConsole(t)
	c.send("run cat; echo code $?\n")
	c.mode(true)
	c.send("line\n\x04")
	if out := c.expect("code 0"); !strings.Contains(out, "line\r\nline\r\n") {
		t.Logf("%q", out) // echo was switched off by the console: once is right
		if !strings.Contains(out, "line\r\n") {
			t.Error("the line did not come back")
		}
	}
	c.prompt()
}

func TestJobControl(t *testing.T) {
	c := openConsole(t)
	c.send("run sh -c 'echo up; read a; echo got $a; read b; echo got $b'; echo code $?\n")
	c.expect("up")
	c.mode(true)
	c.send("one\n")
	c.expect("got one")

	c.send("\x1a")
	c.expect("Stopped")
	c.prompt()
	c.send("jobs\n")
	c.expect("Stopped")
	c.prompt()

	if err := pty.Setsize(c.pty, &pty.Winsize{Rows: 20, Cols: 77}); err != nil {
		t.Fatal(err)
	}
	c.send("fg; echo code $?\n")
	c.mode(true)
	c.send("two\n")
	c.expect("got two")
	c.expect("code 0")
	c.prompt()

	// Stopped and continued in the background: it goes on, and leaves keys and
	// modes to the shell. dash would start sleep by vfork(2): a stop in the middle of
	// that leaves the shell waiting for its child, unstopped, on Linux.
	c.send("run bash -c 'echo up; sleep 0.3; for i in 1 2 3 4 5 6 7 8; do sleep 0.1; echo tick; done; stty size; read x; echo got $x'\n")
	c.expect("up")
	c.mode(true)
	c.send("\x1a")
	c.expect("Stopped")
	c.prompt()
	c.send("bg\n")
	c.prompt()
	c.expect("tick")
	c.send("echo shell is here\n")
	c.expect("shell is here")
	c.mode(false)
	c.expect("20 77")
	c.send("fg\n")
	c.mode(true)
	c.send("now\n")
	c.expect("got now")
	c.prompt()
}

func TestStopFromOutside(t *testing.T) {
	c := openConsole(t)
	c.send("run sh -c 'while :; do sleep 0.1; echo beat; done' & sleep 0.5; kill -TSTP $!; sleep 0.5; echo; jobs; echo quiet; sleep 0.5; echo still\n")
	out := c.expect("quiet")
	if !strings.Contains(out, "Stopped") {
		t.Errorf("%q", out)
	}
	if out := c.expect("still"); strings.Contains(out, "beat") {
		t.Errorf("the command went on while its job was stopped: %q", out)
	}
	c.prompt()
	c.send("kill -CONT %1; echo; sleep 0.4; kill %1; wait %1; echo code $?\n")
	out = c.expect("code 143")
	if !strings.Contains(out, "beat") {
		t.Errorf("the command did not go on: %q", out)
	}
}

func TestBackgroundStart(t *testing.T) {
	c := openConsole(t)
	c.send("run sh -c 'sleep 0.2; echo from behind; read x; echo got $x' &\n")
	c.prompt()
	c.expect("from behind")
	c.send("echo mine\n") // must go to the shell
	if out := c.prompt(); !strings.Contains(out, "mine") || strings.Contains(out, "got") {
		t.Errorf("%q", out)
	}
	c.mode(false)
	c.send("fg\n")
	c.mode(true)
	c.send("yours\n")
	c.expect("got yours")
	c.prompt()

	// A full-screen program in the background stops, as outside.
	c.send("run bash -c 'stty raw -echo; echo drawn; read -n 1 x; stty sane; echo got $x' & sleep 0.7; echo; jobs\n")
	out := c.prompt()
	if !strings.Contains(out, "Stopped") {
		out += c.prompt()
	}
	if !strings.Contains(out, "Stopped") {
		t.Errorf("%q", out)
	}
	c.send("fg\n")
	c.mode(true)
	c.send("k")
	c.expect("got k")
	c.prompt()
}

func TestSignalsRestore(t *testing.T) {
	for _, sig := range []string{"TERM", "HUP", "INT", "QUIT"} {
		c := openConsole(t)
		c.send("run sh -c 'printf \"\\033[?1049h\\033[?25l\\033[?2004h\"; echo PID $PPID; sleep 20'; echo code $?\n")
		c.expect("PID ")
		c.mode(true)
		supervisor := strings.TrimSpace(c.expect("\n"))
		stat, err := os.ReadFile("/proc/" + supervisor + "/stat")
		if err != nil {
			t.Fatal(err)
		}
		controller := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+2:]))[1]
		var pid int
		fmt.Sscan(controller, &pid)
		num := map[string]syscall.Signal{"TERM": 15, "HUP": 1, "INT": 2, "QUIT": 3}[sig]
		// dash forgets an interrupt that comes while it starts sleep, outside as well: it
		// comes again.
		ended := make(chan struct{})
		go func() {
			for {
				syscall.Kill(pid, num)
				select {
				case <-ended:
					return
				case <-time.After(2 * time.Second):
				}
			}
		}()
		out := c.expect(fmt.Sprintf("code %d", 128+int(num)))
		close(ended)
		if !strings.Contains(out, "\x1b[?2004l\x1b[?1049l\x1b[?25h") {
			t.Errorf("%s: the screen was not put right: %q", sig, out)
		}
		c.prompt()
	}
}

func TestDeathOfTheSandboxRestores(t *testing.T) {
	c := openConsole(t)
	c.send("run sh -c 'echo PID $PPID; sleep 20'; echo code $?\n")
	c.expect("PID ")
	c.mode(true)
	var pid int
	fmt.Sscan(c.expect("\n"), &pid)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.expect("the sandbox died")
	c.expect("code 125")
	c.prompt()
}

func TestPanicRestores(t *testing.T) {
	c := openConsole(t)
	c.send("panic; echo code $?\n") // panics at the first signal to forward
	c.expect("PID ")
	var pid int
	fmt.Sscan(c.expect("\n"), &pid)
	c.mode(true)
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	c.expect("on purpose")
	c.expect("code 2")
	c.prompt()
}

func TestTerminalGoesAway(t *testing.T) {
	dir := programs(t)
	mark := filepath.Join(dir, "mark")
	cmd := exec.Command(filepath.Join(dir, "run"), "sh", "-c", "trap 'echo hup >"+mark+"; exit' HUP; echo up; while :; do sleep 0.05; done")
	c := start(t, cmd, &pty.Winsize{Rows: 24, Cols: 80})
	c.expect("up")
	c.pty.Close()
	for range 1000 {
		if b, err := os.ReadFile(mark); err == nil && len(b) > 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("the command inside was not hung up")
}

// A command that ignores the hangup does not keep the run going: its caller is
// told, and ends it.
func TestTerminalGoesAwayAndNobodyMinds(t *testing.T) {
	dir := programs(t)
	pids := filepath.Join(dir, "pid")
	cmd := exec.Command(filepath.Join(dir, "run"), "sh", "-c", "trap '' HUP; echo $$ >"+pids+"; echo up; sleep 20")
	c := start(t, cmd, &pty.Winsize{Rows: 24, Cols: 80})
	c.expect("up")
	t.Cleanup(func() {
		b, _ := os.ReadFile(pids)
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	closed := time.Now()
	c.pty.Close()
	for range 600 {
		// Waited for by start: a zombie has no command line, and nor has one that is gone.
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
		if err != nil || len(b) == 0 {
			if d := time.Since(closed); d < hangUpTime {
				t.Errorf("it ended after %v: the command had less than %v", d, hangUpTime)
			}
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("the run goes on without its terminal")
}

func TestFastWriterIsDrained(t *testing.T) {
	c := openConsole(t)
	for i := range 5 {
		c.send(fmt.Sprintf("run sh -c 'seq 1 60000; echo last%d'\n", i))
		out := c.prompt()
		if !strings.Contains(out, fmt.Sprintf("60000\r\nlast%d\r\n", i)) {
			t.Fatalf("cut off: …%q", out[max(0, len(out)-60):])
		}
		if n := strings.Count(out, "\n"); n != 60001 {
			t.Fatalf("%d lines", n)
		}
	}
}

// TestPaste sends 1 MiB of every byte value, through a raw terminal inside.
func TestPaste(t *testing.T) {
	c := openConsole(t)
	data := make([]byte, 1<<20)
	rand.New(rand.NewSource(1)).Read(data)
	c.send("run sh -c 'stty raw -echo; echo ready; head -c 1048576 | sha256sum; stty sane'\n")
	c.expect("ready")
	c.mode(true)
	c.send(string(data))
	c.expect(fmt.Sprintf("%x", sha256.Sum256(data)))
	c.prompt()
}

func TestBracketedPasteIsUntouched(t *testing.T) {
	c := openConsole(t)
	c.send("run sh -c 'stty raw -echo; printf \"\\033[?2004h\"; echo ready; head -c 17 | od -An -c; stty sane'\n")
	c.expect("ready")
	c.mode(true)
	c.send("\x1b[200~a\rb\x03\x1a\x1b[201~")
	out := c.prompt()
	if got := strings.Join(strings.Fields(out[:strings.Index(out, "\x1b")]), " "); got != `033 [ 2 0 0 ~ a \r b 003 032 033 [ 2 0 1 ~` {
		t.Errorf("%q", got)
	}
	if !strings.Contains(out, "\x1b[?2004l") {
		t.Error("bracketed paste was left on")
	}
}

func TestPipelines(t *testing.T) {
	c := openConsole(t)
	// The terminal stays in line mode for the rest of the pipeline.
	c.send("run sh -c 'echo one; sleep 0.2; stty -a </dev/tty >/dev/null && echo two' | (sleep 0.1; stty -a </dev/tty | grep -o -- '[-]*icanon'; cat)\n")
	if out := c.prompt(); !strings.Contains(out, "icanon\r\n") || strings.Contains(out, "-icanon") || !strings.Contains(out, "one\r\ntwo") {
		t.Errorf("%q", out)
	}
	// Lines reach a command at the head of a pipeline, and the end of the input.
	c.send("run cat | tr a-z A-Z\n")
	time.Sleep(300 * time.Millisecond)
	c.send("shout\n\x04")
	c.expect("SHOUT")
	c.prompt()
	// The input of a pipeline is left to who reads it.
	c.send("cat | run tr a-z A-Z\n")
	time.Sleep(300 * time.Millisecond)
	c.send("louder\n\x04")
	c.expect("LOUDER")
	c.prompt()
	// A program that asks the terminal itself gets it, at either end: a chooser
	// (fzf | xargs) and a pager (git log | less).
	chooser := `stty -icanon -echo min 1 </dev/tty; echo choose >/dev/tty; k=$(head -c 1 </dev/tty); stty sane </dev/tty; echo key $k`
	c.send("run sh -c '" + chooser + "' | cat\n")
	c.expect("choose")
	c.mode(true)
	c.send("z")
	c.expect("key z")
	c.prompt()
	c.send("echo text | run sh -c 'cat; " + chooser + "'\n")
	c.expect("choose")
	c.mode(true)
	c.send("y")
	c.expect("key y")
	c.prompt()
	// A pager outside keeps the keyboard.
	c.send("run sh -c 'echo page; read x; echo stolen $x >/dev/tty' | sh -c 'stty -icanon -echo min 1 </dev/tty; echo paging; k=$(head -c 3 </dev/tty); stty sane </dev/tty; echo pager has $k; kill -9 0'\n")
	c.expect("paging")
	time.Sleep(200 * time.Millisecond)
	c.send("q")
	time.Sleep(100 * time.Millisecond)
	c.send("\nr")
	c.never("stolen", 300*time.Millisecond)
}

func TestPassword(t *testing.T) {
	c := openConsole(t)
	c.send("stty echo\n")
	c.prompt()
	c.send("run bash -c 'read -s -p pass: p; echo; echo ${#p} letters'\n")
	c.expect("pass:")
	c.mode(true)
	time.Sleep(50 * time.Millisecond)
	c.send("hunter2\n")
	if out := c.expect("7 letters"); strings.Contains(out, "hunter2") {
		t.Errorf("the password was shown: %q", out)
	}
	c.prompt()
}

func TestQueriesAtTheEnd(t *testing.T) {
	c := openConsole(t)
	c.send("run printf '\\033[6n\\033[21t'\n")
	if out := c.expect("\x1b[6n"); strings.Contains(out, "21t") {
		t.Errorf("%q", out)
	}
	c.send("\x1b[12;40R") // the terminal's answer, too late for the command
	out := c.prompt()
	if strings.Contains(out, "21t") {
		t.Errorf("a title query got through: %q", out)
	}
	c.send("echo clean\n")
	if out := c.prompt(); strings.Contains(out, "40R") || !strings.Contains(out, "clean") {
		t.Errorf("the answer landed in the shell: %q", out)
	}
}

// TestTmux looks at the result with a real terminal emulator.
func TestTmux(t *testing.T) {
	tmux := lookFor(t, "tmux", "that a terminal emulator shows what a full-screen program draws, and is left clean")
	lookFor(t, "less", "that a full-screen program works")
	dir := programs(t)
	socket := filepath.Join(t.TempDir(), "tmux")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	do := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(ctx, tmux, append([]string{"-f", "/dev/null", "-S", socket}, args...)...)
		cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "TERM=xterm-256color", "LC_ALL=C.UTF-8", "HOME=" + dir, "PS1=", "SHELL=/bin/sh"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("tmux %v: %v %s", args, err, out)
		}
		return string(out)
	}
	screen := func() string { return do("capture-pane", "-p", "-t", "0") }
	wait := func(want string) {
		t.Helper()
		for range 500 {
			if strings.Contains(screen(), want) {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("no %q on the screen:\n%s", want, screen())
	}
	flag := func(name string) string {
		return strings.TrimSpace(do("display-message", "-p", "-t", "0", "#{"+name+"}"))
	}
	do("new-session", "-d", "-x", "80", "-y", "24", "sh")
	defer do("kill-server")
	do("set-option", "-s", "set-clipboard", "on")
	do("send-keys", "-t", "0", "seq 500 > f; run less f", "Enter")
	wait("23")
	if flag("alternate_on") != "1" {
		t.Error("less is not on the alternate screen")
	}
	do("resize-window", "-t", "0", "-x", "100", "-y", "40")
	wait("39")
	do("send-keys", "-t", "0", "G")
	wait("500")
	do("send-keys", "-t", "0", "q")
	wait("run less")
	if flag("alternate_on") != "0" {
		t.Error("the alternate screen was left on")
	}
	// Killed in the middle, with everything switched on, and the clipboard tried.
	do("set-buffer", "clean")
	do("send-keys", "-t", "0", `run sh -c 'printf "\033[?1049h\033[?1003h\033[?1006h\033[?25l\033=\033[?1h\033]52;c;c3RvbGVu\007in the middle"; kill -9 $$'; echo o''ver`, "Enter")
	wait("over")
	for name, want := range map[string]string{"alternate_on": "0", "mouse_any_flag": "0", "mouse_sgr_flag": "0", "cursor_flag": "1", "keypad_flag": "0", "keypad_cursor_flag": "0"} {
		if got := flag(name); got != want {
			t.Errorf("%s is %s", name, got)
		}
	}
	if buffer := do("show-buffer"); strings.TrimSpace(buffer) != "clean" {
		t.Errorf("the clipboard holds %q", buffer)
	}
}
