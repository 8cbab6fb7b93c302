package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/scenario"
)

const (
	childName = "redteam-stage"
	nonblock  = unix.O_NONBLOCK
	// safeBase begins the ids of uncontained runs of root: nobody's on this host.
	safeBase  = 0x70000000
	safeCount = 65536
)

func init() { childproc.Register(childName, childMain) }

// CanBePrivate reports whether runs of a tier can have a machine of their own here.
func CanBePrivate(tier string) bool { return tier == None || os.Geteuid() == 0 }

// Run performs one job. binary is the bulkhead to test, kept out of the
// caller's reach by a copy. The error is about the stage, not about the attack.
func Run(ctx context.Context, job Job, binary string) (Outcome, error) {
	s, err := scenario.Parse(job.File, job.Source)
	if err != nil {
		return Outcome{}, err
	}
	limit := job.limit(s)
	ctx, cancel := context.WithTimeoutCause(ctx, limit+grace, fmt.Errorf("the stage did not end within %s and was ended", limit+grace))
	defer cancel()
	if job.Private && !CanBePrivate(job.Tier) {
		return Outcome{}, fmt.Errorf("%w: contained runs need root for one", ErrHost)
	}
	if job.Private && os.Geteuid() != 0 {
		job.As = User{} // on a machine of their own ordinary users are its root
	}
	job.Show = append(job.Show, job.Agent.Mounts...)
	if y := yardstickOf(job.Tier); y != nil {
		var show []string
		if job.Start, show, err = y.find(); err != nil {
			return Outcome{}, err
		}
		job.Show = append(job.Show, show...)
	}
	bin, err := os.Open(binary)
	if err != nil {
		return Outcome{}, err
	}
	defer bin.Close()
	jobR, jobW, err := os.Pipe()
	if err != nil {
		return Outcome{}, err
	}
	defer jobR.Close()
	outR, outW, err := os.Pipe()
	if err != nil {
		jobW.Close()
		return Outcome{}, err
	}
	defer outR.Close()
	said := &lastBytes{max: 8 << 10}
	cmd := exec.CommandContext(ctx, childproc.Self())
	cmd.Args = []string{childproc.Argv0(childName)}
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.ExtraFiles = []*os.File{jobR, outW, bin}
	if runsc, err := os.Open(filepath.Join(filepath.Dir(binary), companion)); err == nil {
		defer runsc.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, runsc)
		job.Companion = true
	}
	if job.Live != nil {
		theirs, end, err := job.Live.relay()
		if err != nil {
			return Outcome{}, err
		}
		defer end()
		defer theirs.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	}
	text, err := json.Marshal(job)
	if err != nil {
		return Outcome{}, err
	}
	cmd.WaitDelay = 2 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	if job.Private {
		privacy(cmd, job)
	} else {
		dir, err := os.MkdirTemp("", "bulkhead-redteam-")
		if err != nil {
			return Outcome{}, err
		}
		defer os.RemoveAll(dir)
		if dir, err = filepath.EvalSymlinks(dir); err != nil {
			return Outcome{}, err
		}
		cmd.Dir = dir
		// Without namespaces nothing but a polite end takes its children along.
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 10 * time.Second
	}
	err = cmd.Start()
	outW.Close()
	if err != nil {
		jobW.Close()
		if job.Private {
			return Outcome{}, fmt.Errorf("%w: %w (see: bulkhead doctor)", ErrHost, err)
		}
		return Outcome{}, err
	}
	go func() { jobW.Write(text); jobW.Close() }()
	answer, readErr := io.ReadAll(io.LimitReader(outR, 16<<20))
	waitErr := cmd.Wait()
	if ctx.Err() != nil {
		return Outcome{}, context.Cause(ctx)
	}
	var o Outcome
	if len(bytes.TrimSpace(answer)) == 0 {
		return Outcome{}, fmt.Errorf("the stage said nothing: %w\n%s", errors.Join(waitErr, readErr), said)
	}
	if err := json.Unmarshal(answer, &o); err != nil {
		return Outcome{}, fmt.Errorf("the stage's answer: %w", err)
	}
	return o, nil
}

func privacy(cmd *exec.Cmd, job Job) {
	a := cmd.SysProcAttr
	a.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	if job.Tier != None {
		return
	}
	a.Cloneflags |= unix.CLONE_NEWUSER
	a.Credential = &syscall.Credential{}
	if os.Geteuid() == 0 {
		a.UidMappings = []syscall.SysProcIDMap{{HostID: safeBase, Size: safeCount}}
		a.GidMappings = []syscall.SysProcIDMap{{HostID: safeBase, Size: safeCount}}
		a.GidMappingsEnableSetgroups = true
		return
	}
	a.Credential.NoSetGroups = true
	a.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
	a.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
}

// pair of connected sockets.
func pair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "relay"), os.NewFile(uintptr(fds[1]), "relay"), nil
}

// childMain is the stage: job at descriptor 3, outcome to 4, the binary at 5, its
// companion and the relay to a live model, as far as there are such, from 6 on.
func childMain() int {
	in, out, bin := os.NewFile(3, "job"), os.NewFile(4, "outcome"), os.NewFile(5, "binary")
	ctx, stop := terminated()
	defer stop()
	var job Job
	if err := json.NewDecoder(io.LimitReader(in, 16<<20)).Decode(&job); err != nil {
		fmt.Fprintln(os.Stderr, "redteam-stage:", err)
		return 1
	}
	binaries := map[string]*os.File{"bulkhead": bin}
	next := 6
	if job.Companion {
		binaries[companion] = os.NewFile(uintptr(next), companion)
		next++
	}
	for fd := 3; fd <= 7; fd++ {
		unix.CloseOnExec(fd)
	}
	var o Outcome
	var model http.RoundTripper
	dir, home, err := ground(job, binaries)
	if err == nil && job.Live != nil {
		model, err = relayed(os.NewFile(uintptr(next), "relay"))
	}
	if err == nil {
		o = perform(ctx, job, dir, home, model)
	} else {
		o.Invalid = "setting the stage: " + err.Error()
	}
	if err := json.NewEncoder(out).Encode(o); err != nil {
		fmt.Fprintln(os.Stderr, "redteam-stage:", err)
		return 1
	}
	return 0
}

// companion is what a container needs beside the binary.
const companion = "bulkhead-runsc"

// ground returns the stage's folder, with the binary in it, and the victim's home.
func ground(job Job, binaries map[string]*os.File) (dir, home string, err error) {
	if job.Private {
		shown, err := keep(job.Show)
		if err != nil {
			return "", "", err
		}
		if err := arena(); err != nil {
			return "", "", err
		}
		if err := show(shown); err != nil {
			return "", "", err
		}
		dir, home = "/run/stage", "/home/victim"
	} else {
		if dir, err = os.Getwd(); err != nil {
			return "", "", err
		}
		home = filepath.Join(dir, "home", "victim")
		dir = filepath.Join(dir, "stage")
	}
	for _, d := range []string{filepath.Join(dir, "bin"), home} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", "", err
		}
	}
	for name, from := range binaries {
		f, err := os.OpenFile(filepath.Join(dir, "bin", name), os.O_CREATE|os.O_WRONLY, 0o755)
		if err != nil {
			return "", "", err
		}
		if _, err := io.Copy(f, from); err != nil {
			return "", "", errors.Join(err, f.Close())
		}
		if err := f.Close(); err != nil {
			return "", "", err
		}
	}
	return dir, home, nil
}

func asUser(cmd *exec.Cmd, u User) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if u.UID != os.Getuid() || u.GID != os.Getgid() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(u.UID), Gid: uint32(u.GID)}
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
}

// endGroup kills what a cancelled command left.
func endGroup(cmd *exec.Cmd, cancelled bool) {
	if cancelled && cmd.Process != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
}
