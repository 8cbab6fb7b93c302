package tree

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

func TestCheck(t *testing.T) {
	for _, ok := range []string{"a", "a/b", "...", "a/..b", "\xff\n", strings.Repeat("a", 255)} {
		if err := Check(ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "a/..", "./a", "a/./b", "a\x00", strings.Repeat("a", 256), strings.Repeat("a/", 2048)} {
		if Check(bad) == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestShow(t *testing.T) {
	for in, want := range map[string]string{
		"a b/ü": "a b/ü", "": `""`, " a": `" a"`, "a ": `"a "`, "a\nb": `"a\nb"`, "\x1b[31m": `"\x1b[31m"`, "a\xff": `"a\xff"`, `q"`: `"q\""`, "\u202ex": `"\u{202e}x"`, "�": `"\u{fffd}"`,
	} {
		if got := Show(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func FuzzShow(f *testing.F) {
	f.Add("a\n\x1b\xff\"\\")
	f.Add("\u202e\u200b\ufffd")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range Show(s) {
			if r == utf8.RuneError || !unicode.IsPrint(r) {
				t.Errorf("%q is shown with %q", s, r)
			}
		}
	})
}

// No name, however it is written, leads out of the root.
func TestNothingLeadsOut(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(outside, "f"), []byte("outside"), 0o600))
	must(os.Symlink(outside, filepath.Join(dir, "l")))
	must(os.Symlink("/proc/self/root", filepath.Join(dir, "magic")))
	must(os.Mkdir(filepath.Join(dir, "d"), 0o755))
	must(os.Symlink("../f", filepath.Join(dir, "d", "up")))
	must(os.WriteFile(filepath.Join(dir, "f"), []byte("inside"), 0o600))
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	root, err := OpenRoot(dir)
	must(err)
	defer root.Close()
	for _, name := range []string{"l/f", "../" + filepath.Base(outside) + "/f", filepath.Join(outside, "f"), "magic" + outside + "/f", "d/up", "d/../../x", "l", "fifo", "d"} {
		if f, _, err := OpenFile(root, name); err == nil {
			f.Close()
			t.Errorf("%s was opened", name)
		}
	}
	for _, name := range []string{"l", "magic", "l/", "d/../.."} {
		if d, err := Dir(root, name); err == nil {
			d.Close()
			t.Errorf("%s was opened as a folder", name)
		}
	}
	if _, err := OpenRoot(filepath.Join(dir, "l")); err == nil {
		t.Error("a link was opened as a root")
	}
	if _, ok, err := Lstat(root, "gone/x"); ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
	if _, _, err := Lstat(root, "l/f"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("%v", err)
	}
	must(os.Chmod(filepath.Join(dir, "d"), 0o555))
	for _, name := range []string{"l", "magic", "d", "fifo", "f", "gone"} {
		must(Remove(root, name))
	}
	if list, _ := os.ReadDir(dir); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
	if text, _ := os.ReadFile(filepath.Join(outside, "f")); string(text) != "outside" {
		t.Error("something outside was removed")
	}
}

func TestCopy(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int64{"empty": 0, "small": 1000, "edge": smallFile, "big": smallFile + 1, "holes": 10 << 20} {
		src, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, size)
		if name != "holes" {
			for i := range data {
				data[i] = byte(i)
			}
			_, err = src.Write(data)
		} else {
			copy(data[5<<20:], "in the middle")
			if err = src.Truncate(size); err == nil {
				_, err = src.WriteAt([]byte("in the middle"), 5<<20)
			}
		}
		if err == nil {
			_, err = src.Seek(0, io.SeekStart)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, again := range []string{".1", ".2"} { // the second one knows whether blocks can be shared
			dst, err := os.Create(filepath.Join(dir, name+again))
			if err != nil {
				t.Fatal(err)
			}
			var c Cloner
			c.cannot.Store(again == ".2")
			n, err := c.Copy(dst, src, size)
			dst.Close()
			if err != nil || n > size || name == "holes" && n > 1<<20 {
				t.Errorf("%s: %d written, %v", name, n, err)
			}
			if got, _ := os.ReadFile(dst.Name()); string(got) != string(data) {
				t.Errorf("%s: another content", name)
			}
			if _, err := src.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
		}
		src.Close()
	}
}
