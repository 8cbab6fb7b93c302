// Package kernel asks the host what it can give: one Probe per feature that an
// isolation, the network or the limits rest on.
//
// It runs in the controller, for doctor (Examine) and for the backends' checks
// before anything is started (LandlockABI, TUNUsable, FindTool, FindCgroups,
// which take microseconds). A probe does the real thing and does not ask for
// version numbers: it creates the namespace, loads the filter, runs the guest.
// What could hang or change this process happens in a child of our own binary
// ("probe-userns", "probe-seccomp", "probe-kvm") that has a deadline and is
// killed at it. No probe leaves anything behind or opens a connection.
//
// Probes never return errors: what went wrong is in Found, with its Cost and
// the Remedy. Statuses start at Missing, so a probe that was not made counts
// as missing.
package kernel

import (
	"fmt"
	"io"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Status of a feature.
type Status uint8

// The statuses, from worst to best.
const (
	Missing Status = iota
	Limited
	OK
)

func (s Status) String() string {
	switch s {
	case OK:
		return "ok"
	case Limited:
		return "limited"
	}
	return "missing"
}

// MarshalText encodes the word for --json.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText accepts the three words.
func (s *Status) UnmarshalText(b []byte) error {
	for _, v := range []Status{Missing, Limited, OK} {
		if v.String() == string(b) {
			*s = v
			return nil
		}
	}
	return fmt.Errorf("status %q is none of ok, limited, missing", b)
}

func (s Status) sign() string {
	switch s {
	case OK:
		return "✓"
	case Limited:
		return "!"
	}
	return "✗"
}

// The names of the probes. They are a promise of doctor --json.
const (
	ProbeKernel   = "kernel"
	ProbeUserns   = "user-namespaces"
	ProbeBwrap    = "bubblewrap"
	ProbeTUN      = "tun"
	ProbeLandlock = "landlock"
	ProbeSeccomp  = "seccomp"
	ProbeWrites   = "writes"
	ProbeCgroups  = "cgroups"
	ProbeKVM      = "kvm"
	ProbeNesting  = "nesting"
	ProbeGVisor   = "gvisor"
	ProbeQEMU     = "qemu"
	ProbeCurl     = "curl"
)

// Probe is one answer.
type Probe struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Found says what was seen, in one line.
	Found string `json:"found"`
	// Cost says what a user goes without; empty when nothing.
	Cost string `json:"cost,omitempty"`
	// Remedy is a command to paste, or empty when nothing can be done.
	Remedy string `json:"remedy,omitempty"`
}

// Isolation says whether this host can give one isolation.
type Isolation struct {
	Name   vocabulary.Isolation `json:"name"`
	Status Status               `json:"status"`
	Why    string               `json:"why"`
}

// How a sandbox gets its network and its limits on this host.
const (
	NetworkTAP   = "tap"   // every packet ends in the gateway
	NetworkRelay = "relay" // a proxy on the sandbox's loopback

	LimitsCgroup2 = "cgroup2"
	LimitsCgroup1 = "cgroup1"
	LimitsWatched = "rlimits" // rlimits, and the warden adds up
)

// Summary draws the conclusions from the probes.
type Summary struct {
	Isolations []Isolation `json:"isolations"`
	Network    string      `json:"network"`
	Limits     string      `json:"limits"`
}

// Limit says what enforces one limit of a session here, in each isolation.
type Limit struct {
	Name      string `json:"name"` // the policy's key
	Process   Means  `json:"process"`
	Container Means  `json:"container"`
}

// Means is what enforces a limit. Limited: with less precision than a cgroup.
type Means struct {
	Status Status `json:"status"`
	By     string `json:"by"`
}

// Report is the whole answer.
type Report struct {
	OS      string  `json:"os"`
	Arch    string  `json:"arch"`
	UID     int     `json:"uid"`
	Probes  []Probe `json:"probes"`
	Summary Summary `json:"summary"`
	// Limits are for who examines the host for sessions; Examine leaves them empty.
	Limits []Limit `json:"limits,omitempty"`
}

// Probe returns a probe by name. One that was not made is Missing.
func (r Report) Probe(name string) Probe {
	for _, p := range r.Probes {
		if p.Name == name {
			return p
		}
	}
	return Probe{Name: name, Found: "not examined"}
}

func (r Report) summarise(limits string) Summary {
	// worst is the lowest status of some probes, with its reason.
	worst := func(good string, names ...string) (Status, string) {
		status, why := OK, good
		for _, n := range names {
			if p := r.Probe(n); p.Status < status {
				status, why = p.Status, n+": "+p.Found
			}
		}
		return status, why
	}
	s := Summary{Network: NetworkRelay, Limits: limits}
	if r.Probe(ProbeTUN).Status == OK {
		s.Network = NetworkTAP
	}

	process := Isolation{Name: vocabulary.Process}
	process.Status, process.Why = worst("bubblewrap, seccomp and Landlock", ProbeBwrap, ProbeSeccomp, ProbeLandlock)

	container := Isolation{Name: vocabulary.Container}
	container.Status, container.Why = worst("gVisor in a user namespace", ProbeUserns, ProbeGVisor)
	if container.Status == Limited {
		container.Status = Missing // of these two, half is not enough
	}
	// The gateway needs Landlock, and gVisor looks into the processes inside.
	if status, why := worst("", ProbeLandlock, ProbeWrites); container.Status == OK && status == Missing {
		container.Status, container.Why = Missing, why
	}

	vm := Isolation{Name: vocabulary.VM}
	vm.Status, vm.Why = worst("QEMU with hardware virtualisation", ProbeQEMU)
	if kvm := r.Probe(ProbeKVM); vm.Status == OK && kvm.Status != OK {
		vm.Status, vm.Why = Limited, "software emulation, starts in seconds; kvm: "+kvm.Found
	}
	// What the host could give is no use before Bulkhead can ask for it.
	vm.Status, vm.Why = Missing, "not part of this version of Bulkhead; of this host: "+vm.Why
	s.Isolations = []Isolation{process, container, vm}
	return s
}

// WriteText renders the report for a person: a line per probe, and under each
// that is not ok what it costs and the command that mends it.
func (r Report) WriteText(w io.Writer) error {
	var b strings.Builder
	who := "an ordinary user"
	if r.UID == 0 {
		who = "root"
	}
	fmt.Fprintf(&b, "This host (%s/%s), for %s:\n\n", r.OS, r.Arch, who)
	for _, p := range r.Probes {
		fmt.Fprintf(&b, "%s %-16s %s\n", p.Status.sign(), p.Name, oneLine(p.Found))
		if p.Status == OK {
			continue
		}
		if p.Cost != "" {
			fmt.Fprintf(&b, "    costs   %s\n", oneLine(p.Cost))
		}
		if p.Remedy != "" {
			fmt.Fprintf(&b, "    remedy  %s\n", oneLine(p.Remedy))
		}
	}
	b.WriteString("\nIt can give:\n")
	for _, i := range r.Summary.Isolations {
		fmt.Fprintf(&b, "%s %-16s %s\n", i.Status.sign(), i.Name, oneLine(i.Why))
	}
	network := "tap: every packet of any program ends in the gateway"
	if r.Summary.Network != NetworkTAP {
		network = "relay: programs that honour HTTP_PROXY or SOCKS reach what is granted, others reach nothing"
	}
	limits := "cgroups: the kernel holds all processes together to the limit"
	if r.Summary.Limits == LimitsWatched {
		limits = "rlimits: per process by the kernel, the sum by our own watching, a moment late"
	}
	fmt.Fprintf(&b, "  %-16s %s\n  %-16s %s\n", "network", network, "limits", limits)
	if len(r.Limits) > 0 {
		b.WriteString("\nWhat would enforce the limits of a policy:\n")
	}
	for _, l := range r.Limits {
		if l.Process == l.Container {
			fmt.Fprintf(&b, "%s %-16s %s\n", l.Process.Status.sign(), l.Name, oneLine(l.Process.By))
			continue
		}
		fmt.Fprintf(&b, "%s %-16s process: %s\n", l.Process.Status.sign(), l.Name, oneLine(l.Process.By))
		fmt.Fprintf(&b, "%s %-16s container: %s\n", l.Container.Status.sign(), "", oneLine(l.Container.By))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// oneLine keeps what came from other programs from moving the cursor.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || 0x7f <= r && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}
