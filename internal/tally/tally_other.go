//go:build !linux

// Package tally needs Linux.
package tally
