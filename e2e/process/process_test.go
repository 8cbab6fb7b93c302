// Package process holds the stories of the process tier: each file in testdata
// drives the real bulkhead binary the way a person or a script does, and opens
// with the guarantee or the bug that it locks.
//
// The whole suite runs twice where it can: as the user of the test run and, if
// that is root, as an ordinary user as well (BULKHEAD_TEST_USER, otherwise
// bulkhead-test, which scripts/install-deps creates).
package process

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// shared holds the binary, a copy of the stories and a copy of this test, where
// the ordinary user can read them too: the clone may lie in root's home.
var shared string

const sharedEnv = "BULKHEAD_E2E_SHARED"

func TestMain(m *testing.M) {
	if shared = os.Getenv(sharedEnv); shared != "" {
		os.Exit(m.Run())
	}
	dir, err := prepare()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e/process:", err)
		os.Exit(1)
	}
	shared = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func prepare() (dir string, err error) {
	if runtime.GOOS != "linux" {
		return "", fmt.Errorf("the process tier needs Linux")
	}
	if dir, err = os.MkdirTemp("", "bulkhead-e2e-"); err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "bin")+"/", "./cmd/bulkhead")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building bulkhead: %w\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if err := copyFile(filepath.Join(dir, "process.test"), self, 0o755); err != nil {
		return "", err
	}
	stories, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(filepath.Join(dir, "testdata"), 0o755); err != nil {
		return "", err
	}
	for _, s := range stories {
		if err := copyFile(filepath.Join(dir, s), s, 0o644); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func copyFile(dst, src string, mode os.FileMode) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

// suiteTime bounds one run of all stories: one that hangs fails then, with its
// processes killed, instead of taking the lane with it.
const suiteTime = 4 * time.Minute

func TestStories(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join(shared, "testdata"),
		Setup:               setup,
		Condition:           condition,
		Cmds:                commands,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Deadline:            time.Now().Add(suiteTime),
	})
}

// TestStoriesAsOrdinaryUser runs the same stories again without root's powers.
func TestStoriesAsOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Logf("this run is uid %d already: TestStories is the ordinary user's run; not proven here: the same as root", os.Getuid())
		return
	}
	u := ordinaryUser(t)
	ctx, cancel := context.WithTimeout(context.Background(), suiteTime+time.Minute)
	defer cancel()
	args := []string{"--reuid", u.Uid, "--regid", u.Gid, "--clear-groups", "--",
		filepath.Join(shared, "process.test"), "-test.run", "^TestStories$"}
	if f := os.Getenv("BULKHEAD_E2E_RUN"); f != "" {
		args[len(args)-1] = "^TestStories$/" + f
	}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := exec.CommandContext(ctx, "setpriv", args...)
	cmd.Dir = shared
	cmd.Env = []string{sharedEnv + "=" + shared, "PATH=" + os.Getenv("PATH"), "HOME=" + u.HomeDir, "USER=" + u.Username}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("as %s: %v\n%s", u.Username, err, out)
	}
	t.Logf("as %s:\n%s", u.Username, out)
}

func ordinaryUser(t *testing.T) *user.User {
	t.Helper()
	name := os.Getenv("BULKHEAD_TEST_USER")
	if name == "" {
		name = "bulkhead-test"
	}
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatalf("no ordinary user to run as: %v\nmake one with scripts/install-deps test, or name one in BULKHEAD_TEST_USER", err)
	}
	if u.Uid == "0" {
		t.Fatalf("BULKHEAD_TEST_USER=%s is root", name)
	}
	return u
}

// setup gives each story a home, a workspace in it, and nothing of ours.
func setup(env *testscript.Env) error {
	home := filepath.Join(env.WorkDir, "home")
	workspace := filepath.Join(home, "ws")
	if err := os.MkdirAll(workspace, 0o755); err != nil {
		return err
	}
	for _, v := range []string{"XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"} {
		env.Setenv(v, "")
	}
	env.Setenv("HOME", home)
	env.Setenv("WS", workspace)
	env.Setenv("PATH", filepath.Join(shared, "bin")+":"+os.Getenv("PATH"))
	env.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	env.Cd = workspace
	return nil
}

func condition(cond string) (bool, error) {
	switch {
	case cond == "root":
		return os.Getuid() == 0, nil
	case cond == "tap":
		// What a session decides by: can the device be opened?
		f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
		if err == nil {
			f.Close()
		}
		return err == nil, nil
	case strings.HasPrefix(cond, "path:"):
		_, err := os.Stat(strings.TrimPrefix(cond, "path:"))
		return err == nil, nil
	}
	return false, fmt.Errorf("no condition %q", cond)
}

// TestDocumentedPoliciesAreValid keeps the examples honest: the README's policy
// as it stands, and the fragments of docs/policy.md put together.
func TestDocumentedPoliciesAreValid(t *testing.T) {
	if os.Getenv(sharedEnv) != "" {
		return // not in the ordinary user's half: the documents may lie in root's home
	}
	for _, doc := range []string{"README.md", "docs/policy.md"} {
		data, err := os.ReadFile(filepath.Join("../..", doc))
		if err != nil {
			t.Fatal(err)
		}
		text := yamlBlocks(string(data))
		if !strings.HasPrefix(text, "version: 1\n") {
			text = "version: 1\n" + text
		}
		file := filepath.Join(t.TempDir(), "policy.yaml")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(filepath.Join(shared, "bin", "bulkhead"), "policy", "check", file).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s\n%s", doc, err, out, text)
		}
	}
}

func yamlBlocks(doc string) string {
	var b strings.Builder
	inside := false
	for line := range strings.Lines(doc) {
		switch {
		case strings.HasPrefix(line, "```yaml"):
			inside = true
		case strings.HasPrefix(line, "```"):
			inside = false
		case inside:
			b.WriteString(line)
		}
	}
	return b.String()
}
