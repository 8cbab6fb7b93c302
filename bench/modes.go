package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// npmProject is a real one to install: a server with what it depends on.
const npmProject = `{"name":"bench","version":"1.0.0","private":true,"dependencies":{"express":"4.21.2","eslint":"9.17.0"}}`

// modeTask is work in a workspace. Reset runs outside before each run, so that
// every run does the same work for the first time in its session.
type modeTask struct {
	name  string
	dir   string
	reset [][]string
	argv  []string
	runs  int // in one session, of which the median counts
}

// modes measures work in a workspace in each mode that writes, beside the same
// outside. The command is timed where it runs; each run is a session of its own,
// and in the direct modes it keeps versions of all that it changes.
func (b *bench) modes() error {
	root, dir, policyFile, err := b.goWorkspace("modes")
	if err != nil {
		return err
	}
	// Its layers and versions are thrown away with the rest.
	os.Setenv("XDG_STATE_HOME", filepath.Join(b.dir, "modes", "state"))
	module, repository, project := filepath.Join(dir, "module"), filepath.Join(dir, "repository"), filepath.Join(dir, "project")
	timer, cache := filepath.Join(dir, "bench"), filepath.Join(dir, "npmcache")
	steps := []func() error{
		func() error { return goModule(module, 40) },
		func() error { return gitRepository(repository, 5000) },
		func() error { return secondBranch(repository) },
		func() error { return copyFile(timer, b.self) },
		func() error { return os.MkdirAll(project, 0o755) },
		func() error {
			return os.WriteFile(filepath.Join(project, "package.json"), []byte(npmProject), 0o644)
		},
		func() error {
			return outside(project, "npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", cache)
		},
		func() error { // what an offline one needs
			return outside(project, "npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", cache)
		},
	}
	for _, do := range steps {
		if err := do(); err != nil {
			return err
		}
	}
	tasks := []modeTask{
		{"git status, 5,000 files, first in a session", repository, nil, []string{"git", "status", "--porcelain"}, 1},
		{"git status, 5,000 files, again", repository, nil, []string{"git", "status", "--porcelain"}, 9},
		{"git checkout, 2,500 files", repository, [][]string{{"git", "checkout", "-q", "first"}}, []string{"git", "checkout", "-q", "second"}, 1},
		{"go build, 40 packages", module, nil, []string{"-touch", "--", filepath.Join(root, "bin", "go"), "build", "-o", os.DevNull, "./..."}, 1},
		{"npm ci, offline", project, [][]string{{"rm", "-rf", "node_modules"}}, []string{"npm", "ci", "--silent", "--offline", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", cache}, 1},
	}
	ways := []string{"outside", "rw", "staged", "rw-no-delete", "rw in a container", "staged in a container"}
	const rounds = 5
	for _, t := range tasks {
		took := map[string][]time.Duration{}
		for i := range rounds + 1 {
			for _, way := range ways {
				d, err := b.modeRun(t, way, dir, timer, policyFile)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", t.name, way, err)
				}
				if i > 0 { // the first fills the caches
					took[way] = append(took[way], d)
				}
			}
		}
		out := median(took["outside"])
		b.add(row{Question: "modes", Name: t.name + ", outside", Median: ms(out)})
		for _, way := range ways[1:] {
			most := 1.1
			if way == "rw-no-delete" {
				most = 3
			}
			in := median(took[way])
			r := row{Question: "modes", Name: t.name + ", " + way, Median: ms(in), Ratio: fmt.Sprintf("%.3f× outside", times(in, out))}
			if strings.HasSuffix(way, " in a container") {
				b.add(r)
				continue
			}
			b.add(goal(r, fmt.Sprintf("≤ %g× outside", most), times(in, out) <= most))
		}
	}
	return nil
}

func (b *bench) modeRun(t modeTask, way, dir, timer, policyFile string) (time.Duration, error) {
	for _, argv := range t.reset {
		if err := outside(t.dir, argv...); err != nil {
			return 0, err
		}
	}
	args := append([]string{timer, "time", "-n", strconv.Itoa(t.runs), "-cache", filepath.Join(dir, "gocache"), "-dir", t.dir}, t.argv...)
	if way != "outside" {
		mode, in, _ := strings.Cut(way, " in a ")
		isolation := "process"
		if in != "" {
			isolation = in
		}
		args = append([]string{b.bulkhead, "run", "--policy", policyFile, "--isolation", isolation, "--workspace", dir + ":" + mode, "--"}, args...)
	}
	return b.clientRun(dir, args...)
}

func outside(dir string, argv ...string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, firstLine(string(out)))
	}
	return nil
}

// secondBranch makes two branches that differ in half of the files.
func secondBranch(dir string) error {
	if err := outside(dir, "git", "checkout", "-q", "-b", "first"); err != nil {
		return err
	}
	if err := outside(dir, "git", "checkout", "-q", "-b", "second"); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, "d*", "f*[02468].txt"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.WriteFile(f, []byte("changed\n"), 0o644); err != nil {
			return err
		}
	}
	return outside(dir, "git", "-c", "user.name=bench", "-c", "user.email=bench@example.com", "commit", "-qam", "second")
}
