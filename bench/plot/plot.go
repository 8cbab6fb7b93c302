// Package plot draws measurements as bars, as one SVG file that needs nothing
// else and can be read on light and on dark pages.
//
// In: panels, each with rows of the same contenders and one or two values in each.
// Out: bytes. Pure; the same panels give the same bytes. Every bar carries its
// value in words, so that nothing has to be read off an axis; a bar that is better
// when shorter says so in its panel's title.
package plot

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"strings"
)

// Panel is one group of bars with a scale of its own.
type Panel struct {
	Title  string
	Note   string   // beneath the title: the unit, and which way is better
	Series []string // names of the values, in order; at most two
	Format string   // of a value, for fmt
	Rows   []Row
	Mark   float64 // a goal, drawn as a line; 0: none
}

// Row is one contender.
type Row struct {
	Name   string
	Ours   bool
	Values []float64 // NaN: not measured
}

// Sizes in pixels.
const (
	width    = 860
	columns  = 2
	gap      = 28
	names    = 118 // room for names
	numbers  = 62  // room for values behind the longest bar
	bar      = 11
	rowGap   = 8
	head     = 46
	topSpace = 58
)

const style = `
.page { fill: #ffffff } .ink { fill: #1f2328 } .soft { fill: #59636e } .line { stroke: #d1d9e0; stroke-width: 1 }
.ours { fill: #0969da } .ours2 { fill: #80b4ef } .peer { fill: #8c959f } .peer2 { fill: #c4cad1 } .goal { stroke: #bc4c00; stroke-width: 1.5; stroke-dasharray: 4 3 }
.goaltext { fill: #bc4c00 }
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif } .title { font-weight: 600; font-size: 13px } .head { font-weight: 600; font-size: 16px } .small { font-size: 11px } .value { paint-order: stroke; stroke: #ffffff; stroke-width: 3px; stroke-linejoin: round }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117 } .ink { fill: #f0f6fc } .soft { fill: #9198a1 } .line { stroke: #3d444d }
.ours { fill: #4493f8 } .ours2 { fill: #2a5a98 } .peer { fill: #7d8590 } .peer2 { fill: #4a525c } .goal { stroke: #f0883e } .goaltext { fill: #f0883e } .value { stroke: #0d1117 }
}`

// SVG draws the panels in two columns, in the order of reading.
func SVG(title, caption string, panels []Panel) []byte {
	var body bytes.Buffer
	inner := (width - (columns+1)*gap) / columns
	y := topSpace
	for i := 0; i < len(panels); i += columns {
		tallest := 0
		for j := i; j < min(i+columns, len(panels)); j++ {
			h := draw(&body, panels[j], gap+(j-i)*(inner+gap), y, inner)
			tallest = max(tallest, h)
		}
		y += tallest + gap
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">\n<style>%s\n</style>\n", width, y, html.EscapeString(title), style)
	fmt.Fprintf(&out, "<rect class=\"page\" width=\"%d\" height=\"%d\"/>\n", width, y)
	text(&out, gap, 28, "head ink", "start", title)
	text(&out, gap, 46, "small soft", "start", caption)
	out.Write(body.Bytes())
	out.WriteString("</svg>\n")
	return out.Bytes()
}

func text(w *bytes.Buffer, x, y int, class, anchor, s string) {
	fmt.Fprintf(w, "<text x=\"%d\" y=\"%d\" class=\"%s\" text-anchor=\"%s\">%s</text>\n", x, y, class, anchor, html.EscapeString(s))
}

// draw draws one panel and returns its height.
func draw(w *bytes.Buffer, p Panel, x, y, width int) int {
	text(w, x, y+12, "title ink", "start", p.Title)
	text(w, x, y+28, "small soft", "start", p.Note)
	most := p.Mark
	for _, r := range p.Rows {
		for _, v := range r.Values {
			if !math.IsNaN(v) {
				most = max(most, v)
			}
		}
	}
	if most <= 0 {
		most = 1
	}
	room := float64(width - names - numbers)
	var values bytes.Buffer // on top of the goal's line
	at := y + head
	for _, r := range p.Rows {
		n := max(1, len(r.Values))
		text(w, x+names-8, at+n*bar/2+4, "ink", "end", r.Name)
		for i, v := range r.Values {
			if math.IsNaN(v) {
				text(&values, x+names+4, at+i*bar+bar-2, "small soft value", "start", "not measured")
				continue
			}
			class := "peer"
			if r.Ours {
				class = "ours"
			}
			if i > 0 {
				class += "2"
			}
			long := max(1, int(room*max(v, 0)/most))
			fmt.Fprintf(w, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"1.5\"/>\n", class, x+names, at+i*bar, long, bar-1)
			label := fmt.Sprintf(p.Format, v)
			if len(p.Series) > 1 {
				label += " " + p.Series[i]
			}
			text(&values, x+names+long+5, at+i*bar+bar-2, "small soft value", "start", label)
		}
		at += n*bar + rowGap
	}
	fmt.Fprintf(w, "<line class=\"line\" x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\"/>\n", x+names, y+head-4, x+names, at-rowGap+3)
	if p.Mark > 0 {
		m := x + names + int(room*p.Mark/most)
		fmt.Fprintf(w, "<line class=\"goal\" x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\"/>\n", m, y+head-4, m, at-rowGap+3)
		text(w, m, at+7, "small goaltext", "middle", "goal "+strings.TrimSpace(fmt.Sprintf(p.Format, p.Mark)))
		at += 12
	}
	w.Write(values.Bytes())
	return at - y
}
