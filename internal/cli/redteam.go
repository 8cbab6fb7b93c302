package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/kernel"
	"github.com/bulkhead-dev/bulkhead/internal/redteam"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/campaign"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/obedient"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/report"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/scenario"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/stage"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func newRedteam() *cobra.Command {
	return noun("redteam", "Attack your own sessions and see what comes of it",
		redteamList(), redteamRun(), redteamReport(), redteamAgent())
}

func redteamList() *cobra.Command {
	var asJSON, catalogue bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the attacks, or what they cover of the catalogue",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := scenario.Builtin()
			if err != nil {
				return err
			}
			if catalogue {
				return listCatalogue(cmd, all, asJSON)
			}
			if asJSON {
				return printJSON(cmd, all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			for _, s := range all {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.Name, strings.Join(s.Tiers, ","), strings.Join(s.Covers, ","), s.Title)
			}
			for _, a := range redteam.Attacks() {
				fmt.Fprintf(w, "%s\t\t\t%s\n", a.Name, a.Title)
			}
			for _, v := range redteam.Variants() {
				fmt.Fprintf(w, "  %s\t\t\t%s\n", v.Name, v.Title)
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&catalogue, "catalogue", false, "each entry of the catalogue: what covers it, or why it is open")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func listCatalogue(cmd *cobra.Command, all []*scenario.Scenario, asJSON bool) error {
	entries, err := scenario.Coverage(all)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd, entries)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
	for _, e := range entries {
		how := "open: " + e.Open
		switch {
		case len(e.Scenarios) > 0:
			how = strings.Join(e.Scenarios, ", ")
		case e.Test != "":
			how = "test: " + e.Test
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", e.ID, e.Title, how)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	c := campaign.Covered(entries)
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d entries: %d have scenarios, %d other tests, %d are open\n", c.Entries, c.Scenarios, c.Tests, len(c.Open))
	return err
}

func redteamRun() *cobra.Command {
	var o redteamOptions
	c := &cobra.Command{
		Use:   "run [NAME|FILE]…",
		Short: "Attack sessions, with and without Bulkhead, and count what succeeds",
		Long: `Attack sessions, with and without Bulkhead, and count what succeeds.

Runs scenarios (all, or those named: a name, a pattern, a category, an entry of the
catalogue, a file) uncontained and in each tier, and their honest twins in each tier.
An attack that does not work uncontained proves nothing and does not count. Success is
judged only by its effects. Each run has a machine of its own that is thrown away;
contained runs get one only as root (see --as).

With --model-endpoint a live model decides what the agent does, not the scripted one
that obeys. What it declines to do counts as not attempted, never as contained.

"run phish" repeats the campaign of the demo: a pasted prompt makes an obedient agent
read ~/.aws/credentials, encode it and post it to a collector.

Exit code 1 if any contained attack succeeded, a twin failed, or a run proves nothing.`,
		Example: `  sudo bulkhead redteam run
  sudo bulkhead redteam run --as $USER --html report.html
  bulkhead redteam run DX 'read-*' mine.txtar
  sudo --preserve-env=ANTHROPIC_API_KEY bulkhead redteam run --agent claude --model-endpoint https://api.anthropic.com
  bulkhead redteam run phish --runs 25`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if slices.Contains(args, "phish") {
				if len(args) > 1 {
					return errors.New("phish is a campaign of its own; run it alone")
				}
				if o.endpoint != "" || o.agent != "" {
					return errors.New("phish has its own agent and its own model; the same attack for others: bulkhead redteam run 'incident-phish-*' …")
				}
				return o.phish(cmd)
			}
			return o.campaign(cmd, args)
		},
	}
	c.Flags().IntVar(&o.runs, "runs", 0, "how often each attack runs (default 1; phish 25)")
	c.Flags().StringVar(&o.tier, "tier", "", "these `TIERS`, or nothing is run: none, process, container, vm (default: all that this host can give)")
	c.Flags().StringSliceVar(&o.variants, "variant", nil, "phish: only these variants (see: bulkhead redteam list)")
	c.Flags().StringVar(&o.as, "as", "", "root only: the sessions are `USER`'s")
	c.Flags().StringVar(&o.agent, "agent", "", "lead this `AGENT` astray: "+strings.Join(stage.Agents(), ", ")+" (default: the built-in obedient one)")
	c.Flags().StringVar(&o.endpoint, "model-endpoint", "", "let the live model at `URL` lead the agent, through its provider's API (default: a scripted model that obeys)")
	c.Flags().StringVar(&o.keyEnv, "model-key-env", "", "its key is in the variable `NAME` (default: ANTHROPIC_API_KEY, OPENAI_API_KEY or GEMINI_API_KEY, as the agent reads)")
	c.Flags().StringVar(&o.model, "model", "", "its `NAME` (default: the agent's choice)")
	c.Flags().IntVar(&o.parallel, "parallel", 0, "runs at a time (default: one more than there are processors)")
	c.Flags().DurationVar(&o.budget, "budget", 0, "end after this time, and mark what was not run")
	c.Flags().StringSliceVar(&o.yardstick, "yardstick", nil, "also run everything in another `SANDBOX`, to compare: "+strings.Join(stage.Yardsticks(), ", "))
	c.Flags().IntVar(&o.mutate, "mutate", 0, "also try `N` variations of each scenario that has mutators, as an attacker with many tries would")
	c.Flags().Uint64Var(&o.seed, "seed", 1, "another `SEED` gives other variations")
	c.Flags().StringVar(&o.found, "found", ".", "write variations that break through into `DIR`, as scenarios")
	c.Flags().BoolVar(&o.strict, "strict", false, "also fail if a program is missing that a scenario needs")
	c.Flags().StringVar(&o.save, "save", "", "also write the report to `FILE` for: bulkhead redteam report")
	c.Flags().StringVar(&o.junit, "junit", "", "also write JUnit XML to `FILE`")
	c.Flags().StringVar(&o.html, "html", "", "also write one HTML page to `FILE`")
	c.Flags().StringVar(&o.binary, "binary", "", "attack this `FILE` instead of this very bulkhead")
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return c
}

type redteamOptions struct {
	yardstick                           []string
	mutate                              int
	seed                                uint64
	found                               string
	runs, parallel                      int
	tier, as, save, junit, html, binary string
	agent, endpoint, keyEnv, model      string
	variants                            []string
	budget                              time.Duration
	strict, json                        bool
}

func (o *redteamOptions) phish(cmd *cobra.Command) error {
	binary, err := childproc.Path()
	if err != nil {
		return err
	}
	if o.runs == 0 {
		o.runs = 25
	}
	progress, finish := redteam.ProgressLine(os.Stderr, isTerminal(os.Stderr))
	r, err := redteam.Phish(cmd.Context(), redteam.Config{
		Runs: o.runs, Tier: o.tier, Variants: o.variants,
		Agent: redteam.ObedientAgent(binary), RunSession: redteam.Runner(binary), Progress: progress,
	})
	finish()
	if err != nil {
		return err
	}
	if o.save != "" {
		if err := saveJSON(o.save, r); err != nil {
			return err
		}
	}
	if o.json {
		err = printJSON(cmd, r)
	} else {
		err = r.WriteTable(cmd.OutOrStdout(), isTerminal(os.Stdout))
	}
	if err == nil && !r.OK {
		err = &exitStatus{1}
	}
	return err
}

func (o *redteamOptions) campaign(cmd *cobra.Command, args []string) error {
	if o.runs < 0 || o.mutate < 0 || o.parallel < 0 || o.budget < 0 {
		return vocabulary.Exitf(vocabulary.ExitRefused, "--runs, --mutate, --parallel and --budget are no negative numbers; nothing was run")
	}
	agent, err := stage.FindAgent(o.agent)
	if err != nil {
		return err
	}
	if (o.agent != "" || o.endpoint != "") && len(args) == 0 {
		args = stage.ForAgents(agent)
	}
	items, err := scenarios(args)
	if err != nil {
		return err
	}
	c := campaign.Config{Scenarios: items, Runs: max(o.runs, 1), Parallel: o.parallel, Mutate: o.mutate, Seed: o.seed, Budget: o.budget, Binary: o.binary, Agent: agent}
	if c.Tiers, err = o.tiers(cmd.Context()); err != nil {
		return err
	}
	for _, y := range o.yardstick {
		if !stage.IsYardstick(y) {
			return fmt.Errorf("no yardstick is called %q (one of: %s)", y, strings.Join(stage.Yardsticks(), ", "))
		}
		c.Others = append(c.Others, y)
	}
	if c.Binary == "" {
		if c.Binary, err = childproc.Path(); err != nil {
			return err
		}
	}
	if c.As, err = sessionUser(o.as); err != nil {
		return err
	}
	if c.Agent, c.Live, err = o.live(cmd.Context(), agent); err != nil {
		return err
	}
	if err := o.canWrite(); err != nil {
		return vocabulary.Exitf(vocabulary.ExitRefused, "the report could not be written: %s; nothing was run", err)
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	terminal := isTerminal(os.Stderr)
	c.Progress = func(p campaign.Progress) { report.Progress(os.Stderr, terminal, p) }
	r, err := campaign.Run(ctx, c)
	if err != nil {
		return err
	}
	if o.strict {
		r.Strict()
	}
	r.Host = campaign.Describe(cmd.Context(), c, version())
	if all, err := scenario.Builtin(); err == nil {
		if entries, err := scenario.Coverage(all); err == nil {
			r.Catalogue = campaign.Covered(entries)
		}
	}
	if terminal {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
	return errors.Join(o.write(r), o.keep(r), o.show(cmd, r))
}

// keep writes what broke through into scenario files of its own; none is overwritten.
func (o *redteamOptions) keep(r *campaign.Report) error {
	for _, row := range r.Rows {
		for _, s := range row.Searches {
			for i, b := range s.Found {
				name := filepath.Join(o.found, fmt.Sprintf("%s-%s-%d-%d.txtar", row.Name, s.Tier, o.seed, i+1))
				f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
				if err != nil {
					return err
				}
				if _, err := f.WriteString(b.Source); err != nil {
					return errors.Join(err, f.Close())
				}
				if err := f.Close(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// tiers are those that this host can give, or the one asked for.
func (o *redteamOptions) tiers(ctx context.Context) ([]string, error) {
	if o.tier == "none" {
		return nil, nil
	}
	var asked []string
	if o.tier != "" {
		asked = strings.Split(o.tier, ",")
	}
	var out, known []string
	for _, i := range kernel.Examine(ctx).Summary.Isolations {
		name := string(i.Name)
		known = append(known, name)
		if asked != nil && !slices.Contains(asked, name) {
			continue
		}
		switch {
		case i.Status != kernel.Missing:
			out = append(out, name)
		case asked != nil:
			return nil, vocabulary.Exitf(vocabulary.ExitNoIsolation, "no %s tier to attack: %s; see: bulkhead doctor", name, i.Why)
		}
	}
	for _, t := range asked {
		if !slices.Contains(known, t) {
			return nil, fmt.Errorf("no tier is called %q (none, or some of: %s)", t, strings.Join(known, ", "))
		}
	}
	if len(out) == 0 {
		return nil, vocabulary.Exitf(vocabulary.ExitNoIsolation, "this host can give no isolation to attack; see: bulkhead doctor")
	}
	return out, nil
}

// canWrite finds out before minutes are spent.
func (o *redteamOptions) canWrite() error {
	for _, path := range []string{o.save, o.junit, o.html} {
		if path == "" {
			continue
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	if st, err := os.Stat(o.found); o.mutate > 0 && (err != nil || !st.IsDir()) {
		return errors.Join(err, fmt.Errorf("%s is no folder", o.found))
	}
	return nil
}

// write puts the report into the files that were asked for.
func (o *redteamOptions) write(r *campaign.Report) error {
	for _, f := range []struct {
		path  string
		write func(io.Writer, *campaign.Report) error
	}{{o.save, report.JSON}, {o.junit, report.JUnit}, {o.html, report.HTML}} {
		if f.path == "" {
			continue
		}
		var b bytes.Buffer
		if err := f.write(&b, r); err != nil {
			return err
		}
		if err := os.WriteFile(f.path, b.Bytes(), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (o *redteamOptions) show(cmd *cobra.Command, r *campaign.Report) error {
	var err error
	if o.json {
		err = report.JSON(cmd.OutOrStdout(), r)
	} else {
		err = report.Table(cmd.OutOrStdout(), r, isTerminal(os.Stdout))
	}
	if err == nil && !r.OK {
		err = &exitStatus{1}
	}
	return err
}

// scenarios are the built-in ones that args select, and files.
func scenarios(args []string) ([]campaign.Item, error) {
	all, err := scenario.Builtin()
	if err != nil {
		return nil, err
	}
	var patterns []string
	var out []campaign.Item
	for _, a := range args {
		if !strings.HasSuffix(a, ".txtar") {
			patterns = append(patterns, a)
			continue
		}
		data, err := os.ReadFile(a)
		if err != nil {
			return nil, err
		}
		s, err := scenario.Parse(a, data)
		if err != nil {
			return nil, vocabulary.Exitf(vocabulary.ExitPolicyInvalid, "%s", err)
		}
		out = append(out, campaign.Item{Scenario: s, Source: data})
	}
	if len(patterns) > 0 || len(out) == 0 {
		chosen, err := scenario.Select(all, patterns)
		if err != nil {
			return nil, err
		}
		for _, s := range chosen {
			text, err := scenario.Source(s.Name)
			if err != nil {
				return nil, err
			}
			out = append(out, campaign.Item{Scenario: s, Source: text})
		}
	}
	return out, nil
}

// sessionUser is the caller, or whom root names.
func sessionUser(name string) (stage.User, error) {
	me := stage.User{UID: os.Getuid(), GID: os.Getgid()}
	if name == "" {
		return me, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return me, err
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return me, err
	}
	if me.UID != 0 && uid != me.UID {
		return me, vocabulary.Exitf(vocabulary.ExitRefused, "only root can run sessions as somebody else; run it with sudo")
	}
	return stage.User{UID: uid, GID: gid}, nil
}

func redteamReport() *cobra.Command {
	var o redteamOptions
	var other string
	c := &cobra.Command{
		Use:   "report FILE",
		Short: "Print a saved report, turn it into a page, or compare two",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case other == "" && len(args) == 1, other != "" && len(args) == 1:
				return nil
			case other != "":
				return ownWords("give two reports: bulkhead redteam report --compare BEFORE AFTER")
			}
			return ownWords("give one report, as --save wrote it (or two: --compare BEFORE AFTER)")
		},
		Example: `  bulkhead redteam report run.json --html run.html
  bulkhead redteam report --compare before.json after.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if other != "" {
				args = append([]string{other}, args...)
			}
			data, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			if phish, err := redteam.ReadReport(data); err == nil && other == "" {
				return phish.WriteTable(cmd.OutOrStdout(), isTerminal(os.Stdout))
			}
			r, err := report.Read(data)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if other == "" {
				return errors.Join(o.write(r), o.show(cmd, r))
			}
			if data, err = os.ReadFile(args[1]); err != nil {
				return err
			}
			after, err := report.Read(data)
			if err != nil {
				return fmt.Errorf("%s: %w", args[1], err)
			}
			worse, err := report.Compare(cmd.OutOrStdout(), r, after)
			if err == nil && worse {
				err = &exitStatus{1}
			}
			return err
		},
	}
	c.Flags().StringVar(&other, "compare", "", "compare `FILE` with the other one; exit code 1 if something got worse")
	c.Flags().StringVar(&o.junit, "junit", "", "write JUnit XML to `FILE`")
	c.Flags().StringVar(&o.html, "html", "", "write one HTML page to `FILE`")
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return c
}

func redteamAgent() *cobra.Command {
	return &cobra.Command{
		Use:                "obedient-agent",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return &exitStatus{obedient.Main(args, os.Stdin, os.Stdout, os.Stderr, os.Getenv)}
		},
	}
}
