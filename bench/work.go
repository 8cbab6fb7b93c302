package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// work measures a Go build and git status, inside and outside. The command is
// timed where it runs, so the start of the session is not part of it.
func (b *bench) work() error {
	root, dir, policyFile, err := b.goWorkspace("work")
	if err != nil {
		return err
	}
	if err := goModule(filepath.Join(dir, "module"), 40); err != nil {
		return err
	}
	if err := gitRepository(filepath.Join(dir, "repository"), 5000); err != nil {
		return err
	}
	timer := filepath.Join(dir, "bench")
	if err := copyFile(timer, b.self); err != nil {
		return err
	}
	tasks := []struct {
		name string
		n    string
		argv []string
	}{
		{"go build, 40 packages", "3", []string{"-dir", filepath.Join(dir, "module"), "-touch", "--", filepath.Join(root, "bin", "go"), "build", "-o", os.DevNull, "./..."}},
		{"git status, 5,000 files", "15", []string{"-dir", filepath.Join(dir, "repository"), "--", "git", "status", "--porcelain"}},
	}
	const rounds = 7
	for _, t := range tasks {
		args := append([]string{"time", "-n", t.n, "-cache", filepath.Join(dir, "gocache")}, t.argv...)
		var inside, outside []time.Duration
		for i := range rounds + 1 {
			out, err := b.clientRun(dir, append([]string{timer}, args...)...)
			if err != nil {
				return fmt.Errorf("%s, outside: %w", t.name, err)
			}
			in, err := b.clientRun(dir, append([]string{b.bulkhead, "run", "--policy", policyFile, "--", timer}, args...)...)
			if err != nil {
				return fmt.Errorf("%s, inside: %w", t.name, err)
			}
			if i > 0 { // the first pair fills the caches
				inside, outside = append(inside, in), append(outside, out)
			}
		}
		in, out := median(inside), median(outside)
		b.add(row{Question: "work", Name: t.name + ", outside", Median: ms(out)})
		r := row{Question: "work", Name: t.name + ", inside", Median: ms(in), Ratio: fmt.Sprintf("%.3f× outside", times(in, out))}
		b.add(goal(r, "≤ 1.05× outside", times(in, out) <= 1.05))
	}
	return nil
}

// goWorkspace makes a workspace in which the host's Go can be seen.
func (b *bench) goWorkspace(name string) (root, dir, policyFile string, err error) {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", "", "", fmt.Errorf("go env GOROOT: %w", err)
	}
	root = strings.TrimSpace(string(goroot))
	policy := "version: 1\nworkspace: {path: ., mode: rw}\n"
	if !strings.HasPrefix(root, "/usr/") {
		policy += fmt.Sprintf("mounts:\n  - {path: %q, mode: ro}\n", root)
	}
	dir, policyFile, err = b.workspace(name, policy)
	return root, dir, policyFile, err
}

// timeMain is the program inside: it runs a command n times and prints the
// median. -touch changes every Go file first, so that all is built anew.
func timeMain(args []string) int {
	fs := flag.NewFlagSet("time", flag.ExitOnError)
	n := fs.Int("n", 5, "runs")
	dir := fs.String("dir", ".", "where to run")
	touch := fs.Bool("touch", false, "change the Go files before each run")
	cache := fs.String("cache", "", "Go's build cache")
	fs.Parse(args)
	var took []time.Duration
	for range *n {
		if *touch {
			if err := touchModule(*dir); err != nil {
				fmt.Fprintln(os.Stderr, "time:", err)
				return 1
			}
		}
		cmd := exec.Command(fs.Arg(0), fs.Args()[1:]...)
		cmd.Dir = *dir
		cmd.Env = append(os.Environ(), "GOCACHE="+*cache, "GOFLAGS=", "GOTOOLCHAIN=local", "GOPROXY=off", "CGO_ENABLED=0", "GOTELEMETRY=off")
		begin := time.Now()
		out, err := cmd.CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "time: %s: %v: %s\n", strings.Join(fs.Args(), " "), err, firstLine(string(out)))
			return 1
		}
		took = append(took, time.Since(begin))
	}
	json.NewEncoder(os.Stdout).Encode(clientReport{median(took), *n})
	return 0
}

func goModule(dir string, packages int) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module bench.example/m\n\ngo 1.21\n"), 0o644); err != nil {
		return err
	}
	for i := range packages {
		pkg := filepath.Join(dir, fmt.Sprintf("p%02d", i))
		if err := os.MkdirAll(pkg, 0o755); err != nil {
			return err
		}
		var src strings.Builder
		fmt.Fprintf(&src, "package p%02d\n\nimport (\n\t\"encoding/json\"\n\t\"fmt\"\n\t\"strings\"\n)\n", i)
		for j := range 40 {
			fmt.Fprintf(&src, "\nfunc F%d(v any) (string, error) {\n\tb, err := json.Marshal(v)\n\tif err != nil {\n\t\treturn \"\", fmt.Errorf(\"f%d: %%w\", err)\n\t}\n\treturn strings.ToUpper(string(b)), nil\n}\n", j, j)
		}
		if err := os.WriteFile(filepath.Join(pkg, "p.go"), []byte(src.String()), 0o644); err != nil {
			return err
		}
	}
	return touchModule(dir)
}

func touchModule(dir string) error {
	pkgs, err := filepath.Glob(filepath.Join(dir, "p*"))
	if err != nil {
		return err
	}
	for _, p := range pkgs {
		src := fmt.Sprintf("package %s\n\nconst Nonce = %d\n", filepath.Base(p), time.Now().UnixNano())
		if err := os.WriteFile(filepath.Join(p, "nonce.go"), []byte(src), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func gitRepository(dir string, files int) error {
	for i := range files {
		sub := filepath.Join(dir, fmt.Sprintf("d%02d", i%50))
		if i < 50 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%04d.txt", i)), []byte(strings.Repeat("line\n", i%60)), 0o644); err != nil {
			return err
		}
	}
	for _, argv := range [][]string{
		{"git", "init", "-q"},
		{"git", "add", "."},
		{"git", "-c", "user.name=bench", "-c", "user.email=bench@example.com", "commit", "-q", "-m", "files"},
	} {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, firstLine(string(out)))
		}
	}
	return nil
}
