package catalog

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"

	"github.com/bulkhead-dev/bulkhead/internal/hostport"
)

// HostPattern is a host name of a service. Each label is literal or a capture
// of exactly one label, as in "{bucket}.s3.{region}.amazonaws.com" and
// "{region:regions}-run.example.com". The zero HostPattern matches nothing.
type HostPattern struct {
	text   string
	exact  hostport.Host
	labels []segment // nil for an exact name
}

// HostLabel is one label of a pattern, for who writes it as a condition.
type HostLabel struct {
	// Captured: anything may stand between Prefix and Suffix; else Prefix is all.
	Captured       bool
	Prefix, Suffix string
	OneOf          []string // if not nil, all that may stand there
}

// Exact returns the single host of a pattern without captures.
func (p HostPattern) Exact() (hostport.Host, bool) { return p.exact, !p.exact.IsZero() }

func (p HostPattern) String() string { return p.text }

// Labels lists the labels of a pattern with captures.
func (p HostPattern) Labels() []HostLabel {
	var out []HostLabel
	for _, g := range p.labels {
		out = append(out, HostLabel{g.name != "", g.prefix, g.suffix, g.oneOf})
	}
	return out
}

// Tail is the literal end of a pattern with captures, from a dot on.
func (p HostPattern) Tail() string {
	i := len(p.labels)
	for i > 0 && p.labels[i-1].name == "" {
		i--
	}
	var b strings.Builder
	for _, g := range p.labels[i:] {
		b.WriteString("." + g.prefix)
	}
	return b.String()
}

// Match reports whether h is covered.
func (p HostPattern) Match(h hostport.Host) bool {
	_, ok := p.match(h, nil)
	return ok
}

// match appends the captured labels.
func (p HostPattern) match(h hostport.Host, captures [][2]string) ([][2]string, bool) {
	if p.labels == nil {
		return captures, !h.IsZero() && p.exact == h
	}
	rest := h.String()
	for i, g := range p.labels {
		label, after, more := strings.Cut(rest, ".")
		if more != (i < len(p.labels)-1) {
			return nil, false
		}
		c, ok := g.match(label)
		if !ok {
			return nil, false
		}
		if g.name != "" {
			captures = append(captures, [2]string{g.name, c})
		}
		rest = after
	}
	return captures, true
}

// Overlaps reports whether some name could match both. It errs on the side of
// yes.
func (p HostPattern) Overlaps(o HostPattern) bool {
	switch {
	case p.labels == nil && o.labels == nil:
		return p.exact == o.exact
	case p.labels == nil:
		return o.Match(p.exact)
	case o.labels == nil:
		return p.Match(o.exact)
	case len(p.labels) != len(o.labels):
		return false
	}
	for i := range p.labels {
		if !p.labels[i].overlaps(o.labels[i]) {
			return false
		}
	}
	return true
}

// OverlapsPattern is Overlaps with a raw grant's pattern.
func (p HostPattern) OverlapsPattern(o hostport.Pattern) bool {
	if h, ok := o.Exact(); ok {
		return p.Match(h)
	}
	if p.labels == nil {
		return o.Match(p.exact)
	}
	tail := o.String()[1:]
	return strings.HasSuffix(p.Tail(), tail) || strings.HasSuffix(tail, p.Tail())
}

// parseHost reads a name with or without captures. Labels that anybody can
// register under must come from a set (see checkSuffix for the rest).
func parseHost(s string, sets map[string][]string) (HostPattern, error) {
	p := HostPattern{text: s}
	if !strings.ContainsAny(s, "{}*") {
		h, err := hostport.ParseHost(s)
		p.text, p.exact = h.String(), h
		return p, err
	}
	filled := make([]string, 0, 8)
	for label := range strings.SplitSeq(s, ".") {
		g, err := parseSegment(label, sets)
		switch {
		case err != nil:
			return p, err
		case g.rest || g.any || g.path || g.many:
			return p, fmt.Errorf("%q is not a name of literal labels and {captures} of one label", s)
		case slices.ContainsFunc(p.labels, func(o segment) bool { return o.name != "" && o.name == g.name }):
			return p, fmt.Errorf("%q captures %q twice", s, g.name)
		}
		p.labels = append(p.labels, g)
		if g.name != "" {
			g.prefix += "x" + g.suffix
		}
		filled = append(filled, g.prefix)
	}
	if h, err := hostport.ParseHost(strings.Join(filled, ".")); err != nil || h.String() != strings.Join(filled, ".") {
		return p, fmt.Errorf("%q is not a host name in lower case", s)
	}
	tail := strings.TrimPrefix(p.Tail(), ".")
	suffix, icann := publicsuffix.PublicSuffix(tail)
	if tail == "" || suffix == tail && (icann || !strings.Contains(suffix, ".")) {
		return p, fmt.Errorf("%q covers names that anybody can register: at least one literal label must stand in front of the public suffix", s)
	}
	return p, nil
}

// shared lists the captures without a set under a suffix where each label
// belongs to somebody else (s3.amazonaws.com, github.io): who is asked there
// depends on them, so they must be part of the resource.
func (p HostPattern) shared() []string {
	tail := strings.TrimPrefix(p.Tail(), ".")
	if suffix, icann := publicsuffix.PublicSuffix(tail); p.labels == nil || icann || suffix != tail {
		return nil
	}
	var names []string
	for _, g := range p.labels {
		if g.name != "" && g.oneOf == nil {
			names = append(names, g.name)
		}
	}
	return names
}
