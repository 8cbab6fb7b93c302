package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestSteering: the variables of gVisor's that this program has by name are what it
// takes them for, and the loop that it replaces is the one it knows.
func TestSteering(t *testing.T) {
	dir := packageDir(t, "gvisor.dev/gvisor/pkg/sentry/platform/systrap")
	theirs := parse(t, filepath.Join(dir, "metrics.go"))
	ours := parse(t, "rest_linux.go")

	for of, as := range map[string]string{"fastPathState": "state", "latencyRecorder": "latencies"} {
		want, got := fields(theirs, of), fields(ours, as)
		if len(want) == 0 || !slices.Equal(want, got) {
			t.Errorf("%s:\ngVisor's %q\nours     %q", of, want, got)
		}
	}
	if text := source(theirs, "latencyBuckets"); text != "[numLatencyBuckets]atomicbitops.Uint64" {
		t.Errorf("latencyBuckets is %s", text)
	}
	for name, is := range map[string]string{"numLatencyBuckets": "80", "recordingPeriod": "400 * time.Microsecond", "fastPathContextLimit": "uint32(0)"} {
		if got := source(theirs, name); got != is {
			t.Errorf("%s is %q, not %q", name, got, is)
		}
	}
	const loop = "fastPathContextLimit = uint32(maxSysmsgThreads * 2); for {time.Sleep(recordingPeriod); fastpath.curState(&fastpath); " +
		"fastpath.usedStubFastPath.Store(false); fastpath.usedSentryFastPath.Store(false)}"
	ast.Inspect(theirs, func(n ast.Node) bool {
		if f, ok := n.(*ast.FuncDecl); ok && f.Name.Name == "controlFastPath" {
			var parts []string
			for _, s := range f.Body.List {
				parts = append(parts, statement(s))
			}
			if got := strings.Join(parts, "; "); got != loop {
				t.Errorf("controlFastPath is %s", got)
			}
			return false
		}
		return true
	})
	systrap, subprocess := parse(t, filepath.Join(dir, "systrap.go")), parse(t, filepath.Join(dir, "subprocess.go"))
	if got := source(systrap, "latencyMonitoring"); got != "sync.Once" {
		t.Errorf("latencyMonitoring is %q", got)
	}
	if got := source(subprocess, "maxSysmsgThreads"); got != "0" {
		t.Errorf("maxSysmsgThreads is %q", got)
	}
}

func packageDir(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func parse(t *testing.T, file string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// fields are the names and types of a struct's fields, ours under gVisor's names.
func fields(f *ast.File, name string) (all []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		var typ ast.Expr
		switch n := n.(type) {
		case *ast.TypeSpec:
			if n.Name.Name == name {
				typ = n.Type
			}
		case *ast.ValueSpec:
			if n.Names[0].Name == name {
				typ = n.Type
			}
		}
		if s, ok := typ.(*ast.StructType); ok {
			for _, field := range s.Fields.List {
				text := strings.NewReplacer("latencyBuckets", "switches", "*fastPathState", "*state").Replace(types.ExprString(field.Type))
				for _, n := range field.Names {
					all = append(all, n.Name+" "+text)
				}
			}
		}
		return true
	})
	return all
}

// source is what a name is defined as.
func source(f *ast.File, name string) (text string) {
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.TypeSpec:
			if n.Name.Name == name {
				text = types.ExprString(n.Type)
			}
		case *ast.ValueSpec:
			for i, id := range n.Names {
				switch {
				case id.Name != name:
				case i < len(n.Values):
					text = types.ExprString(n.Values[i])
				case n.Type != nil:
					text = types.ExprString(n.Type)
				}
			}
		}
		return true
	})
	return text
}

// statement is a statement of controlFastPath.
func statement(s ast.Stmt) string {
	switch s := s.(type) {
	case *ast.AssignStmt:
		return types.ExprString(s.Lhs[0]) + " " + s.Tok.String() + " " + types.ExprString(s.Rhs[0])
	case *ast.ExprStmt:
		return types.ExprString(s.X)
	case *ast.ForStmt:
		if s.Init != nil || s.Cond != nil || s.Post != nil {
			return "another loop"
		}
		var all []string
		for _, b := range s.Body.List {
			all = append(all, statement(b))
		}
		return "for {" + strings.Join(all, "; ") + "}"
	}
	return "another statement"
}
