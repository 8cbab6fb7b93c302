package warden

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// watchPeriod is how often memory is added up where no cgroup does it. In one
// period a process can take a few hundred MB more than the limit.
const watchPeriod = 100 * time.Millisecond

// watchMemory ends the sandbox when its processes and memory file systems
// together hold more than the limit.
func (k *keeper) watchMemory() {
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-k.ended:
			return
		case <-k.stop:
			return
		case <-tick.C:
		}
		k.mu.Lock()
		guest := k.guest
		k.mu.Unlock()
		if guest == 0 {
			continue
		}
		m := meter{root: fmt.Sprintf("/proc/%d/root", guest), tmpfs: k.cfg.Tmpfs, foreign: k.cfg.Init}
		// The cheap sum counts pages shared after a fork several times: it can
		// only be too high. What it finds is counted again exactly.
		if m.quick(n%5 == 0) > k.cfg.Memory && m.exact() > k.cfg.Memory {
			k.report(Report{Kind: KindLimit, Text: fmt.Sprintf("memory (%d MiB)", k.cfg.Memory>>20)})
			k.end()
			return
		}
	}
}

// meter adds up the memory of a sandbox, seen through its own /proc: only its
// processes are there.
type meter struct {
	root  string
	tmpfs []string
	// foreign: the processes are gVisor's. All memory that they share is in files
	// without a name, and several of them are one address space.
	foreign bool
}

func (m meter) quick(files bool) int64 {
	sum := m.fileSystems()
	for _, p := range m.processes() {
		b, _ := os.ReadFile(p + "/status")
		sum += kilobytes(b, "RssAnon:", "RssShmem:", "VmSwap:")
	}
	if files {
		sum += m.memoryFiles()
	}
	return sum
}

func (m meter) exact() int64 {
	files := m.fileSystems() + m.memoryFiles()
	var sum, mapped int64
	for _, p := range m.processes() {
		b, _ := os.ReadFile(p + "/smaps_rollup")
		sum += kilobytes(b, "Pss_Anon:", "SwapPss:")
		mapped += kilobytes(b, "Pss_Shmem:")
	}
	if m.foreign {
		return sum + files
	}
	// Mapped shared memory may be of those files or have no name at all; the
	// larger of the two never counts a page twice.
	return sum + max(files, mapped)
}

// kilobytes adds up fields of a status file of /proc, in bytes.
func kilobytes(status []byte, names ...string) (sum int64) {
	for line := range bytes.Lines(status) {
		f := strings.Fields(string(line))
		if len(f) == 3 && slices.Contains(names, f[0]) {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			sum += n << 10
		}
	}
	return sum
}

func (m meter) fileSystems() int64 {
	var sum int64
	for _, t := range m.tmpfs {
		var st unix.Statfs_t
		if unix.Statfs(m.root+t, &st) == nil {
			sum += int64(st.Blocks-st.Bfree) * st.Bsize
		}
	}
	return sum
}

// memoryFiles counts files that exist only in memory and are held by a
// descriptor (memfd_create), each once.
func (m meter) memoryFiles() int64 {
	var sum int64
	seen := map[uint64]bool{}
	for _, p := range m.processes() {
		fds, _ := os.ReadDir(p + "/fd")
		for _, fd := range fds {
			name := p + "/fd/" + fd.Name()
			if target, err := os.Readlink(name); err != nil || !strings.HasPrefix(target, "/memfd:") {
				continue
			}
			var st unix.Stat_t
			if unix.Stat(name, &st) == nil && !seen[st.Ino] {
				seen[st.Ino] = true
				sum += st.Blocks * 512
			}
		}
	}
	return sum
}

func (m meter) processes() []string {
	entries, err := os.ReadDir(m.root + "/proc")
	if err != nil {
		return nil
	}
	var ps []string
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			ps = append(ps, m.root+"/proc/"+e.Name())
		}
	}
	return ps
}
