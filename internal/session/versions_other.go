//go:build !linux

package session

import "github.com/bulkhead-dev/bulkhead/internal/sandbox"

// versions are only kept on Linux.
type versions struct{ folders []struct{} }

func (s *session) openVersions() error                          { return nil }
func (s *session) closeVersions(bool)                           {}
func (v *versions) keep(sandbox.Change) (*sandbox.Spool, error) { return nil, nil }
func (v *versions) made(string)                                 {}
