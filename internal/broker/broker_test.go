package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zalando/go-keyring"

	"github.com/bulkhead-dev/bulkhead/internal/secret"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const word = "sk-test-4f8a1c"

func env(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
}

func mockKeyring(t *testing.T) {
	t.Helper()
	keyring.MockInit()
	keyringMocked = true
	t.Cleanup(func() { keyringMocked = false })
}

func write(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Chmod(name, mode)
	return name
}

func TestSources(t *testing.T) {
	mockKeyring(t)
	if err := keyring.Set("svc/with/slash", "me", word); err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	os.WriteFile(filepath.Join(home, "k"), []byte(word+"\r\n"), 0o600)
	for _, s := range []Source{
		{Env: "KEY"}, {File: write(t, word+"\n", 0o600)}, {File: "~/k"}, {Keyring: "svc/with/slash/me"},
		{Command: []string{"printf", "%s\n", word}}, {Command: []string{"echo", word}},
	} {
		s.Name, s.Placeholder = "a", "placeholder"
		b, missing, err := Open(context.Background(), []Source{s}, env(map[string]string{"KEY": word, "HOME": home}))
		if err != nil || len(missing) != 0 || len(b.Warnings()) != 0 {
			t.Fatalf("%+v: %v %v", s, missing, err)
		}
		v, err := b.Credential("a", "x.y", "r")
		if err != nil || !v.Equal([]byte(word)) {
			t.Errorf("%+v: %v", s, err)
		}
		if b.Placeholder("a") != "placeholder" || len(b.Names()) != 1 {
			t.Error("placeholder")
		}
		if v, err := b.Credential("other", "", ""); !errors.Is(err, ErrUnknown) || !v.Empty() {
			t.Error(err)
		}
		held := b.values["a"]
		b.Close()
		if held.Equal([]byte(word)) {
			t.Error("Close leaves the value in memory")
		}
	}
}

// Only one line ending is not part of the credential.
func TestOneNewline(t *testing.T) {
	_, _, err := Open(context.Background(), []Source{{Name: "a", File: write(t, word+"\n\n", 0o600)}}, env(nil))
	if err == nil || !strings.Contains(err.Error(), "line break") {
		t.Error(err)
	}
}

func TestMissing(t *testing.T) {
	mockKeyring(t)
	pos := vocabulary.Position{File: "p.yaml", Line: 3}
	b, missing, err := Open(context.Background(), []Source{{Name: "a", Env: "NOPE", Optional: true, Pos: pos}, {Name: "b", Env: "KEY"}}, env(map[string]string{"KEY": word}))
	if err != nil || len(missing) != 1 || !strings.Contains(missing[0].String(), "NOPE") {
		t.Fatal(missing, err)
	}
	if _, err := b.Credential("a", "", ""); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	if n := b.Names(); len(n) != 1 || n[0] != "b" {
		t.Error(n)
	}
	b, _, err = Open(context.Background(), []Source{
		{Name: "a", Env: "NOPE", Pos: pos}, {Name: "b", File: "/no/such/file", Pos: pos}, {Name: "c", Command: []string{"false"}, Pos: pos},
		{Name: "d", Command: []string{"no-such-command-x"}, Pos: pos}, {Name: "e", Keyring: "svc/nobody", Pos: pos}, {Name: "f", Env: "EMPTY", Pos: pos},
		{Name: "g", Command: []string{"sh", "-c", "kill -9 $$"}, Pos: pos}, {Name: "h", Command: []string{"true"}, Pos: pos},
	}, env(map[string]string{"EMPTY": ""}))
	var exit *vocabulary.ExitError
	var list MissingError
	if b != nil || !errors.As(err, &exit) || exit.Code != vocabulary.ExitRefused || !errors.As(err, &list) || len(list) != 8 {
		t.Fatal(b, err)
	}
	for _, part := range []string{"NOPE is not set", "export NOPE", "/no/such/file does not exist", "exit code 1", "not found", "no entry svc/nobody", "EMPTY", "by a signal", "is empty", "p.yaml:3"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
}

// Without a session bus nothing is started to look for a keyring.
func TestNoKeyring(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("not Linux: not proven that a missing keyring is told")
	}
	_, missing, err := Open(context.Background(), []Source{{Name: "a", Keyring: "svc/me", Optional: true}}, env(map[string]string{"XDG_RUNTIME_DIR": t.TempDir()}))
	if err != nil || len(missing) != 1 || !strings.Contains(missing[0].Reason, "no keyring is running") {
		t.Error(missing, err)
	}
	mockKeyring(t)
	keyring.MockInitWithError(errors.New("locked, and here is " + word))
	_, missing, err = Open(context.Background(), []Source{{Name: "a", Keyring: "svc/me", Optional: true}}, env(nil))
	if err != nil || len(missing) != 1 || strings.Contains(missing[0].Reason, word) {
		t.Error(missing, err)
	}
}

// What would break out of a header, floods, and what is no file are refused
// even if optional, and never quoted.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []Source{
		{Env: "CRLF"}, {Env: "NUL"}, {Env: "TAB"}, {Env: "DEL"}, {Env: "LONG"}, {Env: "PLACEHOLDER"}, {File: dir}, {File: "/dev/zero"}, {File: write(t, strings.Repeat(word, 5000), 0o600)},
		{Command: []string{"head", "-c", "10000000", "/dev/zero"}}, {Command: []string{"printf", word + `\r\nX: y`}}, {Keyring: "noslash"}, {Keyring: "svc/"}, {}, {Env: "A", File: "b"},
	} {
		c.Name, c.Optional, c.Placeholder = "a", true, "sk-placeholder"
		_, _, err := Open(context.Background(), []Source{c}, env(map[string]string{
			"CRLF": word + "\r\nX: y", "NUL": word + "\x00", "TAB": word + "\tx", "DEL": word + "\x7f", "LONG": strings.Repeat(word, 5000), "PLACEHOLDER": "sk-placeholder",
		}))
		if err == nil {
			t.Errorf("%+v was accepted", c)
		} else if strings.Contains(err.Error(), word) && len(c.Command) == 0 {
			t.Errorf("%+v: the error quotes the value: %v", c, err)
		}
	}
	if _, _, err := Open(context.Background(), []Source{{Name: "a", Env: "K"}, {Name: "a", Env: "K"}}, env(map[string]string{"K": word})); err == nil {
		t.Error("two sources of one name")
	}
	if _, _, err := Open(context.Background(), nil, nil); err == nil {
		t.Error("no environment is no error")
	}
}

func TestReadableForOthersWarns(t *testing.T) {
	b, _, err := Open(context.Background(), []Source{{Name: "a", File: write(t, word, 0o644)}}, env(nil))
	if err != nil || len(b.Warnings()) != 1 || !strings.Contains(b.Warnings()[0], "chmod 600") {
		t.Error(err)
	}
}

func TestCommandIsBoundedInTime(t *testing.T) {
	old := commandTimeout
	commandTimeout = 300 * time.Millisecond
	defer func() { commandTimeout = old }()
	pidFile := filepath.Join(t.TempDir(), "pid")
	start := time.Now()
	_, _, err := Open(context.Background(), []Source{{Name: "a", Command: []string{"sh", "-c", "sleep 60 & echo $! > " + pidFile + "; wait"}}}, env(nil))
	if err == nil || !strings.Contains(err.Error(), "did not end within") || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	b, _ := os.ReadFile(pidFile)
	for range 500 {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(b)) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("the command's child outlives it")
}

// No shell comes between, and the error output is not repeated.
func TestCommandIsArgv(t *testing.T) {
	b, _, err := Open(context.Background(), []Source{{Name: "a", Command: []string{"echo", "$(id);`id`|cat"}}}, env(nil))
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := b.Credential("a", "", ""); !v.Equal([]byte("$(id);`id`|cat")) {
		t.Error("a shell read the command")
	}
	_, _, err = Open(context.Background(), []Source{{Name: "a", Command: []string{"sh", "-c", "echo LEAK >&2; echo LEAK; exit 3"}}}, env(nil))
	if err == nil || strings.Contains(err.Error(), "LEAK") || !strings.Contains(err.Error(), "exit code 3") {
		t.Error(err)
	}
}

func TestRevoke(t *testing.T) {
	b, _, err := Open(context.Background(), []Source{{Name: "a", Env: "KEY"}}, env(map[string]string{"KEY": word}))
	if err != nil {
		t.Fatal(err)
	}
	given, err := b.Credential("a", "", "")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				v, err := b.Credential("a", "", "")
				if err != nil && !errors.Is(err, ErrRevoked) || err == nil && !v.Equal([]byte(word)) {
					t.Errorf("torn: %v", err)
					return
				}
				v.Wipe()
			}
		})
	}
	wg.Go(b.Revoke)
	wg.Wait()
	b.Revoke()
	if v, err := b.Credential("a", "", ""); !errors.Is(err, ErrRevoked) || !v.Empty() {
		t.Error(err)
	}
	if !given.Equal([]byte(word)) {
		t.Error("a credential in use was torn")
	}
	var zero Broker
	if _, err := zero.Credential("a", "", ""); !errors.Is(err, ErrRevoked) {
		t.Error("the zero Broker is open")
	}
}

func TestNothingIsPrinted(t *testing.T) {
	b, _, err := Open(context.Background(), []Source{{Name: "a", Env: "KEY"}}, env(map[string]string{"KEY": word}))
	if err != nil {
		t.Fatal(err)
	}
	v, _ := b.Credential("a", "", "")
	type holder struct {
		b *Broker
		v secret.Value
		m map[string]secret.Value
	}
	h := holder{b, v, b.values}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%U"} {
		fmt.Fprintf(&out, verb+" "+verb+" "+verb+" "+verb+" "+verb+"\n", b, v, h, &h, b.values)
	}
	if j, err := json.Marshal(b); err == nil {
		t.Errorf("json: %s", j)
	}
	for _, form := range []string{word, fmt.Sprintf("%x", word), fmt.Sprintf("%X", word), strings.Trim(fmt.Sprint([]byte(word)), "[]"), strings.Trim(fmt.Sprintf("%c", []byte(word)), "[]"), strings.Trim(fmt.Sprintf("%U", []byte(word)), "[]")} {
		if strings.Contains(out.String(), form) {
			t.Errorf("printed as %q", form)
		}
	}
}
