package login

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// immutable is FS_IMMUTABLE_FL of linux/fs.h.
const immutable = 0x10

// seal makes a folder in which nothing can be made: by its mode, and for root,
// whom no mode stops, by the file system's immutable flag.
func seal(t *testing.T, dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Chmod(dir, 0o700) })
		return
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	set := func(flags int) error { return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags) }
	if err := set(immutable); err != nil {
		t.Skipf("root can't seal a folder on this file system (%v); not proven in this run: a rotating token is not spent where it can't be kept", err)
	}
	t.Cleanup(func() { set(0) })
}

// A rotating token is not spent where the new one could not be kept.
func TestUnwritableStore(t *testing.T) {
	e := newEndpoint(t)
	h := home(t, "old", "refresh-0", time.Now().Add(-time.Hour))
	l := open(t, spec(t, "claude-code"), h, Options{Network: e.network(claudeHost)})
	// A link to a readable file in a folder where nothing can be made.
	sealed := t.TempDir()
	file := filepath.Join(h.Home, ".claude", ".credentials.json")
	if err := os.Rename(file, filepath.Join(sealed, "login.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(sealed, "login.json"), file); err != nil {
		t.Fatal(err)
	}
	seal(t, sealed)
	if _, err := l.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "could not be kept") {
		t.Errorf("%v", err)
	}
	if e.count() != 0 {
		t.Errorf("the refresh token was spent: %d requests", e.count())
	}
}
