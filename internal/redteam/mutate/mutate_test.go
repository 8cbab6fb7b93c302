package mutate

import (
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/scenario"
)

func TestTriesAreDifferentAndTheSameAgain(t *testing.T) {
	all, err := scenario.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	varied := 0
	for _, s := range all {
		a, b := Tries(s, 20, 7), Tries(s, 20, 7)
		if len(s.Mutators) == 0 {
			if len(a) > 0 {
				t.Errorf("%s asks for none", s.Name)
			}
			continue
		}
		varied++
		if len(a) < 5 {
			t.Errorf("%s: only %d tries by %q", s.Name, len(a), s.Mutators)
		}
		seen := map[string]bool{}
		for i, x := range a {
			if seen[x.Payload] || x.Payload == s.Payload || len(x.How) == 0 || x.Payload != b[i].Payload {
				t.Errorf("%s: try %d %q", s.Name, i, x.How)
			}
			seen[x.Payload] = true
		}
	}
	if varied < 5 {
		t.Errorf("%d scenarios can be varied", varied)
	}
}

func TestEveryMutatorExists(t *testing.T) {
	for _, name := range scenario.Mutators {
		if len(variations[name]) == 0 {
			t.Errorf("%s varies nothing", name)
		}
	}
}

func TestMinimise(t *testing.T) {
	payload := "a\nfor i in 1 2; do\n  echo $i\ndone\nneedle\ncat <<EOF\nx\nEOF\nb\nother needle\n"
	asked := 0
	got := Minimise(payload, 100, func(p string) bool {
		asked++
		return strings.Contains(p, "\nneedle\n") || strings.HasPrefix(p, "needle\n")
	})
	if got != "needle\n" {
		t.Errorf("%q after %d", got, asked)
	}
	asked = 0
	Minimise(payload, 3, func(string) bool { asked++; return false })
	if asked > 3 {
		t.Errorf("asked %d times", asked)
	}
}

func TestCommands(t *testing.T) {
	got := Commands("a\nfor x in 1; do\n b\ndone; wait\npython <<'EOF'\nimport x\nEOF\nc \\\n d\n")
	want := []string{"a", "for x in 1; do\n b\ndone; wait", "python <<'EOF'\nimport x\nEOF", "c \\\n d"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func FuzzCommands(f *testing.F) {
	f.Add("a\nfor x in 1; do\n b\ndone\n")
	f.Add("cat <<EOF\n")
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := strings.Join(Commands(s), "\n"), strings.TrimRight(s, "\n"); got != want {
			t.Errorf("%q became %q", want, got)
		}
	})
}
