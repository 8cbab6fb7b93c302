package stage

import (
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/scenario"
)

func mustParse(t *testing.T, parts string) *scenario.Scenario {
	t.Helper()
	s, err := scenario.Parse("x.txtar", []byte("title: t\ncategory: FS\noutcome: escape\ntiers: [process]\nattacker: a\ncovers: [FS-01]\neffects: [{at: host, is: changed}]\ntwin: [{at: ./r, has: beacon}]\n-- payload.sh --\ntrue\n-- twin.sh --\ntrue\n"+parts))
	if err != nil {
		t.Fatal(err)
	}
	return s
}
