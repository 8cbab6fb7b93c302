package policy

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// FuzzParse: no input panics; every refusal has a place and nothing that a
// terminal obeys; every policy that is accepted means the same after YAML; no
// policy that is accepted has a grant that is empty somewhere.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/ok/*.yaml", "testdata/bad/*.yaml", "../../catalog/presets/*.yaml"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ParsePreset("fuzz", data)
		ParseSecrets(data)
		p, err := Parse("fuzz.yaml", data)
		if err != nil {
			var list ErrorList
			if !errors.As(err, &list) || len(list) == 0 {
				t.Fatalf("%T %v", err, err)
			}
			for _, e := range list {
				if e.Pos.File != "fuzz.yaml" || e.Pos.Line < 1 || e.Pos.Column < 1 || e.Msg == "" || printable(e.Error()) != e.Error() {
					t.Fatalf("%#v", e)
				}
			}
			return
		}
		text := p.YAML()
		again, err := Parse("again.yaml", text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if d := cmp.Diff(p, again, samePolicy); d != "" {
			t.Fatalf("%s\n%s", d, text)
		}
		for _, g := range p.Grants {
			forms := 0
			for _, set := range []bool{g.Service != "" && len(g.Operations) > 0, g.HTTP != "" && len(g.Methods) > 0, g.TCP != ""} {
				if set {
					forms++
				}
			}
			if forms != 1 || g.Pos == (vocabulary.Position{}) {
				t.Fatalf("%+v", g)
			}
		}
	})
}
