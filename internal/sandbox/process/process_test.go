//go:build linux

package process

import (
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { sandboxtest.Main(m) }

func TestConformance(t *testing.T) {
	sandboxtest.EachUser(t, func(t *testing.T) { sandboxtest.Run(t, &Backend{}, sandboxtest.Traits{}) })
}
