package hosts

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// kernelDir unpacks one of Debian's kernel packages below .cache, downloading it
// once. A package name may be a prefix of the real one ("linux-image-6.12"):
// the meta-package says which.
func kernelDir(cache, meta string) (string, error) {
	out, err := exec.Command("apt-cache", "depends", meta).Output()
	m := regexp.MustCompile(`Depends: (linux-image-\S+)`).FindSubmatch(out)
	if err != nil || m == nil {
		return "", fmt.Errorf("apt-cache knows no kernel behind %s (%v): apt-get update", meta, err)
	}
	name := string(m[1])
	dir := filepath.Join(cache, name)
	if _, err := os.Stat(filepath.Join(dir, "boot")); err == nil {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(cache, "download-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	get := exec.Command("apt-get", "download", "-qq", name)
	get.Dir = tmp
	if out, err := get.CombinedOutput(); err != nil {
		return "", fmt.Errorf("apt-get download %s: %w\n%s", name, err, out)
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if len(debs) != 1 {
		return "", fmt.Errorf("apt-get download %s left %q", name, debs)
	}
	if out, err := exec.Command("dpkg-deb", "-x", debs[0], filepath.Join(tmp, "tree")).CombinedOutput(); err != nil {
		return "", fmt.Errorf("dpkg-deb: %w\n%s", err, out)
	}
	return dir, os.Rename(filepath.Join(tmp, "tree"), dir)
}

// modules adds the named modules and what they need to the archive, in the order
// in which the guest loads them.
func modules(a *archive, tree string, names []string) error {
	files := map[string]string{}
	err := filepath.WalkDir(filepath.Join(tree, "lib", "modules"), func(p string, _ fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(p), ".ko"); ok {
			files[strings.ReplaceAll(name, "-", "_")] = p
		}
		return err
	})
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	var order []string
	var add func(string) error
	add = func(name string) error {
		file, ok := files[name]
		if seen[name] || !ok { // built in
			return nil
		}
		seen[name] = true
		data, err := os.ReadFile(file)
		if err == nil && strings.HasSuffix(file, ".xz") {
			data, err = exec.Command("xz", "-dc", file).Output()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		object, err := elf.NewFile(bytes.NewReader(data))
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		info, err := object.Section(".modinfo").Data()
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for field := range strings.SplitSeq(string(info), "\x00") {
			needs, ok := strings.CutPrefix(field, "depends=")
			if !ok {
				continue
			}
			for n := range strings.SplitSeq(needs, ",") {
				if err := add(strings.ReplaceAll(n, "-", "_")); err != nil {
					return err
				}
			}
		}
		order = append(order, name)
		a.file("modules/"+name, 0o644, data)
		return nil
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return err
		}
	}
	a.file("modules/order", 0o644, []byte(strings.Join(order, "\n")))
	return nil
}

// archive is an initial RAM disk: cpio in the "newc" form (kernel,
// Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	bytes.Buffer
	made map[string]bool
	ino  int
}

func (a *archive) entry(name string, mode uint32, data []byte) {
	a.ino++
	fmt.Fprintf(a, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.WriteString(name)
	a.pad(1)
	a.Write(data)
	a.pad(0)
}

func (a *archive) pad(least int) {
	for range least {
		a.WriteByte(0)
	}
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}

func (a *archive) folder(name string) {
	if a.made == nil {
		a.made = map[string]bool{".": true}
	}
	if a.made[name] {
		return
	}
	a.folder(filepath.Dir(name))
	a.made[name] = true
	a.entry(name, 0o040755, nil)
}

func (a *archive) file(name string, perm uint32, data []byte) {
	a.folder(filepath.Dir(name))
	a.entry(name, 0o100000|perm, data)
}

func (a *archive) link(name, to string) {
	a.folder(filepath.Dir(name))
	a.entry(name, 0o120777, []byte(to))
}

// result is what the guest writes for each check, a line each.
type result struct {
	Name    string  `json:"name"`
	Failure string  `json:"failure,omitempty"`
	Seconds float64 `json:"seconds"`
	// Done ends the list; what is missing before it was not checked.
	Done bool `json:"done,omitempty"`
}

// guestModules are loaded where the kernel does not have them built in.
var guestModules = []string{
	"virtio_pci", "9pnet_virtio", "9p", "virtio_console", "tun", "fuse", "overlay", "loop",
	"ext4", "crc32c_generic", "vfat", "nls_cp437", "nls_iso8859_1", "nls_ascii", "nfsd", "nfsv3", "nfsv4",
}

// boot runs one guest and returns what it found. What it prints goes to console.
func boot(ctx context.Context, h host, kernel, stories, work, console string) ([]result, error) {
	var a archive
	program, err := os.ReadFile(filepath.Join(stories, "hosts.test"))
	if err != nil {
		return nil, err
	}
	a.file("init", 0o755, program)
	if err := modules(&a, kernel, guestModules); err != nil {
		return nil, err
	}
	if err := filepath.WalkDir("/etc/alternatives", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type() == fs.ModeSymlink {
			var to string
			if to, err = os.Readlink(p); err == nil {
				a.link(strings.TrimPrefix(p, "/"), to)
			}
		}
		return err
	}); err != nil {
		return nil, err
	}
	certificates, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		return nil, err
	}
	a.file("etc/ssl/certs/ca-certificates.crt", 0o644, certificates)
	a.entry("TRAILER!!!", 0, nil)
	disk := filepath.Join(work, "initrd")
	scratch := filepath.Join(work, "scratch")
	if err := errors.Join(os.WriteFile(disk, a.Bytes(), 0o644), os.Mkdir(scratch, 0o777), os.Chmod(scratch, 0o777)); err != nil {
		return nil, err
	}
	images, err := filepath.Glob(filepath.Join(kernel, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("no single kernel in %s: %q %v", kernel, images, err)
	}
	args := []string{
		// One thread for both processors: with two, the code that a running kernel
		// patches into itself can be executed half patched.
		"-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "2048", "-M", "q35,sata=off,usb=off", "-nodefaults", "-no-user-config",
		"-display", "none", "-no-reboot", "-serial", "file:" + console,
		"-kernel", images[0], "-initrd", disk,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check bulkhead.host=" + h.name + " " + h.boot,
	}
	for tag, share := range map[string]string{
		"usr":     "path=/usr,security_model=none,multidevs=remap,readonly=on",
		"stories": "path=" + stories + ",security_model=none,readonly=on",
		"scratch": "path=" + scratch + ",security_model=none",
	} {
		args = append(args, "-fsdev", "local,id="+tag+","+share, "-device", "virtio-9p-pci,fsdev="+tag+",mount_tag="+tag)
	}
	cmd := exec.CommandContext(ctx, "nice", append([]string{"qemu-system-x86_64"}, args...)...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	results, broken := readResults(filepath.Join(scratch, "results"))
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("the guest did not end in time: %w", ctx.Err())
	case err != nil:
		err = fmt.Errorf("qemu: %w\n%s", err, out)
	case broken != nil:
		err = broken
	case len(results) == 0 || !results[len(results)-1].Done:
		err = errors.New("the guest ended before its checks did")
	}
	return results, err
}

func readResults(file string) ([]result, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []result
	for d := json.NewDecoder(f); ; {
		var r result
		switch err := d.Decode(&r); {
		case err == io.EOF:
			return list, nil
		case err != nil:
			return list, err
		}
		list = append(list, r)
	}
}

// prepare builds into a folder the binaries and the stories of e2e/process, the
// gateway's tests of its own walls, and this test, statically linked as a first
// process has to be.
func prepare(ctx context.Context, root, dir string) error {
	for _, args := range [][]string{{"-count=1", "./e2e/process"}, {"-c", "-o", dir + "/", "./e2e/hosts", "./internal/egress/confine"}} {
		cmd := exec.CommandContext(ctx, "go", append([]string{"test"}, args...)...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "BULKHEAD_E2E_PREPARE="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go test %s: %w\n%s", args, err, out)
		}
	}
	return nil
}

// tail is the end of a guest's console.
func tail(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-6000):])
}
