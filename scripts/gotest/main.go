// Command gotest runs go test, shows what a person needs (one line a package,
// the whole output of what failed) and ends with every skipped test and what
// was therefore not proven.
//
//	go run ./scripts/gotest [-skips FILE] [go test flags] packages
//
// With -skips, a skip that FILE does not name is a failure.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

type testEvent struct {
	Action  string
	Package string
	Test    string
	Output  string
	// ImportPath is set instead of Package for build output.
	ImportPath string
}

type key struct{ pkg, test string }

type tally struct {
	output         map[key][]string
	passed, failed int
	skipped        []key
	broken         map[string]bool // packages with a failed test
}

func main() {
	args := os.Args[1:]
	var skipsFile string
	if len(args) >= 2 && (args[0] == "-skips" || args[0] == "--skips") {
		skipsFile, args = args[1], args[2:]
	}
	allowed, err := readSkips(skipsFile)
	if err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
		os.Exit(2)
	}
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
		os.Exit(2)
	}
	t := &tally{output: map[key][]string{}, broken: map[string]bool{}}
	sc := bufio.NewScanner(stdout)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		t.line(sc.Bytes())
	}
	waitErr := cmd.Wait()

	refused := 0
	for _, k := range t.skipped {
		reason := "allowed"
		if skipsFile != "" && !slices.ContainsFunc(allowed, func(p string) bool { return matches(p, k) }) {
			reason = "NOT ALLOWED by " + skipsFile
			refused++
		}
		fmt.Printf("skipped (%s): %s %s\n%s", reason, k.pkg, k.test, indent(t.output[k]))
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed+refused, len(t.skipped)-refused)
	if waitErr != nil || sc.Err() != nil || refused > 0 || t.failed > 0 {
		os.Exit(1)
	}
}

func (t *tally) line(raw []byte) {
	var e testEvent
	if json.Unmarshal(raw, &e) != nil {
		fmt.Printf("%s\n", raw)
		return
	}
	k := key{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Print(e.Output)
	case "output":
		if e.Test == "" {
			// "PASS" alone says nothing that the ok line does not.
			if e.Output != "PASS\n" && e.Output != "FAIL\n" {
				fmt.Print(e.Output)
			}
			return
		}
		t.output[k] = append(t.output[k], e.Output)
	case "pass":
		if e.Test != "" {
			t.passed++
		}
		delete(t.output, k)
	case "fail":
		if e.Test == "" {
			t.packageFailed(e.Package)
			return
		}
		t.failed++
		t.broken[e.Package] = true
		fmt.Print(strings.Join(t.output[k], ""))
		delete(t.output, k)
	case "skip":
		if e.Test != "" {
			t.skipped = append(t.skipped, k)
		}
	}
}

// packageFailed shows the tests that a panic or the time limit cut off, and
// counts a package that failed without a failing test: one that did not build.
func (t *tally) packageFailed(pkg string) {
	for k, out := range t.output {
		if k.pkg == pkg && !slices.Contains(t.skipped, k) {
			fmt.Print(strings.Join(out, ""))
			delete(t.output, k)
		}
	}
	if !t.broken[pkg] {
		t.failed++
	}
}

func readSkips(file string) ([]string, error) {
	if file == "" {
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) < 2 {
			return nil, fmt.Errorf("%s: %q has no reason", file, fields[0])
		}
		names = append(names, fields[0])
	}
	return names, nil
}

// matches compares a pattern of the skips file with the end of the package
// path and the test's name.
func matches(pattern string, k key) bool {
	name := "/" + k.pkg + "/" + k.test
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.Contains(name, "/"+prefix)
	}
	return strings.HasSuffix(name, "/"+pattern)
}

func indent(lines []string) string {
	var b strings.Builder
	for _, l := range lines {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "=== ") || strings.HasPrefix(l, "--- ") {
			continue
		}
		b.WriteString("    " + l + "\n")
	}
	return b.String()
}
