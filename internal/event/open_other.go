//go:build !unix

package event

const noFollow = 0
