// Command bench measures what containment costs, against doing the same
// without it and against comparable tools, all in one run on one machine.
//
// The contenders of one question take turns (a, b, c, a, b, c, …), so that a
// slow minute of the machine hits all of them, and what counts are ratios of
// medians. A peer that can't be had is printed as absent with the reason.
//
//	bench -bulkhead bin/bulkhead -cache .cache/bench [-json] [-only start,request,work,modes,gateway,decide,container,held] [-rounds N]
//
// It also carries the programs that run inside the sandbox: "bench client" (HTTPS
// requests over one connection), "bench load" (package load) and "bench time" (a
// command, repeated).
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/bulkhead-dev/bulkhead/bench/load"
)

// row is one line of the answer.
type row struct {
	Question string  `json:"question"` // start, request, work, modes, gateway, decide, container, held
	Name     string  `json:"name"`
	Median   float64 `json:"median_ms,omitempty"`
	Ratio    string  `json:"ratio,omitempty"` // what Median is compared with
	Goal     string  `json:"goal,omitempty"`
	Met      *bool   `json:"met,omitempty"`
	Absent   string  `json:"absent,omitempty"` // why there is no figure
}

type report struct {
	Kernel string      `json:"kernel"`
	CPUs   int         `json:"cpus"`
	UID    int         `json:"uid"`
	Rounds int         `json:"rounds"`
	Rows   []row       `json:"rows"`
	Ways   []wayResult `json:"gateway,omitempty"`
}

type bench struct {
	ctx      context.Context
	bulkhead string // absolute path
	beside   string // another build, or empty
	self     string // absolute path of this binary
	cache    string // where peers are installed
	dir      string // scratch, removed at the end
	rounds   int
	rows     []row
	ways     []wayResult
	plot     string // where the gateway's figures are drawn, if anywhere

	wanted        []string
	gatewayRounds int
	holding       int // sessions; 0: as many as the share of memory gives
	share         int // percent
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "load":
			os.Exit(load.Main(os.Args[2:]))
		case "upstream":
			os.Exit(upstreamMain(os.Args[2:]))
		case "client":
			os.Exit(clientMain(os.Args[2:]))
		case "time":
			os.Exit(timeMain(os.Args[2:]))
		}
	}
	os.Exit(run())
}

func run() int {
	bulkhead := flag.String("bulkhead", "bin/bulkhead", "the binary to measure")
	cache := flag.String("cache", ".cache/bench", "where peers are installed")
	asJSON := flag.Bool("json", false, "print the report as JSON")
	only := flag.String("only", "start,request,work,modes,gateway,decide,container,held", "the questions to ask")
	rounds := flag.Int("rounds", 21, "runs of each contender for start; fewer where a run is long")
	ways := flag.String("ways", "", "the gateway's contenders, by the beginnings of their names (direct is always there)")
	beside := flag.String("beside", "", "another build of bulkhead, as a further contender of the gateway over TAP")
	plot := flag.String("plot", "", "where the gateway's figures are drawn; default gateway.svg in the cache")
	gatewayRounds := flag.Int("gateway-rounds", 5, "rounds of the gateway's contenders")
	holding := flag.Int("hold", 40, "the sessions of each tier that are to be held at once; 0: as many as fit")
	share := flag.Int("hold-share", 75, "the percentage of the available memory that held sessions may take")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b, err := newBench(ctx, *bulkhead, *cache, *rounds)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	defer os.RemoveAll(b.dir)
	if *beside != "" {
		if b.beside, err = filepath.Abs(*beside); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
	}
	b.wanted, b.gatewayRounds, b.holding = strings.Split(*ways, ","), max(1, *gatewayRounds), max(0, *holding)
	b.share = min(max(1, *share), 95)
	if b.plot = *plot; b.plot == "" {
		b.plot = filepath.Join(b.cache, "gateway.svg")
	}
	questions := map[string]func() error{"start": b.start, "request": b.request, "work": b.work, "modes": b.modes, "gateway": b.gateway, "decide": b.decide, "container": b.container, "held": b.held}
	failed := false
	for _, q := range strings.Split(*only, ",") {
		f, ok := questions[q]
		if !ok {
			fmt.Fprintf(os.Stderr, "bench: no question %q (start, request, work, modes, gateway, decide, container, held)\n", q)
			return 2
		}
		fmt.Fprintf(os.Stderr, "measuring %s …\n", q)
		if err := f(); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", q, err)
			failed = true
		}
	}
	b.print(*asJSON)
	if err := b.draw(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: plot:", err)
		failed = true
	}
	if failed {
		return 1
	}
	return 0
}

func newBench(ctx context.Context, bulkhead, cache string, rounds int) (*bench, error) {
	b := &bench{ctx: ctx, rounds: max(3, rounds)}
	var err error
	if b.bulkhead, err = filepath.Abs(bulkhead); err != nil {
		return nil, err
	}
	if _, err := os.Stat(b.bulkhead); err != nil {
		return nil, fmt.Errorf("%w: run make build first", err)
	}
	if b.cache, err = filepath.Abs(cache); err != nil {
		return nil, err
	}
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp("", "bulkhead-bench-"); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *bench) report() report {
	return report{Kernel: kernel(), CPUs: runtime.NumCPU(), UID: os.Getuid(), Rounds: b.rounds, Rows: b.rows, Ways: b.ways}
}

func (b *bench) print(asJSON bool) {
	r := b.report()
	if asJSON {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		enc.Encode(r)
		return
	}
	fmt.Printf("kernel %s, %d CPUs, uid %d; medians, contenders taking turns\n\n", r.Kernel, r.CPUs, r.UID)
	printWays(r.Ways)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tmedian\tcompared\tgoal\t")
	for _, row := range r.Rows {
		if row.Absent != "" {
			fmt.Fprintf(w, "%s: %s\tabsent\tsee below\t%s\t\n", row.Question, row.Name, row.Goal)
			continue
		}
		verdict := ""
		if row.Met != nil {
			verdict = "MISSED"
			if *row.Met {
				verdict = "met"
			}
		}
		median := ""
		if row.Median != 0 {
			median = fmt.Sprintf("%.2f ms", row.Median)
		}
		fmt.Fprintf(w, "%s: %s\t%s\t%s\t%s\t%s\n", row.Question, row.Name, median, row.Ratio, row.Goal, verdict)
	}
	w.Flush()
	for _, row := range r.Rows {
		if row.Absent != "" {
			fmt.Printf("\nabsent: %s: %s\n", row.Name, row.Absent)
		}
	}
}

func kernel() string {
	data, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return runtime.GOOS
	}
	return strings.TrimSpace(string(data))
}

func (b *bench) add(r row) { b.rows = append(b.rows, r) }

// goal fills in whether a goal was met.
func goal(r row, text string, met bool) row {
	r.Goal, r.Met = text, &met
	return r
}

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Clone(d)
	slices.Sort(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func times(a, b time.Duration) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// workspace makes a directory of its own with the policy in it and returns
// both paths.
func (b *bench) workspace(name, policy string) (dir, policyFile string, err error) {
	dir = filepath.Join(b.dir, name, "workspace")
	if err = os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	policyFile = filepath.Join(b.dir, name, "policy.yaml")
	return dir, policyFile, os.WriteFile(policyFile, []byte(policy), 0o644)
}
