package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/zalando/go-keyring"

	"github.com/bulkhead-dev/bulkhead/internal/secret"
)

const maxValue = 16 << 10

// Variables, so that tests need not wait.
var (
	commandTimeout = 10 * time.Second
	keyringTimeout = 60 * time.Second
)

// sourceError is why a credential can't be had, and what to do.
type sourceError struct {
	reason, remedy string
	broken         bool
}

func missing(remedy, format string, args ...any) *sourceError {
	return &sourceError{reason: fmt.Sprintf(format, args...), remedy: remedy}
}

// broken is for what is there and can't be used.
func broken(remedy, format string, args ...any) *sourceError {
	e := missing(remedy, format, args...)
	e.broken = true
	return e
}

func (s Source) sources() (n int) {
	for _, is := range []bool{s.Env != "", s.File != "", len(s.Command) > 0, s.Keyring != "", s.SSH != "", s.Login != nil} {
		if is {
			n++
		}
	}
	return n
}

func read(ctx context.Context, s Source, lookup func(string) (string, bool)) (secret.Value, string, *sourceError) {
	if set := s.sources(); set != 1 || s.Name == "" {
		return secret.Value{}, "", broken("give it exactly one of env, file, command, keyring, ssh, login", "it has %d sources", set)
	}
	var raw []byte
	var warning string
	var err *sourceError
	where := ""
	switch {
	case s.Env != "":
		where = "variable " + s.Env
		v, ok := lookup(s.Env)
		if !ok || v == "" {
			return secret.Value{}, "", missing("export "+s.Env+"=… before bulkhead run", "variable %s is not set", s.Env)
		}
		raw = []byte(v)
	case s.File != "":
		where = "file " + s.File
		raw, warning, err = readFile(s.File, lookup)
	case len(s.Command) > 0:
		where = fmt.Sprintf("command %q", s.Command[0])
		raw, err = runCommand(ctx, s.Command)
	default:
		where = "keyring entry " + s.Keyring
		raw, err = readKeyring(ctx, s.Keyring, lookup)
	}
	defer clear(raw)
	if err != nil {
		return secret.Value{}, "", err
	}
	value := raw
	if s.File != "" || len(s.Command) > 0 {
		value = bytes.TrimSuffix(bytes.TrimSuffix(value, []byte("\n")), []byte("\r"))
	}
	switch {
	case len(value) == 0:
		return secret.Value{}, "", missing("put the credential there", "%s is empty", where)
	case len(value) > maxValue:
		return secret.Value{}, "", broken("check that it is the credential and nothing else", "%s holds more than %d bytes", where, maxValue)
	case bytes.ContainsFunc(value, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		// A line break would let whoever writes the source add headers.
		return secret.Value{}, "", broken("leave only the credential, on one line", "%s holds a line break or another control character", where)
	}
	v := secret.New(value)
	if s.Placeholder != "" && v.Equal([]byte(s.Placeholder)) {
		v.Wipe()
		return secret.Value{}, "", broken("give it the real credential", "%s holds a placeholder", where)
	}
	return v, warning, nil
}

func readFile(name string, lookup func(string) (string, bool)) ([]byte, string, *sourceError) {
	path := name
	if rest, ok := strings.CutPrefix(name, "~/"); ok {
		home, ok := lookup("HOME")
		if !ok || !filepath.IsAbs(home) {
			return nil, "", missing("write the absolute path", "file %s: HOME is not set", name)
		}
		path = filepath.Join(home, rest)
	}
	// O_NONBLOCK: a FIFO in its place must not hang the start.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, "", missing("create it with mode 0600, or name another", "file %s does not exist", name)
	case errors.Is(err, fs.ErrPermission):
		return nil, "", missing("make it readable for you alone: chmod 600", "file %s is not readable for you", name)
	case err != nil:
		return nil, "", missing("name another file", "file %s can't be opened", name)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, "", broken("name a regular file", "file %s is not a regular file", name)
	}
	warning := ""
	if runtime.GOOS != "windows" && st.Mode().Perm()&0o044 != 0 {
		warning = fmt.Sprintf("file %s is readable for others; chmod 600 it", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxValue+3))
	if err != nil {
		clear(b)
		return nil, "", missing("name another file", "file %s can't be read", name)
	}
	return b, warning, nil
}

// bounded keeps at most what a credential can have and counts the rest.
type bounded struct {
	b    []byte
	over bool
}

func (w *bounded) Write(p []byte) (int, error) {
	if len(w.b)+len(p) > maxValue+2 {
		w.over = true
		return 0, errors.New("too long")
	}
	w.b = append(w.b, p...)
	return len(p), nil
}

// runCommand runs argv without a shell, in a process group of its own that is
// killed at the end of the time. Its error output is dropped: it may quote the
// secret.
func runCommand(ctx context.Context, argv []string) ([]byte, *sourceError) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	ownGroup(cmd)
	cmd.WaitDelay = 500 * time.Millisecond
	out := &bounded{b: make([]byte, 0, maxValue+2)}
	cmd.Stdout = out
	err := cmd.Run()
	remedy := "run it yourself to see what it says"
	fail := func(format string, args ...any) ([]byte, *sourceError) {
		clear(out.b)
		return nil, missing(remedy, "command %q "+format, append([]any{argv[0]}, args...)...)
	}
	var exit *exec.ExitError
	switch {
	case out.over:
		_, e := fail("printed more than %d bytes", maxValue)
		e.broken = true
		return nil, e
	case ctx.Err() == context.DeadlineExceeded:
		return fail("did not end within %v", commandTimeout)
	case ctx.Err() != nil:
		return fail("was interrupted")
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		remedy = "install it, or write its absolute path"
		return fail("was not found")
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return fail("failed with exit code %d", exit.ExitCode())
	case errors.As(err, &exit):
		return fail("was ended by a signal")
	case errors.Is(err, exec.ErrWaitDelay):
		return fail("left processes behind that hold its output open")
	case err != nil:
		return fail("could not be run")
	}
	return out.b, nil
}

func readKeyring(ctx context.Context, entry string, lookup func(string) (string, bool)) ([]byte, *sourceError) {
	i := strings.LastIndexByte(entry, '/')
	if i <= 0 || i == len(entry)-1 {
		return nil, broken("write it as service/user", "keyring entry %q has no service or no user", entry)
	}
	if !keyringReachable(lookup) {
		return nil, missing("start a desktop session with a keyring (GNOME Keyring, KWallet, KeePassXC), or use env, file or command", "no keyring is running: there is no session bus")
	}
	type answer struct {
		text string
		err  error
	}
	// The library takes no context; an unanswered call is left behind.
	done := make(chan answer, 1)
	go func() {
		text, err := keyring.Get(entry[:i], entry[i+1:])
		done <- answer{text, err}
	}()
	timeout := time.NewTimer(keyringTimeout)
	defer timeout.Stop()
	select {
	case a := <-done:
		switch {
		case errors.Is(a.err, keyring.ErrNotFound):
			return nil, missing("add it: secret-tool store --label=… service "+entry[:i]+" username "+entry[i+1:], "the keyring has no entry %s", entry)
		case a.err != nil:
			return nil, missing("unlock the keyring, or use env, file or command", "the keyring does not answer")
		}
		return []byte(a.text), nil
	case <-timeout.C:
		return nil, missing("unlock the keyring, or use env, file or command", "the keyring did not answer within %v", keyringTimeout)
	case <-ctx.Done():
		return nil, missing("try again", "the keyring was not waited for")
	}
}

// keyringReachable keeps the library from starting a bus of its own where
// there is none.
func keyringReachable(lookup func(string) (string, bool)) bool {
	if runtime.GOOS != "linux" || keyringMocked {
		return true
	}
	if a, ok := lookup("DBUS_SESSION_BUS_ADDRESS"); ok && a != "" {
		return true
	}
	dir, ok := lookup("XDG_RUNTIME_DIR")
	if !ok || !filepath.IsAbs(dir) {
		return false
	}
	st, err := os.Stat(filepath.Join(dir, "bus"))
	return err == nil && st.Mode()&fs.ModeSocket != 0
}

var keyringMocked bool // set by tests only
