package campaign

import (
	"context"
	"os"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/kernel"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/scenario"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/stage"
)

// Describe says where a campaign ran, as `bulkhead doctor` sees it.
func Describe(ctx context.Context, c Config, version string) Host {
	h := Host{Version: version, UID: c.As.UID, Private: stage.CanBePrivate("process")}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		h.Kernel = strings.TrimSpace(string(b))
	}
	for _, y := range c.Others {
		if v := stage.YardstickVersion(y); v != "" {
			h.Tools = append(h.Tools, y+": "+v)
		}
	}
	for _, p := range kernel.Examine(ctx).Probes {
		h.Notes = append(h.Notes, p.Name+": "+p.Status.String()+", "+p.Found)
	}
	return h
}

// Covered counts the catalogue's entries.
func Covered(entries []scenario.Entry) *Catalogue {
	c := &Catalogue{Entries: len(entries)}
	for _, e := range entries {
		switch {
		case len(e.Scenarios) > 0:
			c.Scenarios++
		case e.Test != "":
			c.Tests++
		default:
			c.Open = append(c.Open, e)
		}
	}
	return c
}

// Strict makes a missing program a problem: for gates, whose hosts have all.
func (r *Report) Strict() {
	for _, row := range r.Rows {
		for _, cell := range row.Cells {
			if strings.HasPrefix(cell.NotRun, "needs the program") {
				r.Problems = append(r.Problems, row.Name+" in "+cell.Tier+" was not run: "+cell.NotRun)
			}
		}
	}
	r.OK = len(r.Problems) == 0
}
