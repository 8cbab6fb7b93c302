package abuse

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// watch knows what is going on: which attack, and how many blows of each there
// were.
type watch struct {
	mu     sync.Mutex
	phase  string
	order  []string
	struck map[string]int
	done   bool
}

func (w *watch) enter(phase string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.phase = phase
	w.order = append(w.order, phase)
}

func (w *watch) now() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.phase
}

func (w *watch) finished() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done
}

func (w *watch) blows() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.struck)
}

// readPhases follows the attacker's words.
func readPhases(s *session, w *watch) {
	go func() {
		defer close(s.ended)
		for s.out.Scan() {
			f := strings.Fields(s.out.Text())
			switch {
			case len(f) == 2 && f[0] == "begin":
				w.enter(f[1])
			case len(f) == 3 && f[0] == "end":
				n, _ := strconv.Atoi(f[2])
				w.mu.Lock()
				if w.struck == nil {
					w.struck = map[string]int{}
				}
				w.struck[f[1]] = n
				w.mu.Unlock()
			case len(f) == 1 && f[0] == "done":
				w.mu.Lock()
				w.done = true
				w.mu.Unlock()
			}
		}
	}()
}

// samples are the measured session's requests by phase; a failure is a text.
type samples struct {
	times map[string][]time.Duration
	bad   []string
}

func (s samples) of(phase string) []time.Duration { return s.times[phase] }
func (s samples) failures() []string              { return s.bad }

// abused are all of the time in which the other session attacked.
func (s samples) abused() (all []time.Duration) {
	for phase, d := range s.times {
		if phase != "quiet" && phase != "after" {
			all = append(all, d...)
		}
	}
	return all
}

func readSamples(s *session, w *watch) <-chan samples {
	result := make(chan samples, 1)
	go func() {
		got := samples{times: map[string][]time.Duration{}}
		var began sync.Once
		for s.out.Scan() {
			phase := w.now()
			what, rest, _ := strings.Cut(s.out.Text(), " ")
			if us, err := strconv.Atoi(rest); what == "OK" && err == nil {
				began.Do(func() { close(s.works) })
				got.times[phase] = append(got.times[phase], time.Duration(us)*time.Microsecond)
			} else {
				got.bad = append(got.bad, phase+": "+s.out.Text())
				if len(got.bad) <= 5 {
					fmt.Fprintf(s.errors, "(of its requests) %s\n", s.out.Text())
				}
			}
		}
		close(s.ended)
		result <- got
	}()
	return result
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Clone(d)
	slices.Sort(d)
	return d[min(int(q*float64(len(d))), len(d)-1)]
}

// use is what a phase, or all, took of the abused session's processes.
type use struct {
	memory, controller int64 // bytes, the most seen
	files, threads     int   // of the gateway, the most seen
	gatewayTime        time.Duration
	controllerTime     time.Duration
	log                int64 // bytes it grew by
	span               time.Duration
}

// used is use for each phase, and the most of all.
type used struct {
	use
	each map[string]*use
}

// observe looks at the abused session until its attacks are over.
func observe(t *testing.T, s *session, gateway int, w *watch) used {
	t.Helper()
	all := used{each: map[string]*use{}}
	before := look(s, gateway)
	for !w.finished() {
		select {
		case <-s.ended:
			return all
		case <-time.After(100 * time.Millisecond):
		}
		now := look(s, gateway)
		phase := w.now()
		u := all.each[phase]
		if u == nil {
			u = &use{}
			all.each[phase] = u
		}
		for _, u := range []*use{u, &all.use} {
			u.memory, u.controller = max(u.memory, now.memory), max(u.controller, now.controller)
			u.files, u.threads = max(u.files, now.files), max(u.threads, now.threads)
			u.gatewayTime += now.gatewayTime - before.gatewayTime
			u.controllerTime += now.controllerTime - before.controllerTime
			u.log += now.log - before.log
			u.span += now.span - before.span
		}
		before = now
	}
	if all.files == 0 {
		t.Logf("uid %d cannot list the gateway's descriptors; RLIMIT_NOFILE bounds them", os.Getuid())
	}
	return all
}

var began = time.Now()

func look(s *session, gateway int) use {
	u := use{span: time.Since(began)}
	u.memory, u.threads = status(gateway, "VmRSS:")<<10, int(status(gateway, "Threads:"))
	u.controller = status(s.cmd.Process.Pid, "VmRSS:") << 10
	u.gatewayTime, u.controllerTime = cpu(gateway), cpu(s.cmd.Process.Pid)
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", gateway)); err == nil {
		u.files = len(fds)
	}
	if st, err := os.Stat(s.events); err == nil {
		u.log = st.Size()
	}
	return u
}

func status(pid int, key string) int64 {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for l := range strings.Lines(string(data)) {
		if f := strings.Fields(l); len(f) > 1 && f[0] == key {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n
		}
	}
	return 0
}

// cpu is the time that a process has computed; the clock tick is 1/100 s on
// every Linux that Go runs on.
func cpu(pid int) time.Duration {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(data), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// report prints the table and returns the ratio of medians, abused to quiet.
func report(t *testing.T, w *watch, got samples, m used, log logged) float64 {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%-18s %9s %8s %8s %6s | %5s %5s %4s %5s %5s %9s\n", "phase", "blows", "p50 ms", "p99 ms", "n", "MiB", "fds", "thr", "gw%", "ctl%", "log KiB/m")
	ms := func(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d.Microseconds())/1000) }
	blows := w.blows()
	line := func(name string, d []time.Duration, u *use) {
		if u == nil {
			u = &use{}
		}
		span := max(u.span.Seconds(), 0.001)
		fmt.Fprintf(&b, "%-18s %9d %8s %8s %6d | %5d %5d %4d %5.0f %5.0f %9.0f\n", name, blows[name], ms(quantile(d, 0.5)), ms(quantile(d, 0.99)), len(d),
			u.memory>>20, u.files, u.threads, 100*u.gatewayTime.Seconds()/span, 100*u.controllerTime.Seconds()/span, float64(u.log)/1024/span*60)
	}
	for _, phase := range w.order {
		line(phase, got.of(phase), m.each[phase])
	}
	abused := got.abused()
	line("(all attacks)", abused, &m.use)
	ratio := float64(quantile(abused, 0.5)) / float64(max(quantile(got.of("quiet"), 0.5), 1))
	fmt.Fprintf(&b, "the other session's latency, attacked to quiet: p50 %.2f, p99 %.2f; the log: %d lines, %d KiB, %d of them for %d refusals; the controller's peak: %d MiB\n",
		ratio, float64(quantile(abused, 0.99))/float64(max(quantile(got.of("quiet"), 0.99), 1)), log.lines, log.bytes>>10, log.denialLines, log.denials, m.controller>>20)
	t.Log("\n" + b.String())
	return ratio
}
