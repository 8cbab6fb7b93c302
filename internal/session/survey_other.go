//go:build !linux

package session

import "github.com/bulkhead-dev/bulkhead/internal/kernel"

// Limits says nothing where there are no sessions.
func Limits() []kernel.Limit { return nil }
