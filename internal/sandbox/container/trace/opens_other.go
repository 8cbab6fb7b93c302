//go:build !amd64

package trace

var oldOpens []string
