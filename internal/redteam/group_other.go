//go:build !unix

package redteam

import "os/exec"

// ownGroup does nothing here: cancellation ends the command, not its children.
func ownGroup(*exec.Cmd) {}

func endGroup(*exec.Cmd) {}
