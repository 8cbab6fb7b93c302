package campaign

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/mutate"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/scenario"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/stage"
)

// Search is what varying one scenario in one tier came to.
type Search struct {
	Tier  string `json:"tier"`
	Tries int    `json:"tries"`
	// Invalid tries: a variation that doesn't run proves nothing.
	Invalid int `json:"invalid"`
	// Found are the variations that broke through, made as small as they get.
	Found []Breakthrough `json:"found,omitempty"`
}

// Breakthrough is a variation that succeeded where the scenario did not.
type Breakthrough struct {
	How    []string     `json:"how"`
	Seen   []stage.Seen `json:"seen"`
	Source string       `json:"source"` // as a scenario file
}

const askedToMinimise = 25

// search varies a scenario in a tier. It ends at the first breakthrough: the
// next one would be the same hole.
func (c Config) search(ctx context.Context, it Item, tier string, tried func()) *Search {
	s := &Search{Tier: tier}
	run := func(payload string) stage.Outcome {
		o, err := c.Perform(ctx, stage.Job{
			File: it.File, Source: it.Source, Kind: stage.Attack, Tier: tier, Payload: payload, As: c.As, Agent: c.Agent, Live: c.Live,
			Private: stage.CanBePrivate(tier),
		}, c.Binary)
		if err != nil {
			o.Invalid = err.Error()
		}
		return o
	}
	for _, t := range mutate.Tries(it.Scenario, c.Mutate, c.Seed) {
		if ctx.Err() != nil {
			break
		}
		o := run(t.Payload)
		s.Tries++
		tried()
		switch {
		case len(o.Seen) > 0:
			small := mutate.Minimise(t.Payload, askedToMinimise, func(p string) bool { return ctx.Err() == nil && len(run(p).Seen) > 0 })
			s.Found = append(s.Found, Breakthrough{How: t.How, Seen: o.Seen, Source: string(scenario.WithPayload(it.Source, small))})
			return s
		case o.Invalid != "" || o.Declined != "":
			s.Invalid++
		}
	}
	return s
}

// vary searches over every scenario that was contained and can be varied.
func (c Config) vary(ctx context.Context, r *Report, tried func(*Row, string)) {
	if c.Mutate == 0 {
		return
	}
	slots := make(chan struct{}, c.Parallel)
	var wg sync.WaitGroup
	for i, it := range c.Scenarios {
		row := r.Rows[i]
		for _, tier := range c.Tiers {
			cell := row.Cell(tier, stage.Attack)
			if len(it.Mutators) == 0 || !row.Proven() || cell.Failed == 0 || cell.Failed != cell.Attempted() {
				continue
			}
			s := &Search{Tier: tier}
			row.Searches = append(row.Searches, s)
			slots <- struct{}{}
			wg.Go(func() {
				*s = *c.search(ctx, it, tier, func() { tried(row, tier) })
				<-slots
			})
		}
	}
	wg.Wait()
}

// searches lists what varying found, for Sum.
func (r *Report) searches(problem func(string, ...any)) {
	for _, row := range r.Rows {
		for _, s := range row.Searches {
			r.Totals.Tries += s.Tries
			for _, b := range s.Found {
				r.Totals.Broken++
				problem("%s in %s: A VARIATION SUCCEEDED (%s): %s", row.Name, s.Tier, strings.Join(b.How, ", "), fmt.Sprint(b.Seen[0].Effect))
			}
		}
	}
}
