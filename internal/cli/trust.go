package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/session"
	"github.com/bulkhead-dev/bulkhead/internal/trust"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func newTrust() *cobra.Command {
	return noun("trust", "Say which projects' own configuration is believed", trustShow(), trustAdd(), trustList(), trustRemove())
}

// look scans a folder: the one named, or the current one.
func lookAt(args []string) (*trust.Scan, *trust.Record, trust.Store, error) {
	dir := "."
	if len(args) == 1 {
		dir = args[0]
	}
	store, err := session.TrustStore()
	if err != nil {
		return nil, nil, store, err
	}
	list, err := session.TrustList()
	if err != nil {
		return nil, nil, store, err
	}
	real, err := realFolder(dir)
	if err != nil {
		return nil, nil, store, err
	}
	s, err := trust.ScanFolder(real, list)
	if err != nil {
		return nil, nil, store, err
	}
	before, err := store.Lookup(real)
	return s, before, store, err
}

func realFolder(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return "", vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%s can't be looked at\nname a folder that exists", trust.Show(dir))
	}
	return abs, nil
}

// state is one word about a folder.
func state(s *trust.Scan, before *trust.Record) string {
	switch {
	case !s.Judged():
		return "nothing in it needs trust"
	case s.Problem != "":
		return "can't be trusted: " + s.Problem
	case before == nil:
		return "not trusted"
	case before.Digest != s.Digest():
		return "not trusted: changed since it was trusted on " + before.Trusted.Format(time.DateOnly)
	}
	return "trusted since " + before.Trusted.Format(time.DateOnly)
}

// maxShown bounds the lines of one file, and of one difference.
const maxShown = 60

// describeTrust tells what a folder's configuration can do, with its content, or
// with what changed since it was trusted.
func describeTrust(w io.Writer, s *trust.Scan, before *trust.Record) {
	fmt.Fprintf(w, "%s: %s\n", trust.Show(s.Folder), state(s, before))
	for _, class := range []policy.TrustClass{policy.TrustRuns, policy.TrustWidens, policy.TrustInstructs} {
		title := map[policy.TrustClass]string{
			policy.TrustRuns: "It would run:", policy.TrustWidens: "It would widen:", policy.TrustInstructs: "It only instructs a model (visible in any case):",
		}[class]
		for _, f := range s.Found {
			if f.Listed.Class == class {
				if title != "" {
					fmt.Fprintln(w, title)
					title = ""
				}
				fmt.Fprintf(w, "  %s  (%s: %s)\n", trust.Show(f.Path), f.Listed.Owner, f.Listed.Can)
			}
		}
	}
	describeProjectPolicy(w, s)
	if words := trust.Words(s.Items); len(words) > 0 {
		fmt.Fprintln(w, "In plain words:")
		for _, l := range words {
			fmt.Fprintf(w, "  %s\n", trust.Show(l))
		}
	}
	judged := func(c policy.TrustClass) bool { return c != policy.TrustInstructs }
	if before != nil && s.Judged() {
		changes := trust.Compare(before.Items, s.Items, judged)
		if len(changes) > 0 {
			fmt.Fprintln(w, "What changed since you trusted it:")
		}
		for _, c := range changes {
			fmt.Fprintf(w, "  %s %s\n", c.What, trust.Show(c.Path))
			block(w, c.Lines())
		}
	} else {
		for _, i := range s.Items {
			if !judged(i.Of) {
				continue
			}
			switch {
			case i.Kind == trust.KindLink:
				fmt.Fprintf(w, "  --- %s is a link to %s\n", trust.Show(i.Path), trust.Show(i.Link))
			case i.Kind == trust.KindFile && len(i.Text) > 0:
				fmt.Fprintf(w, "  --- %s%s\n", trust.Show(i.Path), map[bool]string{true: " (executable)"}[i.Exec])
				block(w, strings.Split(strings.TrimSuffix(string(i.Text), "\n"), "\n"))
			case i.Kind == trust.KindFile:
				fmt.Fprintf(w, "  --- %s, %d bytes\n", trust.Show(i.Path), i.Size)
			}
		}
	}
	if s.Judged() && s.Problem == "" {
		fmt.Fprintf(w, "digest: %s\n", s.Digest())
	}
}

// describeProjectPolicy says what the project's own policy would take away from
// the user's.
func describeProjectPolicy(w io.Writer, s *trust.Scan) {
	cat, err := services()
	var b *policy.Bounds
	if err == nil {
		b, err = session.ProjectPolicy(s, cat)
	}
	switch {
	case err != nil:
		fmt.Fprintln(w, "Its policy can't be used, and while it is trusted nothing runs here:")
		for _, l := range strings.Split(err.Error(), "\n") {
			fmt.Fprintf(w, "  %s\n", trust.Show(l))
		}
	case b != nil:
		fmt.Fprintln(w, "Its policy would narrow yours:")
		for _, l := range b.Describe() {
			fmt.Fprintf(w, "  %s\n", trust.Show(l))
		}
	}
}

func block(w io.Writer, lines []string) {
	for i, l := range lines {
		if i == maxShown {
			fmt.Fprintf(w, "    … and %d more lines\n", len(lines)-i)
			return
		}
		if len(l) > 400 {
			l = l[:400] + "…"
		}
		fmt.Fprintf(w, "    %s\n", trust.Show(l))
	}
}

func trustShow() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "show [DIR]",
		Short: "Show what a folder's own configuration would run, and whether it is trusted",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, before, _, err := lookAt(args)
			if err != nil {
				return err
			}
			if !asJSON {
				describeTrust(cmd.OutOrStdout(), s, before)
				return nil
			}
			type place struct {
				Path  string            `json:"path"`
				Class policy.TrustClass `json:"class"`
				Owner string            `json:"owner"`
				Can   string            `json:"can"`
			}
			out := struct {
				Folder  string  `json:"folder"`
				Trusted bool    `json:"trusted"`
				Needed  bool    `json:"needed"`
				Problem string  `json:"problem,omitempty"`
				Digest  string  `json:"digest"`
				Places  []place `json:"places"`
				// What the project's own policy would narrow, in words.
				Narrows []string `json:"narrows,omitempty"`
			}{s.Folder, s.Problem == "" && before != nil && before.Digest == s.Digest(), s.Judged(), s.Problem, s.Digest(), []place{}, nil}
			if cat, err := services(); err == nil {
				if b, err := session.ProjectPolicy(s, cat); err == nil && b != nil {
					out.Narrows = b.Describe()
				}
			}
			for _, f := range s.Found {
				out.Places = append(out.Places, place{f.Path, f.Listed.Class, f.Listed.Owner, f.Listed.Can})
			}
			return printJSON(cmd, out)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func trustAdd() *cobra.Command {
	var digest string
	var yes bool
	c := &cobra.Command{
		Use:   "add [DIR]",
		Short: "Trust a folder's own configuration at its present content",
		Long: `Trust a folder's own configuration at its present content. What it would run is shown
first, and the question is asked on the terminal. A script says --yes with the --digest
that somebody has reviewed (bulkhead trust show), and trusts exactly that.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, before, store, err := lookAt(args)
			if err != nil {
				return err
			}
			admin, err := session.Administrator()
			if err != nil {
				return err
			}
			if admin != nil {
				if err := admin.MayTrust(yes); err != nil {
					return err
				}
			}
			switch {
			case !s.Judged():
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%s has no configuration that needs trust", trust.Show(s.Folder))
			case s.Problem != "":
				return vocabulary.Exitf(vocabulary.ExitRefused, "%s can't be trusted: %s", trust.Show(s.Folder), s.Problem)
			case yes && digest == "":
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "--yes needs the digest that was reviewed: --digest %s\nsee it first: bulkhead trust show", s.Digest())
			case digest != "" && digest != s.Digest():
				return vocabulary.Exitf(vocabulary.ExitRefused, "%s is not at that content, but at %s; nothing was trusted\nsee what it is now: bulkhead trust show", trust.Show(s.Folder), s.Digest())
			}
			if !yes {
				ask := asker()
				if ask == nil {
					return vocabulary.Exitf(vocabulary.ExitRefused, "there is no terminal to ask on; nothing was trusted\nin a script: bulkhead trust add --yes --digest sha256:…")
				}
				ok, err := ask(s, before)
				if err != nil {
					return err
				}
				if !ok {
					return vocabulary.Exitf(vocabulary.ExitRefused, "nothing was trusted")
				}
			}
			// What was shown is what is trusted, whatever the folder holds by now.
			if err := store.Add(s, time.Now()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "trusted: %s at %s\n", trust.Show(s.Folder), s.Digest())
			return nil
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask; needs --digest")
	c.Flags().StringVar(&digest, "digest", "", "trust only the content with this `DIGEST`")
	return c
}

func trustList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the trusted folders",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := session.TrustStore()
			if err != nil {
				return err
			}
			records, err := store.List()
			if err != nil {
				return err
			}
			if asJSON {
				type row struct {
					Folder  string    `json:"folder"`
					Digest  string    `json:"digest"`
					Trusted time.Time `json:"trusted"`
				}
				rows := []row{}
				for _, r := range records {
					rows = append(rows, row{r.Folder, r.Digest, r.Trusted})
				}
				return printJSON(cmd, rows)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			for _, r := range records {
				fmt.Fprintf(w, "%s\t%s\t%s\n", trust.Show(r.Folder), r.Trusted.Format(time.DateOnly), r.Digest[:min(len(r.Digest), 19)])
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func trustRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "remove DIR",
		Short: "Take a folder's trust back",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := session.TrustStore()
			if err != nil {
				return err
			}
			abs, err := filepath.Abs(args[0]) // the folder may be gone
			if err != nil {
				return err
			}
			names := []string{abs}
			if real, err := filepath.EvalSymlinks(abs); err == nil && real != abs {
				names = append(names, real)
			}
			for _, name := range names {
				if ok, err := store.Remove(name); ok || err != nil {
					return err
				}
			}
			return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%s is not trusted\nsee: bulkhead trust list", trust.Show(abs))
		},
	}
}

// trustFor reads --trust.
func trustFor(cmd *cobra.Command, how string) (session.Trust, error) {
	switch {
	case how == "ask":
		if isTerminal(os.Stderr) {
			return session.Trust{Ask: asker()}, nil
		}
		return session.Trust{}, nil
	case how == "no":
		return session.Trust{}, nil
	case strings.HasPrefix(how, "sha256:") && len(how) == len("sha256:")+64:
		return session.Trust{Digest: how}, nil
	}
	return session.Trust{}, vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "--trust %q is none of ask, no and sha256:… (see: bulkhead trust show)", how)
}

// asker asks on the controlling terminal, or is nil without one, or if this
// process is in the background of it.
func asker() func(*trust.Scan, *trust.Record) (bool, error) {
	if tty := openTTY(); tty != nil {
		tty.Close()
	} else {
		return nil
	}
	return func(s *trust.Scan, before *trust.Record) (bool, error) {
		tty := openTTY()
		if tty == nil {
			return false, nil
		}
		defer tty.Close()
		out := bufio.NewWriter(tty)
		describeTrust(out, s, before)
		if err := out.Flush(); err != nil {
			return false, err
		}
		forgetTyped(tty) // what was typed before the question is no answer to it
		if _, err := fmt.Fprint(tty, "Trust this folder at this content? Without it, all of that but instructions is hidden. [y/N] "); err != nil {
			return false, err
		}
		line, err := bufio.NewReader(io.LimitReader(tty, 256)).ReadString('\n')
		if err != nil && line == "" {
			return false, nil
		}
		return slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(line))), nil
	}
}
