package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/catalog/openapi"
	"github.com/bulkhead-dev/bulkhead/internal/catalog/registry"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func newService() *cobra.Command {
	return noun("service", "List, show, check, test and add the services that a grant can name",
		serviceList(), serviceShow(), serviceCheck(), serviceTest(), serviceImport(), serviceRegistry())
}

func serviceList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the services of the catalogue and your own",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cat, err := services()
			if err != nil {
				return err
			}
			type row struct {
				Name        string   `json:"name"`
				Description string   `json:"description"`
				Operations  []string `json:"operations"`
				File        string   `json:"file,omitempty"` // of the user's own
			}
			rows := []row{}
			for _, name := range cat.Names() {
				s, ok := cat.Service(name)
				if !ok {
					continue
				}
				r := row{Name: name, Description: s.Description, Operations: []string{}}
				for _, o := range s.Operations {
					r.Operations = append(r.Operations, o.Name)
				}
				r.File, _ = loadServices().own(name)
				rows = append(rows, r)
			}
			if asJSON {
				return printJSON(cmd, rows)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "SERVICE\tOPERATIONS\tWHAT IT IS")
			for _, r := range rows {
				what := r.Description
				if r.File != "" {
					what += " (yours: " + r.File + ")"
				}
				fmt.Fprintf(w, "%s\t%d\t%s\n", r.Name, len(r.Operations), printable(what))
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func serviceShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Print a service's file: its hosts, operations and what each matches",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set := loadServices()
			var data []byte
			var err error
			if file, ok := set.own(args[0]); ok {
				data, err = readBounded(file)
			} else {
				data, err = catalog.Default().Source(args[0])
			}
			if err != nil {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%v (%s)\nsee: bulkhead service list", err, policy.Suggest(args[0], catalog.Default().Names()))
			}
			_, err = cmd.OutOrStdout().Write(data)
			return err
		},
	}
}

func serviceCheck() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE…",
		Short: "Check service files; every error with its position",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var bad []string
			for _, file := range args {
				data, err := readBounded(file)
				if err == nil {
					var s *catalog.Service
					if s, err = catalog.Parse(file, data); err == nil {
						fmt.Fprintf(cmd.ErrOrStderr(), "%s: valid, %s with %d operations\n", file, s.Name, len(s.Operations))
						continue
					}
				}
				bad = append(bad, err.Error())
			}
			if len(bad) > 0 {
				return vocabulary.Exitf(vocabulary.ExitPolicyInvalid, "%s", strings.Join(bad, "\n"))
			}
			return nil
		},
	}
}

func serviceImport() *cobra.Command {
	var o openapi.Options
	var output string
	var force bool
	c := &cobra.Command{
		Use:   "import DOCUMENT --name NAME",
		Short: "Make a service of your own from an OpenAPI document",
		Long: `Make a service of your own from an OpenAPI document (3.0, 3.1 or Swagger 2.0; YAML or JSON).

Each operationId becomes an operation that a grant can name. The document cannot say what
an operation makes the service fetch, call or run: names that suggest it are pointed out,
and the file is yours to review before you grant anything of it.`,
		Example: "  bulkhead service import tickets.yaml --name tickets --resource project\n" +
			"  bulkhead grant explain tickets.create-ticket",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			doc, err := readDocument(args[0])
			if err != nil {
				return err
			}
			file, remarks, err := openapi.Import(doc, o)
			if err != nil {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%s: %v", args[0], err)
			}
			svc, problem := catalog.Parse(o.Name+".yaml", file)
			if _, taken := catalog.Default().Service(o.Name); taken {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%s is a service of Bulkhead's own catalogue; give yours another --name", o.Name)
			}
			if output == "" {
				dir, err := serviceDir()
				if err != nil {
					return err
				}
				output = filepath.Join(dir, o.Name+".yaml")
				if problem != nil {
					output = o.Name + ".yaml" // a file that doesn't load would stop every run
				}
			}
			if output == "-" {
				cmd.OutOrStdout().Write(file)
			} else if err := writeNew(output, file, force); err != nil {
				return err
			}
			for _, r := range remarks {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s\n", printable(r))
			}
			if problem != nil {
				return vocabulary.Exitf(vocabulary.ExitPolicyInvalid, "%v\nwritten to %s; mend it, see that bulkhead service check accepts it, and move it to your services", problem, output)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %d operations; review them: bulkhead grant explain %s\n", output, len(svc.Operations), o.Name)
			return nil
		},
	}
	c.Flags().StringVar(&o.Name, "name", "", "`NAME` of the service")
	c.Flags().StringSliceVar(&o.Servers, "server", nil, "`URL` instead of the document's servers")
	c.Flags().StringSliceVar(&o.Resource, "resource", nil, "path `PARAMETER,…` that a grant can be limited to")
	c.Flags().StringVarP(&output, "output", "o", "", "write to `FILE` (-: standard output) instead of your services")
	c.Flags().BoolVar(&force, "force", false, "replace a file that exists")
	c.MarkFlagRequired("name")
	return c
}

func serviceRegistry() *cobra.Command {
	var o registry.Options
	var output string
	var force bool
	c := &cobra.Command{
		Use:   "registry HOST --name NAME",
		Short: "Make a service of your own from a registry of images",
		Long: `Make a service of your own from a registry of images (Harbor, GitLab, Artifactory, …).

It has the operations of the catalogue's own registries: pull, push, delete and so on, each for
named repositories. Of a registry that hands out tokens give the realm and the service that it
names itself: curl -sI https://HOST/v2/ shows them in WWW-Authenticate.`,
		Example: "  bulkhead service registry harbor.corp.example --name harbor \\\n" +
			"    --realm https://harbor.corp.example/service/token --service harbor-registry",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Host = args[0]
			file, err := registry.Make(o)
			if err != nil {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%v", err)
			}
			if _, taken := catalog.Default().Service(o.Name); taken {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%s is a service of Bulkhead's own catalogue; give yours another --name", o.Name)
			}
			if output == "-" {
				_, err := cmd.OutOrStdout().Write(file)
				return err
			}
			if output == "" {
				dir, err := serviceDir()
				if err != nil {
					return err
				}
				output = filepath.Join(dir, o.Name+".yaml")
			}
			if err := writeNew(output, file, force); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s; review it: bulkhead grant explain %s\n", output, o.Name)
			return nil
		},
	}
	c.Flags().StringVar(&o.Name, "name", "", "`NAME` of the service")
	c.Flags().StringVar(&o.Realm, "realm", "", "`URL` of its token endpoint")
	c.Flags().StringVar(&o.Service, "service", "", "`NAME` that it gives itself there")
	c.Flags().StringVarP(&output, "output", "o", "", "write to `FILE` (-: standard output) instead of your services")
	c.Flags().BoolVar(&force, "force", false, "replace a file that exists")
	c.MarkFlagRequired("name")
	return c
}

// readDocument bounds what is read before the importer sees it.
func readDocument(path string) ([]byte, error) {
	const max = 32 << 20
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case st.Size() > max:
		return nil, fmt.Errorf("%s is larger than %d MiB", path, max>>20)
	}
	return os.ReadFile(path)
}

func writeNew(path string, data []byte, force bool) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if force {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if os.IsExist(err) {
		return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%s exists; --force replaces it", path)
	}
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
