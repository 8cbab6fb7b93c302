package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/publish"
	"github.com/bulkhead-dev/bulkhead/internal/session"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func newSession() *cobra.Command {
	return noun("session", "List, look at, stop and revoke running sessions",
		sessionList(), sessionShow(), sessionStop(), sessionRevoke(), sessionPublish())
}

func sessionList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the running sessions of this user (root: of everyone)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all := session.List()
			if asJSON {
				if all == nil {
					all = []session.Info{}
				}
				return printJSON(cmd, all)
			}
			if len(all) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "no session is running")
				return nil
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "SESSION\tUP\tISOLATION\tNETWORK\tWORKSPACE\tCOMMAND\tSTATE")
			for _, s := range all {
				state := "running"
				if s.Revoked {
					state = "revoked"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.ID, time.Since(s.Started).Round(time.Second),
					s.Isolation, s.Network, s.Workspace, clip(printable(strings.Join(s.Command, " ")), 40), state)
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// withSession parses the one argument and finds the session.
func withSession(f func(*cobra.Command, *session.Remote) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		r, err := findSession(args[0])
		if err != nil {
			return err
		}
		return f(cmd, r)
	}
}

func findSession(arg string) (*session.Remote, error) {
	id, err := vocabulary.ParseSessionID(arg)
	if err != nil {
		return nil, err
	}
	return session.Find(id)
}

func sessionShow() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "show SESSION",
		Short: "Show one running session",
		Args:  cobra.ExactArgs(1),
		RunE: withSession(func(cmd *cobra.Command, r *session.Remote) error {
			s, err := r.Info()
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, s)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			rows := [][2]string{
				{"session", string(s.ID)}, {"controller", fmt.Sprint("pid ", s.PID)},
				{"started", s.Started.Local().Format(time.DateTime)}, {"isolation", string(s.Isolation)},
				{"network", s.Network}, {"profile", string(s.Profile)}, {"workspace", s.Workspace},
				{"command", printable(strings.Join(s.Command, " "))}, {"policy", s.Policy}, {"events", s.Events},
				{"published", strings.Join(s.Published, " ")}, {"revoked", fmt.Sprint(s.Revoked)},
			}
			for _, row := range rows {
				fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
			}
			list := func(label string, of []string) {
				for _, text := range of {
					fmt.Fprintf(w, "%s\t%s\n", label, text)
					label = ""
				}
			}
			list("limits", s.Limits)
			list("grants", s.Grants)
			return w.Flush()
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func sessionStop() *cobra.Command {
	return &cobra.Command{
		Use:   "stop SESSION",
		Short: "End a session and everything that runs in it",
		Args:  cobra.ExactArgs(1),
		RunE:  withSession(func(_ *cobra.Command, r *session.Remote) error { return r.Stop() }),
	}
}

func sessionPublish() *cobra.Command {
	return &cobra.Command{
		Use:   "publish SESSION [HOST:]PORT",
		Short: "Make a port inside a session reachable on this host's loopback",
		Long: `Make a port inside a session reachable on this host's loopback.

Only programs on this machine reach it, at 127.0.0.1:HOST. What answers there is the
sandbox: treat it like any website you do not know.`,
		Example: "  bulkhead session publish 01J… 3000\n  bulkhead session publish 01J… 8080:3000",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := findSession(args[0])
			if err != nil {
				return err
			}
			p, err := policy.ParsePublished(args[1])
			if err != nil {
				return fmt.Errorf("%w; write PORT or HOST:PORT", err)
			}
			if err := r.Publish(publish.Port{Host: p.Host, Inside: p.Inside}); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "published: http://127.0.0.1:%d leads to port %d of the session\n", p.Host, p.Inside)
			return nil
		},
	}
}

func sessionRevoke() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke SESSION",
		Short: "Cut a session's credentials at once; it goes on without them",
		Args:  cobra.ExactArgs(1),
		RunE:  withSession(func(_ *cobra.Command, r *session.Remote) error { return r.Revoke() }),
	}
}
