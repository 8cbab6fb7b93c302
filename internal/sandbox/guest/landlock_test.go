//go:build linux

package guest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const pathsProbe = "BULKHEAD_TEST_PATHS"

// TestLandlockAlone proves the second wall without the first: on a host whose
// mounts hide and protect nothing, the paths that a Setup doesn't give stay
// closed and those given for reading stay unwritten.
func TestLandlockAlone(t *testing.T) {
	if dir := os.Getenv(pathsProbe); dir != "" {
		probePaths(t, dir)
		return
	}
	dir := t.TempDir()
	for _, d := range []string{"ro", "rw", "other"} {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, d), 0o755), os.WriteFile(filepath.Join(dir, d, "f"), []byte("x"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	// A place for guest.Dir, in a mount namespace of the test's own.
	cmd := exec.Command("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", `mount -t tmpfs none /run && mkdir "$1" && exec "$2" -test.run '^TestLandlockAlone$'`, "sh", Dir, os.Args[0])
	cmd.Env = append(os.Environ(), pathsProbe+"="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil && strings.Contains(string(out), "unshare") {
		t.Skipf("no user namespace; not proven in this run: Landlock without the mounts: %s", out)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func probePaths(t *testing.T, dir string) {
	ro, rw, other := filepath.Join(dir, "ro"), filepath.Join(dir, "rw"), filepath.Join(dir, "other")
	// All of confine but the filter and the limits; it is for good.
	if err := errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), restrictPaths(Setup{ReadOnly: []string{ro}, Writable: []string{rw}})); err != nil {
		t.Fatal(err)
	}
	read := func(p string) error { _, err := os.ReadFile(p); return err }
	open := func(p string) error {
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		if err == nil {
			f.Close()
		}
		return err
	}
	create := func(p string) error { return os.WriteFile(p, nil, 0o644) }
	for what, err := range map[string]error{
		"read in ro": read(ro + "/f"), "read in rw": read(rw + "/f"), "write in rw": open(rw + "/f"), "create in rw": create(rw + "/new"),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, err := range map[string]error{
		"write in ro": open(ro + "/f"), "create in ro": create(ro + "/new"), "remove in ro": os.Remove(ro + "/f"), "truncate in ro": os.Truncate(ro+"/f", 0),
		"read elsewhere": read(other + "/f"), "write elsewhere": open(other + "/f"), "read /etc": read("/etc/passwd"),
		"whiteout in rw": unix.Mknod(rw+"/w", unix.S_IFCHR|0o666, 0),
	} {
		if !errors.Is(err, unix.EACCES) {
			t.Errorf("%s: %v, want %v", what, fmt.Sprint(err), unix.EACCES)
		}
	}
}
