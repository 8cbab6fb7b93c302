package hosts

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	ordinary = 1000 // the guest's ordinary user
	bin      = "/stories/bin"
)

// guest is the inside of a host.
type guest struct {
	results *os.File
}

// runGuest is the first process of a guest. Its end is the machine's.
func runGuest() {
	defer unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	g, err := start()
	if err != nil {
		fmt.Println("starting the guest:", err)
		return
	}
	h, ok := find(parameter("host"))
	if !ok {
		fmt.Println("no host of this name")
		return
	}
	h.checks(g)
	g.write(result{Done: true})
}

func find(name string) (host, bool) {
	for _, h := range hosts {
		if h.name == name {
			return h, true
		}
	}
	return host{}, false
}

// parameter reads bulkhead.NAME of the kernel's command line.
func parameter(name string) string {
	line, _ := os.ReadFile("/proc/cmdline")
	for _, w := range strings.Fields(string(line)) {
		if v, ok := strings.CutPrefix(w, "bulkhead."+name+"="); ok {
			return v
		}
	}
	return ""
}

// start makes of the RAM disk a host that programs find as they expect it.
func start() (*guest, error) {
	var errs []error
	must := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	mount := func(what, where, kind string, flags uintptr, data string) {
		must(where, errors.Join(os.MkdirAll(where, 0o755), unix.Mount(what, where, kind, flags, data)))
	}
	order, err := os.ReadFile("/modules/order")
	must("modules", err)
	for name := range strings.FieldsSeq(string(order)) {
		f, err := os.Open("/modules/" + name)
		if err == nil {
			err = unix.FinitModule(int(f.Fd()), "", 0)
			f.Close()
		}
		if !errors.Is(err, unix.EEXIST) {
			must("module "+name, err)
		}
	}
	// A root that can be pivoted from: the RAM disk cannot.
	const root = "/newroot"
	mount("tmpfs", root, "tmpfs", 0, "mode=755")
	must("etc", os.CopyFS(root+"/etc/ssl", os.DirFS("/etc/ssl")))
	const share = "trans=virtio,version=9p2000.L,msize=262144"
	mount("usr", root+"/usr", "9p", unix.MS_RDONLY, share+",cache=loose")
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		must(dir, os.Symlink("usr/"+dir, root+"/"+dir))
	}
	links, err := os.ReadDir("/etc/alternatives")
	must("alternatives", errors.Join(err, os.Mkdir(root+"/etc/alternatives", 0o755)))
	for _, l := range links {
		to, err := os.Readlink("/etc/alternatives/" + l.Name())
		must(l.Name(), errors.Join(err, os.Symlink(to, root+"/etc/alternatives/"+l.Name())))
	}
	must("root", unix.Chdir(root))
	must("root", unix.Mount(root, "/", "", unix.MS_MOVE, ""))
	must("root", unix.Chroot("."))
	must("root", unix.Chdir("/"))
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	mount("devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=755")
	mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=620,ptmxmode=666")
	for _, dir := range []string{"/dev/shm", "/tmp"} {
		mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	}
	mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755")
	g := &guest{}
	mount("stories", "/stories", "9p", unix.MS_RDONLY, share+",cache=loose")
	mount("scratch", "/scratch", "9p", 0, share)
	must("tun", os.Chmod("/dev/net/tun", 0o666)) // as udev does
	for name, text := range map[string]string{
		"passwd": "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\nann:x:1000:1000::/home/ann:/bin/sh\n",
		"group":  "root:x:0:\nnogroup:x:65534:\nann:x:1000:\n", "hosts": "127.0.0.1 localhost\n",
		"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	} {
		must(name, os.WriteFile("/etc/"+name, []byte(text), 0o644))
	}
	for dir, who := range map[string]int{"/root": 0, "/home/ann": ordinary, "/run/user/1000": ordinary, "/run/user/0": 0} {
		must(dir, errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o700), os.Chown(dir, who, who)))
	}
	must("host name", unix.Sethostname([]byte("guest")))
	must("loopback", netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}))
	g.results, err = os.OpenFile("/scratch/results", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	must("results", err)
	return g, errors.Join(errs...)
}

func (g *guest) write(r result) {
	line, _ := json.Marshal(r)
	if _, err := g.results.Write(append(line, '\n')); err != nil {
		fmt.Println("results:", err)
	}
}

// check runs one check and keeps what it says.
func (g *guest) check(name string, f func() error) {
	began := time.Now()
	err := f()
	r := result{Name: name, Seconds: time.Since(began).Seconds()}
	if err != nil {
		r.Failure = err.Error()
	}
	fmt.Printf("%6.1f s  %s: %v\n", r.Seconds, name, err)
	g.write(r)
}

// person is who runs something, and where that counts.
type person struct {
	uid     int
	cgroups []string // files that take its processes in
	below   string   // where its folders are made; "": /tmp
}

var (
	root = person{}
	ann  = person{uid: ordinary}
)

func (p person) in(cgroups ...string) person { p.cgroups = cgroups; return p }

func (p person) at(dir string) person { p.below = dir; return p }

func (p person) home() string {
	if p.uid == ordinary {
		return "/home/ann"
	}
	return "/root"
}

// ran is how a command ended.
type ran struct {
	code           int
	stdout, stderr string
}

func (r ran) String() string { return fmt.Sprintf("exit %d\n%s%s", r.code, r.stdout, r.stderr) }

// command is a command as a person runs it.
func (p person) command(dir string, args ...string) *exec.Cmd {
	script := `for f in $CGROUPS; do echo 0 >$f; done; unset CGROUPS; exec setpriv --reuid $0 --regid $0 --clear-groups -- "$@"`
	cmd := exec.Command("/bin/sh", append([]string{"-ec", script, strconv.Itoa(p.uid)}, args...)...)
	cmd.Dir = dir
	cmd.Env = []string{"HOME=" + p.home(), "PATH=" + bin + ":/usr/sbin:/usr/bin:/sbin:/bin", fmt.Sprint("XDG_RUNTIME_DIR=/run/user/", p.uid), "TERM=dumb", "CGROUPS=" + strings.Join(p.cgroups, " ")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

func finish(cmd *exec.Cmd) ran {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return ran{-1, "", err.Error()}
	}
	return ran{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// bulkhead runs it in a folder with arguments.
func (p person) bulkhead(dir string, args ...string) ran {
	return finish(p.command(dir, append([]string{bin + "/bulkhead"}, args...)...))
}

// stories runs stories of e2e/process in p's folders.
func (p person) stories(isolation, pattern string) error {
	below := cmp.Or(p.below, "/tmp")
	cmd := p.command("/stories", "./process.test", "-test.run", "^TestStories$/^("+pattern+")$", "-test.v", "-test.parallel", "1")
	cmd.Env = append(cmd.Env, "BULKHEAD_E2E_SHARED=/stories", "GOTMPDIR="+below, "TMPDIR="+below)
	if isolation != "process" {
		cmd.Env = append(cmd.Env, "BULKHEAD_E2E_ISOLATION="+isolation)
	}
	r := finish(cmd)
	want := strings.Count(pattern, "|") + 1
	if got := strings.Count(r.stdout, "    --- PASS: TestStories/"); r.code != 0 || got != want {
		return fmt.Errorf("%d of %d stories passed, %v", got, want, r)
	}
	return nil
}
