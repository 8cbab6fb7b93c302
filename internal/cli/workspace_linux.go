package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/session"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/journal"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/staged"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

func newWorkspace() *cobra.Command {
	return noun("workspace", "See, bring over and take back what sessions did in a workspace",
		workspaceList(), workspaceDiff(), workspaceApply(), workspaceUndo(), workspaceVersions(), workspaceDrop())
}

const whichSession = `SESSION is the latest one of the current folder if none is named; a PATH is of the workspace.`

// kept is an opened record of a session, with the workspace's root.
type kept struct {
	staged.Kept
	layer *staged.Layer // nil if only versions are kept
	j     *journal.Journal
	root  *os.File
	paths []string
	// record is where what is done here is written down: the session's own.
	record session.Record
}

func (k *kept) close() {
	switch {
	case k.layer != nil:
		k.layer.Close()
	case k.j != nil:
		k.j.Close()
	}
	if k.root != nil {
		k.root.Close()
	}
	k.record.Close()
}

func keptSessions() ([]staged.Kept, error) {
	dir, err := session.WorkspaceDir()
	if err != nil {
		return nil, err
	}
	return staged.List(dir)
}

// findKept takes a session's id, or the latest session of the current folder that
// fits.
func findKept(id string, fits func(*staged.Kept) bool, what string) (*staged.Kept, error) {
	all, err := keptSessions()
	if err != nil {
		return nil, err
	}
	cwd := ""
	if id == "" {
		if cwd, err = os.Getwd(); err != nil {
			return nil, err
		}
		if real, err := filepath.EvalSymlinks(cwd); err == nil {
			cwd = real
		}
	}
	for i := range all {
		k := &all[i]
		switch {
		case id != "" && string(k.Session) == id:
			if k.Problem != nil {
				return nil, vocabulary.Exitf(vocabulary.ExitRefused, "%s can't be used: %v", id, k.Problem)
			}
			if !fits(k) {
				return nil, vocabulary.Exitf(vocabulary.ExitRefused, "%s has no %s (mode %s)", id, what, k.Mode)
			}
			return k, nil
		case id == "" && k.Problem == nil && fits(k) && (cwd == k.Workspace || strings.HasPrefix(cwd, strings.TrimSuffix(k.Workspace, "/")+"/")):
			return k, nil
		}
	}
	if id != "" {
		return nil, vocabulary.Exitf(vocabulary.ExitRefused, "nothing is kept of %s\nsee: bulkhead workspace list", id)
	}
	return nil, vocabulary.Exitf(vocabulary.ExitRefused, "no session in this folder has %s\nsee: bulkhead workspace list", what)
}

func hasLayer(k *staged.Kept) bool { return k.Layer }
func anyKept(*staged.Kept) bool    { return true }

// openKept parses [SESSION] [PATH…] and opens what they name; looking leaves a
// running session alone.
func openKept(cmd *cobra.Command, args []string, fits func(*staged.Kept) bool, what string, looking bool) (k *kept, err error) {
	id := ""
	if len(args) > 0 {
		if _, err := vocabulary.ParseSessionID(args[0]); err == nil {
			id, args = args[0], args[1:]
		}
	}
	found, err := findKept(id, fits, what)
	if err != nil {
		return nil, err
	}
	k = &kept{Kept: *found}
	defer func() {
		if err != nil {
			k.close()
			k = nil
		}
	}()
	for _, a := range args {
		p, err := k.inside(a)
		if err != nil {
			return k, err
		}
		k.paths = append(k.paths, p)
	}
	if k.root, err = tree.OpenRoot(k.Workspace); err != nil {
		return k, vocabulary.Exitf(vocabulary.ExitRefused, "the workspace of %s can't be opened: %v", k.Session, err)
	}
	err = k.open(false)
	running := errors.Is(err, journal.ErrRunning)
	if running && looking {
		err = k.open(true)
	} else if running {
		return k, vocabulary.Exitf(vocabulary.ExitRefused, "%s: %v\nwait for its end, or stop it: bulkhead session stop %s", k.Session, err, k.Session)
	}
	if err != nil {
		return k, err
	}
	if running {
		return k, nil
	}
	k.record = session.Record{Meta: k.Meta, Actor: "user", Attrs: map[string]string{}}
	k.j.Witness = k.record.Write
	return k, k.recover(cmd)
}

func (k *kept) open(looking bool) (err error) {
	switch {
	case k.Layer && looking:
		k.layer, err = staged.Look(k.Dir)
	case k.Layer:
		k.layer, err = staged.Open(k.Dir)
	case looking:
		k.j, err = journal.Read(k.Dir)
	default:
		k.j, err = journal.Open(k.Dir)
	}
	if k.layer != nil {
		k.j = k.layer.Journal
	}
	return err
}

// recover takes back what a crash left half done.
func (k *kept) recover(cmd *cobra.Command) error {
	what, ended := k.j.Last()
	report, err := k.j.Recover(k.root)
	if err != nil {
		return vocabulary.Exitf(vocabulary.ExitRefused, "%s broke off, and could not be taken back: %w", what, err)
	}
	if !ended {
		notice(cmd)("%s broke off earlier and was taken back (%s)", what, plural(len(report.Changed), "path"))
		for _, c := range report.Conflicts {
			notice(cmd)("%s stays as it is: %s; see: bulkhead workspace versions %s", tree.Show(c.Path), c.Why, k.Session)
		}
	}
	return nil
}

// inside makes a path one of the workspace.
func (k *kept) inside(arg string) (string, error) {
	abs := arg
	if !filepath.IsAbs(abs) {
		cwd, err := os.Getwd()
		if real, rerr := filepath.EvalSymlinks(cwd); err == nil && rerr == nil {
			cwd = real
		}
		if cwd != k.Workspace && !strings.HasPrefix(cwd, strings.TrimSuffix(k.Workspace, "/")+"/") {
			cwd = k.Workspace
		}
		abs = filepath.Join(cwd, arg)
	}
	rel, err := filepath.Rel(k.Workspace, filepath.Clean(abs))
	if err == nil && rel == "." {
		return "", vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%s is the whole workspace: leave it out", tree.Show(arg))
	}
	if err == nil {
		err = tree.Check(rel)
	}
	if err != nil {
		return "", vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%s is not in the workspace %s", tree.Show(arg), tree.Show(k.Workspace))
	}
	return rel, nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

var protectedPaths = func() (*staged.Protected, error) {
	list, _, err := policy.ParseProtected(catalogdata.Protected)
	if err != nil {
		return nil, fmt.Errorf("built-in list of protected files: %w", err)
	}
	var out []staged.Pattern
	for _, p := range list {
		out = append(out, staged.Pattern{Path: p.Path, Reason: p.Reason})
	}
	return staged.ForPatterns(out), nil
}

func workspaceList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the sessions of which changes or versions are kept",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := keptSessions()
			if err != nil {
				return err
			}
			for i := range all {
				all[i].Look()
			}
			if asJSON {
				type row struct {
					Session   vocabulary.SessionID `json:"session"`
					Workspace string               `json:"workspace"`
					Mode      vocabulary.MountMode `json:"mode"`
					Started   time.Time            `json:"started"`
					State     string               `json:"state"`
					Stored    int64                `json:"stored"`
					Problem   string               `json:"problem,omitempty"`
				}
				rows := []row{}
				for _, k := range all {
					r := row{k.Session, k.Workspace, k.Mode, k.Started, k.State, k.Stored, ""}
					if k.Problem != nil {
						r.Problem = k.Problem.Error()
					}
					rows = append(rows, r)
				}
				return printJSON(cmd, rows)
			}
			if len(all) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "nothing is kept of any session")
				return nil
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "SESSION\tSTARTED\tMODE\tSTATE\tWORKSPACE")
			for _, k := range all {
				if k.Problem != nil {
					fmt.Fprintf(w, "%s\t-\t-\tunusable\t%s\n", k.Session, printable(k.Problem.Error()))
					continue
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", k.Session, k.Started.Local().Format("2006-01-02 15:04"), k.Mode, k.State, tree.Show(k.Workspace))
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// changesOf returns a layer's changes, those at the paths if some are named.
func (k *kept) changesOf() (list []staged.Change, p *staged.Protected, err error) {
	if p, err = protectedPaths(); err != nil {
		return nil, nil, err
	}
	list, err = k.layer.Changes(k.root, p)
	return list, p, err
}

func workspaceApply() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "apply [SESSION] [PATH…]",
		Short: "Bring a staged session's changes over to the real folder, all or chosen ones",
		Long: `Bring a staged session's changes over to the real folder, all of them or those at the
paths. It is done as a whole or not at all, and bulkhead workspace undo takes it back.

Files that the host runs or obeys by itself (bulkhead workspace diff marks them) come
over only if they are named. What somebody changed in the real folder since the session
began is a conflict, and then nothing is done; --force overwrites it and keeps a version.
Devices, sockets, FIFOs and setuid bits never come over.

` + whichSession,
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := openKept(cmd, args, hasLayer, "staged changes", false)
			if err != nil {
				return err
			}
			defer k.close()
			list, p, err := k.changesOf()
			if err != nil {
				return err
			}
			if len(list) == 0 {
				notice(cmd)("%s: nothing to apply; the real folder is what the session left", k.Session)
				return nil
			}
			chosen, held, err := staged.Select(list, p, staged.Selection{Paths: k.paths, Force: force})
			if err != nil {
				return err
			}
			if c := staged.Conflicts(chosen); len(c) > 0 && !force {
				return vocabulary.Exitf(vocabulary.ExitRefused, "%s in the real folder too; nothing was applied\n%s\napply others by naming them, or overwrite with --force: a version is kept",
					plural(len(c), "change")+" can't be made: somebody changed the same", lines(c, func(c *staged.Change) string { return tree.Show(c.Path) + " " + c.Conflict }))
			}
			if len(chosen) == 0 {
				return vocabulary.Exitf(vocabulary.ExitRefused, "nothing was applied: what is left has to be named, or can't come over\n%s", lines(held, whyHeld))
			}
			for _, c := range chosen {
				if c.Protected != "" {
					k.record.Attrs["protected"] = strings.TrimSpace(k.record.Attrs["protected"] + " " + tree.Show(c.Path))
				}
			}
			k.forced(force)
			if err := k.layer.Apply(k.root, chosen); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "applied %s to %s\n", plural(len(chosen), "change"), tree.Show(k.Workspace))
			if len(held) > 0 {
				notice(cmd)("not applied:\n%s", lines(held, whyHeld))
			}
			notice(cmd)("to take it back: bulkhead workspace undo %s", k.Session)
			return nil
		},
	}
	c.Flags().BoolVar(&force, "force", false, "overwrite what was changed in the real folder since, and keep a version of it")
	return c
}

func (k *kept) forced(force bool) {
	if force {
		k.record.Attrs["forced"] = "true"
	}
}

func whyHeld(c *staged.Change) string {
	if c.Never != "" {
		return tree.Show(c.Path) + " " + c.Never
	}
	if c.Protected != "" {
		return tree.Show(c.Path) + " (" + c.Protected + "): name it to apply it"
	}
	return tree.Show(c.Path) + " holds something that stays"
}

// maxLines bounds lists in messages.
const maxLines = 20

func lines[T any](list []T, say func(*T) string) string {
	var b strings.Builder
	for i := range list {
		if i == maxLines {
			fmt.Fprintf(&b, "  … and %d more\n", len(list)-i)
			break
		}
		b.WriteString("  " + say(&list[i]) + "\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func workspaceUndo() *cobra.Command {
	var force bool
	var version int
	c := &cobra.Command{
		Use:   "undo [SESSION] [PATH…]",
		Short: "Take back what a session changed, or what was applied",
		Long: `Bring the real folder back to what it was before a session changed it, or before its
staged changes were applied: everything, or what is at the paths. With --version one
kept version of one file is brought back.

What somebody changed after the session stays as it is and is named; --force overwrites
it and keeps a version.

` + whichSession,
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := openKept(cmd, args, anyKept, "versions", false)
			if err != nil {
				return err
			}
			defer k.close()
			k.forced(force)
			var report journal.Report
			if cmd.Flags().Changed("version") {
				report, err = k.restore(version)
			} else {
				report, err = k.j.Undo(k.root, journal.UndoOptions{Paths: k.paths, Force: force})
			}
			if err != nil {
				return err
			}
			if len(report.Changed) == 0 && len(report.Conflicts) == 0 {
				what := "nothing to take back"
				if len(k.paths) > 0 {
					what += " there\nwhat it changed: bulkhead workspace versions " + string(k.Session)
				}
				notice(cmd)("%s: %s", k.Session, what)
				return nil
			}
			if len(report.Changed) > 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "brought back %s in %s\n", plural(len(report.Changed), "path"), tree.Show(k.Workspace))
			}
			if len(report.Conflicts) > 0 {
				return vocabulary.Exitf(vocabulary.ExitRefused, "%s:\n%s", plural(len(report.Conflicts), "path")+" can't be taken back",
					lines(report.Conflicts, func(c *journal.Conflict) string { return tree.Show(c.Path) + " " + c.Why }))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&force, "force", false, "overwrite what was changed after the session, and keep a version of it")
	c.Flags().IntVar(&version, "version", 0, "bring back version `N` of the one PATH (see: bulkhead workspace versions)")
	return c
}

func (k *kept) restore(number int) (journal.Report, error) {
	if len(k.paths) != 1 {
		return journal.Report{}, vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "--version needs one PATH")
	}
	for _, v := range k.j.Versions() {
		if v.Path == k.paths[0] && v.Number == number {
			return k.j.Restore(k.root, v)
		}
	}
	return journal.Report{}, vocabulary.Exitf(vocabulary.ExitRefused, "there is no version %d of %s\nsee: bulkhead workspace versions %s %s", number, tree.Show(k.paths[0]), k.Session, tree.Show(k.paths[0]))
}

func workspaceVersions() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "versions [SESSION] [PATH…]",
		Short: "List the kept versions of files, and what stood there before",
		Long:  whichSession,
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := openKept(cmd, args, anyKept, "versions", true)
			if err != nil {
				return err
			}
			defer k.close()
			list := slices.DeleteFunc(k.j.Versions(), func(v journal.Version) bool {
				return len(k.paths) > 0 && !slices.ContainsFunc(k.paths, func(p string) bool { return v.Path == p || strings.HasPrefix(v.Path, p+"/") })
			})
			slices.SortStableFunc(list, func(a, b journal.Version) int { return strings.Compare(a.Path, b.Path) })
			if asJSON {
				return printJSON(cmd, versionRows(list))
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "VERSION\tWAS\tSIZE\tMODE\tMODIFIED\tPATH")
			for _, v := range list {
				what := string(v.Kind)
				if !v.Kept {
					what += " (content not kept)"
				}
				mode, modified := "-", "-"
				if v.Kind == journal.File || v.Kind == journal.Dir {
					mode = fmt.Sprintf("%04o", v.Mode)
				}
				if v.Kind == journal.File {
					modified = time.Unix(0, v.Mtime).Local().Format("2006-01-02 15:04:05")
				}
				fmt.Fprintf(w, "%d\t%s\t%d\t%s\t%s\t%s\n", v.Number, what, v.Size, mode, modified, tree.Show(v.Path))
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

type versionRow struct {
	jsonPath
	Version int          `json:"version"`
	Kind    journal.Kind `json:"kind"`
	Size    int64        `json:"size"`
	Mode    string       `json:"mode"`
	Kept    bool         `json:"kept"`
	Time    time.Time    `json:"time"`
}

func versionRows(list []journal.Version) []versionRow {
	rows := []versionRow{}
	for _, v := range list {
		rows = append(rows, versionRow{pathOf(v.Path), v.Number, v.Kind, v.Size, fmt.Sprintf("%04o", v.Mode), v.Kept, v.Time})
	}
	return rows
}

func workspaceDrop() *cobra.Command {
	return &cobra.Command{
		Use:   "drop SESSION…",
		Short: "Remove what is kept of sessions: staged changes and versions",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, id := range args {
				if _, err := vocabulary.ParseSessionID(id); err != nil {
					return err
				}
				if err := drop(cmd, id); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func drop(cmd *cobra.Command, id string) error {
	all, err := keptSessions()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(k staged.Kept) bool { return string(k.Session) == id })
	if i < 0 {
		return vocabulary.Exitf(vocabulary.ExitRefused, "nothing is kept of %s\nsee: bulkhead workspace list", id)
	}
	drop := func() error {
		r := session.Record{Meta: all[i].Meta, Actor: "user"}
		defer r.Close()
		if err := r.Write("drop", nil); err != nil { // often it is to free a full disk
			notice(cmd)("that %s is dropped is not recorded: %v", id, err)
		}
		return staged.Drop(all[i].Dir)
	}
	if all[i].Problem != nil { // nothing in it can be used
		return drop()
	}
	// What broke off is taken back first; without the workspace there is nothing to.
	k, err := openKept(cmd, []string{id}, anyKept, "", false)
	if err == nil {
		defer k.close()
	} else if all[i].Look(); all[i].Problem == nil { // a damaged one is good for nothing else
		if _, serr := os.Lstat(all[i].Workspace); serr == nil || all[i].State == staged.Running {
			return err
		}
	}
	return drop()
}

// resumed makes a policy's workspace that of a staged session.
func resumed(p *policy.Policy, id, workspace string) (vocabulary.SessionID, error) {
	if id == "" {
		return "", nil
	}
	if workspace != "" {
		return "", vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "--resume goes on in the session's own workspace: leave --workspace out")
	}
	if _, err := vocabulary.ParseSessionID(id); err != nil {
		return "", err
	}
	k, err := findKept(id, hasLayer, "staged changes")
	if err != nil {
		return "", err
	}
	p.Workspace = policy.Workspace{Path: k.Workspace, Mode: vocabulary.StagedWrites, Writable: p.Workspace.Writable, Pos: vocabulary.Position{File: "--resume"}}
	return k.Session, nil
}
