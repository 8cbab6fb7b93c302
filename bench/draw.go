package main

import (
	"fmt"
	"math"
	"os"
	"strings"

	"github.com/bulkhead-dev/bulkhead/bench/plot"
)

// draw writes the gateway's figures as a plot.
func (b *bench) draw() error {
	if b.plot == "" || len(b.ways) == 0 {
		return nil
	}
	panel := func(title, note, format string, mark float64, direct bool, series []string, of ...func(wayResult) float64) plot.Panel {
		p := plot.Panel{Title: title, Note: note, Series: series, Format: format, Mark: mark}
		for _, w := range b.ways {
			if w.Absent == "not asked for" || w.Name == "direct" && !direct {
				continue
			}
			r := plot.Row{Name: w.Name, Ours: strings.HasPrefix(w.Name, "bulkhead")}
			for _, f := range of {
				v := f(w)
				if w.Absent != "" {
					v = math.NaN()
				}
				r.Values = append(r.Values, v)
			}
			p.Rows = append(p.Rows, r)
		}
		return p
	}
	two := func(a, b string) []string { return []string{a, b} }
	half := 0.0
	if len(b.ways) > 0 {
		half = min(b.ways[0].DownMBs, b.ways[0].UpMBs) / 2
	}
	panels := []plot.Panel{
		panel("Requests per second and core", "keep-alive, by the proxy's own processor time; longer is better", "%.0f", 0, false, []string{""}, func(w wayResult) float64 { return w.PerCore }),
		panel("Added latency", "ms more than direct; shorter is better", "%.2f", 0.3, false, two("median", "99th"), func(w wayResult) float64 { return w.AddedP50 }, func(w wayResult) float64 { return w.AddedP99 }),
		panel("Bulk", "MB/s over one connection; longer is better", "%.0f", half, true, two("down", "up"), func(w wayResult) float64 { return w.DownMBs }, func(w wayResult) float64 { return w.UpMBs }),
		panel("New TLS connections", "per second, four at a time; longer is better", "%.0f", 0, true, []string{""}, func(w wayResult) float64 { return w.Connects }),
		panel("Memory", "MiB, after 50 requests and under load; shorter is better", "%.0f", 0, false, two("idle", "busy"), func(w wayResult) float64 { return w.IdleMiB }, func(w wayResult) float64 { return w.BusyMiB }),
		panel("Requests per second", "client and server on the same cores; longer is better", "%.0f", 0, true, []string{""}, func(w wayResult) float64 { return w.Rate }),
	}
	r := b.report()
	caption := fmt.Sprintf("Medians of %d rounds in turns, one run; %d CPUs, Linux %s. The same client and server for all; drawn by make bench.", b.gatewayRounds, r.CPUs, kernelVersion(r.Kernel))
	return os.WriteFile(b.plot, plot.SVG("The gateway beside other proxies that end TLS", caption, panels), 0o644)
}

// kernelVersion leaves out what a distribution or a host adds.
func kernelVersion(s string) string {
	v, _, _ := strings.Cut(s, "-")
	return v
}
