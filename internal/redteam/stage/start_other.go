//go:build !linux

package stage

import (
	"context"
	"os"
	"os/exec"
)

const nonblock = 0

// CanBePrivate is false: stages need Linux.
func CanBePrivate(string) bool { return false }

// Run needs Linux.
func Run(context.Context, Job, string) (Outcome, error) { return Outcome{}, ErrHost }

func pair() (ours, theirs *os.File, err error) { return nil, nil, ErrHost }

func asUser(*exec.Cmd, User)   {}
func endGroup(*exec.Cmd, bool) {}
