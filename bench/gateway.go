package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/bulkhead-dev/bulkhead/bench/load"
)

// Bounds of one round of one contender.
const (
	latencyFor = 1500 * time.Millisecond
	rateFor    = 1500 * time.Millisecond
	connectFor = time.Second
	bulkBytes  = 1 << 30
	bulkFor    = 1500 * time.Millisecond
	busyConns  = 32
)

// otherBuild is the contender of -beside.
const otherBuild = "bulkhead, other build"

// way is one way from the client to the server.
type way struct {
	name   string
	absent string

	client *load.Process
	pids   func() []int // whose time and memory count: the proxy's, not the client's
	stop   []func()

	p50, p99               []time.Duration
	single, rate, connects []float64 // per second
	down, up               []float64 // bytes per second
	perCore                []float64 // requests per second of processor time, busyConns connections
	perCoreSingle          []float64 // the same, one connection
	idle, busy             int64     // KiB
}

// gateway compares the ways for HTTPS requests: straight, through Bulkhead over
// its two networks, and through proxies that also end TLS.
func (b *bench) gateway() error {
	u, err := newUpstream(b.dir)
	if err != nil {
		return err
	}
	defer u.close()
	// Others' proxies run as users of their own and read files of ours.
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return err
	}
	var ways []*way
	for _, c := range []struct {
		name  string
		start func(*way)
	}{
		{"direct", func(w *way) { b.straight(w, u) }},
		{"bulkhead, TAP", func(w *way) { b.contained(w, u, b.bulkhead, false) }},
		{"bulkhead, relay", func(w *way) { b.contained(w, u, b.bulkhead, true) }},
		{"mitmproxy", func(w *way) { b.proxied(w, u, b.mitmproxy) }},
		{"squid ssl-bump", func(w *way) { b.proxied(w, u, b.squid) }},
		{"srt " + version(srtPackage), func(w *way) { b.proxied(w, u, b.srtProxy) }},
		{otherBuild, func(w *way) { b.contained(w, u, b.beside, false) }},
	} {
		if c.name == otherBuild && b.beside == "" {
			continue
		}
		w := &way{name: c.name}
		if len(ways) == 0 || slices.ContainsFunc(b.wanted, func(s string) bool { return strings.HasPrefix(c.name, s) }) {
			c.start(w)
		} else {
			w.absent = "not asked for"
		}
		ways = append(ways, w)
	}
	defer func() {
		for _, w := range ways {
			w.close()
		}
	}()
	for _, w := range ways {
		w.warm()
	}
	for range b.gatewayRounds {
		for _, w := range ways {
			if w.absent == "" {
				if err := w.round(); err != nil {
					w.absent = err.Error()
				}
			}
			if b.ctx.Err() != nil {
				return b.ctx.Err()
			}
		}
	}
	for _, w := range ways {
		w.weigh()
	}
	b.ways = append(b.ways, results(ways)...)
	b.gatewayGoals(ways)
	if w := ways[0]; w.absent != "" {
		return fmt.Errorf("%s: %s", w.name, w.absent)
	}
	return nil
}

func (w *way) fail(err error) { w.absent = err.Error() }

func (w *way) close() {
	for _, f := range slices.Backward(w.stop) {
		f()
	}
}

func (b *bench) launch(w *way, dir string, env, argv []string) bool {
	p, err := load.Start(b.ctx, dir, env, argv)
	if err != nil {
		w.fail(err)
		return false
	}
	w.client = p
	w.stop = append(w.stop, func() { p.Close() })
	return true
}

func (b *bench) straight(w *way, u *upstream) {
	b.launch(w, b.dir, nil, []string{b.self, "load", "-url", "https://" + upstreamName, "-ca", u.caFile, "-connect", u.addr})
	w.pids = func() []int { return nil }
}

// contained runs the client in a session. Without a TAP device, or with it
// hidden, the session has the relay.
func (b *bench) contained(w *way, u *upstream, binary string, relay bool) {
	dir, policy, err := b.workspace(strings.ReplaceAll(w.name, ", ", "-"), u.policy())
	if err != nil {
		w.fail(err)
		return
	}
	client := filepath.Join(dir, "client")
	if err := copyFile(client, b.self); err != nil {
		w.fail(err)
		return
	}
	argv := []string{binary, "run", "--policy", policy, "--events", filepath.Join(filepath.Dir(dir), "events.jsonl"),
		"--", client, "load", "-url", "https://" + upstreamName}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	tap := err == nil
	if tap {
		tun.Close()
	}
	switch {
	case !relay && !tap:
		w.absent = "this user cannot open /dev/net/tun"
		return
	case relay && tap && os.Getuid() != 0:
		w.absent = "this user has TAP devices; only root can hide them from itself"
		return
	case relay && tap:
		argv = append([]string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /dev/net && exec "$@"`, "sh"}, argv...)
	}
	state := filepath.Join(filepath.Dir(dir), "state")
	if !b.launch(w, dir, []string{"XDG_STATE_HOME=" + state, "XDG_CONFIG_HOME=" + state}, argv) {
		return
	}
	controller := w.client.PID()
	w.pids = func() []int {
		pids := []int{controller}
		for _, pid := range tree(controller)[1:] {
			if strings.Contains(commandLine(pid)[0], "gateway") {
				pids = append(pids, pid)
			}
		}
		return pids
	}
}

func (b *bench) proxied(w *way, u *upstream, start func(string, *upstream) (*proxy, error)) {
	dir := filepath.Join(b.dir, "proxy-"+strings.Fields(w.name)[0])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		w.fail(err)
		return
	}
	p, err := start(dir, u)
	if err != nil {
		w.fail(err)
		return
	}
	w.stop = append(w.stop, p.stop)
	w.pids = func() []int { return tree(p.pid) }
	_, port, _ := strings.Cut(u.addr, ":")
	b.launch(w, b.dir, nil, []string{b.self, "load", "-url", "https://localhost:" + port, "-ca", p.ca, "-proxy", p.url})
}

// warm shows that the way works, and takes the memory of a session that has
// done next to nothing.
func (w *way) warm() {
	if w.absent != "" {
		return
	}
	if _, err := w.client.Do(load.Order{Kind: load.Latency, N: 50, For: 5 * time.Second}); err != nil {
		w.absent = err.Error() + " " + firstLine(w.client.Close())
		return
	}
	time.Sleep(200 * time.Millisecond)
	w.idle = memoryOf(w.pids())
	for _, o := range []load.Order{{Kind: load.Rate, Conns: busyConns, For: time.Second}, {Kind: load.Down, N: 32 << 20, For: time.Second}} {
		if _, err := w.client.Do(o); err != nil {
			w.absent = err.Error()
			return
		}
	}
}

func (w *way) round() error {
	pids := w.pids()
	before := cpuOf(pids)
	a, err := w.client.Do(load.Order{Kind: load.Latency, For: latencyFor})
	if err != nil {
		return err
	}
	w.p50, w.p99, w.single = append(w.p50, a.P50), append(w.p99, a.P99), append(w.single, a.PerSecond())
	w.perCoreSingle = w.core(w.perCoreSingle, a, cpuOf(pids)-before)

	before = cpuOf(pids)
	if a, err = w.client.Do(load.Order{Kind: load.Rate, Conns: busyConns, For: rateFor}); err != nil {
		return err
	}
	w.rate = append(w.rate, a.PerSecond())
	w.perCore = w.core(w.perCore, a, cpuOf(pids)-before)

	for _, o := range []struct {
		load.Order
		into *[]float64
	}{
		{load.Order{Kind: load.Connect, Conns: 4, For: connectFor}, &w.connects},
		{load.Order{Kind: load.Down, N: bulkBytes, For: bulkFor}, &w.down},
		{load.Order{Kind: load.Up, N: bulkBytes, For: bulkFor}, &w.up},
	} {
		if a, err = w.client.Do(o.Order); err != nil {
			return err
		}
		*o.into = append(*o.into, a.PerSecond())
	}
	return nil
}

// core adds requests per second of processor time.
func (w *way) core(to []float64, a load.Answer, used time.Duration) []float64 {
	if used <= 0 {
		return to
	}
	return append(to, float64(a.N)/used.Seconds())
}

// weigh takes the memory while busyConns connections are open and busy.
func (w *way) weigh() {
	if w.absent != "" {
		return
	}
	taken := make(chan int64)
	go func() {
		time.Sleep(700 * time.Millisecond)
		taken <- memoryOf(w.pids())
	}()
	if _, err := w.client.Do(load.Order{Kind: load.Rate, Conns: busyConns, For: time.Second}); err != nil {
		w.absent = err.Error()
	}
	w.busy = <-taken
}

func middle(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Clone(v)
	slices.Sort(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// wayResult is one line of the gateway's table: medians of all rounds.
type wayResult struct {
	Name          string  `json:"name"`
	Absent        string  `json:"absent,omitempty"`
	PerCore       float64 `json:"requests_per_cpu_second,omitempty"`
	PerCoreSingle float64 `json:"requests_per_cpu_second_1conn,omitempty"`
	P50           float64 `json:"p50_ms"`
	P99           float64 `json:"p99_ms"`
	AddedP50      float64 `json:"added_p50_ms"`
	AddedP99      float64 `json:"added_p99_ms"`
	Single        float64 `json:"requests_per_second_1conn"`
	Rate          float64 `json:"requests_per_second"`
	Connects      float64 `json:"tls_connections_per_second"`
	DownMBs       float64 `json:"download_mb_per_second"`
	UpMBs         float64 `json:"upload_mb_per_second"`
	IdleMiB       float64 `json:"idle_mib,omitempty"`
	BusyMiB       float64 `json:"busy_mib,omitempty"`
}

func results(ways []*way) (out []wayResult) {
	for _, w := range ways {
		r := wayResult{Name: w.name, Absent: w.absent,
			PerCore: middle(w.perCore), PerCoreSingle: middle(w.perCoreSingle),
			P50: ms(median(w.p50)), P99: ms(median(w.p99)), Single: middle(w.single), Rate: middle(w.rate),
			AddedP50: ms(w.added(ways[0], func(w *way) []time.Duration { return w.p50 })),
			AddedP99: ms(w.added(ways[0], func(w *way) []time.Duration { return w.p99 })),
			Connects: middle(w.connects), DownMBs: middle(w.down) / 1e6, UpMBs: middle(w.up) / 1e6,
			IdleMiB: float64(w.idle) / 1024, BusyMiB: float64(w.busy) / 1024}
		out = append(out, r)
	}
	return out
}

// added is the median of the differences within each round.
func (w *way) added(direct *way, of func(*way) []time.Duration) time.Duration {
	var d []time.Duration
	mine, theirs := of(w), of(direct)
	for i := range min(len(mine), len(theirs)) {
		d = append(d, mine[i]-theirs[i])
	}
	return median(d)
}

// gatewayGoals judges the way over the TAP device, which is the usual one.
func (b *bench) gatewayGoals(ways []*way) {
	all := results(ways)
	direct, ours := all[0], all[1]
	if ours.Absent != "" {
		ours = all[2]
	}
	if ours.Absent != "" || direct.Absent != "" {
		return
	}
	for _, p := range all[3:] {
		want := 1.0
		if p.Name == "mitmproxy" {
			want = 5
		}
		if p.Name == otherBuild {
			want = 0 // no goal
		}
		r := row{Question: "gateway", Name: "requests per core against " + p.Name, Absent: p.Absent, Goal: fmt.Sprintf("> %g×", want)}
		if p.Absent == "" && p.PerCore > 0 {
			x := ours.PerCore / p.PerCore
			r.Ratio = fmt.Sprintf("%.0f / %.0f = %.2f×", ours.PerCore, p.PerCore, x)
			r = goal(r, r.Goal, x > want)
		}
		b.add(r)
	}
	b.add(goal(row{Question: "gateway", Name: "added at the median", Median: ours.P50, Ratio: fmt.Sprintf("%+.3f ms", ours.AddedP50)}, "≤ +0.3 ms", ours.AddedP50 <= 0.3))
	for _, v := range []struct {
		name    string
		it, dir float64
	}{{"download", ours.DownMBs, direct.DownMBs}, {"upload", ours.UpMBs, direct.UpMBs}} {
		b.add(goal(row{Question: "gateway", Name: v.name, Ratio: fmt.Sprintf("%.0f / %.0f MB/s = %.2f× direct", v.it, v.dir, v.it/v.dir)}, "≥ 0.5× direct", v.it >= v.dir/2))
	}
}

func printWays(ways []wayResult) {
	if len(ways) == 0 {
		return
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\treq/core·s\t(1 conn)\tp50 ms\tadded\tp99 ms\tadded\treq/s 1\treq/s 32\tTLS conn/s\tdown MB/s\tup MB/s\tidle MiB\tbusy MiB\t")
	for _, r := range ways {
		if r.Absent != "" {
			fmt.Fprintf(w, "%s\tabsent\t\t\t\t\t\t\t\t\t\t\t\t\t\n", r.Name)
			continue
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.3f\t%+.3f\t%.3f\t%+.3f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.1f\t%.1f\t\n", r.Name,
			r.PerCore, r.PerCoreSingle, r.P50, r.AddedP50, r.P99, r.AddedP99, r.Single, r.Rate, r.Connects, r.DownMBs, r.UpMBs, r.IdleMiB, r.BusyMiB)
	}
	w.Flush()
	fmt.Println()
	for _, r := range ways {
		if r.Absent != "" {
			fmt.Printf("absent: %s: %s\n\n", r.Name, r.Absent)
		}
	}
}
