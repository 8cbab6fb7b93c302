package hosts

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"
)

// as runs a command as root and returns what went wrong.
func sh(script string) error {
	cmd := exec.Command("/bin/sh", "-ec", script)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin"}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return nil
}

// image mounts a new file system of so many MiB.
func image(at, size, make, options string) error {
	return sh(fmt.Sprintf("mkdir -p %[1]s; truncate -s %[2]s %[1]s.img; %[3]s %[1]s.img; mount -o loop,%[4]s %[1]s.img %[1]s", at, size, make, options))
}

// exported mounts over NFS what this kernel serves itself: without the daemons of
// nfs-utils, whose answers to the kernel's questions are written beforehand
// (nfsd's caches, as exportfs fills them).
func exported(at string) error {
	const source = "/srv/nfs"
	write := func(file, text string) error { return os.WriteFile(file, []byte(text), 0o644) }
	err := errors.Join(image(source, "512M", "mkfs.ext4 -q", "noatime"), os.Chmod(source, 0o1777),
		os.MkdirAll(at, 0o755), os.MkdirAll("/var/lib/nfs/v4recovery", 0o755),
		unix.Mount("nfsd", "/proc/fs/nfsd", "nfsd", 0, ""))
	for file, text := range map[string]string{"versions": "-3 +4 +4.1 +4.2\n", "nfsv4leasetime": "10", "nfsv4gracetime": "10"} {
		if e := write("/proc/fs/nfsd/"+file, text); e != nil && !os.IsNotExist(e) {
			err = errors.Join(err, e)
		}
	}
	err = errors.Join(err, sh("echo 'tcp 2049' >/proc/fs/nfsd/portlist"), write("/proc/fs/nfsd/threads", "4"))
	const forever = "2147483647"
	// flags: insecure port, no root squash, no subtree check, asynchronous, fsid.
	err = errors.Join(err, write("/proc/net/rpc/auth.unix.ip/channel", "nfsd 127.0.0.1 "+forever+" all\n"),
		write("/proc/net/rpc/nfsd.export/channel", "all "+source+" "+forever+" 9234 65534 65534 0\n"),
		write("/proc/net/rpc/nfsd.fh/channel", "all 1 \\x00000000 "+forever+" "+source+"\n"))
	_ = write("/proc/fs/nfsd/v4_end_grace", "Y")
	if err != nil {
		return err
	}
	return unix.Mount("127.0.0.1:/", at, "nfs4", 0, "vers=4.2,sec=sys,addr=127.0.0.1,clientaddr=127.0.0.1")
}

// planted tries all spellings of the protected names in a folder that takes no
// notice of case: plant.sh of the story case_insensitive.
func (p person) planted(at, tier string) error {
	a, err := txtar.ParseFile("/stories/testdata/case_insensitive.txtar")
	if err != nil {
		return err
	}
	dir := at + "/proj-" + tier
	script := ""
	for _, f := range a.Files {
		if filepath.Base(f.Name) == "plant.sh" {
			script = string(f.Data)
		}
	}
	r := finish(p.command(at, "sh", "-ec", "mkdir "+dir+"; cd "+dir+"; git init -q; git -c user.name=a -c user.email=a@b commit -q --allow-empty -m 1; echo ABC > abc; cat ABC"))
	if r.code != 0 || r.stdout != "ABC\n" {
		return fmt.Errorf("this folder takes notice of case: %v", r)
	}
	if err := os.WriteFile(dir+"/plant.sh", []byte(script), 0o644); err != nil {
		return err
	}
	r = p.bulkhead(dir, "run", "--isolation", tier, "--", "sh", "plant.sh")
	if strings.Contains(r.stdout, "went through") || !strings.Contains(r.stdout, "git works\n") {
		return fmt.Errorf("%v", r)
	}
	for _, f := range []string{".vscode/tasks.json", ".envrc", ".git/hooks/pre-commit", ".mcp.json", ".claude/settings.json"} {
		if _, err := os.Lstat(dir + "/" + f); err == nil {
			return fmt.Errorf("%s is there: %v", f, r)
		}
	}
	r = finish(p.command(dir, "sh", "-c", `for d in .git one two; do
	if test -e $d/HEAD -a -d $d/objects -a -d $d/refs && grep -q evil $d/config $d/config.worktree; then echo went through: $d; fi
done; git fsck`))
	if strings.Contains(r.stdout, "went through") || r.code != 0 {
		return fmt.Errorf("%v", r)
	}
	return nil
}

func filesystems(g *guest) {
	for _, fs := range []struct {
		name    string
		mount   func(at string) error
		stories string
	}{
		{"nfs", exported, "workspace_versions git_commit"},
		{"9p", func(at string) error {
			return errors.Join(os.MkdirAll("/scratch/workspaces", 0o1777), os.Chmod("/scratch/workspaces", 0o1777), sh("mkdir -p "+at+"; mount --bind /scratch/workspaces "+at))
		}, "workspace_versions"},
		{"ext4-noatime", func(at string) error {
			return errors.Join(image(at, "512M", "mkfs.ext4 -q", "noatime"), os.Chmod(at, 0o1777))
		}, "workspace_versions"},
	} {
		at := "/mnt/" + fs.name
		var err error
		if g.check(fs.name, func() error { err = fs.mount(at); return err }); err != nil {
			continue
		}
		for tier, modes := range map[string]string{"process": "ro rw rw-no-delete staged", "container": "rw staged"} {
			for mode := range strings.FieldsSeq(modes) {
				g.check(fmt.Sprintf("%s: %s, %s", fs.name, mode, tier), func() error { return ann.at(at).works(tier, mode) })
			}
		}
		for story := range strings.FieldsSeq(fs.stories) {
			g.check(fs.name+": "+story, func() error { return ann.at(at).stories("process", story) })
		}
		if fs.name != "nfs" {
			continue
		}
		// Not where the layer would lie: NFS keeps no marks of an overlay's.
		g.check(fs.name+": no layer there", func() error {
			dir, err := ann.at(at).folder()
			state, serr := ann.at(at).folder()
			if err := errors.Join(err, serr); err != nil {
				return err
			}
			cmd := ann.command(dir, bin+"/bulkhead", "run", "--workspace", ".:staged", "--", "touch", "ran")
			cmd.Env = append(cmd.Env, "XDG_STATE_HOME="+state)
			r := finish(cmd)
			if _, err := os.Stat(dir + "/ran"); r.code != 12 || err == nil {
				return fmt.Errorf("%v", r)
			}
			return r.says("local filesystem", "use mode rw")
		})
	}
	g.check("casefold", func() error {
		return errors.Join(image("/mnt/casefold", "256M", "mkfs.ext4 -q -O casefold -E encoding=utf8", "noatime"), sh("mkdir /mnt/casefold/f; chattr +F /mnt/casefold/f; chmod 1777 /mnt/casefold/f"))
	})
	for _, tier := range []string{"process", "container"} {
		g.check("casefold: protected names, "+tier, func() error { return ann.planted("/mnt/casefold/f", tier) })
	}
	g.check("read-only", func() error {
		return errors.Join(image("/mnt/read-only", "32M", "mkfs.ext4 -q", "noatime"), os.Mkdir("/mnt/read-only/p", 0o755), os.WriteFile("/mnt/read-only/p/there", []byte("there\n"), 0o644),
			os.Chown("/mnt/read-only/p", ordinary, ordinary), sh("mount -o remount,ro /mnt/read-only"))
	})
	for _, tier := range []string{"process", "container"} {
		for mode, want := range map[string]ran{"ro": {stdout: "there\nrefused\n"}, "rw": {code: 11}, "staged": {code: 11}} {
			g.check("read-only: "+mode+", "+tier, func() error {
				r := ann.bulkhead("/mnt/read-only/p", "run", "--isolation", tier, "--workspace", ".:"+mode, "--", "sh", "-c", "cat there; echo new 2>/dev/null >new || echo refused")
				if r.code != want.code || r.stdout != want.stdout {
					return fmt.Errorf("%v", r)
				}
				if want.code != 0 {
					return r.says("read-only filesystem", "use mode ro")
				}
				return nil
			})
		}
	}
	g.check("vfat", func() error { return image("/mnt/vfat", "64M", "mkfs.vfat", "uid=1000,gid=1000,umask=022") })
	for _, tier := range []string{"process", "container"} {
		g.check("vfat: protected names, "+tier, func() error { return ann.planted("/mnt/vfat", tier) })
	}
}
