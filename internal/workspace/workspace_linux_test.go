package workspace

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const canary = "CANARY-7f3a9d"

type host struct {
	t         *testing.T
	home, dir string
}

// newHost makes a home with secrets and a project in it.
func newHost(t *testing.T) *host {
	t.Helper()
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t, filepath.Join(top, "home"), filepath.Join(top, "home/proj")}
	h.write("home/.aws/credentials", canary)
	h.write("home/.ssh/id_ed25519", canary)
	h.write("home/.netrc", canary)
	h.write("home/.config/gcloud/creds.db", canary)
	h.write("home/.config/app/settings", "fine")
	h.write("home/other/.env", canary)
	h.write("home/other/readme", "fine")
	h.write("home/.mozilla/firefox/p1.default/logins.json", canary)
	h.write("home/proj/main.go", "package main")
	h.write("home/proj/.env", "PROJECT=1")
	return h
}

func (h *host) path(rel string) string { return filepath.Join(filepath.Dir(h.home), rel) }

func (h *host) write(rel, text string) string {
	h.t.Helper()
	p := h.path(rel)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
	return p
}

func (h *host) link(to, rel string) {
	h.t.Helper()
	os.MkdirAll(filepath.Dir(h.path(rel)), 0o755)
	if err := os.Symlink(to, h.path(rel)); err != nil {
		h.t.Fatal(err)
	}
}

var at7 = vocabulary.Position{File: "policy.yaml", Line: 7, Column: 3}

func (h *host) request(mounts ...Folder) Request {
	for i := range mounts {
		if mounts[i].Pos == (vocabulary.Position{}) {
			mounts[i].Pos = at7
		}
	}
	return Request{
		Home: h.home, Cwd: h.dir, User: "dev", UID: os.Getuid(), GID: os.Getgid(),
		Workspace: Folder{Path: ".", Mode: vocabulary.ReadWrite, Pos: vocabulary.Position{File: "policy.yaml", Line: 4}},
		Mounts:    mounts,
		Secrets: []Secret{{"~/.aws", "AWS keys"}, {"~/.ssh", "SSH keys"}, {"~/.netrc", "passwords"}, {"~/.config/gcloud", "cloud login"},
			{"~/.mozilla/firefox/*/logins.json", "browser passwords"}, {"**/.env", "application secrets"}, {"~/.not-there", "nothing"}},
		Protected: []Protected{{".git/hooks", "run by git"}, {".git/info/attributes", "drivers"}, {".vscode/tasks.json", "run by the editor"}, {".envrc", "run by direnv"},
			{".claude/settings.json", "hooks"}, {"*.code-workspace", "tasks"}},
		Nameserver: "198.18.0.1",
	}
}

func (h *host) plan(r Request) *Layout {
	h.t.Helper()
	l, err := Plan(r)
	if err != nil {
		h.t.Fatal(err)
	}
	return l
}

func (h *host) run(l *Layout, script string) string {
	h.t.Helper()
	out, _ := inside(h.t, l, script)
	return out
}

func (h *host) mustRun(l *Layout, script string) string {
	h.t.Helper()
	out, err := inside(h.t, l, script)
	if err != nil {
		h.t.Fatalf("%v\nscript: %s\noutput: %s", err, script, out)
	}
	return out
}

func TestAsOrdinaryUser(t *testing.T) { asOrdinaryUser(t, "^Test(Contained|Refus|Verify)") }

func TestContainedDefault(t *testing.T) {
	h := newHost(t)
	l := h.plan(h.request())
	out := h.mustRun(l, `set -e
pwd; cat main.go .env; echo new > made.txt; echo x > /tmp/x; echo x > /var/tmp/x; touch "$HOME/x"
ls -A "$HOME"; id -un; cat /etc/resolv.conf; getent hosts localhost; cat /etc/hostname; ls /usr/bin/env`)
	for _, want := range []string{h.dir + "\n", "package main", "PROJECT=1", "nameserver 198.18.0.1", "bulkhead"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
	if b, err := os.ReadFile(filepath.Join(h.dir, "made.txt")); err != nil || string(b) != "new\n" {
		t.Errorf("a file made in the workspace is not on the host: %q %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(h.home, "x")); err == nil {
		t.Error("a file made in the private home is on the host")
	}
	for _, script := range []string{
		"cat ~/.aws/credentials", "cat " + h.home + "/.aws/credentials", "cat " + h.home + "/./proj/..//.aws/credentials",
		"cd ~ && cat .ssh/id_ed25519", "cat ../.netrc", "cat /proc/self/root" + h.home + "/.netrc", "cat /proc/1/root" + h.home + "/.netrc",
		"grep -R CANARY- " + filepath.Dir(h.home), "tar -chf - " + h.home,
	} {
		if out := h.run(l, script); strings.Contains(out, canary) {
			t.Errorf("%s gives a secret", script)
		}
	}
	for _, script := range []string{"touch /etc/x", "touch /usr/x", "touch /x", "touch /opt/x", "touch /root/x && test $(id -u) != 0", "ln -s /a /usr/a", "touch /var/x", "echo x > /etc/passwd", "cat /etc/shadow"} {
		if out, err := inside(t, l, script); err == nil {
			t.Errorf("%s worked: %s", script, out)
		}
	}
	if out := h.mustRun(l, "ls -A /run /home /mnt /srv /media /boot /root 2>/dev/null; true"); strings.Contains(out, "lock") || strings.Contains(out, "docker") {
		t.Errorf("the host's runtime files are visible:\n%s", out)
	}
}

func TestContainedSecretsUnderBroadMounts(t *testing.T) {
	h := newHost(t)
	outside := h.write("data/aws/credentials", canary)
	os.RemoveAll(filepath.Join(h.home, ".netrc"))
	h.link(h.path("data/netrc"), "home/.netrc")
	h.write("data/netrc", canary)
	h.link("../.aws/credentials", "home/proj/relative")
	h.link(filepath.Join(h.home, ".ssh"), "home/proj/keys")
	h.link("keys/id_ed25519", "home/proj/chained")
	l := h.plan(h.request(Folder{Path: "~", Mode: vocabulary.ReadOnly}, Folder{Path: h.path("data"), Mode: vocabulary.ReadOnly}))
	if out := h.mustRun(l, "cat ~/.config/app/settings ~/other/readme && cat .env && echo x > w"); !strings.Contains(out, "PROJECT=1") {
		t.Errorf("what is no secret is not readable: %s", out)
	}
	for _, script := range []string{
		"cat ~/.aws/credentials", "cat ~/.aws/", "ls ~/.aws", "cat ~//.ssh/id_ed25519", "cat ~/.netrc", "cat " + h.path("data/netrc"), "cat ~/.config/gcloud/creds.db",
		"cat ~/other/.env", "cat ~/.mozilla/firefox/p1.default/logins.json", "cat relative keys/id_ed25519 chained", "cat keys/*",
		"find ~ -type f | xargs cat", "tar -chf - ~", "chmod -R 777 ~/.aws; cat ~/.aws/*", "cd ~/.aws && cat credentials", "mv ~/.aws ~/a; cat ~/a/*",
		"cat /proc/self/cwd/../.aws/credentials", "umount ~/.aws; cat ~/.aws/credentials", "unshare -rm sh -c 'umount -l ~/.aws; cat ~/.aws/credentials'",
	} {
		if out := h.run(l, script); strings.Contains(out, canary) {
			t.Errorf("%s gives a secret:\n%s", script, out)
		}
	}
	_ = outside
	// Named one by one, it is there: the file, without its neighbours.
	l = h.plan(h.request(Folder{Path: "~", Mode: vocabulary.ReadOnly}, Folder{Path: "~/.ssh/id_ed25519", Mode: vocabulary.ReadOnly}, Folder{Path: "~/.config/gcloud", Mode: vocabulary.ReadOnly}))
	h.write("home/.ssh/other", canary+"-other")
	if out := h.run(l, "cat ~/.ssh/id_ed25519 ~/.config/gcloud/creds.db"); strings.Count(out, canary) != 2 {
		t.Errorf("a secret named by a mount is not readable: %s", out)
	}
	if out := h.run(l, "cat ~/.ssh/* ~/.aws/*"); strings.Contains(out, canary+"-other") {
		t.Errorf("its neighbours are: %s", out)
	}
}

// Masks that lie in one another, in any order, and with protected files and
// sockets in them, leave a plan that can be mounted.
func TestContainedNestedSecrets(t *testing.T) {
	h := newHost(t)
	h.write("home/.docker/config.json", canary)
	h.write("home/.docker/contexts/x", canary)
	h.write("home/.docker/sub/.git/config", canary)
	h.write("home/.docker/open/fine", "fine")
	r := h.request(Folder{Path: "~/.docker", Mode: vocabulary.ReadWrite})
	r.Mounts[0].Path = "~/box"
	os.MkdirAll(h.path("home/box"), 0o755)
	if err := os.Rename(h.path("home/.docker"), h.path("home/box/.docker")); err != nil {
		t.Fatal(err)
	}
	r.Secrets = []Secret{{"~/box/.docker/config.json", "a"}, {"~/box/.docker/c*/x", "b"}, {"~/box/.docker", "c"}, {"~/box/.docker/contexts", "d"}}
	if out := h.mustRun(h.plan(r), "cat ~/box/.docker/* ~/box/.docker/*/*; touch ~/box/x"); strings.Contains(out, canary) {
		t.Error(out)
	}
	r.Mounts = append(r.Mounts, Folder{Path: "~/box/.docker/open", Mode: vocabulary.ReadWrite, Pos: at7})
	l := h.plan(r)
	if out := h.mustRun(l, "cat ~/box/.docker/* ~/box/.docker/*/*; touch ~/box/.docker/open/x"); strings.Contains(out, canary) || !strings.Contains(out, "fine") {
		t.Error(out)
	}
	if err := standing(l); err != nil {
		t.Error(err)
	}
	r = h.request()
	r.Secrets = []Secret{{filepath.Join(h.home, "pr*"), "patterns"}}
	_, err := Plan(r)
	refused(t, err, "place of secrets")
}

func TestContainedSockets(t *testing.T) {
	h := newHost(t)
	os.MkdirAll(h.path("home/.run/deep"), 0o755)
	for _, at := range []string{"home/.run/deep/agent.sock", "home/proj/s.sock"} {
		// The name may be too long for a socket address: bind it relatively.
		old, _ := os.Getwd()
		os.Chdir(filepath.Dir(h.path(at)))
		ln, err := net.Listen("unix", filepath.Base(at))
		os.Chdir(old)
		if err != nil {
			t.Fatal(err)
		}
		ln.(*net.UnixListener).SetUnlinkOnClose(false)
		defer ln.Close()
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				c.Write([]byte("HOST-SERVICE"))
				c.Close()
			}
		}()
	}
	l := h.plan(h.request(Folder{Path: "~/.run", Mode: vocabulary.ReadOnly}))
	out := h.run(l, `for s in ~/.run/deep/agent.sock s.sock; do /usr/bin/python3 -c '
import socket,sys,os
os.chdir(os.path.dirname(os.path.abspath(sys.argv[1])))
s=socket.socket(socket.AF_UNIX); s.settimeout(2); s.connect(os.path.basename(sys.argv[1])); print(s.recv(99))' $s; done`)
	if strings.Contains(out, "HOST-SERVICE") || strings.Count(out, "refused")+strings.Count(out, "Permission denied") != 2 {
		t.Errorf("a socket of the host answers, or the test could not try:\n%s", out)
	}
	_, err := Plan(h.request(Folder{Path: "~/.run/deep/agent.sock", Mode: vocabulary.ReadWrite}))
	refused(t, err, "is a socket")
}

func git(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
}

func TestContainedProtectedFiles(t *testing.T) {
	h := newHost(t)
	for _, repo := range []string{"", "vendor/sub", "node_modules/a/node_modules/b", "1/2/3/4/5/6/7/8/9"} {
		d := filepath.Join(h.dir, repo)
		os.MkdirAll(d, 0o755)
		git(t, d, "init", "-q")
		os.MkdirAll(filepath.Join(d, ".git/hooks"), 0o755)
	}
	git(t, h.dir, "init", "-q", "--bare", "store.git")
	git(t, h.dir, "-c", "user.name=a", "commit", "-q", "--allow-empty", "-m", "x")
	git(t, h.dir, "worktree", "add", "-q", "wt")
	h.write("home/proj/.git/modules/a/b/HEAD", "ref: x")
	h.write("home/proj/.git/modules/a/b/config", "[core]")
	h.write("home/proj/.vscode/tasks.json", "{}")
	h.write("home/proj/sub/.envrc", "")
	h.write("home/proj/x.code-workspace", "{}")
	h.write("home/proj/.claude/settings.json", "{}")
	h.write("home/proj/.githooks/pre-commit", "")
	h.write("home/proj/extra.gitconfig", "")
	git(t, h.dir, "config", "core.hooksPath", ".githooks")
	git(t, h.dir, "config", "include.path", "../extra.gitconfig")
	h.write("home/proj/node_modules/a/.vscode/tasks.json", "{}")
	r := h.request()
	r.Installed = []string{"node_modules"}
	l := h.plan(r)
	h.mustRun(l, "echo x > node_modules/a/.vscode/tasks.json") // packages bring what they like
	// What git writes itself is ruled by the guard, and stays in place.
	for _, config := range []string{".git/config", "vendor/sub/.git/config", "node_modules/a/node_modules/b/.git/config", "1/2/3/4/5/6/7/8/9/.git/config", "store.git/config", ".git/modules/a/b/config"} {
		if !slices.Contains(l.Fixed, filepath.Join(h.dir, config)) {
			t.Errorf("%s is neither read-only nor ruled", config)
		}
	}
	for _, script := range []string{
		"echo x > .git/hooks/pre-commit", "mkdir h && mv h .git/hooks", "rm -rf .git/hooks",
		"mv .git .git2", "mv .git/hooks .git/h2",
		"echo x > vendor/sub/.git/hooks/pre-push", "mv vendor/sub/.git vendor/sub/g",

		"echo x > store.git/hooks/post-receive", "mv .git/modules/a .git/modules/z", "mv .git/modules .git/m2",
		"echo x > wt/.git", "rm wt/.git", "echo x > .git/worktrees/wt/commondir", "mv .git/worktrees/wt .git/worktrees/w2",
		"echo x > .vscode/tasks.json", "mv .vscode v2", "echo x > sub/.envrc", "rm sub/.envrc", "echo x > x.code-workspace", "mv .claude c2", "echo x > .claude/settings.json",
		"echo x > .githooks/pre-commit", "mv .githooks g2", "echo x > extra.gitconfig",
	} {
		if out, err := inside(t, l, script); err == nil {
			t.Errorf("%s worked %s", script, out)
		}
	}
	// Git works as before.
	h.mustRun(l, `set -e; export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git add main.go; git commit -qm one; git checkout -qb feature; echo y >> main.go; git commit -qam two; git stash list; git gc -q; git status --short
(cd wt && git commit -q --allow-empty -m three && git log --oneline); (cd vendor/sub && git commit -q --allow-empty -m four)
mkdir fresh && cd fresh && git init -q`)
	if out, err := exec.Command("git", "-C", h.dir, "log", "--oneline", "feature").CombinedOutput(); err != nil || strings.Count(string(out), "\n") != 3 {
		t.Errorf("commits from inside are not there: %s %v", out, err)
	}
}

func TestContainedWorktreeElsewhere(t *testing.T) {
	h := newHost(t)
	main := h.path("home/mainrepo")
	os.MkdirAll(main, 0o755)
	git(t, main, "init", "-q")
	git(t, main, "commit", "-q", "--allow-empty", "-m", "x")
	git(t, main, "worktree", "add", "-q", h.path("home/wt"))
	r := h.request()
	r.Cwd = h.path("home/wt")
	l := h.plan(r)
	h.mustRun(l, "set -e; export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b; touch n; git add n; git commit -qm in; git status")
	for _, script := range []string{"echo x > " + main + "/.git/hooks/pre-commit", "rm .git", "mv " + main + "/.git " + main + "/g"} {
		if out, err := inside(t, l, script); err == nil {
			t.Errorf("%s worked %s", script, out)
		}
	}
	h.run(l, "touch "+main+"/x")
	if _, err := os.Stat(main + "/x"); err == nil {
		t.Error("the repository's own work tree is writable")
	}
	// A stranger's .git file opens nothing.
	h.write("home/evil/.git", "gitdir: "+filepath.Join(h.home, ".ssh/worktrees/x"))
	h.write("home/.ssh/worktrees/x/HEAD", "x")
	r.Cwd = h.path("home/evil")
	l = h.plan(r)
	if out := h.run(l, "cat ~/.ssh/*"); strings.Contains(out, canary) {
		t.Error("a .git file opens a secret")
	}
}

func TestContainedSpellings(t *testing.T) {
	h := newHost(t)
	h.link(h.dir, "short")
	h.link("home/proj", "rel")
	os.MkdirAll(h.path("elsewhere"), 0o755)
	for _, name := range []string{"short", "rel"} {
		r := h.request()
		r.Workspace.Path = h.path(name)
		l := h.plan(r)
		if l.Dir != h.dir {
			t.Errorf("start is %s, want %s", l.Dir, h.dir)
		}
		if out := h.mustRun(l, "cat "+h.path(name)+"/main.go "+h.dir+"/main.go"); strings.Count(out, "package main") != 2 {
			t.Errorf("%s: %s", name, out)
		}
	}
	// A home that is a link: both names lead to the private home.
	h.link(h.home, "homelink")
	r := h.request(Folder{Path: "~/.config/app", Mode: vocabulary.ReadOnly}, Folder{Path: "~", Mode: vocabulary.ReadOnly})
	r.Home = h.path("homelink")
	l := h.plan(r)
	if l.Home != r.Home {
		t.Errorf("home is %s", l.Home)
	}
	if out := h.run(l, "cat $HOME/.config/app/settings $HOME/.aws/credentials "+h.home+"/.aws/credentials $HOME/.ssh/*"); !strings.Contains(out, "fine") || strings.Contains(out, canary) {
		t.Error(out)
	}
	r = h.request()
	r.Home = h.path("homelink")
	h.mustRun(h.plan(r), "touch $HOME/a && test -e "+h.home+"/a")
	// A link in a mount that leads out of it leads nowhere.
	h.link(filepath.Join(h.home, ".aws"), "elsewhere/out")
	l = h.plan(h.request(Folder{Path: h.path("elsewhere"), Mode: vocabulary.ReadWrite}))
	if out := h.run(l, "cat "+h.path("elsewhere/out/credentials")); strings.Contains(out, canary) {
		t.Error("a link leads out of its mount")
	}
}

func TestContainedHostileNames(t *testing.T) {
	h := newHost(t)
	for i, n := range []string{"--bind", "a\nb", "x\x1b[31m", "\xff\xfe", "$(touch pwned)", " ", "-", "*"} {
		d := filepath.Join(h.dir, n)
		if err := os.MkdirAll(filepath.Join(d, ".git/hooks"), 0o755); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(d, ".git/commondir"), []byte(fmt.Sprint(i)), 0o644)
	}
	l := h.plan(h.request())
	out := h.mustRun(l, `for d in ./* "./ "; do [ -d "$d/.git" ] && { echo x > "$d/.git/commondir" || echo kept; } 2>/dev/null; done; true`)
	if strings.Count(out, "kept") < 8 {
		t.Errorf("hostile names are not protected:\n%s", out)
	}
	if _, err := os.Stat(filepath.Join(h.dir, "pwned")); err == nil {
		t.Error("a name was run")
	}
	odd := filepath.Join(h.home, "od\td")
	os.MkdirAll(odd, 0o755)
	r := h.request()
	r.Cwd = odd
	h.mustRun(h.plan(r), "touch x")
}

func TestContainedNestedMounts(t *testing.T) {
	h := newHost(t)
	h.write("home/proj/gen/out", "x")
	h.write("home/proj/gen/open/out", "x")
	h.write("home/proj/.vscode/tasks.json", "x")
	l := h.plan(h.request(
		Folder{Path: "~/proj/gen/open", Mode: vocabulary.ReadWrite}, Folder{Path: "gen", Mode: vocabulary.ReadOnly},
		Folder{Path: "~/.config/app/settings", Mode: vocabulary.ReadOnly}, Folder{Path: "~/missing", Mode: vocabulary.ReadOnly, Optional: true}))
	h.mustRun(l, "echo y > gen/open/out && echo y > w && cat ~/.config/app/settings && touch ~/.config/own && ! touch gen/z 2>/dev/null && ! echo y > gen/out")
}

func TestContainedOwnFiles(t *testing.T) {
	h := newHost(t)
	pol := h.write("home/proj/conf/policy.yaml", "version: 1")
	h.write("home/.config/bulkhead/policy.yaml", canary)
	r := h.request(Folder{Path: "~/.config", Mode: vocabulary.ReadWrite})
	r.OwnFiles = []string{pol}
	r.OwnState = []string{"~/.config/bulkhead", "~/.local/state/bulkhead"}
	l := h.plan(r)
	for _, script := range []string{"echo x > conf/policy.yaml", "mv conf c2", "mv -f main.go conf/policy.yaml", "cat ~/.config/bulkhead/policy.yaml", "echo x > ~/.config/bulkhead/policy.yaml", "mv ~/.config/bulkhead ~/.config/b2", "touch ~/.config/bulkhead/y"} {
		if out, err := inside(t, l, script); err == nil {
			t.Errorf("%s worked %s", script, out)
		}
	}
	h.mustRun(l, "cat conf/policy.yaml && touch ~/.config/z conf/z")
	r.Mounts = []Folder{{Path: "~/.config/bulkhead", Mode: vocabulary.ReadOnly, Pos: at7}}
	_, err := Plan(r)
	refused(t, err, "Bulkhead's own", "policy.yaml:7:3")
}

func refused(t *testing.T, err error, want ...string) {
	t.Helper()
	var e *vocabulary.ExitError
	if !errors.As(err, &e) || e.Code != vocabulary.ExitRefused {
		t.Errorf("not refused (want %q): %v", want, err)
		return
	}
	if strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("not three lines:\n%v", err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q is missing in:\n%v", w, err)
		}
	}
}

func TestRefusedWorkspaces(t *testing.T) {
	h := newHost(t)
	h.write("home/file", "")
	h.link("/etc", "home/etclink")
	h.link(h.home, "home/proj/up")
	h.link("self", "home/self")
	ro := h.path("home/readonly")
	os.MkdirAll(ro, 0o555)
	for _, c := range []struct{ path, want string }{
		{"/", "whole filesystem"}, {h.home, "is your home"}, {"~", "is your home"}, {filepath.Dir(h.home), "contains your home"}, {"/usr", "system directory"}, {"/etc/ssl", ""},
		{"~/etclink", "system directory"}, {"up", "is your home"}, {"/usr/../usr", "has .."}, {"..", "has .."}, {"~/nothing", "does not exist"}, {"~/file", "not a folder"},
		{"~/file/x", "does not exist"}, {"/tmp", ""}, {"/proc/self/cwd", ""}, {"/var", "system directory"}, {"~/.ssh", "place of secrets (SSH keys)"}, {"~/self", "loop"},
		{"~root/x", "another user's home"}, {"a\nb", "control characters"}, {"/home", "system directory"}, {"", "no path"}, {"/dev/shm", ""},
	} {
		r := h.request()
		r.Workspace.Path = c.path
		_, err := Plan(r)
		refused(t, err, c.want, "policy.yaml:4")
	}
	for mode, want := range map[vocabulary.MountMode]string{"staged": "hold its own layer", "x": "unknown mode"} {
		r := h.request()
		r.Workspace.Mode = mode
		_, err := Plan(r)
		refused(t, err, want)
	}
	if os.Getuid() != 0 {
		r := h.request()
		r.Workspace.Path = ro
		_, err := Plan(r)
		refused(t, err, "not writable", "mode ro")
		r.Workspace.Mode = vocabulary.ReadOnly
		h.mustRun(h.plan(r), "! touch x")
	}
}

func TestRefusedMounts(t *testing.T) {
	h := newHost(t)
	h.link("/", "home/root")
	h.link("/proc/self", "home/proclink")
	for _, c := range []struct {
		path, mode, want string
	}{
		{"/", "ro", "whole filesystem"}, {"~/root", "ro", "whole filesystem"}, {"/proc", "ro", "/proc"}, {"/proc/self/root", "ro", "/proc"}, {"/sys", "ro", "/sys"}, {"/dev", "ro", "/dev"},
		{"/dev/sda", "ro", "/dev"}, {"~/proclink", "ro", "lies in /proc"}, {"/run", "ro", "sockets"}, {"/var/run", "ro", ""}, {"~", "rw", "startup files"}, {filepath.Dir(h.home), "ro", "homes"},
		{"../x", "ro", "has .."}, {"~/gone", "ro", "does not exist"}, {"/etc", "rw", ""}, {"/usr/local", "rw", ""}, {"~/other", "staged", "only for the workspace"},
		{"~/other", "", "unknown mode"}, {".", "ro", "both rw and ro"},
	} {
		_, err := Plan(h.request(Folder{Path: c.path, Mode: vocabulary.MountMode(c.mode)}))
		refused(t, err, c.want, "policy.yaml:7:3")
	}
}

func TestRefusedWhenTooLarge(t *testing.T) {
	h := newHost(t)
	for i := range 30 {
		os.MkdirAll(filepath.Join(h.dir, fmt.Sprint(i), "x"), 0o755)
	}
	_, err := plan(h.request(), 50)
	refused(t, err, "more than 50 directories")
	if _, err := plan(h.request(), 70); err != nil {
		t.Error(err)
	}
}

// standing compares what was judged with what is there now, as the supervisor does.
func standing(l *Layout) error {
	for _, j := range l.Judged() {
		var st unix.Stat_t
		if err := unix.Lstat(j.Path, &st); err != nil || st.Dev != j.Dev || st.Ino != j.Ino {
			return fmt.Errorf("%s was exchanged: %v", j.Path, err)
		}
	}
	return nil
}

func TestVerify(t *testing.T) {
	h := newHost(t)
	l := h.plan(h.request())
	if err := standing(l); err != nil {
		t.Error(err)
	}
	os.Rename(h.dir, h.dir+"2")
	os.Mkdir(h.dir, 0o755)
	if err := standing(l); err == nil || !strings.Contains(err.Error(), "exchanged") {
		t.Errorf("an exchanged workspace is not noticed: %v", err)
	}
	os.Remove(h.dir)
	os.Symlink(h.dir+"2", h.dir)
	if err := standing(l); err == nil {
		t.Error("a link in its place is not noticed")
	}
}

func TestRootMasksPrivateSystemFiles(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: not proven that root's system files are masked")
	}
	h := newHost(t)
	l := h.plan(h.request())
	out := h.run(l, "cat /etc/shadow /etc/gshadow /etc/shadow- /etc/ssl/private/* 2>&1; ls /etc/ssl/private; ls -A /root")
	if strings.Contains(out, "root:") || strings.Contains(out, "PRIVATE KEY") || strings.Contains(out, ".cargo") {
		t.Errorf("root's files are readable:\n%s", out)
	}
	out = h.run(l, "find /etc /usr/local/etc -type f ! -perm -004 -size +0 2>/dev/null; true")
	for f := range strings.Lines(out) {
		if b := h.run(l, "cat "+strings.TrimSpace(f)+" 2>/dev/null"); b != "" {
			t.Errorf("%s is readable", f)
		}
	}
	r := h.request()
	r.UID = 1000
	n := func(l *Layout) int {
		return len(slices.DeleteFunc(slices.Clone(l.Mounts), func(m vocabulary.Mount) bool { return m.Kind != vocabulary.MaskFile }))
	}
	if n(l) <= n(h.plan(r)) {
		t.Error("root has no more masks than a user")
	}
}

func TestConfigPaths(t *testing.T) {
	got := configPaths("[core]\n\thooksPath = .husky/_ # x\n[include]\npath=\"a b\"\n[includeIf \"gitdir:x\"] path = y\n[remote \"path\"]\npath = no\n[CORE]HOOKSPATH=z")
	want := []configPath{{".husky/_", true}, {"a b", false}, {"y", false}, {"z", true}}
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

func FuzzConfigPaths(f *testing.F) {
	f.Add("[core]\nhooksPath=x")
	f.Add("[include]path=\"")
	f.Add("[[]]=\x00\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		if got := configPaths(s); len(got) > 64 {
			t.Errorf("%d paths", len(got))
		}
	})
}

func BenchmarkPlan(b *testing.B) {
	top, err := filepath.EvalSymlinks(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	small, large := filepath.Join(top, "home/small"), filepath.Join(top, "home/large")
	os.MkdirAll(small, 0o755)
	for i := range 10_000 {
		d := filepath.Join(large, "node_modules", fmt.Sprint(i/100), fmt.Sprint(i%100))
		os.MkdirAll(d, 0o755)
		for c := range 5 {
			os.WriteFile(filepath.Join(d, fmt.Sprint(c)), nil, 0o644)
		}
	}
	for _, c := range []struct {
		name, dir string
		uid       int
	}{{"project", small, 1000}, {"project as root", small, 0}, {"10000 directories", large, 1000}} {
		if os.Getuid() != 0 && c.uid == 0 {
			continue
		}
		h := &host{nil, filepath.Join(top, "home"), c.dir}
		r := h.request()
		r.UID = c.uid
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Plan(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestPermitHasTheLastWord: it is asked about what was opened, not about what
// was written, and its no is the plan's.
func TestPermitHasTheLastWord(t *testing.T) {
	h := newHost(t)
	behind := filepath.Join(h.home, "behind")
	if err := errors.Join(os.Mkdir(behind, 0o755), os.Symlink(behind, filepath.Join(h.home, "link"))); err != nil {
		t.Fatal(err)
	}
	var asked []string
	r := h.request(Folder{Path: "~/link", Mode: vocabulary.ReadOnly})
	r.Permit = func(f Folder, real string, workspace bool) error {
		asked = append(asked, fmt.Sprint(real, " ", f.Mode, " ", workspace))
		return nil
	}
	l := h.plan(r)
	if want := []string{l.Dir + " rw true", behind + " ro false"}; !slices.Equal(asked, want) {
		t.Errorf("asked about %q, want %q", asked, want)
	}
	for _, refused := range asked {
		no := errors.New("no")
		r.Permit = func(f Folder, real string, workspace bool) error {
			if strings.HasPrefix(refused, real+" ") {
				return no
			}
			return nil
		}
		if _, err := Plan(r); !errors.Is(err, no) {
			t.Errorf("%s: %v", refused, err)
		}
	}
}
