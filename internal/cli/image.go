package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/image"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/session"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func newImage() *cobra.Command {
	return noun("image", "Roots for containers: get, list and remove images", newImagePull(), newImageBuild(), newImageList(), newImageRemove())
}

func openImages() (*image.Store, error) {
	dir, err := session.ImageDir()
	if err != nil {
		return nil, err
	}
	return image.Open(dir)
}

// imageReference reads IMAGE of the command line.
func imageReference(text string) (image.Reference, error) {
	i, err := policy.ParseImage(text)
	if err == nil && i.Form == policy.ImageRootFS {
		err = errors.New("a rootfs is used as it is, and not kept in the cache\nrun with it: bulkhead run --isolation container --image " + text + " -- CMD")
	}
	if err != nil {
		return image.Reference{}, vocabulary.Exitf(vocabulary.ExitRefused, "%v", err)
	}
	cwd, err := os.Getwd()
	if err != nil {
		return image.Reference{}, err
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return image.Reference{}, err
	}
	return session.ImageReference(i, home, cwd), nil
}

func newImagePull() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Get an image and unpack it for containers",
		Long: `Get an image and unpack it for containers. What a name stood for before is kept until
you remove it. Digests are verified; the layers are unpacked by a process that can
reach nothing but the folder that it fills.

IMAGE is [HOST/]NAME[:TAG][@DIGEST] of a registry (logins are those of docker login),
oci:DIR for an OCI layout, or docker-archive:FILE for what docker save wrote.

With --json the answer is the image as image list --json has it, and what has come so
far is told on standard error, a line {"have":BYTES,"all":BYTES} every second.`,
		Example: `  bulkhead image pull debian:12
  bulkhead run --isolation container --image debian:12 -- bash`,
		Args: exactly(1, "an image: bulkhead image pull debian:12"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := imageReference(args[0])
			if err != nil {
				return err
			}
			store, err := openImages()
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
			defer stop()
			p := &progress{cmd: cmd, what: ref.String(), live: isTerminal(os.Stderr), json: asJSON}
			i, err := store.Pull(ctx, ref, p.told)
			p.end()
			if errors.Is(err, context.Canceled) {
				return vocabulary.Exitf(128+2, "given up; nothing of %s was kept", ref)
			}
			if err != nil {
				return err
			}
			defer i.Close()
			if asJSON {
				return printImage(cmd, store, i.ID)
			}
			fmt.Fprintln(cmd.OutOrStdout(), i.ID)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// printImage prints what image list --json has of one image.
func printImage(cmd *cobra.Command, store *image.Store, id string) error {
	list, err := store.List()
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.ID == id {
			e.InUse = false // by this command alone, which ends
			return printJSON(cmd, e)
		}
	}
	return fmt.Errorf("%s was removed by another command", id)
}

// progress is one line on a terminal, lines of JSON where they are asked for, and
// silence elsewhere.
type progress struct {
	cmd  *cobra.Command
	what string
	live bool
	json bool
	last time.Time
}

func (p *progress) told(have, all int64) {
	if p.json {
		if now := time.Now(); now.Sub(p.last) > time.Second || have == all {
			p.last = now
			fmt.Fprintf(p.cmd.ErrOrStderr(), "{\"have\":%d,\"all\":%d}\n", have, all)
		}
		return
	}
	if now := time.Now(); p.live && (now.Sub(p.last) > 200*time.Millisecond || have == all) {
		p.last = now
		fmt.Fprintf(p.cmd.ErrOrStderr(), "\r\x1b[K%s: %s of %s", p.what, size(have), size(all))
	}
}

func (p *progress) end() {
	if !p.last.IsZero() && !p.json {
		fmt.Fprint(p.cmd.ErrOrStderr(), "\r\x1b[K")
	}
}

func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
}

func newImageList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "Show the images that are unpacked here",
		Args:  exactly(0, "nothing"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := openImages()
			if err != nil {
				return err
			}
			list, err := store.List()
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, list)
			}
			if len(list) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "no images; get one: bulkhead image pull debian:12")
				return nil
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "IMAGE\tID\tSIZE\tPULLED\tSTATE")
			for _, e := range list {
				state := "-"
				if e.InUse {
					state = "in use"
				}
				names := []string{"-"}
				if len(e.Names) > 0 {
					names = names[:0]
				}
				for _, n := range e.Names {
					names = append(names, n.Name)
				}
				for _, n := range names {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", n, strings.TrimPrefix(e.ID, "sha256:")[:12], size(e.Bytes), ago(time.Since(e.Pulled)), state)
				}
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func ago(d time.Duration) string {
	switch {
	case d < time.Minute:
		return "just now"
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d hours ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}

func newImageBuild() *cobra.Command {
	var name string
	var only bool
	c := &cobra.Command{
		Use:   "build [PACKAGE…]",
		Short: "Make an image of Debian packages, with what agents need",
		Long: `Make an image of Debian packages, with what agents need: a shell, git, Node, Python, curl
and the like, and the packages named. They come from the sources of this host's apt,
which verifies them, with all that they depend on, and are unpacked by the process that
unpacks images. No script of a package runs. The same versions give the same image.`,
		Example: `  bulkhead image build golang
  bulkhead run --isolation container --image ` + image.BuiltName + ` -- bash`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !only {
				args = append(append([]string{}, image.Agents...), args...)
			}
			if len(args) == 0 {
				return errors.New("--only, and no packages")
			}
			store, err := openImages()
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
			defer stop()
			i, err := store.Build(ctx, name, args, os.Environ(), func(line string) { notice(cmd)("%s", line) })
			if errors.Is(err, context.Canceled) {
				return vocabulary.Exitf(128+2, "given up; nothing was built")
			}
			if err != nil {
				return err
			}
			defer i.Close()
			fmt.Fprintln(cmd.OutOrStdout(), i.ID)
			return nil
		},
	}
	c.Flags().StringVar(&name, "name", image.BuiltName, "the image's `NAME`")
	c.Flags().BoolVar(&only, "only", false, "only the packages named, and what they depend on")
	return c
}

func newImageRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "remove IMAGE|ID",
		Short: "Remove an image that no session uses",
		Args:  exactly(1, "an image or its id, see: bulkhead image list"),
		RunE: func(cmd *cobra.Command, args []string) error {
			what := args[0]
			if ref, err := imageReference(what); err == nil {
				what = ref.String()
			}
			store, err := openImages()
			if err != nil {
				return err
			}
			freed, err := store.Remove(what)
			if err != nil {
				return err
			}
			if freed == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "the name is gone; the image has others")
				return nil
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s freed\n", size(freed))
			return nil
		},
	}
}

// exactly is for commands with a fixed number of arguments.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return fmt.Errorf("%d arguments, and this takes %s", len(args), what)
		}
		return nil
	}
}
