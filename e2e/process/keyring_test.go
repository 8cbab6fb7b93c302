package process

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func init() { commands["keyring"] = cmdKeyring }

// keyring: a session bus of the story's own, with GNOME's keyring daemon on it,
// unlocked. Entries are looked at with secret-tool. DBUS_SESSION_BUS_ADDRESS leads
// there from now on.
func cmdKeyring(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: keyring")
	}
	// A socket's path has to be short, which the story's folder is not.
	dir, err := os.MkdirTemp("", "keyring-")
	ts.Check(err)
	ts.Defer(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "bus")
	conf := filepath.Join(dir, "bus.conf")
	ts.Check(os.WriteFile(conf, fmt.Appendf(nil, `<busconfig><type>session</type><listen>unix:path=%s</listen>
<policy context="default"><allow send_destination="*"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`, socket), 0o600))
	ts.Check(os.Mkdir(filepath.Join(dir, "data"), 0o700))
	env := append(os.Environ(), "HOME="+dir, "XDG_RUNTIME_DIR="+dir, "XDG_DATA_HOME="+filepath.Join(dir, "data"), "XDG_CONFIG_HOME="+filepath.Join(dir, "config"), "DBUS_SESSION_BUS_ADDRESS=unix:path="+socket)
	start := func(stdin string, name string, args ...string) {
		cmd := exec.Command(name, args...)
		cmd.Env, cmd.Dir, cmd.Stdin = env, dir, strings.NewReader(stdin)
		ts.Check(cmd.Start())
		ts.Defer(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
	}
	start("", "dbus-daemon", "--config-file="+conf, "--nofork")
	await(ts, "the bus", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	start("password", "gnome-keyring-daemon", "--foreground", "--unlock", "--components=secrets")
	await(ts, "the keyring", func() bool {
		cmd := exec.Command("secret-tool", "store", "--label=probe", "probe", "probe")
		cmd.Env, cmd.Stdin = env, strings.NewReader("x")
		return cmd.Run() == nil
	})
	ts.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path="+socket)
}

func await(ts *testscript.TestScript, what string, there func() bool) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if there() {
			return
		}
	}
	ts.Fatalf("%s does not come up", what)
}
