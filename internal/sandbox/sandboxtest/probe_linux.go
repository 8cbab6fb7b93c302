package sandboxtest

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"golang.org/x/sys/unix"
)

func init() { childproc.Register("probe", probe) }

// probe runs inside the sandbox.
func probe() int {
	args := os.Args[1:]
	if len(args) == 0 {
		return 2
	}
	var answer any
	switch args[0] {
	case "posture":
		answer = observe()
	case "attack":
		answer = attack(args[1:])
	case "fork", "thread":
		return bomb(args[0], number(args[1]))
	case "hog":
		return hog(args[1], number(args[2]))
	case "burn":
		d, _ := time.ParseDuration(args[2])
		answer = burn(number(args[1]), d)
	case "foreign": // a system call of another architecture
		unix.RawSyscall(0x40000000|39, 0, 0, 0)
	case "hold": // memory or a child that another test looks at
		time.Sleep(time.Hour)
	}
	json.NewEncoder(os.Stdout).Encode(answer)
	return 0
}

func number(s string) int { n, _ := strconv.Atoi(s); return n }

// Posture is the observed security state of a process inside.
type Posture struct {
	Namespaces map[string]string
	Status     map[string]string // from /proc/self/status: capabilities, signals, seccomp …
	UIDMap     string
	GIDMap     string
	Setgroups  string
	Mounts     []string // "mount point type flags"
	FDs        []string // "number target"
	Env        []string
	Limits     map[string]string
	Dev        []string
	Root       []string
	Cwd        string
	Hostname   string
	Interfaces []string // "name address/bits"
	Routes     []string
	Processes  []string // "pid name"
	Cgroup     []string
	Session    bool // leader of its own session
}

func observe() Posture {
	p := Posture{Namespaces: map[string]string{}, Status: map[string]string{}, Limits: map[string]string{}}
	p.FDs = descriptors() // first: everything below opens more
	p.Namespaces = Namespaces("self")
	for line := range strings.Lines(read("/proc/self/status")) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch k {
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "SigBlk", "SigIgn", "Uid", "Gid", "Groups", "TracerPid":
			p.Status[k] = strings.Join(strings.Fields(v), " ")
		}
	}
	p.UIDMap = strings.Join(strings.Fields(read("/proc/self/uid_map")), " ")
	p.GIDMap = strings.Join(strings.Fields(read("/proc/self/gid_map")), " ")
	p.Setgroups = strings.TrimSpace(read("/proc/self/setgroups"))
	for line := range strings.Lines(read("/proc/self/mountinfo")) {
		f := strings.Fields(line)
		for i := range f {
			if f[i] == "-" && i > 5 {
				p.Mounts = append(p.Mounts, f[4]+" "+f[i+1]+" "+flags(f[5]))
			}
		}
	}
	sort.Strings(p.Mounts)
	p.Env = os.Environ()
	for name, r := range map[string]int{"core": unix.RLIMIT_CORE, "data": unix.RLIMIT_DATA, "nproc": unix.RLIMIT_NPROC} {
		var l unix.Rlimit
		unix.Getrlimit(r, &l)
		p.Limits[name] = fmt.Sprintf("%d %d", int64(l.Cur), int64(l.Max))
	}
	p.Dev, p.Root = list("/dev"), list("/")
	p.Cwd, _ = os.Getwd()
	p.Hostname, _ = os.Hostname()
	ifs, _ := net.Interfaces()
	for _, i := range ifs {
		as, _ := i.Addrs()
		for _, a := range as {
			p.Interfaces = append(p.Interfaces, i.Name+" "+a.String())
		}
		if len(as) == 0 {
			p.Interfaces = append(p.Interfaces, i.Name)
		}
	}
	for line := range strings.Lines(read("/proc/net/route")) {
		if f := strings.Fields(line); len(f) > 2 && f[1] == "00000000" {
			p.Routes = append(p.Routes, f[0]+" "+f[2])
		}
	}
	for line := range strings.Lines(read("/proc/net/ipv6_route")) {
		if f := strings.Fields(line); len(f) == 10 && f[1] == "00" && f[9] != "lo" {
			p.Routes = append(p.Routes, f[9]+" "+f[4])
		}
	}
	for _, e := range list("/proc") {
		if number(e) > 0 && number(e) != os.Getpid() {
			p.Processes = append(p.Processes, e+" "+strings.TrimSpace(read("/proc/"+e+"/comm")))
		}
	}
	for line := range strings.Lines(read("/proc/self/cgroup")) {
		p.Cgroup = append(p.Cgroup, line[strings.LastIndex(line, ":")+1:len(line)-1])
	}
	sid, _ := unix.Getsid(0)
	p.Session = sid == os.Getpid()
	return p
}

// Namespaces reads the namespaces of a process.
func Namespaces(pid string) map[string]string {
	ns := map[string]string{}
	for _, n := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		ns[n], _ = os.Readlink("/proc/" + pid + "/ns/" + n)
	}
	return ns
}

func flags(options string) string {
	var keep []string
	for _, o := range strings.Split(options, ",") {
		switch o {
		case "ro", "rw", "nosuid", "nodev", "noexec":
			keep = append(keep, o)
		}
	}
	return strings.Join(keep, ",")
}

// descriptors leaves out what the Go runtime of the probe opens itself.
func descriptors() []string {
	var fds []string
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, l := range links {
		to, err := os.Readlink(l)
		if err != nil || strings.HasPrefix(to, "anon_inode:[event") {
			continue
		}
		kind, _, _ := strings.Cut(to, ":")
		fds = append(fds, filepath.Base(l)+" "+kind)
	}
	return fds
}

func read(p string) string { b, _ := os.ReadFile(p); return string(b) }

func list(dir string) []string {
	es, _ := os.ReadDir(dir)
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

// bomb makes tasks until it is refused one, says how many, and holds them.
func bomb(kind string, most int) int {
	made := 0
	if kind == "fork" {
		for made < most {
			if _, err := syscall.ForkExec("/bin/sleep", []string{"sleep", "60"}, &syscall.ProcAttr{Env: []string{}}); err != nil {
				break
			}
			made++
		}
	} else {
		// Each of these brings several threads; one that can't have them dies
		// and makes room, so the count is taken as it goes.
		for range 40 {
			_, err := syscall.ForkExec("/proc/self/exe", []string{"bulkhead-probe", "hold"}, &syscall.ProcAttr{Env: []string{}})
			time.Sleep(10 * time.Millisecond)
			if made = max(made, countTasks()); err != nil {
				break
			}
		}
	}
	fmt.Println(made)
	time.Sleep(time.Minute)
	return 0
}

func countTasks() int {
	tasks, _ := filepath.Glob("/proc/[0-9]*/task/*")
	return len(tasks)
}

// hog takes memory in steps of 8 MiB until it has n bytes.
func hog(kind string, n int) int {
	const step = 8 << 20
	switch kind {
	case "anon":
		for taken := 0; taken < n; taken += step {
			b, err := unix.Mmap(-1, 0, step, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
			if err != nil {
				fmt.Println("mmap:", err)
				return 3
			}
			touch(b)
			time.Sleep(5 * time.Millisecond)
		}
	case "children":
		const children = 8
		done := make(chan int, children)
		for range children {
			go func() {
				pid, err := syscall.ForkExec("/proc/self/exe", []string{"bulkhead-probe", "hog", "hold", strconv.Itoa(n / children)}, &syscall.ProcAttr{Env: []string{}})
				if err != nil {
					done <- 3
					return
				}
				var ws syscall.WaitStatus
				syscall.Wait4(pid, &ws, 0, nil)
				if ws.Signaled() {
					done <- 128 + int(ws.Signal())
				} else {
					done <- ws.ExitStatus()
				}
			}()
		}
		worst := 0
		for range children {
			worst = max(worst, <-done)
		}
		return worst
	case "hold":
		if code := hog("anon", n); code != 0 {
			return code
		}
		time.Sleep(2 * time.Second)
	case "memfd", "tmpfs":
		var fd int
		var err error
		if kind == "memfd" {
			fd, err = unix.MemfdCreate("hog", unix.MFD_CLOEXEC)
		} else {
			fd, err = unix.Open("/tmp/hog", unix.O_CREAT|unix.O_WRONLY, 0o600)
		}
		if err != nil {
			fmt.Println(err)
			return 3
		}
		b := make([]byte, step)
		for taken := 0; taken < n; taken += step {
			if _, err := unix.Write(fd, b); err != nil {
				fmt.Println("write:", err)
				return 3
			}
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
	case "shm":
		for taken := 0; taken < n; taken += step {
			id, err := unix.SysvShmGet(0 /* IPC_PRIVATE */, step, 0o600|unix.IPC_CREAT)
			if err != nil {
				fmt.Println("shmget:", err)
				return 3
			}
			b, err := unix.SysvShmAttach(id, 0, 0)
			if err != nil {
				fmt.Println("shmat:", err)
				return 3
			}
			touch(b)
			unix.SysvShmDetach(b)
		}
	}
	return 0
}

func touch(b []byte) {
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
}

// burn keeps n threads busy, on every processor it can get hold of.
func burn(n int, d time.Duration) any {
	var all unix.CPUSet
	for c := range 64 {
		all.Set(c)
	}
	_ = unix.SchedSetaffinity(0, &all)
	start := time.Now()
	runtime.GOMAXPROCS(n)
	done := make(chan bool)
	for range n {
		go func() {
			runtime.LockOSThread()
			_ = unix.SchedSetaffinity(0, &all)
			for time.Since(start) < d {
			}
			done <- true
		}()
	}
	for range n {
		<-done
	}
	var ru unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &ru)
	used := time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	return map[string]float64{"Used": used.Seconds(), "Wall": time.Since(start).Seconds()}
}
