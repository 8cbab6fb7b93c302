package process

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// sshserver NAME HOST DIR: starts OpenSSH's sshd on loopback for a user "git"
// whose home NAME_HOME is a copy of DIR, without privileges and with keys of its
// own; NAME_ADDR is for connect:, $WORK/NAME.host its public host key as a line of known_hosts for
// HOST, and $WORK/NAME.id an SSH key that it lets in (with .pub). NAME_HOME belongs to
// the server's user, whom "asgit" is.
func cmdSSHServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: sshserver NAME HOST DIR")
	}
	name, host := args[0], args[1]
	work := ts.Getenv("WORK")
	dir, err := os.MkdirTemp(filepath.Join(shared, "work"), "sshd-")
	ts.Check(err)
	ts.Defer(func() { os.RemoveAll(dir) })
	ts.Check(os.Chmod(dir, 0o755))
	home := filepath.Join(dir, "home")
	if out, err := exec.Command("cp", "-r", ts.MkAbs(args[2]), home).CombinedOutput(); err != nil {
		ts.Fatalf("%v\n%s", err, out)
	}
	keygen := func(file string) {
		out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", file).CombinedOutput()
		if err != nil {
			ts.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	hostKey, id := filepath.Join(dir, "host_key"), filepath.Join(work, name+".id")
	keygen(hostKey)
	keygen(id)
	public, err := os.ReadFile(hostKey + ".pub")
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(work, name+".host"), []byte(host+" "+string(public)), 0o644))
	authorized, err := os.ReadFile(id + ".pub")
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(dir, "authorized"), authorized, 0o644))

	uid, gid := os.Getuid(), os.Getgid()
	var args0 []string
	if uid == 0 {
		u, err := findOrdinaryUser()
		ts.Check(err)
		uid, _ = strconv.Atoi(u.Uid)
		gid, _ = strconv.Atoi(u.Gid)
		args0 = asGit(u)
		ts.Check(filepath.WalkDir(home, func(p string, _ os.DirEntry, err error) error {
			if err == nil {
				err = os.Lchown(p, uid, gid)
			}
			return err
		}))
		ts.Check(os.Chown(hostKey, uid, gid))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	passwd, config := filepath.Join(dir, "passwd"), filepath.Join(dir, "config")
	ts.Check(os.WriteFile(passwd, []byte(fmt.Sprintf("git:x:%d:%d::%s:/bin/sh\n", uid, gid, home)), 0o644))
	ts.Check(os.WriteFile(config, []byte("ListenAddress 127.0.0.1\nPort "+port+"\nHostKey "+hostKey+"\nAuthorizedKeysFile "+dir+"/authorized\nStrictModes no\n"+
		"UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\nAcceptEnv GIT_PROTOCOL\nSubsystem sftp internal-sftp\n"), 0o644))
	args0 = append(args0, "bwrap", "--dev-bind", "/", "/", "--ro-bind", passwd, "/etc/passwd", "--die-with-parent", "/usr/sbin/sshd", "-D", "-E", filepath.Join(dir, "log"), "-f", config)
	if uid != os.Getuid() {
		ts.Check(os.Chown(dir, uid, gid))
	}
	cmd := exec.Command(args0[0], args0[1:]...)
	ts.Check(cmd.Start())
	ts.Defer(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			break
		}
		if time.Now().After(end) {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			ts.Fatalf("sshd does not listen\n%s", log)
		}
	}
	ts.Setenv(name+"_ADDR", addr)
	ts.Setenv(name+"_HOME", home)
}

// asGit runs a command as the user that a root's sshserver runs as.
func asGit(u *user.User) []string {
	return []string{"setpriv", "--reuid", u.Uid, "--regid", u.Gid, "--clear-groups", "--"}
}

// asgit COMMAND [ARGS]: runs it as the user of sshserver, which owns its DIR.
func cmdAsGit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: asgit COMMAND [ARGS]")
	}
	if os.Getuid() == 0 {
		u, err := findOrdinaryUser()
		ts.Check(err)
		// The story's folder is root's alone.
		args = append([]string{"sh", "-c", `cd / && exec "$@"`, "sh"}, append(asGit(u), args...)...)
	}
	ts.Check(ts.Exec(args[0], args[1:]...))
}
