//go:build !unix

package main

import "os/exec"

func ownGroup(*exec.Cmd) {}

func endGroup(cmd *exec.Cmd, ended <-chan struct{}) {
	cmd.Process.Kill()
	<-ended
}
