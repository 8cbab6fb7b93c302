package egress

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Only package dial opens sockets (DESIGN section 5, rule 10), and only confine
// and the spawning half of this package touch other processes.
func TestOnlyTheDiallerDials(t *testing.T) {
	forbidden := map[string]map[string]bool{
		"net":        {"Dial": true, "DialTimeout": true, "DialTCP": true, "DialUDP": true, "DialIP": true, "DialUnix": true, "Dialer": true, "Listen": true, "ListenTCP": true, "ListenUDP": true, "ListenPacket": true, "ListenUnix": true, "ListenConfig": true, "Resolver": true, "DefaultResolver": true, "LookupHost": true, "LookupIP": true, "LookupAddr": true, "LookupTXT": true, "ResolveTCPAddr": true, "ResolveUDPAddr": true, "ResolveIPAddr": true},
		"net/http":   {"Get": true, "Post": true, "Head": true, "PostForm": true, "DefaultClient": true, "DefaultTransport": true, "Client": true, "Transport": true, "ListenAndServe": true, "ListenAndServeTLS": true, "ProxyFromEnvironment": true},
		"crypto/tls": {"Dial": true, "DialWithDialer": true, "Dialer": true, "Listen": true},
		"os":         {"Open": true, "OpenFile": true, "Create": true, "ReadFile": true, "WriteFile": true, "StartProcess": true},
		"os/exec":    {"Command": true, "CommandContext": true},
		"syscall":    {"Socket": true, "Connect": true},
		"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet": {"DialTCP": true, "DialContextTCP": true},
		"golang.org/x/sys/unix":                      {"Socket": true, "Connect": true, "Open": true, "Openat": true},
	}
	files := 0
	err := filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || filepath.Dir(path) == "dial" {
			return err
		}
		files++
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n := strings.Count(string(src), "\n"); n >= 800 {
			t.Errorf("%s has %d lines", path, n)
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, src, 0)
		if err != nil {
			return err
		}
		imports := map[string]string{}
		for _, im := range f.Imports {
			p := strings.Trim(im.Path.Value, `"`)
			name := p[strings.LastIndexByte(p, '/')+1:]
			if im.Name != nil {
				name = im.Name.Name
			}
			imports[name] = p
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok && forbidden[imports[x.Name]][s.Sel.Name] {
				t.Errorf("%s uses %s.%s: only package dial opens sockets, and the gateway opens no files", path, imports[x.Name], s.Sel.Name)
			}
			return true
		})
		return nil
	})
	if err != nil || files < 15 {
		t.Errorf("%d files: %v", files, err)
	}
}
