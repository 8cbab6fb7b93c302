package cli

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/trust"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/journal"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/staged"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

func workspaceDiff() *cobra.Command {
	var asJSON, stat bool
	c := &cobra.Command{
		Use:   "diff [SESSION] [PATH…]",
		Short: "Show what a staged session changed",
		Long: `Show how what a staged session left differs from the real folder. Marked with "!" are
files that the host runs or obeys by itself, programs, links that lead out of the
workspace, what can't be applied, and what was changed in the real folder too.

` + whichSession,
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := openKept(cmd, args, hasLayer, "staged changes", true)
			if err != nil {
				return err
			}
			defer k.close()
			list, _, err := k.changesOf()
			if err != nil {
				return err
			}
			if len(k.paths) > 0 {
				list = slices.DeleteFunc(list, func(c staged.Change) bool {
					return !slices.ContainsFunc(k.paths, func(p string) bool { return c.Path == p || strings.HasPrefix(c.Path, p+"/") })
				})
			}
			if asJSON {
				return printJSON(cmd, changeRows(list))
			}
			if len(list) == 0 {
				notice(cmd)("%s: no difference", k.Session)
				return nil
			}
			w := bufio.NewWriter(cmd.OutOrStdout())
			for i := range list {
				if err := k.describe(w, &list[i], stat); err != nil {
					return err
				}
			}
			summary(w, list)
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&stat, "stat", false, "print one line for each change")
	return c
}

// jsonPath says a name in JSON, which can't hold every name.
type jsonPath struct {
	Path  string `json:"path"`
	Bytes string `json:"path_base64,omitempty"`
}

func pathOf(p string) jsonPath {
	if utf8.ValidString(p) {
		return jsonPath{Path: p}
	}
	return jsonPath{Path: strings.ToValidUTF8(p, "\ufffd"), Bytes: base64.StdEncoding.EncodeToString([]byte(p))}
}

type sideRow struct {
	Kind   journal.Kind `json:"kind"`
	Size   int64        `json:"size"`
	Mode   string       `json:"mode,omitempty"`
	Target string       `json:"target,omitempty"`
}

type changeRow struct {
	jsonPath
	What       staged.What `json:"what"`
	Was        sideRow     `json:"was"`
	Is         sideRow     `json:"is"`
	Executable bool        `json:"executable,omitempty"`
	LeadsOut   bool        `json:"leads_out,omitempty"`
	Protected  string      `json:"protected,omitempty"`
	Never      string      `json:"never,omitempty"`
	Conflict   string      `json:"conflict,omitempty"`
	Bits       []string    `json:"bits,omitempty"`
}

func changeRows(list []staged.Change) []changeRow {
	rows := []changeRow{}
	side := func(s journal.State, target string) sideRow {
		r := sideRow{Kind: s.Kind, Size: s.Size, Target: target}
		if s.Kind == journal.File || s.Kind == journal.Dir {
			r.Mode = fmt.Sprintf("%04o", s.Mode)
		}
		return r
	}
	for i := range list {
		c := &list[i]
		rows = append(rows, changeRow{pathOf(c.Path), c.What, side(c.Was, c.WasTarget), side(c.Is, c.Target),
			c.Executable(), c.Leads, c.Protected, c.Never, c.Conflict, c.Bits()})
	}
	return rows
}

// describe prints one change.
func (k *kept) describe(w io.Writer, c *staged.Change, stat bool) error {
	was, is, binary, err := k.texts(c)
	if err != nil {
		return err
	}
	more := ""
	switch {
	case c.Is.Kind == journal.Link:
		more = " -> " + tree.Show(c.Target)
	case c.What == staged.Deleted && c.Was.Kind == journal.Link:
		more = " -> " + tree.Show(c.WasTarget)
	case c.Is.Kind == journal.Dir || c.What == staged.Deleted && c.Was.Kind == journal.Dir:
		more = "/"
	case binary && c.What == staged.Added:
		more = fmt.Sprintf("  (%d bytes)", c.Is.Size)
	case binary && c.What == staged.Modified:
		more = fmt.Sprintf("  (%d → %d bytes)", c.Was.Size, c.Is.Size)
	}
	if c.What == staged.Replaced {
		more += fmt.Sprintf("  (was a %s)", c.Was.Kind)
	}
	if c.What == staged.Mode || c.What == staged.Modified && c.Was.Mode&0o777 != c.Is.Mode&0o777 {
		more += fmt.Sprintf("  (mode %04o → %04o)", c.Was.Mode&0o777, c.Is.Mode&0o777)
	}
	var difference []string
	if !binary && c.Is.Kind != journal.Dir && (was != nil || is != nil) {
		difference = unified(was, is)
	}
	if stat && len(difference) > 0 {
		plus, minus := 0, 0
		for _, l := range difference {
			switch l[0] {
			case '+':
				plus++
			case '-':
				minus++
			}
		}
		more += fmt.Sprintf("  +%d -%d", plus, minus)
	}
	fmt.Fprintf(w, "%-8s  %s%s\n", c.What, tree.Show(c.Path), more)
	for _, m := range marks(c) {
		fmt.Fprintf(w, "  ! %s\n", m)
	}
	if stat {
		return nil
	}
	for i, l := range difference {
		if i == maxDiff {
			fmt.Fprintf(w, "    … and %d more lines: bulkhead workspace diff --stat says how many\n", len(difference)-i)
			break
		}
		if len(l) > 2000 {
			l = l[:2000] + "…"
		}
		fmt.Fprintf(w, "    %s\n", trust.Show(l))
	}
	return nil
}

// maxDiff bounds the lines of one file's difference, maxText the file.
const (
	maxDiff = 2000
	maxText = 1 << 20
)

func marks(c *staged.Change) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if c.Protected != "" {
		add("%s; comes over only if it is named", printable(c.Protected))
	}
	if c.Never != "" {
		add("never comes over: %s", c.Never)
	}
	if c.Conflict != "" {
		add("conflict: %s", c.Conflict)
	}
	if c.Leads {
		add("leads out of the workspace")
	}
	if c.Executable() && (c.What == staged.Added || c.What == staged.Replaced || c.Was.Mode&0o111 == 0) {
		add("can be executed")
	}
	if bits := c.Bits(); len(bits) > 0 {
		add("without its %s", strings.Join(bits, ", "))
	}
	return out
}

// texts returns both sides of a file; binary is true if they can't be shown.
func (k *kept) texts(c *staged.Change) (was, is []byte, binary bool, err error) {
	if c.What == staged.Mode {
		return nil, nil, false, nil
	}
	read := func(f *os.File, err error) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(io.LimitReader(f, maxText+1))
	}
	if c.Was.Kind == journal.File {
		f, _, ferr := tree.OpenFile(k.root, c.Path)
		if was, err = read(f, ferr); err != nil {
			return nil, nil, false, err
		}
	}
	if c.Is.Kind == journal.File {
		if is, err = read(k.layer.Open(c.Path)); err != nil {
			return nil, nil, false, err
		}
	}
	for _, b := range [][]byte{was, is} {
		binary = binary || len(b) > maxText || bytes.IndexByte(b, 0) >= 0
	}
	return was, is, binary, nil
}

// unified is the lines of a difference without its head.
func unified(was, is []byte) []string {
	text := string(diff.Diff("a", was, "b", is))
	list := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, l := range list {
		if strings.HasPrefix(l, "@@") {
			return list[i:]
		}
	}
	return nil
}

func summary(w io.Writer, list []staged.Change) {
	count := map[staged.What]int{}
	protected, conflicts := 0, 0
	for i := range list {
		count[list[i].What]++
		if list[i].Protected != "" {
			protected++
		}
		if list[i].Conflict != "" {
			conflicts++
		}
	}
	var parts []string
	for _, what := range []staged.What{staged.Added, staged.Modified, staged.Mode, staged.Replaced, staged.Deleted} {
		if n := count[what]; n > 0 {
			name := string(what)
			if what == staged.Mode {
				name = "with another mode"
			}
			parts = append(parts, fmt.Sprintf("%d %s", n, name))
		}
	}
	if protected > 0 {
		parts = append(parts, fmt.Sprintf("%d to be named", protected))
	}
	if conflicts > 0 {
		parts = append(parts, plural(conflicts, "conflict"))
	}
	fmt.Fprintf(w, "%s: %s\n", plural(len(list), "change"), strings.Join(parts, ", "))
}
