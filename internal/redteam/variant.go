package redteam

import (
	"fmt"
	"slices"
	"strings"
)

// Variant is one arrangement of walls around the same attack.
type Variant struct {
	Name   string
	Title  string
	Tier   string
	Expect Verdict
	// mountFile opens the filesystem's wall: the credentials file is mounted by name.
	mountFile bool
	// grantCollector opens the egress wall: posting to the thief is granted.
	grantCollector bool
	// controlOnly: it proves that the attack works, a few runs are enough.
	controlOnly bool
}

func (v Variant) contained() bool { return v.Tier != "none" }

// Variants lists all of them, in the order of the report.
func Variants() []Variant {
	return []Variant{
		{Name: "uncontained", Title: "on the host, uncontained", Tier: "none", Expect: Open},
		{Name: "bulkhead", Title: "in Bulkhead", Tier: "process", Expect: Contained},
		{Name: "fs-open", Title: "egress wall alone (file readable)", Tier: "process", Expect: Contained, mountFile: true},
		{Name: "egress-open", Title: "file wall alone (thief reachable)", Tier: "process", Expect: Contained, grantCollector: true},
		{Name: "both-open", Title: "both walls opened (control)", Tier: "process", Expect: Open, mountFile: true, grantCollector: true, controlOnly: true},
	}
}

func (c Config) variants() ([]Variant, error) {
	all := Variants()
	if len(c.Variants) > 0 {
		var out []Variant
		for _, name := range c.Variants {
			i := slices.IndexFunc(all, func(v Variant) bool { return v.Name == name })
			if i < 0 {
				return nil, fmt.Errorf("unknown variant %q (one of: %s)", name, strings.Join(names(all), ", "))
			}
			out = append(out, all[i])
		}
		return out, nil
	}
	switch c.Tier {
	case "":
		return all, nil
	case "none", "process":
		return slices.DeleteFunc(all, func(v Variant) bool { return v.Tier != c.Tier }), nil
	}
	return nil, fmt.Errorf("unknown tier %q (one of: none, process)", c.Tier)
}

func names(vs []Variant) []string {
	var out []string
	for _, v := range vs {
		out = append(out, v.Name)
	}
	return out
}
