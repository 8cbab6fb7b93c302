//go:build redteam_switches

package switches

import (
	"slices"
	"strings"
)

// off is set by the linker.
var off string

// Off reports whether an enforcement is taken out of this test build.
func Off(name string) bool { return slices.Contains(Taken(), name) }

// Taken lists what is off.
func Taken() []string {
	if off == "" {
		return nil
	}
	return strings.Split(off, ",")
}
