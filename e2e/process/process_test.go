// Package process holds the stories of the process tier: each file in testdata
// drives the real bulkhead binary the way a person or a script does, and opens
// with the guarantee or the bug that it locks.
//
// The whole suite runs twice where it can: as the user of the test run and, if
// that is root, as an ordinary user as well (BULKHEAD_TEST_USER, otherwise
// bulkhead-test, which scripts/install-deps creates). Whichever network these
// two got from this host, a TAP or the relay, the stories about the network run
// a third and a fourth time with the other one: root makes a private mount
// namespace in which /dev/net/tun is open to all, or not there.
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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

const (
	sharedEnv  = "BULKHEAD_E2E_SHARED"
	networkEnv = "BULKHEAD_E2E_NETWORK" // what a further run must find: tap or relay
	// prepareEnv names a folder that gets all that a run elsewhere needs; nothing runs then.
	prepareEnv = "BULKHEAD_E2E_PREPARE"
	// isolationEnv is what every bulkhead run of the stories is given that names none.
	isolationEnv = "BULKHEAD_E2E_ISOLATION"
)

// networkStories are those that depend on how the network is made.
const networkStories = "^(no_network|http_grant|relay|ipv6|upstream_tls|streaming|credentials|login|login_keyring|revoke|grpc|byte_limits|git_ssh|localhost|packages|hub|lang_.*|rule.*)$"

func TestMain(m *testing.M) {
	if shared = os.Getenv(sharedEnv); shared != "" {
		if want := os.Getenv(networkEnv); want != "" && (want == "tap") != canTAP() {
			fmt.Fprintf(os.Stderr, "e2e/process: the network was to be %s; /dev/net/tun can be opened: %v\n", want, canTAP())
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	dir, err := prepare()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e/process:", err)
		os.Exit(1)
	}
	if to := os.Getenv(prepareEnv); to != "" {
		err := os.CopyFS(to, os.DirFS(dir))
		os.RemoveAll(dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e/process:", err)
			os.Exit(1)
		}
		fmt.Println("no story ran: all that they need is in", to)
		os.Exit(0)
	}
	shared = dir
	// testscript leaves an empty folder behind when only some stories run.
	os.Setenv("GOTMPDIR", filepath.Join(dir, "work"))
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
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		return "", err
	}
	if err := os.Chmod(work, 0o777|os.ModeSticky); err != nil {
		return "", err
	}
	for _, program := range []string{"./cmd/bulkhead", "./cmd/bulkhead-runsc", "./e2e/process/testdata/goclient"} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, "bin")+"/", program)
		build.Dir = "../.."
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("building %s: %w\n%s", program, err, out)
		}
	}
	if err := writeShim(dir); err != nil {
		return "", err
	}
	if err := copyGo(filepath.Join(dir, "go")); err != nil {
		return "", fmt.Errorf("copying Go: %w", err)
	}
	if err := copyClients(filepath.Join(dir, "clients", "node_modules")); err != nil {
		return "", fmt.Errorf("copying the clients from npm: %w", err)
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

// writeShim makes the bulkhead that stories call in another isolation.
func writeShim(dir string) error {
	if err := os.Mkdir(filepath.Join(dir, "shim"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "shim", "bulkhead"), []byte(`#!/bin/sh
real=${0%/*}/../bin/bulkhead
case "$1:$*" in
run:*--isolation*|run:*--resume*) ;;
run:*) shift; set -- run --isolation "$`+isolationEnv+`" "$@" ;;
esac
exec "$real" "$@"
`), 0o755)
}

// copyClients puts what scripts/install-deps got from npm where the ordinary user
// can read it, if it is there.
func copyClients(dir string) error {
	from := "../../.cache/clients/node_modules"
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.Mkdir(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	return os.CopyFS(dir, os.DirFS(from))
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
const suiteTime = 8 * time.Minute

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
	var tier []string
	if is := os.Getenv(isolationEnv); is != "" {
		tier = append(tier, isolationEnv+"="+is)
	}
	again(t, ordinaryUser(t), "", os.Getenv("BULKHEAD_E2E_RUN"), tier...)
}

// TestNetworkStoriesAsOrdinaryUserOverTAP proves that a TAP needs no privilege
// but the device's permission, which most distributions give to everyone.
func TestNetworkStoriesAsOrdinaryUserOverTAP(t *testing.T) {
	again(t, ordinaryUser(t), "tap", networkStories)
}

func TestNetworkStoriesAsOrdinaryUserOverTheRelay(t *testing.T) {
	again(t, ordinaryUser(t), "relay", networkStories)
}

func TestNetworkStoriesAsRootOverTheRelay(t *testing.T) {
	again(t, nil, "relay", networkStories)
}

// containerStories run in isolation container too.
const containerStories = "no_network|http_grant|credentials|home_hidden|secrets_masked|unix_sockets|env|stdio|exit_codes|limits_kept|seen|" +
	"protected|environments|workspace|workspace_versions|git_commit|rule0[1245678]_.*"

// TestContainerStories: the same policy, mounts, credentials, decisions and exit
// codes on a kernel of the sandbox's own, every packet through the same gateway.
func TestContainerStories(t *testing.T) {
	again(t, nil, "", "^("+containerStories+"|planted)$", isolationEnv+"=container")
}

func TestContainerStoriesAsOrdinaryUserOverTAP(t *testing.T) {
	again(t, ordinaryUser(t), "tap", "^(no_network|http_grant|credentials|image|rule0[26]_.*)$", isolationEnv+"=container")
}

func TestContainerStoriesAsOrdinaryUserOverTheRelay(t *testing.T) {
	again(t, ordinaryUser(t), "relay", "^("+containerStories+")$", isolationEnv+"=container")
}

// again runs stories in a process of their own: as u (nil: as now), with the
// network given (empty: as it is), and with more in the environment.
func again(t *testing.T, u *user.User, network, stories string, more ...string) {
	t.Helper()
	if os.Getenv(sharedEnv) != "" {
		return // this is such a process
	}
	if os.Getuid() != 0 {
		t.Skipf("uid %d cannot change users or mounts; not proven in this run: these stories as another user or with another network", os.Getuid())
	}
	var args []string
	if network != "" {
		make := "mount -t tmpfs -o mode=755 none /dev/net"
		if network == "tap" {
			make += " && mknod -m 666 /dev/net/tun c 10 200"
		}
		args = []string{"unshare", "--mount", "--propagation", "private", "--", "sh", "-ec", make + ` && exec "$@"`, "sh"}
		try := append(args[1:len(args):len(args)], "true")
		if network == "tap" {
			try[len(try)-1] = "sh"
			try = append(try, "-c", ": <>/dev/net/tun")
		}
		if out, err := exec.Command(args[0], try...).CombinedOutput(); err != nil {
			t.Skipf("no private /dev/net/tun can be made here; not proven in this run: %s (%v)\n%s", network, err, out)
		}
	}
	env := []string{sharedEnv + "=" + shared, networkEnv + "=" + network, "PATH=" + os.Getenv("PATH"), "GOTMPDIR=" + os.Getenv("GOTMPDIR"), "HOME=" + os.Getenv("HOME")}
	if u != nil {
		args = append(args, "setpriv", "--reuid", u.Uid, "--regid", u.Gid, "--clear-groups", "--")
		env = append(env[:4], "HOME="+u.HomeDir, "USER="+u.Username)
	}
	env = append(env, more...)
	pattern := "^TestStories$"
	if stories != "" {
		pattern += "/" + stories
	}
	args = append(args, filepath.Join(shared, "process.test"), "-test.v", "-test.run", pattern)
	ctx, cancel := context.WithTimeout(context.Background(), suiteTime+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = shared, env
	out, err := cmd.CombinedOutput()
	if shown := report(t, string(out)); err != nil && !shown {
		t.Errorf("%v: %v\n%s", args, err, out)
	}
}

// report makes a subtest of each story in what a verbose run of TestStories
// printed, and says whether one of them failed.
func report(t *testing.T, out string) (failed bool) {
	const in = "TestStories/"
	words, results, order := map[string]string{}, map[string]string{}, []string(nil)
	story := ""
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 3 && strings.HasPrefix(line, "=== "):
			story, _ = strings.CutPrefix(fields[2], in)
		case len(fields) == 4 && fields[0] == "---":
			if name, ok := strings.CutPrefix(fields[2], in); ok {
				results[name] = strings.TrimSuffix(fields[1], ":")
				order = append(order, name)
			}
		default:
			words[story] += line
		}
	}
	if len(order) == 0 {
		t.Errorf("no story ran:\n%s", out)
		return true
	}
	for _, name := range order {
		t.Run(name, func(t *testing.T) {
			t.Log(words[name])
			switch results[name] {
			case "PASS":
			case "SKIP":
				t.Skipf("not proven in this run: %s; its words are above", name)
			default:
				failed = true
				t.Fail()
			}
		})
	}
	return failed
}

func ordinaryUser(t *testing.T) *user.User {
	t.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	u, err := findOrdinaryUser()
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func findOrdinaryUser() (*user.User, error) {
	name := os.Getenv("BULKHEAD_TEST_USER")
	if name == "" {
		name = "bulkhead-test"
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("no ordinary user to run as: %w\nmake one with scripts/install-deps test, or name one in BULKHEAD_TEST_USER", err)
	}
	if u.Uid == "0" {
		return nil, fmt.Errorf("BULKHEAD_TEST_USER=%s is root", name)
	}
	return u, nil
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
	env.Setenv("GO_TREE", filepath.Join(shared, "go"))
	path := filepath.Join(shared, "bin") + ":" + os.Getenv("PATH")
	if isolation := os.Getenv(isolationEnv); isolation != "" {
		env.Setenv(isolationEnv, isolation)
		path = filepath.Join(shared, "shim") + ":" + path
	}
	env.Setenv("PATH", path)
	env.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	env.Cd = workspace
	return nil
}

func condition(cond string) (bool, error) {
	switch {
	case cond == "root":
		return os.Getuid() == 0, nil
	case cond == "container":
		return os.Getenv(isolationEnv) == "container", nil
	case cond == "tap":
		return canTAP(), nil
	case cond == "tiocsti":
		// Since Linux 6.2 a host may refuse it to everyone.
		data, err := os.ReadFile("/proc/sys/dev/tty/legacy_tiocsti")
		return err != nil || strings.TrimSpace(string(data)) != "0", nil
	case cond == "node-proxy":
		// Node reads HTTP_PROXY, when told to, from 22.21 and 24.5 on.
		out, err := exec.Command("node", "-p", "process.versions.node").Output()
		var major, minor int
		fmt.Sscanf(string(out), "%d.%d", &major, &minor)
		return major > 24 || major == 24 && minor >= 5 || major == 22 && minor >= 21, err
	case cond == "requests-proxy":
		out, err := exec.Command("/usr/bin/python3", "-c", "import requests; print(requests.__version__)").Output()
		var major, minor int
		fmt.Sscanf(string(out), "%d.%d", &major, &minor)
		return major > 2 || major == 2 && minor >= 29, err
	case strings.HasPrefix(cond, "python:"):
		return exec.Command("/usr/bin/python3", "-c", "import "+strings.TrimPrefix(cond, "python:")).Run() == nil, nil
	case strings.HasPrefix(cond, "path:"):
		_, err := os.Stat(strings.TrimPrefix(cond, "path:"))
		return err == nil, nil
	}
	return false, fmt.Errorf("no condition %q", cond)
}

// canTAP is what a session decides by: can the device be opened?
func canTAP() bool {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	return err == nil
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
	inside := false
	var keys []string
	under := map[string]string{}
	key := ""
	for line := range strings.Lines(doc) {
		switch {
		case strings.HasPrefix(line, "```yaml"):
			inside = true
		case strings.HasPrefix(line, "```"):
			inside = false
		case inside:
			if name, rest, ok := strings.Cut(line, ":"); ok && strings.TrimLeft(name, " -#") == name {
				if key = name; under[key] != "" && strings.TrimSpace(rest) == "" {
					continue // what follows belongs to the first one
				}
				keys = append(keys, key)
			}
			under[key] += line
		}
	}
	var b strings.Builder
	for _, k := range keys {
		b.WriteString(under[k])
	}
	return b.String()
}
