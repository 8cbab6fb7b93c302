package instance

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/bulkhead-dev/bulkhead/internal/kernel"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/process/cgroup"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"golang.org/x/sys/unix"
)

// dataSlack is what a process may map beyond the memory limit: runtimes map
// more than they use. It bounds what one process can grow between two looks of
// the warden, which counts what is really used.
const dataSlack = 512 << 20

// Enforcement is how the limits of one sandbox are enforced.
type Enforcement struct {
	Group *cgroup.Group
	// Without a cgroup for them:
	Memory int64  // bytes, for the warden to watch
	Tasks  uint64 // RLIMIT_NPROC
	CPUs   []int  // processors to run on
	// Counted: who runs the sandbox hears of each task that Tasks refuses.
	Counted bool
}

// Enforce chooses the means for each limit. A limit without means is an error.
func Enforce(spec sandbox.Spec) (*Enforcement, error) {
	l := spec.Limits
	e := &Enforcement{Group: &cgroup.Group{}}
	if l.Memory < 0 || l.PIDs < 0 || l.CPUs < 0 {
		return nil, fmt.Errorf("a limit is negative")
	}
	if l.Memory == 0 && l.PIDs == 0 && l.CPUs == 0 {
		return e, nil
	}
	g, err := cgroup.Create(string(spec.Session), cgroup.Limits{Memory: l.Memory, PIDs: l.PIDs, CPUs: l.CPUs})
	if err != nil {
		return nil, vocabulary.Exitf(vocabulary.ExitNoIsolation, "%w\nthe limits of this session can't be enforced", err)
	}
	e.Group = g
	if err := e.withoutCgroup(l); err != nil {
		_ = cgroup.Remove(g.Dirs)
		return nil, err
	}
	return e, nil
}

func (e *Enforcement) withoutCgroup(l sandbox.Limits) error {
	if l.Memory > 0 && e.Group.Memory == "" {
		e.Memory = l.Memory
	}
	if l.PIDs > 0 && e.Group.PIDs == "" {
		if os.Geteuid() == 0 {
			return vocabulary.Exitf(vocabulary.ExitNoIsolation,
				"the limit on processes can't be enforced: root has no writable cgroup with the pids controller here, and RLIMIT_NPROC does not bind root\n"+
					"run as an ordinary user, with --isolation container (gVisor counts them itself), or mount a cgroup hierarchy with the pids controller")
		}
		e.Tasks = uint64(l.PIDs) + cgroup.Overhead
	}
	if l.CPUs > 0 && e.Group.CPUs == "" {
		var have unix.CPUSet
		if err := unix.SchedGetaffinity(0, &have); err != nil {
			return fmt.Errorf("processors: %w", err)
		}
		var all []int
		for c := range len(have) * 64 {
			if have.IsSet(c) {
				all = append(all, c)
			}
		}
		want := int(l.CPUs)
		if want < 1 {
			return vocabulary.Exitf(vocabulary.ExitNoIsolation,
				"a limit of %g processors needs a cgroup with the cpu controller, and none is delegated to you\n"+
					"delegate one (systemd: Delegate=cpu), or ask for at least 1", l.CPUs)
		}
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		e.CPUs = all[:min(want, len(all))]
	}
	return nil
}

// by says what enforces the limits of memory, tasks and processors. Foreign: the
// kernel inside is not the host's.
func (e *Enforcement) by(foreign bool) (memory, tasks, processors string) {
	cgroup := func(dir, otherwise string) string {
		if dir == "" {
			return otherwise
		}
		return e.Group.Kind() + " " + dir
	}
	memory = cgroup(e.Group.Memory, "added up ten times a second, and RLIMIT_DATA")
	tasks = cgroup(e.Group.PIDs, "RLIMIT_NPROC")
	if foreign {
		memory = cgroup(e.Group.Memory, "added up ten times a second") + ", gVisor included"
		tasks = "RLIMIT_NPROC of gVisor"
	}
	return memory, tasks, cgroup(e.Group.CPUs, fmt.Sprintf("processors %v only", e.CPUs))
}

// means says for each limit what enforces it.
func (e *Enforcement) means(l sandbox.Limits, foreign bool) []string {
	memory, tasks, processors := e.by(foreign)
	var lines []string
	if l.Memory > 0 {
		lines = append(lines, fmt.Sprintf("memory %d MiB: %s", l.Memory>>20, memory))
	}
	if l.PIDs > 0 {
		lines = append(lines, fmt.Sprintf("pids %d: %s", l.PIDs, tasks))
	}
	if l.CPUs > 0 {
		lines = append(lines, fmt.Sprintf("cpus %g: %s", l.CPUs, processors))
	}
	return lines
}

// Survey says what would enforce each limit here, by making the cgroup of a session
// that asks for all of them, and removing it.
func Survey() []kernel.Limit {
	g, err := cgroup.Create("survey", cgroup.Limits{Memory: 64 << 20, PIDs: 64, CPUs: 1})
	if err == nil {
		defer func() { _ = cgroup.Remove(g.Dirs) }()
		return survey(g, os.Geteuid() == 0)
	}
	limits := survey(&cgroup.Group{}, false)
	refused := kernel.Means{By: err.Error()}
	for i, l := range limits {
		if slices.Contains([]string{"memory", "pids", "cpus"}, l.Name) {
			limits[i].Process, limits[i].Container = refused, refused
		}
	}
	return limits
}

func survey(g *cgroup.Group, root bool) []kernel.Limit {
	// What sessions get lies beside what was made.
	beside := *g
	for _, d := range []*string{&beside.Memory, &beside.PIDs, &beside.CPUs} {
		if *d != "" {
			*d = filepath.Dir(*d)
		}
	}
	e := &Enforcement{Group: &beside}
	memory, tasks, processors := e.by(false)
	memoryInside, tasksInside, _ := e.by(true)
	holds := func(by string) kernel.Means { return kernel.Means{Status: kernel.OK, By: by} }
	limit := func(name string, process, container kernel.Means) kernel.Limit {
		return kernel.Limit{Name: name, Process: process, Container: container}
	}
	mem := limit("memory", holds(memory), holds(memoryInside))
	if g.Memory == "" { // a moment late
		mem.Process.Status, mem.Container.Status = kernel.Limited, kernel.Limited
	}
	pids := limit("pids", holds(tasks), holds(tasksInside))
	if g.PIDs == "" && root {
		pids.Process = kernel.Means{Status: kernel.Missing, By: "nothing: root has no cgroup with the pids controller here, and RLIMIT_NPROC does not bind root"}
	}
	cpus := limit("cpus", holds(processors), holds(processors))
	if g.CPUs == "" {
		m := kernel.Means{Status: kernel.Limited, By: "that many whole processors, and no others; less than one is refused"}
		cpus.Process, cpus.Container = m, m
	}
	disk := holds("the size of each private folder, and RLIMIT_FSIZE; all together, with a staged layer and without what is written straight into a workspace, by looking once a second")
	looking, session := holds("looking once a second"), holds("the session")
	return []kernel.Limit{
		mem, pids, cpus,
		limit("disk", disk, disk), limit("inodes", looking, looking),
		limit("descriptors", holds("RLIMIT_NOFILE, each process"), holds("RLIMIT_NOFILE of gVisor, each process")),
		limit("wall", session, session), limit("idle", session, session),
	}
}

// Setup is what every supervisor is told; memory are the sandbox's memory file
// systems.
func (e *Enforcement) Setup(spec sandbox.Spec, memory []string) guest.Setup {
	s := guest.Setup{TaskLimit: e.Tasks, Ports: spec.HostPorts, Watch: e.watch(spec.Limits, memory),
		FileLimit: uint64(spec.Limits.Disk), DescriptorLimit: uint64(spec.Limits.Descriptors)}
	if spec.Network == sandbox.NetRelay {
		s.RelayPort = sandbox.RelayPort
	}
	return s
}

// watch is what a supervisor has to look at for the limits that a session
// enforces; memory are the sandbox's memory file systems.
func (e *Enforcement) watch(l sandbox.Limits, memory []string) *guest.Watch {
	tasks := int64(e.Tasks)
	if e.Counted {
		tasks = 0
	}
	if l.Disk == 0 && l.Inodes == 0 && l.Idle == 0 && l.Descriptors == 0 && tasks == 0 {
		return nil
	}
	w := &guest.Watch{Inodes: l.Inodes, CPU: l.Idle > 0, Descriptors: l.Descriptors, Tasks: tasks}
	if l.Disk > 0 || l.Inodes > 0 {
		w.Memory = memory
	}
	return w
}

// DataLimit is RLIMIT_DATA for each process.
func (e *Enforcement) DataLimit() uint64 {
	if e.Memory == 0 {
		return 0
	}
	return uint64(e.Memory) + dataSlack
}

// exceeded names the limits that a cgroup counted hits of.
func exceeded(l sandbox.Limits, oomKills, refusedTasks int64) []string {
	var hit []string
	if oomKills > 0 {
		hit = append(hit, fmt.Sprintf("memory (%d MiB, %d processes killed)", l.Memory>>20, oomKills))
	}
	if refusedTasks > 0 {
		hit = append(hit, fmt.Sprintf("pids (%d, %d refused)", l.PIDs, refusedTasks))
	}
	return hit
}
