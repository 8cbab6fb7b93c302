package cli

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func serviceTest() *cobra.Command {
	var examples string
	var printThem bool
	c := &cobra.Command{
		Use:   "test FILE…",
		Short: "Run the examples beside service files: requests, and the operation that each is",
		Long: `Run the examples beside service files: NAME.txt beside NAME.yaml holds requests, and below
each the operation that it is. Nothing is sent. It fails for each request that is something
else, and names the operations that no example is. With --print the file is printed with
what each request is; that is how a first version is written, with "= ?" below each request:

    POST https://api.example.com/v1/projects/web/tickets?notify=1
    Header: value
    {"title": "a body, in one line"}
    = create-ticket web

"! unknown" is no operation, "! query" a query key and "! body" a body that none takes, "+"
a feature that has to be granted as well ("?": one that can't be). Lines with # are comments.`,
		Example: "  bulkhead service test ~/.config/bulkhead/services/*.yaml\n  bulkhead service test tickets.yaml --examples more.txt",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if examples != "" && len(args) > 1 {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "--examples is for one service; leave it out, and each NAME.yaml has its NAME.txt")
			}
			var bad []string
			for _, file := range args {
				problems, err := testService(cmd, file, examples, printThem)
				if err != nil {
					problems = append(problems, err.Error())
				}
				bad = append(bad, problems...)
			}
			if len(bad) > 0 {
				return vocabulary.Exitf(vocabulary.ExitPolicyInvalid, "%s", strings.Join(bad, "\n"))
			}
			return nil
		},
	}
	c.Flags().StringVar(&examples, "examples", "", "examples `FILE` instead of NAME.txt beside NAME.yaml")
	c.Flags().BoolVar(&printThem, "print", false, "print the examples with what each request is")
	return c
}

// testService returns what is not as the examples say.
func testService(cmd *cobra.Command, file, examples string, printThem bool) (problems []string, err error) {
	data, err := readBounded(file)
	if err != nil {
		return nil, err
	}
	svc, err := catalog.Parse(file, data)
	if err != nil {
		return nil, err
	}
	if examples == "" {
		examples = strings.TrimSuffix(file, filepath.Ext(file)) + ".txt"
	}
	if data, err = readBounded(examples); err != nil {
		return nil, fmt.Errorf("the examples of %s: %w\nwrite them there, or name them with --examples (bulkhead service test --help)", file, err)
	}
	x, err := svc.Examples(examples, data)
	if err != nil {
		return nil, err
	}
	if printThem {
		_, err := fmt.Fprint(cmd.OutOrStdout(), x.Text())
		return nil, err
	}
	for _, a := range x.Answers {
		if !a.OK() {
			problems = append(problems, fmt.Sprintf("%s:%d: %s\n  is       %s\n  expected %s", examples, a.Line, printable(a.Request), printable(a.Got), printable(a.Want)))
		}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: %d of %d examples are as expected\n", examples, len(x.Answers)-len(problems), len(x.Answers))
	if len(x.Uncovered) > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: no example is %s\n", examples, strings.Join(x.Uncovered, ", "))
	}
	return problems, nil
}
