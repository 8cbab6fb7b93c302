package main

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/hostport"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

const decisionGrants = 1000

// decide measures decisions in this process: a raw grant among 1,000 of other
// hosts, and a typed one among 1,000 of the same host and operation.
func (b *bench) decide() error {
	for _, c := range []struct {
		name       string
		rule       func(i int) capability.Rule
		host, path string
		query      map[string][]string
	}{
		{name: "raw grant, 1,000 hosts", host: "h500.example.net", path: "/3/x", rule: func(i int) capability.Rule {
			return capability.Rule{HTTP: fmt.Sprintf("https://h%d.example.net/**", i), Methods: []string{"GET"}}
		}},
		{name: "typed grant, 1,000 repositories", host: "github.com", path: "/o500/r/info/refs", query: map[string][]string{"service": {"git-upload-pack"}}, rule: func(i int) capability.Rule {
			return capability.Rule{Service: "github", Operations: []string{"fetch"}, Resources: []string{fmt.Sprintf("o%d/r", i)}}
		}},
	} {
		spec := capability.Spec{Default: vocabulary.Position{File: "bench"}}
		for i := range decisionGrants {
			r := c.rule(i)
			r.Pos = vocabulary.Position{File: "bench", Line: i + 1}
			spec.Rules = append(spec.Rules, r)
		}
		set, err := capability.Compile(spec, catalog.Default())
		if err != nil {
			return err
		}
		hp, err := hostport.Parse(c.host + ":443")
		if err != nil {
			return err
		}
		req := catalog.Request{Scheme: "https", Host: hp.Host, Port: hp.Port, Method: "GET", Path: c.path, Query: c.query,
			Header: http.Header{"User-Agent": {"git/2.47.3"}, "Accept": {"*/*"}}}
		const batch = 2000
		var took []time.Duration
		for range b.gatewayRounds + 1 {
			begin := time.Now()
			for range batch {
				if d := set.Decide(req, capability.Identity{}); d.Verdict != vocabulary.Allow {
					return errors.New("the decision is to be allow: " + d.Reason.Message)
				}
			}
			took = append(took, time.Since(begin)/batch)
		}
		d := median(took[1:])
		b.add(goal(row{Question: "decide", Name: c.name, Median: ms(d), Ratio: fmt.Sprintf("%.1f µs", float64(d)/1e3)}, "≤ 20 µs", d <= 20*time.Microsecond))
	}
	return nil
}
