//go:build !linux

package session

// layer is only available on Linux.
type layer struct{}

func (layer) name() string { return "" }

func (s *session) openLayer() error { return nil }

func (s *session) closeLayer(bool) {}
