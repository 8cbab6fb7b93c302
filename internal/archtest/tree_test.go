package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/bulkhead-dev/bulkhead"

// pkg is one folder of the tree; its path is relative to the module.
type pkg struct {
	path  string
	files []*file
}

type file struct {
	name  string // relative to the module
	test  bool
	lines int
	ast   *ast.File
	fset  *token.FileSet
}

func (f *file) at(p token.Pos) string {
	return f.name + ":" + strconv.Itoa(f.fset.Position(p).Line)
}

// imports maps the name that a file uses for an import to its path.
func (f *file) imports() map[string]string {
	m := map[string]string{}
	for _, i := range f.ast.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			continue
		}
		name := path.Base(p)
		if i.Name != nil {
			name = i.Name.Name
		} else if v := name; len(v) > 1 && v[0] == 'v' && strings.Trim(v[1:], "0123456789") == "" {
			name = path.Base(path.Dir(p))
		}
		m[name] = p
	}
	return m
}

// inModule cuts the module from an import path.
func inModule(imported string) (string, bool) {
	return strings.CutPrefix(imported, module+"/")
}

func parseFile(t *testing.T, fset *token.FileSet, name string, src []byte) *file {
	t.Helper()
	parsed, err := parser.ParseFile(fset, name, src, parser.ParseComments)
	if err != nil {
		t.Errorf("%v", err)
		return nil
	}
	return &file{name: name, test: strings.HasSuffix(name, "_test.go"), lines: strings.Count(string(src), "\n"), ast: parsed, fset: fset}
}

// tree reads every Go file of the module.
func tree(t *testing.T) []*pkg {
	t.Helper()
	root := filepath.Join("..", "..")
	if mod, err := os.ReadFile(filepath.Join(root, "go.mod")); err != nil || !strings.Contains(string(mod), "module "+module+"\n") {
		t.Fatalf("the module's root is not at %s: %v", root, err)
	}
	fset := token.NewFileSet()
	packages := map[string]*pkg{}
	var all []*pkg
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) { // removed while we were walking
				return nil
			}
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if n := d.Name(); rel != "." && (n == "testdata" || n == "vendor" || strings.HasPrefix(n, ".") || strings.HasPrefix(n, "_")) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") || !d.Type().IsRegular() {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return nil
		}
		f := parseFile(t, fset, rel, src)
		if f == nil {
			return nil
		}
		dir := path.Dir(rel)
		if packages[dir] == nil {
			packages[dir] = &pkg{path: dir}
			all = append(all, packages[dir])
		}
		packages[dir].files = append(packages[dir].files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 5 {
		t.Fatalf("only %d packages found", len(all))
	}
	return all
}

// sample makes a package from source, to show that a rule refuses.
func sample(t *testing.T, path string, sources ...string) *pkg {
	t.Helper()
	p := &pkg{path: path}
	fset := token.NewFileSet()
	for i, s := range sources {
		if f := parseFile(t, fset, path+"/sample"+strconv.Itoa(i)+".go", []byte(s)); f != nil {
			p.files = append(p.files, f)
		}
	}
	return p
}

// report turns findings into test errors.
func report(t *testing.T, findings []string) {
	t.Helper()
	for _, f := range findings {
		t.Error(f)
	}
}
