package workspace

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// inside runs a shell script under the plan with real bubblewrap. It knows just
// enough of the backend's job to prove plans.
func inside(t *testing.T, l *Layout, script string) (string, error) {
	t.Helper()
	bwrap, err := exec.LookPath("bwrap")
	if err != nil {
		t.Skip("no bwrap: not proven that plans hold on a real kernel")
	}
	empty := filepath.Join(t.TempDir(), "empty")
	args := []string{"--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
		"--uid", strconv.Itoa(os.Getuid()), "--gid", strconv.Itoa(os.Getgid()), "--clearenv",
		"--setenv", "HOME", l.Home, "--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin", "--chdir", l.Dir}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	fd := func(data []byte) string {
		name := empty + strconv.Itoa(len(files))
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
		return strconv.Itoa(2 + len(files))
	}
	perm := func(p uint32) string {
		if p == 0 {
			p = 0o755
		}
		return fmt.Sprintf("%04o", p)
	}
	proc := false
	var filled []string
	for _, m := range l.Mounts {
		if m.Target > "/dev" && !proc {
			args = append(args, "--dev", "/dev")
			proc = true
		}
		switch m.Kind {
		case vocabulary.BindRO:
			args = append(args, "--ro-bind", m.Source, m.Target)
		case vocabulary.BindRW:
			args = append(args, "--bind", m.Source, m.Target)
		case vocabulary.Tmpfs:
			args = append(args, "--perms", perm(m.Perm), "--size", strconv.FormatInt(m.Size, 10), "--tmpfs", m.Target)
		case vocabulary.Dir:
			args = append(args, "--perms", perm(m.Perm), "--tmpfs", m.Target)
			filled = append(filled, "--remount-ro", m.Target)
		case vocabulary.Data:
			args = append(args, "--perms", perm(m.Perm), "--ro-bind-data", fd(m.Data), m.Target)
		case vocabulary.Symlink:
			args = append(args, "--symlink", m.Source, m.Target)
		case vocabulary.MaskFile:
			args = append(args, "--perms", "0000", "--ro-bind-data", fd(nil), m.Target)
		case vocabulary.MaskDir:
			args = append(args, "--perms", fmt.Sprintf("%04o", m.Perm), "--tmpfs", m.Target, "--remount-ro", m.Target)
		}
	}
	args = append(append(args, filled...), "--proc", "/proc", "--remount-ro", "/")
	argFD := fd([]byte(strings.Join(args, "\x00") + "\x00"))
	cmd := exec.Command(bwrap, "--args", argFD, "/bin/sh", "-c", script)
	cmd.ExtraFiles = files
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	return out.String(), err
}

// asOrdinaryUser runs the named tests again as an ordinary user, if we are root.
func asOrdinaryUser(t *testing.T, run string) {
	if os.Getuid() != 0 {
		return
	}
	const uid, gid = 65534, 65534 // nobody, on every distribution
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "workspace-test-user")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "workspace.test")
	if err := os.WriteFile(bin, self, 0o755); err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o777)
	cmd := exec.Command(bin, "-test.run", run, "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("as uid %d: %v\n%s", uid, err, out)
	}
	if !bytes.Contains(out, []byte("--- PASS")) {
		t.Fatalf("as uid %d nothing ran:\n%s", uid, out)
	}
}
