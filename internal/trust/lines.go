package trust

import (
	"bytes"
	"fmt"
)

// Lines are the lines of the change: removed ones with -, new ones with +, and
// beside them a few that stayed. "…" stands for what is left out.
func (c Change) Lines() []string {
	var out []string
	if c.Old != nil && c.New != nil {
		if c.Old.Link != c.New.Link {
			out = append(out, "- link to "+c.Old.Link, "+ link to "+c.New.Link)
		}
		if c.Old.Exec != c.New.Exec {
			out = append(out, fmt.Sprintf("executable: %v, was %v", c.New.Exec, c.Old.Exec))
		}
		if c.Old.Hash == c.New.Hash {
			return out
		}
	}
	return append(out, difference(c.Old.lines(), c.New.lines())...)
}

func (i *Item) lines() []string {
	if i == nil || i.Kind != KindFile || i.Size == 0 {
		return nil
	}
	if len(i.Text) == 0 {
		return []string{fmt.Sprintf("(%d bytes, not kept: %s)", i.Size, i.Hash)}
	}
	var out []string
	for l := range bytes.SplitSeq(bytes.TrimSuffix(i.Text, []byte("\n")), []byte("\n")) {
		out = append(out, string(l))
	}
	return out
}

const (
	context  = 2       // lines around a change
	maxCells = 4 << 20 // of the table that finds what two texts have in common
)

// difference compares line by line. Of texts too long for the table only what
// they have in common at their beginnings and ends counts as common.
func difference(a, b []string) []string {
	from := 0
	for from < len(a) && from < len(b) && a[from] == b[from] {
		from++
	}
	end := 0
	for end < len(a)-from && end < len(b)-from && a[len(a)-1-end] == b[len(b)-1-end] {
		end++
	}
	var all []string // each line with its sign
	keep := func(lines []string, sign string) {
		for _, l := range lines {
			all = append(all, sign+l)
		}
	}
	keep(a[:from], "  ")
	all = append(all, middle(a[from:len(a)-end], b[from:len(b)-end])...)
	keep(a[len(a)-end:], "  ")
	return around(all)
}

// middle is a longest common subsequence, written out.
func middle(a, b []string) (out []string) {
	if len(a)*len(b) > maxCells {
		for _, l := range a {
			out = append(out, "- "+l)
		}
		for _, l := range b {
			out = append(out, "+ "+l)
		}
		return out
	}
	width := len(b) + 1
	length := make([]int32, (len(a)+1)*width) // of what a[i:] and b[j:] have in common
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				length[i*width+j] = length[(i+1)*width+j+1] + 1
			} else {
				length[i*width+j] = max(length[(i+1)*width+j], length[i*width+j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			out = append(out, "  "+a[i])
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && length[(i+1)*width+j] >= length[i*width+j+1]:
			out = append(out, "- "+a[i])
			i++
		default:
			out = append(out, "+ "+b[j])
			j++
		}
	}
	return out
}

// around leaves out what is far from any change.
func around(all []string) []string {
	near := make([]bool, len(all))
	for i, l := range all {
		if l[0] == ' ' {
			continue
		}
		for k := max(i-context, 0); k <= min(i+context, len(all)-1); k++ {
			near[k] = true
		}
	}
	var out []string
	for i, l := range all {
		switch {
		case near[i]:
			out = append(out, l)
		case i == 0 || near[i-1]:
			out = append(out, "…")
		}
	}
	return out
}
