package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/campaign"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/scenario"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/stage"
)

// HTML writes one page that needs nothing else: no script, no font, no picture.
func HTML(w io.Writer, r *campaign.Report) error {
	p := view{Report: r, Tiers: Tiers(r), Declined: Declined(r)}
	for _, tier := range p.Tiers {
		p.Sums = append(p.Sums, sum(r, tier))
	}
	for _, row := range r.Rows {
		i := slices.IndexFunc(p.Groups, func(g group) bool { return g.Name == row.Category })
		if i < 0 {
			i = len(p.Groups)
			p.Groups = append(p.Groups, group{Name: row.Category, Title: scenario.CategoryTitle(row.Category)})
		}
		p.Groups[i].Rows = append(p.Groups[i].Rows, row)
	}
	p.NotRun = reasons(r)
	return page().Execute(w, p)
}

type view struct {
	*campaign.Report
	Tiers    []string
	Sums     []tierSum
	Groups   []group
	NotRun   []reason
	Declined []Refusal
}

type group struct {
	Name, Title string
	Rows        []*campaign.Row
}

// tierSum is the first thing to look at: of the attacks that are proven real, how
// many a tier withstood.
type tierSum struct {
	Tier                            string
	Other                           bool
	Proven, Contained, Broken, Open int
	Twins, TwinsWork                int
}

func sum(r *campaign.Report, tier string) tierSum {
	s := tierSum{Tier: tier, Other: stage.IsYardstick(tier)}
	for _, row := range r.Rows {
		if c := row.Cell(tier, stage.Twin); c != nil && c.Attempted() > 0 {
			s.Twins++
			if c.Succeeded == c.Attempted() {
				s.TwinsWork++
			}
		}
		c := row.Cell(tier, stage.Attack)
		if c == nil || c.NotRun == campaign.NoTier {
			continue
		}
		switch proven := row.Proven(); {
		case c.Succeeded > 0:
			s.Broken++
			s.Proven++
		case proven && c.Attempted() > 0 && c.Invalid == 0 && c.Done() == c.Runs:
			s.Contained++
			s.Proven++
		default:
			s.Open++
		}
	}
	return s
}

// reason is why some cells were not run.
type reason struct {
	Tier, Why string
	Names     []string
}

// reasons groups what was not run, attacks only: a twin is left out for the same.
func reasons(r *campaign.Report) (out []reason) {
	for _, row := range r.Rows {
		for _, c := range row.Cells {
			if c.NotRun == "" || c.Kind == stage.Twin {
				continue
			}
			i := slices.IndexFunc(out, func(x reason) bool { return x.Tier == c.Tier && x.Why == c.NotRun })
			if i < 0 {
				i = len(out)
				out = append(out, reason{Tier: c.Tier, Why: c.NotRun})
			}
			out[i].Names = append(out[i].Names, row.Name)
		}
	}
	return out
}

//go:embed page.html
var pageText string

// page is read when it is needed: this is a part of every process of Bulkhead's.
var page = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("page").Funcs(functions).Parse(pageText))
})

var functions = template.FuncMap{
	"word": func(c *campaign.Cell, row *campaign.Row) string { s, _ := Word(c, row); return s },
	"class": func(c *campaign.Cell, row *campaign.Row) string {
		_, code := Word(c, row)
		return map[string]string{"31": "bad", "32": "good", "33": "warn", "2": "none", "0": "plain"}[code]
	},
	"bare":   func(row *campaign.Row) *campaign.Cell { return row.Cell(stage.None, stage.Attack) },
	"attack": func(row *campaign.Row, tier string) *campaign.Cell { return row.Cell(tier, stage.Attack) },
	"twin":   func(row *campaign.Row, tier string) *campaign.Cell { return row.Cell(tier, stage.Twin) },
	"text":   printable,
	"join":   func(s []string) string { return strings.Join(s, ", ") },
	"told":   told,
	"first":  func(o []stage.Outcome) []stage.Outcome { return o[:min(len(o), 3)] },
	"rest":   func(o []stage.Outcome) int { return max(len(o)-3, 0) },
	"noTier": func(c *campaign.Cell) bool { return c.NotRun == campaign.NoTier },
}

// told says in words what a cell shows.
func told(c *campaign.Cell) string {
	where := "in " + c.Tier
	if c.Tier == stage.None {
		where = "with nothing in its way"
	}
	what := "The attack " + where
	if c.Kind == stage.Twin {
		what = "The honest task " + where
	}
	if c.NotRun != "" {
		return what + " was not run: " + c.NotRun
	}
	if c.Done() == 0 {
		return what + " was cut short"
	}
	out := fmt.Sprintf("%s: %d of %d succeeded", what, c.Succeeded, c.Attempted())
	if c.Attempted() == 0 {
		out = what
	}
	if c.Invalid > 0 {
		out += fmt.Sprintf(", %d proved nothing", c.Invalid)
	}
	if c.NotAttempted > 0 {
		out += fmt.Sprintf(", %d not attempted by the model", c.NotAttempted)
	}
	return out
}
