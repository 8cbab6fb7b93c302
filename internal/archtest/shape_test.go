package archtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const maxLines = 800

// vague names say where code was put and not what it does.
var vague = regexp.MustCompile(`^(util|utils|common|helper|helpers|manager|managers|core|base|misc|shared|lib)$|utils?$|helpers?$`)

func checkShape(p *pkg) (found []string) {
	doc, hasCode := "", false
	names := map[string]bool{}
	for _, f := range p.files {
		if f.lines >= maxLines {
			found = append(found, fmt.Sprintf("%s has %d lines, %d or more are too many to read at once", f.name, f.lines, maxLines))
		}
		name := strings.TrimSuffix(f.ast.Name.Name, "_test")
		for _, n := range []string{name, path.Base(p.path)} {
			if vague.MatchString(n) && !names[n] {
				names[n] = true
				found = append(found, fmt.Sprintf("%s: %q does not say what is inside", f.name, n))
			}
		}
		if f.test {
			continue
		}
		hasCode = true
		if f.ast.Doc == nil {
			continue
		}
		text := f.ast.Doc.Text()
		if doc != "" && text != "" {
			found = append(found, fmt.Sprintf("%s: a second package comment", f.name))
		}
		doc += text
	}
	if !hasCode {
		return found
	}
	want := "Package " + p.files[0].ast.Name.Name + " "
	for _, f := range p.files {
		if f.ast.Name.Name == "main" {
			want = "Command "
		}
	}
	if !strings.HasPrefix(doc, want) {
		found = append(found, fmt.Sprintf("%s: no package comment that begins with %q and gives the contract", p.path, want))
	}
	return found
}

func TestShape(t *testing.T) {
	for _, p := range tree(t) {
		report(t, checkShape(p))
	}
}

func TestShapeRulesRefuse(t *testing.T) {
	const good = "// Package x does one thing.\npackage x\n"
	if found := checkShape(sample(t, "internal/x", good)); len(found) != 0 {
		t.Errorf("%q", found)
	}
	for name, p := range map[string]*pkg{
		"no comment":    sample(t, "internal/x", "package x\n"),
		"wrong comment": sample(t, "internal/x", "// Does things.\npackage x\n"),
		"two comments":  sample(t, "internal/x", good, good),
		"long file":     sample(t, "internal/x", good+strings.Repeat("\n", maxLines)),
		"utils":         sample(t, "internal/x", "// Package netutils does.\npackage netutils\n"),
		"common folder": sample(t, "internal/common", good),
	} {
		if found := checkShape(p); len(found) == 0 {
			t.Errorf("%s was not noticed", name)
		}
	}
}

// TestOtherSystemsCompile builds the command line where it can only say what it
// cannot do. It takes minutes with a cold cache.
func TestOtherSystemsCompile(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: not proven: that ./cmd/bulkhead compiles for macOS and Windows")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	for _, system := range []string{"darwin/arm64", "windows/amd64", "linux/arm64"} {
		goos, goarch, _ := strings.Cut(system, "/")
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(t.TempDir(), "bulkhead"), "./cmd/bulkhead")
		cmd.Dir = filepath.Join("..", "..")
		cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", system, err, out)
		}
	}
}
