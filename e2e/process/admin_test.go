package process

import (
	"context"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rogpeppe/go-internal/txtar"
)

// adminEnv names the one story of testdata/admin that a process runs.
const adminEnv = "BULKHEAD_E2E_ADMIN"

// TestAdministratorStories runs the stories about /etc/bulkhead/policy.yaml. There
// is no way to name another file, so each runs in a mount namespace that root
// makes, with a copy of /etc in it: what the story holds below etc/ is root's
// there, and a file root.sh, run by root in that folder, can spoil it. Inside,
// the story is root's or an ordinary user's, without any way to the real /etc.
func TestAdministratorStories(t *testing.T) {
	if name := os.Getenv(adminEnv); name != "" {
		testscript.Run(t, testscript.Params{
			Files: []string{name}, Setup: setup, Condition: condition, Cmds: commands,
			RequireExplicitExec: true, Deadline: time.Now().Add(suiteTime),
		})
		return
	}
	if os.Getenv(sharedEnv) != "" {
		return // an ordinary user's half of other stories
	}
	if os.Getuid() != 0 {
		t.Skipf("uid %d cannot put a policy of root's into a mount namespace; not proven in this run: the policy of the administrator", os.Getuid())
	}
	stories, err := filepath.Glob("testdata/admin/*.txtar")
	if err != nil || len(stories) == 0 {
		t.Fatal("no stories", err)
	}
	ordinary, err := findOrdinaryUser()
	if err != nil {
		t.Fatal(err)
	}
	for _, story := range stories {
		name := strings.TrimSuffix(filepath.Base(story), ".txtar")
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(shared, "admin-"+name)
			copied := filepath.Join(shared, "admin-"+name+".txtar")
			if err := copyFile(copied, story, 0o644); err != nil {
				t.Fatal(err)
			}
			unpack(t, story, dir)
			t.Run("root", func(t *testing.T) { runAdminStory(t, copied, dir, nil) })
			t.Run("user", func(t *testing.T) { runAdminStory(t, copied, dir, ordinary) })
		})
	}
}

// unpack writes a story's files below etc/, and its root.sh. $SHARED is the
// folder in which the stories' workspaces are.
func unpack(t *testing.T, story, dir string) {
	t.Helper()
	a, err := txtar.ParseFile(story)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range a.Files {
		if f.Name != "root.sh" && !strings.HasPrefix(f.Name, "etc/") {
			continue
		}
		to := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, []byte(strings.ReplaceAll(string(f.Data), "$SHARED", shared)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// privateEtc makes /etc a copy with what $1/etc has on top.
const privateEtc = `
from=$1; shift
etc=$(mktemp -d); mount -t tmpfs -o mode=755 none "$etc"
cp -a /etc/. "$etc"; cp -r "$from/etc/." "$etc"; chmod -R go-w "$etc/bulkhead"
if [ -e "$from/root.sh" ]; then (cd "$etc" && . "$from/root.sh"); fi
mount --bind "$etc" /etc; umount -l "$etc"; rmdir "$etc"
exec "$@"`

func runAdminStory(t *testing.T, story, dir string, u *user.User) {
	t.Helper()
	inside := []string{"unshare", "--mount", "--propagation", "private", "--", "sh", "-ec", privateEtc, "sh", dir}
	if out, err := exec.Command(inside[0], append(inside[1:len(inside):len(inside)], "true")...).CombinedOutput(); err != nil {
		t.Skipf("no private /etc can be made here; not proven in this run: the policy of the administrator (%v)\n%s", err, out)
	}
	env := []string{sharedEnv + "=" + shared, adminEnv + "=" + story, "PATH=" + os.Getenv("PATH"), "GOTMPDIR=" + os.Getenv("GOTMPDIR")}
	if u != nil {
		inside = append(inside, "setpriv", "--reuid", u.Uid, "--regid", u.Gid, "--clear-groups", "--")
		env = append(env, "HOME="+u.HomeDir, "USER="+u.Username)
	} else {
		env = append(env, "HOME="+os.Getenv("HOME"))
	}
	inside = append(inside, filepath.Join(shared, "process.test"), "-test.run", "^TestAdministratorStories$", "-test.v")
	ctx, cancel := context.WithTimeout(context.Background(), suiteTime+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, inside[0], inside[1:]...)
	cmd.Dir, cmd.Env = shared, env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", inside[10:], err, out)
	}
}
