package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
)

func init() {
	childproc.Register("probe-kvm", kvmChild)
}

const kvmPath = "/dev/kvm"

// kvmTime is what two small guests get together. Hardware needs about 5 ms for
// them, most of it for the loop of five million rounds in the second.
const kvmTime = time.Second

// kvmFacts is how far the child came.
type kvmFacts struct {
	Step string // the last step that was begun
	Err  string // why it failed
	Ran  bool   // the guest ran to its end and said so
}

func probeKVM(ctx context.Context) Probe {
	p := Probe{Cost: "vm isolation has only software emulation: starts in seconds, runs several times slower"}
	if _, err := os.Stat(kvmPath); err != nil {
		p.Found = kvmPath + " is not there"
		p.Remedy = "sudo modprobe kvm_intel || sudo modprobe kvm_amd   # and switch virtualisation on in the firmware, or nested virtualisation in the cloud"
		return p
	}
	fd, err := unix.Open(kvmPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		p.Found = kvmPath + ": " + err.Error()
		if errors.Is(err, unix.EACCES) {
			p.Remedy = `sudo usermod -aG kvm "$USER" && newgrp kvm`
		}
		return p
	}
	unix.Close(fd)
	ctx, cancel := context.WithTimeout(ctx, kvmTime)
	defer cancel()
	var f kvmFacts
	err = child(ctx, "probe-kvm", 0, &f)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		p.Found = fmt.Sprintf("%s opens, but a small guest hangs or crawls (killed after %v, hardware needs 5 ms)", kvmPath, kvmTime)
	case err != nil:
		p.Found = kvmPath + " opens, but the probe died: " + err.Error()
	case f.Ran:
		return Probe{Status: OK, Found: "ran a real-mode and a 64-bit guest"}
	case f.Err != "":
		p.Found = fmt.Sprintf("%s opens, but %s fails: %s", kvmPath, f.Step, f.Err)
	default:
		p.Status, p.Found = Limited, "made a virtual machine; this architecture has no guest to try"
	}
	return p
}
