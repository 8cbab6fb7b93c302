package warden

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/frame"
)

// Handle is the controller's hold on a warden.
type Handle struct {
	Cmd  *exec.Cmd
	conn *frame.Conn

	tap, seal bool
}

// Want is what a warden must have from its start.
type Want struct {
	TAP    bool // a network namespace of its own, for the link
	Layers bool // a mount namespace of its own, for them
	// Own: all of these in any case, because the runtime makes none, and no /dev
	// of the host's inside.
	Own bool
}

// Spawn starts a warden. It waits for Configure, and ends with Close or its
// starter.
func Spawn(want Want) (*Handle, error) {
	conn, theirs, err := frame.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(childproc.Self())
	cmd.Args = []string{childproc.Argv0(Child)}
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	root := os.Geteuid() == 0
	if root {
		// Root's supplementary groups have no business in a sandbox. (An
		// ordinary user can't give his up.)
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 0, Gid: 0}
	}
	if want.TAP || want.Own {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET
	}
	if want.Layers {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNS
	}
	if want.TAP || want.Layers || want.Own {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
		cmd.SysProcAttr.GidMappingsEnableSetgroups = root
	}
	seal := root && !want.Own
	if seal {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNS
	}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("starting the warden: %w", err)
	}
	return &Handle{Cmd: cmd, conn: conn, tap: want.TAP, seal: seal}, nil
}

// Configure tells a warden what to start. The files stay the caller's. After an
// error the warden is gone.
func (h *Handle) Configure(cfg Config, files []*os.File) error {
	cfg.TAP, cfg.SealDevices, cfg.Files = h.tap, h.seal, len(files)
	deadline := time.Now().Add(10 * time.Second)
	first := files[:min(len(files), frame.MaxFiles)]
	err := h.conn.Send(deadline, cfg, first...)
	for rest := files[len(first):]; err == nil && len(rest) > 0; {
		next := rest[:min(len(rest), frame.MaxFiles)]
		err = h.conn.Send(deadline, more{}, next...)
		rest = rest[len(next):]
	}
	if err != nil {
		h.Discard()
		return fmt.Errorf("telling the warden: %w", err)
	}
	return nil
}

// Discard ends a warden that has nothing to look after.
func (h *Handle) Discard() {
	h.conn.Close()
	_ = h.Cmd.Process.Kill()
	_ = h.Cmd.Wait()
}

// Receive returns the next report; the TAP's descriptor comes with its report.
func (h *Handle) Receive() (Report, *os.File, error) {
	var r Report
	files, err := h.conn.Receive(&r, 64<<10, 1)
	if err != nil || len(files) == 0 {
		return r, nil, err
	}
	return r, files[0], nil
}

// Close tells the warden to end everything.
func (h *Handle) Close() { h.conn.Close() }

// Stop asks the warden to end everything; its last report still arrives.
func (h *Handle) Stop() { _ = h.conn.CloseWrite() }
