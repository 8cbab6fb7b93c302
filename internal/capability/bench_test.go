package capability

import (
	"fmt"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func BenchmarkDecide(b *testing.B) {
	for _, rules := range []int{0, 10, 100, 1000} {
		spec := parse(b, testPolicy)
		for i := range rules {
			spec.Rules = append(spec.Rules, Rule{HTTP: fmt.Sprintf("https://h%d.example.net/**", i)})
		}
		s := compile(b, spec)
		for name, lines := range map[string][]string{
			"raw":   {"GET https://docs.example.com/3/x"},
			"typed": {"POST https://github.com/acme/widgets/git-upload-pack", "Authorization: Bearer " + githubPlaceholder, "User-Agent: git/2.47.3", "Accept: */*", "Git-Protocol: version=2"},
			"body":  {"POST https://api.anthropic.com/v1/messages", "X-Api-Key: " + claudePlaceholder, hello},
		} {
			r := newRequest(b, lines...)
			b.Run(fmt.Sprintf("%s/rules=%d", name, len(spec.Rules)), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if d := s.Decide(r, identity); d.Verdict != vocabulary.Allow {
						b.Fatal(d.Reason)
					}
				}
			})
		}
	}
}

// BenchmarkDecideCrowded has all grants about the host and operation that is
// asked for, so that the index has to tell them apart by path and resource.
func BenchmarkDecideCrowded(b *testing.B) {
	for _, n := range []int{10, 1000} {
		spec := parse(b, testPolicy)
		for i := range n {
			spec.Rules = append(spec.Rules,
				Rule{HTTP: fmt.Sprintf("https://docs.example.com/p%d/**", i)},
				Rule{HTTP: fmt.Sprintf("https://docs.example.com/v1/p%d/**", i)},
				Rule{Service: "github", Operations: []string{"fetch"}, Resources: []string{fmt.Sprintf("o%d/r", i)}, Credential: "gh"})
		}
		s := compile(b, spec)
		for name, lines := range map[string][]string{
			"raw":   {"GET https://docs.example.com/v1/p3/x"},
			"typed": {"POST https://github.com/o3/r/git-upload-pack", "Authorization: Bearer " + githubPlaceholder, "User-Agent: git/2.47.3", "Accept: */*", "Git-Protocol: version=2"},
		} {
			r := newRequest(b, lines...)
			b.Run(fmt.Sprintf("%s/rules=%d", name, len(spec.Rules)), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if d := s.Decide(r, identity); d.Verdict != vocabulary.Allow {
						b.Fatal(d.Reason)
					}
				}
			})
		}
	}
}

func BenchmarkDeny(b *testing.B) {
	s := compile(b, parse(b, testPolicy))
	r := newRequest(b, "GET https://evil.example/x")
	for b.Loop() {
		s.Decide(r, identity)
	}
}

func BenchmarkCompile(b *testing.B) {
	spec := parse(b, testPolicy)
	for b.Loop() {
		if _, err := Compile(spec, catalog.Default()); err != nil {
			b.Fatal(err)
		}
	}
}
