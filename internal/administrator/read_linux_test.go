package administrator

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// place makes a folder that only root can write, with a policy in it. Folders
// for all, like /tmp, can't lie above it.
func place(t *testing.T) (dir, file string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make files of root's; not proven in this run: whose policy of an administrator is believed")
	}
	var err error
	if dir, err = os.MkdirTemp("/var/lib", "bulkhead-test-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sub := filepath.Join(dir, "bulkhead")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(sub, "policy.yaml")
	write(t, file, "version: 1\n")
	return dir, file
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRead(t *testing.T) {
	dir, file := place(t)
	if data, err := Read(file); err != nil || string(data) != "version: 1\n" {
		t.Fatalf("%q %v", data, err)
	}
	write(t, file, "")
	if data, err := Read(file); err != nil || data == nil || len(data) != 0 {
		t.Errorf("an empty file is one: %v %v", data, err)
	}
	for _, missing := range []string{filepath.Join(dir, "bulkhead", "other.yaml"), filepath.Join(dir, "none", "policy.yaml"), "/none/x/policy.yaml"} {
		if data, err := Read(missing); data != nil || err != nil {
			t.Errorf("%s: %v %v", missing, data, err)
		}
	}
}

// TestOnlyRootsFileIsBelieved: each line is a way to put words into the
// administrator's mouth, or to take them out of it.
func TestOnlyRootsFileIsBelieved(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(dir, file string) error
		want  string
	}{
		"belongs to a user":         {func(_, f string) error { return os.Chown(f, 12345, 0) }, "belongs to user 12345"},
		"a group writes it":         {func(_, f string) error { return os.Chmod(f, 0o664) }, "can be written by others than root (mode 0664)"},
		"everybody writes it":       {func(_, f string) error { return os.Chmod(f, 0o646) }, "can be written by others than root (mode 0646)"},
		"its folder is a user's":    {func(d, _ string) error { return os.Chown(filepath.Join(d, "bulkhead"), 12345, 0) }, "bulkhead belongs to user 12345"},
		"a group writes a folder":   {func(d, _ string) error { return os.Chmod(filepath.Join(d, "bulkhead"), 0o775) }, "bulkhead can be written by others"},
		"a folder above":            {func(d, _ string) error { return os.Chmod(d, 0o777|os.ModeSticky) }, "can be written by others than root (mode 1777)"},
		"a link":                    {func(_, f string) error { return errors.Join(os.Rename(f, f+".x"), os.Symlink(f+".x", f)) }, "policy.yaml is a link"},
		"a link that leads nowhere": {func(_, f string) error { return errors.Join(os.Remove(f), os.Symlink("nowhere", f)) }, "policy.yaml is a link"},
		"a folder that is a link": {func(d, _ string) error {
			sub := filepath.Join(d, "bulkhead")
			return errors.Join(os.Rename(sub, sub+".x"), os.Symlink(sub+".x", sub))
		}, "bulkhead is a link"},
		"a folder": {func(_, f string) error { return errors.Join(os.Remove(f), os.Mkdir(f, 0o755)) }, "is not a regular file"},
		"a pipe":   {func(_, f string) error { return errors.Join(os.Remove(f), unix.Mkfifo(f, 0o644)) }, "is not a regular file"},
		"a device": {func(_, f string) error { return errors.Join(os.Remove(f), unix.Mknod(f, unix.S_IFCHR|0o644, 1<<8|5)) }, "is not a regular file"},
		"a file above": {func(d, _ string) error {
			s := filepath.Join(d, "bulkhead")
			return errors.Join(os.RemoveAll(s), os.WriteFile(s, nil, 0o644))
		}, "bulkhead is not a folder"},
		"too large": {func(_, f string) error { return os.Truncate(f, 2<<40) }, "more than 1048576 bytes"},
	} {
		dir, file := place(t)
		if err := c.spoil(dir, file); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		data, err := Read(file)
		var exit *vocabulary.ExitError
		if data != nil || !errors.As(err, &exit) || exit.Code != vocabulary.ExitPolicyInvalid || !strings.Contains(err.Error(), c.want) || strings.Count(err.Error(), "\n") > 2 {
			t.Errorf("%s: %q %v\nwant %s", name, data, err, c.want)
		}
	}
}

// TestRaces: a file that is exchanged again and again for a user's is never read
// as root's.
func TestRaces(t *testing.T) {
	_, file := place(t)
	mine, theirs := file+".mine", file+".theirs"
	write(t, file, "root")
	write(t, mine, "root")
	write(t, theirs, "user")
	if err := os.Chown(theirs, 12345, 0); err != nil {
		t.Fatal(err)
	}
	stop := make(chan bool)
	done := make(chan error)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			from := []string{mine, theirs}[i%2]
			tmp := fmt.Sprintf("%s.%d", file, i%2)
			os.Remove(tmp)
			if err := errors.Join(os.Link(from, tmp), os.Rename(tmp, file)); err != nil {
				done <- err
				return
			}
		}
	}()
	believed := 0
	for range 20000 {
		data, err := Read(file)
		switch {
		case err == nil && bytes.Equal(data, []byte("root")):
			believed++
		case err == nil && data != nil:
			t.Fatalf("%q was believed", data)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if believed == 0 {
		t.Error("root's file was never seen: nothing was proven")
	}
}
