package guest

import (
	"bytes"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/guard"
)

const (
	// sightPeriod is how often processes are looked at: what begins and ends in
	// between is not seen. No kernel tells an ordinary user of the others.
	sightPeriod = 250 * time.Millisecond
	// settled is how old a process is whose program is not looked at again.
	settled = 4 * sightPeriod
	// maxOpened is how many paths are remembered, so that each is told once.
	maxOpened = 10000
)

// sights gathers what is seen of the commands, and reports it by and by.
type sights struct {
	known map[int]process // run's

	mu    sync.Mutex
	batch []sight
	lost  int
	paths map[string]bool
}

type process struct {
	began string // in the kernel's words, so that a number that comes again is another process
	since time.Time
	name  string
	exe   string
}

func newSights() *sights { return &sights{paths: map[string]bool{}, known: map[int]process{}} }

func (s *sights) add(x sight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.batch) >= maxSights {
		s.lost++
		return
	}
	s.batch = append(s.batch, x)
}

func (s *sights) opened(path string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	old := s.paths[path]
	if !old && len(s.paths) >= maxOpened {
		clear(s.paths)
	}
	s.paths[path] = true
	s.mu.Unlock()
	if !old {
		s.add(sight{What: sandbox.SeenWrite, Path: guard.Bytes(path)})
	}
}

// run looks and reports, and never ends. Nil has nothing to report.
func (s *sights) run(tell func(report, ...*os.File)) {
	if s == nil {
		return
	}
	for {
		began := time.Now()
		s.look("/proc", began)
		s.flush(tell)
		time.Sleep(max(sightPeriod, 20*time.Since(began)))
	}
}

// flush reports what was gathered.
func (s *sights) flush(tell func(report, ...*os.File)) {
	if s == nil {
		return
	}
	s.mu.Lock()
	batch, lost := s.batch, s.lost
	s.batch, s.lost = nil, 0
	s.mu.Unlock()
	if len(batch) > 0 || lost > 0 {
		tell(report{Kind: kindSeen, Sights: batch, Lost: lost})
	}
}

// look compares the processes that there are with those that there were.
func (s *sights) look(proc string, now time.Time) {
	dir, err := os.Open(proc)
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	there := map[int]bool{}
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil || pid == 1 {
			continue
		}
		p, old := s.known[pid]
		if old && now.Sub(p.since) > settled {
			there[pid] = true // a number does not come again before all others did
			continue
		}
		name, began := named(proc + "/" + n)
		if began == "" {
			continue
		}
		there[pid] = true
		exe, _ := os.Readlink(proc + "/" + n + "/exe")
		if !old || p.began != began {
			p = process{began: began, since: now}
		}
		p.name = name
		if exe != "" && exe != p.exe {
			s.add(sight{What: sandbox.SeenExec, PID: pid, Name: guard.Bytes(name), Path: guard.Bytes(exe)})
			p.exe = exe
		}
		s.known[pid] = p
	}
	for pid, p := range s.known {
		if there[pid] {
			continue
		}
		if delete(s.known, pid); p.exe != "" { // its beginning was told
			s.add(sight{What: sandbox.SeenExit, PID: pid, Name: guard.Bytes(p.name)})
		}
	}
}

// named reads a process's name and when it began (proc_pid_stat(5)).
func named(dir string) (name, began string) {
	stat, err := os.ReadFile(dir + "/stat")
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if err != nil || open < 0 || end < open {
		return "", ""
	}
	f := bytes.Fields(stat[end+1:])
	if len(f) < 20 {
		return "", ""
	}
	return string(stat[open+1 : end]), string(f[19])
}
