package session

import (
	"github.com/bulkhead-dev/bulkhead/internal/kernel"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/instance"
)

// Limits says what would enforce the limits of a session here.
func Limits() []kernel.Limit { return instance.Survey() }
